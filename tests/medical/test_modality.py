"""Scans that say they are of another modality than the network's: refused, unless that was asked for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hybrid.errors import InputError
from medical.segmentation.run import SegmentSettings, segment
from medical.volumes.modality import other_modality
from medical.volumes.volume import Volume, stack
from tests.command import Said, medical
from tests.medical.dicom_stubs import pixels, private, series
from tests.medical.stubs import protocol, save_untrained, smooth, volume
from tests.medical.test_cli_segment import scan
from tests.medical.test_segmentation import thresholds


class Origin:
    def __init__(self, modality: str | None) -> None:
        self.modality = modality


def of_kind(modality: str | None) -> Volume:
    return replace(volume(smooth(10, 12, 14)), origin=Origin(modality))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network for MR that has learnt nothing."""
    return save_untrained(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


def segmented(*arguments: str | Path) -> Said:
    return medical("segment", *arguments, "--no-report", "--precision", "float32", "--device", "cpu", "--threads", "1")


def ct_study(folder: Path) -> Path:
    series(folder, pixels(17, 18, 16), modality="CT")
    return folder


def test_a_ct_is_refused_by_a_network_for_mr() -> None:
    network = thresholds()
    with pytest.raises(InputError, match="trained on MR, and scan says that it is CT") as refused:
        segment(of_kind("CT"), network, protocol=protocol())
    assert refused.value.hint is not None and "--any-modality" in refused.value.hint and network.calls == 0
    found = segment(of_kind("CT"), network, SegmentSettings(any_modality=True), protocol=protocol())
    assert "The network was trained on MR, and the scan says that it is CT." in found.notes


@pytest.mark.parametrize("said", ["MR", "mr ", "", None, "OT"])
def test_a_scan_that_agrees_or_does_not_say_goes_on(said: str | None) -> None:
    assert segment(of_kind(said), thresholds(), protocol=protocol()).notes == ()


def test_the_usual_names_are_the_codes() -> None:
    assert other_modality(Origin("MR"), "MRI") == other_modality(Origin("PT"), "pet") == ""
    assert other_modality(Origin("CT"), "MRI") == "CT" and other_modality(None, "MR") == ""


def test_channels_of_several_modalities_are_told() -> None:
    assert any("MR, CT" in warning for warning in stack([of_kind("MR"), of_kind("CT")]).warnings)
    assert stack([of_kind("MR"), of_kind("MR")]).warnings == ()


def test_in_a_batch_the_one_fails_and_the_others_go_on(tmp_path: Path, weights: Path) -> None:
    scan(tmp_path / "in" / "a.nii.gz")
    ct_study(tmp_path / "in" / "ct")
    said = segmented(tmp_path / "in", "-o", tmp_path / "out", "--weights", weights)
    assert said.code == 1 and "1 of 2 scans failed" in said.err, said.err
    assert "trained on MR, and ct says that it is CT" in said.err and "--any-modality" in said.err
    assert (tmp_path / "out" / "a.nii.gz").is_file() and not list((tmp_path / "out").glob("ct*"))
    assert not private(said.err)
    again = segmented(tmp_path / "in", "-o", tmp_path / "out", "--weights", weights, "--any-modality")
    assert again.code == 0 and again.err.count("skipped") == 1, again.err
    record = json.loads((tmp_path / "out" / "ct.nii.gz.json").read_text())
    assert any("says that it is CT" in note for note in record["notes"])


def test_a_plan_refuses_it_too(tmp_path: Path, weights: Path) -> None:
    study = ct_study(tmp_path / "ct")
    assert segmented(study, "--weights", weights, "--plan").code == 3
    said = segmented(study, "--weights", weights, "--plan", "--any-modality")
    assert said.code == 0 and "says that it is CT" in said.err


def test_values_that_merely_look_like_ct_are_doubted_only() -> None:
    notes = segment(volume((smooth(10, 12, 14) * 300 - 900).astype(np.float32)), thresholds(), protocol=protocol()).notes
    assert any("look like CT" in note for note in notes)

"""Evaluation of folders and of networks: plans, failing cases, clamped labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hybrid.errors import InputError, RequestError
from medical.evaluation.engine import Folder, Target, plan_data_set, plan_folders, run_evaluation
from medical.evaluation.metrics import Conventions
from medical.evaluation.network import Network, check_structures
from medical.structures import Structure
from medical.volumes.label_maps import write_labels
from medical.volumes.volume import read_volume
from tests.medical.evaluation_stubs import AFFINE, command, data, described, labels, network, predictions, put
from tests.medical.stubs import Stub, protocol

__all__ = ["data", "predictions"]  # fixtures


def test_a_folder_against_a_folder(data: Path, predictions: Path) -> None:
    plan = plan_folders(Folder(predictions), data / "balls" / "labelsTr", Conventions())
    assert [case.name for case in plan.cases] == ["b0", "b1", "b2", "b3"]
    seen = []
    result = run_evaluation(plan, Folder(predictions), on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert result.exit_code == 1 and [failure.name for failure in result.failures] == ["b3"]
    assert "no prediction b3.nii.gz" in str(result.failures[0].error)
    assert result.targets == (Target("label 1", (1,)), Target("label 2", (2,)))
    dice, hd95 = result.table("dice"), result.table("hd95")
    assert dice.shape == (3, 2) and dice[0] == pytest.approx(1) and (dice[1] > dice[2]).all() and (dice[2] > 0).all()
    # b2 is moved by two voxels of 0.8 mm along i
    assert hd95[2] == pytest.approx(1.6, abs=1e-6)
    assert result.results[0].spacing == pytest.approx((0.8, 1.0, 1.5))


def test_a_network_on_a_data_set(data: Path) -> None:
    plan = plan_data_set(described(), data, "val", title="thresholds")
    model = network()
    result = run_evaluation(plan, model, made=model.made(plan.spec))
    assert result.exit_code == 0 and [case.name for case in plan.cases] == ["b0", "b1", "b2"]
    assert result.table("dice") == pytest.approx(1) and result.table("hd95") == pytest.approx(0)
    assert result.table("nsd") == pytest.approx(1)


def test_a_network_sees_its_own_orientation_and_is_scored_in_the_references(data: Path) -> None:
    """The labels come back to the stored axes: a flip or swap would cost nearly all."""
    plan = plan_data_set(described(), data, "val", title="thresholds")
    result = run_evaluation(plan, network(orientation="ASR"))
    assert result.table("dice") == pytest.approx(1) and not result.failures


def test_several_files_are_the_channels_of_a_case(data: Path) -> None:
    folder = data / "balls"
    for number in range(3):
        truth = labels(0.8 * number)
        for channel, value in enumerate((1, 2)):
            put(folder / "imagesTr" / f"b{number}_{channel}.nii.gz", (truth == value).astype(np.float32))
    layout = {"name": "channels", "images": ["imagesTr/{case}_0", "imagesTr/{case}_1"], "labels": "labelsTr/{case}"}
    plan = plan_data_set(described(layouts=[layout], channels=["a", "b"]), data, "val", title="channels")
    asked = protocol(channels=("a", "b"), intensity={"kind": "window", "low": 0, "high": 1})
    model = Network(Stub(lambda x: torch.cat([0.5 - x.sum(1, keepdim=True), x], 1), channels=2), protocol=asked)
    assert run_evaluation(plan, model).table("dice") == pytest.approx(1)


def test_a_4d_file_holds_the_channels_of_a_case(data: Path) -> None:
    for number in range(3):
        truth = labels(0.8 * number)
        channels = np.stack([truth == 1, truth == 2], axis=-1).astype(np.float32)
        put(data / "balls" / "imagesTr" / f"b{number}.nii.gz", channels)
    asked = protocol(channels=("a", "b"), intensity={"kind": "window", "low": 0, "high": 1})
    model = Network(Stub(lambda x: torch.cat([0.5 - x.sum(1, keepdim=True), x], 1), channels=2), protocol=asked)
    assert run_evaluation(plan_data_set(described(), data, "val", title="4-D"), model).table("dice") == pytest.approx(1)


def test_one_bad_case_does_not_stop_the_rest(data: Path, predictions: Path) -> None:
    turned = AFFINE.copy()
    turned[:3, 0] *= -1
    put(predictions / "b0.nii.gz", labels(), turned)  # same shape, other place
    put(predictions / "b1.nii.gz", labels()[:, :-1])
    (data / "balls" / "labelsTr" / "b3.nii.gz").write_bytes(b"broken")
    put(predictions / "b3.nii.gz", labels())
    result = run_evaluation(plan_data_set(described(), data, "all", title="found"), Folder(predictions))
    assert [each.name for each in result.scored] == ["b2"] and result.exit_code == 1
    errors = [str(each.error) for each in result.failures]
    assert "voxels lie at other places" in errors[0]
    assert "24 x 13 x 12 voxels against 24 x 14 x 12" in errors[1]
    assert "b3.nii.gz" in errors[2]


def test_a_broken_scan_is_a_failed_row(data: Path) -> None:
    (data / "balls" / "imagesTr" / "b1.nii.gz").write_bytes(b"broken")
    result = run_evaluation(plan_data_set(described(), data, "val", title="thresholds"), network())
    assert [each.name for each in result.failures] == ["b1"] and len(result.scored) == 2


def test_other_errors_are_not_swallowed(data: Path) -> None:
    def broken(case: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_evaluation(plan_data_set(described(), data, "val", title="x"), broken)  # type: ignore[arg-type]


def test_stray_reference_values(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    stray = labels().astype(np.int16)
    stray[0, 0, 0], stray[1, 0, 0] = 7, -1
    put(data / "balls" / "labelsTr" / "b0.nii.gz", stray)
    clamped = run_evaluation(plan_data_set(described(), data, "val", title="x"), network())
    score = clamped.results[0].scores[Target("part 2", (2,))]
    assert (
        score.reference_voxels == (labels() == 2).sum() + 1
        and "stray values 7 were clamped to 2: 1" in clamped.results[0].notes[0]
    )
    assert "clamped" in caplog.text
    refused = run_evaluation(plan_data_set(described(stray_labels="refuse"), data, "val", title="x"), network())
    assert [each.name for each in refused.failures] == ["b0"] and "values 7, which Balls does not know" in str(
        refused.results[0].error
    )
    ignored = run_evaluation(plan_data_set(described(stray_labels="ignore"), data, "val", title="x"), network())
    assert ignored.results[0].scores[Target("part 2", (2,))].reference_voxels == (labels() == 2).sum()


def test_regions_and_values_that_are_not_scored(data: Path, predictions: Path) -> None:
    found = labels()
    found[0, 0, 0] = 9
    put(predictions / "b0.nii.gz", found)
    regions = [{"name": "whole", "values": [1, 2]}, {"name": "core", "values": [2]}]
    result = run_evaluation(plan_data_set(described(regions=regions), data, "val", title="x"), Folder(predictions))
    whole, core = (result.results[0].scores[target] for target in result.targets)
    assert whole.reference_voxels == (labels() > 0).sum() and core.reference_voxels == (labels() == 2).sum()
    assert whole.dice == core.dice == 1 and "values 9, which are no structure" in result.results[0].notes[0]


def test_a_structure_that_only_some_cases_hold(data: Path, predictions: Path) -> None:
    rare = labels()
    rare[0, 0, :2] = 5
    put(data / "balls" / "labelsTr" / "b0.nii.gz", rare)
    result = run_evaluation(plan_folders(Folder(predictions), data / "balls" / "labelsTr", Conventions()), Folder(predictions))
    assert [target.name for target in result.targets] == ["label 1", "label 2", "label 5"]
    assert np.isnan(result.table("dice")[1:, 2]).all() and result.table("dice")[0, 2] == 0  # a miss is no hole
    strict = replace(result.plan, conventions=Conventions(empty="monai-strict"))
    assert (run_evaluation(strict, Folder(predictions)).table("dice")[:, 2] == [0, 1, 1]).all()


def test_structures_of_a_network_and_a_data_set() -> None:
    assert check_structures(protocol(), described()) == ()
    other = described(structures=[{"value": 1, "name": "Part 1"}, {"value": 2, "name": "heart"}])
    assert check_structures(protocol(), other) == ("Value 2 is part 2 for the network and heart in the data set.",)
    more = described(structures=[{"value": 1, "name": "part 1"}, {"value": 3, "name": "heart"}])
    with pytest.raises(RequestError, match=r"does not segment 3 \(heart\) of Balls"):
        check_structures(protocol(), more)


def test_plans_that_cannot_be(data: Path, predictions: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        Folder(tmp_path / "absent")
    with pytest.raises(InputError, match="is not a folder"):
        plan_folders(Folder(predictions), tmp_path / "absent", Conventions())
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="holds no .nii.gz"):
        plan_folders(Folder(predictions), tmp_path / "none", Conventions())
    with pytest.raises(InputError, match="No label map in .* such as b0.nii.gz"):
        plan_folders(Folder(tmp_path / "none"), data / "balls" / "labelsTr", Conventions())
    put(predictions / "b0.nii", labels())
    with pytest.raises(InputError, match=r"as b0\.nii and as b0\.nii\.gz"):
        Folder(predictions)


def test_names_come_from_the_references_or_else_from_the_predictions(data: Path, predictions: Path, tmp_path: Path) -> None:
    references = data / "balls" / "labelsTr"

    def name(path: Path, names: dict[int, str]) -> None:
        found = read_volume(path)
        write_labels(path, labels(), found, [Structure(value=value, name=text) for value, text in names.items()])

    for number in range(3):
        name(predictions / f"b{number}.nii.gz", {1: "head", 2: "tail"})
    assert plan_folders(Folder(predictions), references, Conventions()).names == {1: "head", 2: "tail"}
    assert "│ head" in command(predictions, references)[1].replace("|", "│")
    name(references / "b0.nii.gz", {2: "body"})  # says nothing of 1
    assert plan_folders(Folder(predictions), references, Conventions()).names == {1: "head", 2: "body"}
    (references / "b0.nii.gz").write_bytes(b"broken")
    assert plan_folders(Folder(predictions), references, Conventions()).names == {1: "head", 2: "tail"}

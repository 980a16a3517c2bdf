"""Detection of lesions over the cases of a folder or a data set: figures, reports, the command."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from hybrid.errors import RequestError
from medical.cli.app import app
from medical.detection.evaluation import (
    DetectionEvaluation,
    DetectionNetwork,
    DetectionPlan,
    MapFolder,
    lesion_channels,
    run_detection,
)
from medical.detection.figures import curve_plot
from medical.detection.lesions import DetectionRules
from medical.detection.report import to_markdown, write_detection
from medical.evaluation.engine import plan_data_set, plan_folders
from medical.evaluation.metrics import Conventions
from medical.evaluation.network import Network
from tests.medical.detection_stubs import GRID, box, confidences, mask
from tests.medical.evaluation_stubs import described
from tests.medical.stubs import Stub, protocol

# --- cases, reports, command


def put(path: Path, array: np.ndarray, affine: np.ndarray = GRID.affine) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Four scans: a hit with a false alarm, a miss, a healthy one with an alarm, a healthy one without; see `WORKED`."""
    maps, references = tmp_path / "maps", tmp_path / "references"
    lesion, other = box(4, 4, 2, 3, 3, 2), box(12, 12, 5, 3, 3, 2)
    shown = {
        "p0": (mask(lesion), confidences((lesion, 0.9), (other, 0.4))),
        "p1": (mask(other), confidences()),
        "p2": (mask(), confidences((other, 0.6))),
        "p3": (mask(), confidences()),
    }
    for name, (truth, values) in shown.items():
        put(references / f"{name}.nii.gz", truth.astype(np.uint8) * 2)
        put(maps / f"{name}.nii.gz", values)
    return maps, references


def run(
    maps: Path, references: Path, *, lesion: tuple[int, ...] = (), rules: DetectionRules | None = None
) -> DetectionEvaluation:
    folder = MapFolder(maps)
    plan = DetectionPlan(plan_folders(folder, references, Conventions()), lesion, rules or DetectionRules())
    return run_detection(plan, folder.map_of)


def test_a_folder_of_maps(folders: tuple[Path, Path]) -> None:
    result = run(*folders)
    assert result.exit_code == 0 and len(result.scans) == 4
    # 2 lesions, 1 hit at 0.9 before any alarm: AP 1/2 * 1. Scans: 0.9 and 0 against 0.6 and 0: (1 + 1 + 0 + 1/2) / 4.
    assert result.scores.average_precision.value == pytest.approx(0.5) and result.scores.auroc.value == pytest.approx(0.625)
    assert [each.value for each in result.scores.sensitivity] == [0.5] * 7
    assert run(*folders, lesion=(1,)).scores.average_precision.value is not None
    assert run(*folders, lesion=(1,)).scans[0].lesions == () and len(run(*folders, lesion=(1, 2)).scans[0].lesions) == 1


def test_another_grid_is_refused_and_the_rest_goes_on(folders: tuple[Path, Path]) -> None:
    maps, references = folders
    moved = GRID.affine.copy()
    moved[2, 3] = 3
    put(maps / "p0.nii.gz", confidences(), moved)
    put(maps / "p1.nii.gz", confidences()[:, :-1])
    (maps / "p2.nii.gz").unlink()
    result = run(maps, references)
    assert result.exit_code == 1 and [each.name for each in result.failures] == ["p0", "p1", "p2"] and len(result.scans) == 1
    errors = [str(each.error) for each in result.failures]
    assert "voxels lie at other places" in errors[0] and "20 x 19 x 10 voxels against" in errors[1]
    assert "no map p2.nii.gz" in errors[2]


def test_which_file_and_which_class_of_it_is_the_map(folders: tuple[Path, Path]) -> None:
    maps, references = folders
    wanted = run(maps, references).scores
    for path in sorted(maps.glob("*.nii.gz")):
        values = nib.load(path).get_fdata()
        put(maps / f"{path.name[:2]}_probabilities.nii.gz", np.stack([1 - values, values], -1).astype(np.float32))
        put(path, (values > 0.5).astype(np.uint8))  # the label map beside it, as `medical segment` leaves it
    assert run(maps, references).scores.auroc.value == pytest.approx(wanted.auroc.value)
    path = maps / "p0_probabilities.nii.gz"
    values = nib.load(path).get_fdata()[..., 1]
    put(path, np.stack([values, values, values], -1))
    assert "holds 3 classes" in str(run(maps, references).failures[0].error)
    folder = MapFolder(maps, channel=1)
    plan = DetectionPlan(plan_folders(folder, references, Conventions()), (), DetectionRules())
    assert not run_detection(plan, folder.map_of).failures
    put(maps / "p0_detection_map.nii.gz", np.zeros(GRID.shape, np.float32))
    assert run(maps, references).scans[0].candidates == ()


def test_report(folders: tuple[Path, Path], tmp_path: Path) -> None:
    maps, references = folders
    (maps / "p3.nii.gz").write_bytes(b"broken")
    paths = write_detection(run(maps, references), tmp_path / "out")
    assert [path.name for path in paths] == ["detection.md", "detection.json", "cases.csv", "lesions.csv", "detection.png"]
    facts = json.loads(paths[1].read_text())
    assert facts["note"].startswith("Research use") and facts["rules"]["overlap"] == 0.1 and facts["counts"]["failures"] == 1
    assert facts["counts"]["lesions"] == 2 and facts["counts"]["missed"] == 1 and facts["counts"]["false_positives"] == 2
    assert facts["figures"]["average_precision"]["value"] == pytest.approx(0.5) and str(tmp_path) not in paths[1].read_text()
    cases = list(csv.DictReader(paths[2].open()))
    assert cases[0] | {"lesions": "1", "hits": "1", "candidates": "2", "false_positives": "1", "confidence": "0.9"} == cases[0]
    assert cases[3]["case"] == "p3" and cases[3]["error"] and not cases[3]["lesions"]
    rows = list(csv.DictReader(paths[3].open()))
    assert [(row["case"], row["outcome"]) for row in rows] == [
        ("p0", "hit"), ("p0", "false positive"), ("p1", "missed"), ("p2", "false positive"),
    ]  # fmt: skip
    # 3 x 3 x 2 voxels of 0.75 mm3 around voxel (5, 5, 2.5)
    assert rows[0]["lesion_ml"] == "0.0135" and rows[0]["iou"] == "1" and rows[0]["lesion_z_mm"] == "7.50"
    assert rows[2]["lesion_voxels"] == "18" and rows[2]["candidate"] == rows[2]["confidence"] == rows[2]["iou"] == ""
    text = paths[0].read_text()
    assert "| AP (lesions) | 0.5000 |" in text and "Research use, not a medical device." in text and "## Failed cases" in text
    assert paths[4].read_bytes().startswith(b"\x89PNG")


def test_a_report_without_lesions_has_no_figure(folders: tuple[Path, Path], tmp_path: Path) -> None:
    result = run(*folders, lesion=(7,))
    assert curve_plot(result) is None and "| AUROC (scans) | none |" in to_markdown(result)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "detection.png").write_bytes(b"old")
    assert len(write_detection(result, tmp_path / "out")) == 4 and not (tmp_path / "out" / "detection.png").exists()


def test_curves_where_every_scan_has_a_lesion_or_none_is_found(folders: tuple[Path, Path]) -> None:
    maps, references = folders
    for name in ("p2", "p3"):
        put(references / f"{name}.nii.gz", mask(box(1, 1, 1)).astype(np.uint8))
    assert curve_plot(run(maps, references)) is not None
    for name in ("p0", "p2"):
        put(maps / f"{name}.nii.gz", confidences())
    assert curve_plot(run(maps, references)) is not None


def test_a_network_on_a_data_set(tmp_path: Path) -> None:
    """A network whose probability is its scan's value."""
    where = tmp_path / "data" / "balls"
    lesion, other = box(4, 4, 2, 3, 3, 2), box(12, 12, 5, 3, 3, 2)
    for name, truth, values in (("p0", mask(lesion), confidences((lesion, 0.8), (other, 0.6))), ("p1", mask(), confidences())):
        put(where / "labelsTr" / f"{name}.nii.gz", truth.astype(np.uint8))
        put(where / "imagesTr" / f"{name}.nii.gz", np.maximum(values, 0.001))
    spec = described(structures=[{"value": 1, "name": "lesion"}], splits=[], published=[])

    def logits(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(x), torch.logit(x.clamp(1e-4, 1 - 1e-4))], 1)

    asked = protocol(classes=2, intensity={"kind": "window", "low": 0, "high": 1})
    values = np.full((*GRID.shape,), 0.001, np.float32)
    values[0, 0, 0] = 0.002  # a scan of one value alone would be refused
    put(where / "imagesTr" / "p1.nii.gz", values)
    network = DetectionNetwork(Network(Stub(logits, classes=2), protocol=asked), (1,))
    plan = DetectionPlan(plan_data_set(spec, tmp_path / "data", "all", title="stub"), (1,), DetectionRules())
    result = run_detection(plan, network.map_of, made=network.made())
    assert not result.failures, result.failures
    assert [(each.outcome, each.confidence) for each in result.scans[0].candidates] == [
        ("hit", pytest.approx(0.8, abs=1e-3)), ("false positive", pytest.approx(0.6, abs=1e-3)),
    ]  # fmt: skip
    assert result.scans[1].candidates == () and result.scores.auroc.value == 1
    assert result.made is not None and result.made.inference["lesion_channels"] == [1]
    assert "Model: Stub" in to_markdown(result)


def test_which_outputs_of_a_network_are_the_lesion() -> None:
    assert lesion_channels(protocol(classes=4), (2, 3)) == (2, 3) and lesion_channels(protocol(classes=3), ()) == (1, 2)
    regions = [
        {"channel": 0, "value": 1, "name": "gland", "values": [1, 2]},
        {"channel": 1, "value": 2, "name": "lesion", "values": [2]},
    ]
    both = protocol(classes=3, regions=regions)
    assert lesion_channels(both, (2,)) == (1,) and lesion_channels(both, (1, 2)) == (0,)
    with pytest.raises(RequestError, match="No output of the network is the region of the values 1"):
        lesion_channels(both, (1,))
    with pytest.raises(RequestError, match=r"does not segment the value 9, but 1 \(part 1\)"):
        lesion_channels(protocol(), (9,))


def command(*arguments: object) -> tuple[int, str, BaseException | None]:
    ran = CliRunner().invoke(app, ["detect-evaluate", *map(str, arguments)])
    return ran.exit_code, ran.output, ran.exception


def test_command_on_folders(folders: tuple[Path, Path], tmp_path: Path) -> None:
    code, said, _ = command(*folders, "-o", tmp_path / "out", "--lesion", 2)
    assert code == 0 and "AP (lesions)" in said and "0.5000" in said and "Research use, not a medical device." in said
    assert "detection.json" in said
    (folders[0] / "p1.nii.gz").unlink()
    code, said, _ = command(*folders, "--distance", 4, "--candidates", "static", "--threshold", 0.2)
    assert code == 1 and "p1: There is no map p1.nii.gz" in said and "centres of mass at most 4 mm apart" in said


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "either a folder of maps or a model"),
        (["MAPS"], "--data and --spec and --split missing"),
        (["MAPS", "REFERENCES", "--tta"], "Maps are there already"),
        (["MAPS", "REFERENCES", "--threshold", "0.4"], "says nothing of dynamic candidates"),
        (["MAPS", "REFERENCES", "--candidates", "map", "--min-voxels", "3"], "keep their size"),
        (["MAPS", "REFERENCES", "--iou", "0.2", "--distance", "5"], "by overlap or by distance"),
        (["MAPS", "REFERENCES", "--iou", "2"], "above 0 and up to 1"),
        (["MAPS", "REFERENCES", "--lesion", "0"], "value 0 is no lesion"),
        (["MAPS", "NONE"], "No map in"),
        (["MAPS", "--data", "x", "--spec", "msd-hippocampus", "--split", "val"], "several structures"),
        (
            ["--model", "x", "--channel", "1", "--data", "x", "--spec", "msd-hippocampus", "--split", "val", "--lesion", "1"],
            "--channel is for maps",
        ),
    ],
)
def test_command_refuses(folders: tuple[Path, Path], tmp_path: Path, arguments: list[str], text: str) -> None:
    put(tmp_path / "none" / "other.nii.gz", mask().astype(np.uint8))
    places = {"MAPS": folders[0], "REFERENCES": folders[1], "NONE": tmp_path / "none"}
    code, _, error = command(*(places.get(each, each) for each in arguments))
    assert code != 0 and text in str(error), error

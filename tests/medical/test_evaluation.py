"""Evaluation of folders and of networks: plans, failing cases, clamped labels, reports."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from data_specs import SegmentationSpec
from hybrid.errors import InputError, RequestError
from medical.cli.evaluate import evaluate
from medical.evaluation.comparison import compare, read_scores
from medical.evaluation.engine import Evaluation, Folder, Target, plan_data_set, plan_folders, run_evaluation
from medical.evaluation.metrics import Conventions
from medical.evaluation.network import Network, check_structures
from medical.evaluation.report import to_markdown, write_report
from medical.segmentation.run import SegmentSettings
from medical.structures import Structure
from medical.volumes.label_maps import write_labels
from medical.volumes.volume import read_volume
from tests.medical.stubs import Stub, protocol

AFFINE = np.array([[-0.8, 0, 0, 10], [0, 0, 1.5, -4], [0, 1.0, 0, 7], [0, 0, 0, 1.0]])
SHAPE = (24, 14, 12)


def ball(centre: tuple[float, ...], radius: float) -> np.ndarray:
    places = np.indices(SHAPE).reshape(3, -1).T * nib.affines.voxel_sizes(AFFINE)
    return (np.linalg.norm(places - np.array(centre), axis=1) <= radius).reshape(SHAPE)


def labels(shift: float = 0.0) -> np.ndarray:
    """Structure 1 and 2 as balls; a shift moves both."""
    return np.select([ball((4 + shift, 5, 8), 3), ball((10 + shift, 9, 9), 3.5)], [1, 2], 0).astype(np.uint8)


def put(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def described(**changes: object) -> SegmentationSpec:
    facts: dict = {
        "name": "balls", "title": "Balls", "task": "segmentation", "source": {"where": "made here"}, "licence": "none",
        "citation": "none", "images": None, "checksums": None, "modality": "MR", "channels": ["T1w"],
        "folders": ["balls"], "stray_labels": "clamp",
        "structures": [{"value": 1, "name": "part 1"}, {"value": 2, "name": "part 2"}],
        "layouts": [{"name": "decathlon", "images": ["imagesTr/{case}"], "labels": "labelsTr/{case}"}],
        "splits": [{"name": "val", "file": "dataset.json", "keys": ["splits", "val"], "source": "made here"}],
        "published": [{"method": "other", "dice": 80, "measured": "split val", "source": "made up for this test"}],
    }  # fmt: skip
    return SegmentationSpec.model_validate(facts | changes)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set of four scans, three of them in the split val; the scan's values tell its labels."""
    folder = tmp_path / "data" / "balls"
    for number in range(4):
        truth = labels(0.8 * number)
        put(folder / "labelsTr" / f"b{number}.nii.gz", truth)
        put(folder / "imagesTr" / f"b{number}.nii.gz", truth.astype(np.float32) * 10)
    (folder / "labelsTr" / "._b0.nii.gz").write_bytes(b"not a scan")
    (folder / "dataset.json").write_text(json.dumps({"splits": {"val": ["b0", "b1", "b2"]}}))
    return tmp_path / "data"


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    for number in range(3):
        put(tmp_path / "found" / f"b{number}.nii.gz", np.roll(labels(0.8 * number), number, axis=0))
    return tmp_path / "found"


def thresholds() -> Stub:
    """Finds the label in the value: 0 and 0.5 and 1 after the window from 0 to 20."""
    levels = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1, 1)

    def function(x: Tensor) -> Tensor:
        return -((x - levels) ** 2)

    return Stub(function)


def network(**changes: object) -> Network:
    asked = protocol(intensity={"kind": "window", "low": 0, "high": 20}, **changes)
    return Network(thresholds(), SegmentSettings(), protocol=asked)


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


@pytest.fixture
def result(data: Path, predictions: Path) -> Evaluation:
    rare = labels()
    rare[rare == 2] = 0
    put(predictions / "b2.nii.gz", rare)
    (data / "balls" / "labelsTr" / "b3.nii.gz").write_bytes(b"broken")
    plan = plan_data_set(described(), data, "all", title="found")
    model = network()
    return run_evaluation(plan, Folder(predictions), made=model.made(plan.spec))


def test_report(result: Evaluation, tmp_path: Path) -> None:
    paths = write_report(result, tmp_path / "out")
    assert [path.name for path in paths] == ["report.md", "report.json", "scores.csv", "scores.png"]
    facts = json.loads(paths[1].read_text())
    assert (
        facts["conventions"] | {"empty": "nan", "hausdorff": "max", "surface": "subvoxel", "tolerance": 1.0}
        == facts["conventions"]
    )
    assert facts["cases"] == ["b0", "b1", "b2", "b3"] and facts["failures"] == 1 and facts["note"].startswith("Research use")
    assert facts["model"]["family"] == "stub" and facts["model"]["protocol"]["modality"] == "MR"
    assert facts["inference"]["window"] == [8, 10, 12] and facts["inference"]["overlap"] == 0.5
    second = facts["means"]["part 2"]
    assert second["dice"]["n"] == 3 and second["hd95"]["n"] == 2 and second["hd95"]["left_out"] == 1
    assert facts["empty"]["part 2"] == {"both": 0, "missed": 1, "false_alarms": 0}
    assert facts["results"][2]["scores"]["part 2"]["hd95"] is None and facts["results"][2]["scores"]["part 2"]["dice"] == 0
    means = [facts["means"][name]["dice"]["mean"] for name in ("part 1", "part 2")]
    assert facts["means"]["mean"]["dice"]["mean"] == pytest.approx(np.mean(means))
    assert facts["results"][3]["error"] and str(tmp_path) not in paths[1].read_text()

    rows = list(csv.DictReader(paths[2].open()))
    assert len(rows) == 3 * 2 + 1 and rows[-1]["case"] == "b3" and rows[-1]["error"]
    assert rows[5]["hd95_mm"] == "" and float(rows[0]["dice"]) == 1

    text = paths[0].read_text()
    assert "| part 2 | 3 |" in text and "HD95 1" in text and "part 2: 1 missed, 0 false alarms." in text
    assert "| other | mean | 80.00 |" in text and "b3: " in text and "Research use, not a medical device." in text
    assert paths[3].read_bytes().startswith(b"\x89PNG")


def test_a_report_of_failures_alone(data: Path, tmp_path: Path) -> None:
    for number in range(4):
        (data / "balls" / "imagesTr" / f"b{number}.nii.gz").write_bytes(b"broken")
    failed = run_evaluation(plan_data_set(described(), data, "val", title="x"), network())
    paths = write_report(failed, tmp_path / "out")
    assert [path.name for path in paths] == ["report.md", "report.json", "scores.csv"] and failed.exit_code == 1
    assert "| none |" in to_markdown(failed)


def test_reports_name_files_and_no_folders(result: Evaluation, tmp_path: Path) -> None:
    failed = replace(result.results[0], scores={}, error=f"{tmp_path}/b0.nii.gz is damaged.", notes=())
    noted = replace(result.results[1], notes=(f"{tmp_path}/b1.nii.gz is odd.",))
    for path in write_report(replace(result, results=(failed, noted)), tmp_path / "out")[:3]:
        assert str(tmp_path) not in path.read_text() and "b0.nii.gz is damaged." in path.read_text()


def test_comparison(result: Evaluation, tmp_path: Path) -> None:
    write_report(result, tmp_path / "earlier")
    same = compare(result, read_scores(tmp_path / "earlier"))
    assert same.rows["part 1"]["dice"].n == 3 and same.rows["part 1"]["dice"].difference == 0
    text = (tmp_path / "earlier" / "scores.csv").read_text().replace("b1,part 1,", "b1,part 1,0.5,1,1,1,1,,,\nx,part 1,")
    (tmp_path / "worse.csv").write_text(text)
    row = compare(result, read_scores(tmp_path / "worse.csv")).rows["part 1"]["dice"]
    assert row.difference == pytest.approx((result.table("dice")[1, 0] - 0.5) / 3)
    assert "Against earlier" in to_markdown(result, same)
    (tmp_path / "other.csv").write_text(text.replace("part", "art"))
    with pytest.raises(InputError, match="share no case"):
        compare(result, read_scores(tmp_path / "other.csv"))
    with pytest.raises(InputError, match="no table of scores"):
        read_scores(tmp_path / "absent.csv")


def command(*arguments: object) -> tuple[int, str, BaseException | None]:
    import typer

    app = typer.Typer()
    app.command()(evaluate)
    ran = CliRunner().invoke(app, [str(each) for each in arguments])
    return ran.exit_code, ran.output, ran.exception


def test_command_on_folders(data: Path, predictions: Path, tmp_path: Path) -> None:
    references = data / "balls" / "labelsTr"
    code, said, _ = command(predictions, references, "-o", tmp_path / "out", "--hausdorff", "pooled", "--tolerance", 2)
    assert code == 1 and "b3: There is no prediction" in said and "report.md" in said and "NSD (2 mm)" in said
    facts = json.loads((tmp_path / "out" / "report.json").read_text())
    assert facts["conventions"]["hausdorff"] == "pooled" and facts["conventions"]["tolerance"] == 2
    put(predictions / "b3.nii.gz", labels())
    code, said, _ = command(predictions, references, "--against", tmp_path / "out")
    assert code == 0 and "Against out" in said
    strays = labels().astype(np.int16)
    strays[0, 0, 0] = -1
    nib.save(nib.Nifti1Image(strays, nib.load(predictions / "b3.nii.gz").affine), predictions / "b3.nii.gz")
    assert "note: b3: Prediction: b3.nii.gz has 1 voxel with negative labels" in command(predictions, references)[1]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "either a folder of label maps or a model"),
        (["FOUND", "--model", "x"], "either a folder"),
        (["FOUND"], "--data and --spec and --split missing"),
        (["--model", "x", "--data", "DATA", "--spec", "msd-hippocampus"], "--split missing"),
        (["FOUND", "DATA", "--split", "val"], "stands for itself"),
        (["FOUND", "DATA", "-o", "DATA/balls/dataset.json"], "is a file"),
        (["FOUND", "DATA", "-o", "out", "--against", "out/scores.csv"], "which would be lost"),
        (["FOUND", "DATA", "--tta", "--option", "a=b"], "Leave --option, --tta out"),
        (["FOUND", "--data", "DATA", "--spec", "set5", "--split", "val"], "cannot be used here"),
        (["FOUND", "--data", "DATA", "--spec", "brats22", "--split", "val"], "Did you mean brats21"),
    ],
)
def test_command_refuses(data: Path, predictions: Path, arguments: list[str], text: str) -> None:
    given = [each.replace("DATA", str(data)).replace("FOUND", str(predictions)) for each in arguments]
    code, _, error = command(*given)
    assert code != 0 and text in str(error)


def test_command_with_a_model(data: Path, tmp_path: Path) -> None:
    import yaml

    from medical.loading import save_model
    from medical.models import family

    tiny = family("swin_unetr").create(out_channels=3, feature_size=12, depths=(1, 1), num_heads=(1, 2))
    save_model(tmp_path / "tiny.safetensors", tiny, protocol=protocol(patch=(8, 8, 8)))
    description = tmp_path / "balls.yaml"
    description.write_text(
        yaml.safe_dump(described().model_dump(mode="json", exclude_none=True) | {"images": None, "checksums": None})
    )
    out = tmp_path / "out"
    code, said, error = command(
        "--model",
        tmp_path / "tiny.safetensors",
        "--data",
        data,
        "--spec",
        description,
        "--split",
        "val",
        "-o",
        out,
        "--option",
        "merging=merging15",
    )
    assert error is None or isinstance(error, SystemExit), error
    assert code == 0 and "tiny on Balls, val" in said
    facts = json.loads((out / "report.json").read_text())
    assert facts["model"]["weights"] == "tiny.safetensors" and len(facts["model"]["sha256"]) == 64
    assert facts["model"]["options"]["merging"] == "merging15" and facts["inference"]["precision"] == "float32"
    assert facts["split"] == "val" and facts["split_source"] == "made here"

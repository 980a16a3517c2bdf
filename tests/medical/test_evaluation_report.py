"""Reports of an evaluation, comparison of two, and the command."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from hybrid.errors import InputError
from medical.evaluation.comparison import compare, read_scores
from medical.evaluation.engine import Evaluation, Folder, plan_data_set, run_evaluation
from medical.evaluation.report import to_markdown, write_report
from tests.medical.evaluation_stubs import command, data, described, labels, network, predictions, put
from tests.medical.stubs import protocol

__all__ = ["data", "predictions"]  # fixtures


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

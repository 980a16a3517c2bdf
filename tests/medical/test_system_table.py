"""Several evaluations as one table: what is read, what is refused, and the figures."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import wilcoxon
from typer.testing import CliRunner

from hybrid.errors import InputError, RequestError
from medical.cli.app import app
from medical.evaluation.system_table import Run, learning_curves, read_systems, write_table

SCORES = {"first": (0.80, 0.90, 0.85, 0.70, 0.95, 0.88), "second": (0.82, 0.93, 0.84, 0.75, 0.96, 0.91)}


def evaluation(folder: Path, name: str, **changes: Any) -> Path:
    """As `medical evaluate` writes it, of one structure with NSD and HD95 that follow from Dice."""
    dice = SCORES[name]
    cases = [{"dice": d, "hd95": 10 * (1 - d), "nsd": d / 2} for d in dice]
    mean = {m: {"mean": float(np.mean([case[m] for case in cases]))} for m in ("dice", "hd95", "nsd")}
    facts = {
        "data_set": "balls", "split": "val", "cases": [f"c{i}" for i in range(len(dice))], "conventions": {"tolerance": 1.0},
        "peak_memory_bytes": 123_400_000, "means": {"ball": mean, "mean": mean},
        "model": {"name": name, "title": "A Net", "sha256": f"hash of {name}", "parameters": 12345},
        "results": [{"case": f"c{i}", "seconds": 1.0 + i, "scores": {"ball": case}} for i, case in enumerate(cases)],
    }  # fmt: skip
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(facts | changes))
    return folder


def training(folder: Path, name: str) -> Path:
    """As `medical train` leaves it."""
    folder.mkdir()
    facts = {"recipe": {"training": {"steps": 20, "seed": 7}}, "weights_sha256": f"hash of {name}", "seconds": 90.0}
    (folder / f"my-{name}.json").write_text(json.dumps(facts))
    log = "step,loss,lr,seconds,dice\n10,0.5,0.1,45,\n20,0.25,0.1,90,0.8\n"
    (folder / f"my-{name}.csv").write_text(log)
    (folder / "log.csv").write_text(log)
    return folder


def test_table(tmp_path: Path) -> None:
    folders = [evaluation(tmp_path / name, name) for name in SCORES]
    systems = read_systems(folders, [training(tmp_path / "run", "second")])
    paths = write_table(systems, tmp_path / "out")
    assert [path.name for path in paths] == ["systems.md", "systems.csv", "curves.png"]
    with paths[1].open(newline="") as stream:
        first, second = csv.DictReader(stream)
    assert (first["system"], second["system"], second["architecture"]) == ("first", "my-second", "A Net")
    assert (first["steps"], second["steps"], second["training (min)"]) == ("", "20", "2")  # 1.5 minutes
    assert float(first["Dice"]) == pytest.approx(np.mean(SCORES["first"]), abs=5e-5)
    assert float(first["HD95 (mm)"]) == pytest.approx(10 * (1 - np.mean(SCORES["first"])), abs=5e-3)
    assert second["p (Dice)"] == "best" and float(first["p (Dice)"]) == pytest.approx(
        wilcoxon(SCORES["first"], SCORES["second"]).pvalue, rel=0.1
    )
    assert (first["parameters"], first["s / case"], first["peak memory (MB)"]) == ("12,345", "3.500", "123")
    text = paths[0].read_text()
    assert "6 cases of balls, val" in text and "Seeds of the trainings: 7." in text and "Research use" in text
    with Image.open(paths[2]) as picture:
        assert picture.size == (1200, 456)


def test_without_trainings_there_are_no_curves(tmp_path: Path) -> None:
    systems = read_systems([evaluation(tmp_path / name, name) for name in SCORES])
    (tmp_path / "curves.png").write_bytes(b"of an earlier table")
    assert [path.name for path in write_table(systems, tmp_path)] == ["systems.md", "systems.csv"]
    assert not (tmp_path / "curves.png").exists()


def test_a_run_without_validation_is_drawn(tmp_path: Path) -> None:
    folder = training(tmp_path / "run", "second")
    (folder / "my-second.csv").write_text("step,loss,lr,seconds\n10,0.5,0.1,45\n")
    systems = read_systems([evaluation(tmp_path / name, name) for name in SCORES], [folder])
    assert learning_curves(systems).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"cases": ["other"]}, "other cases"),
        ({"conventions": {"tolerance": 2.0}}, "other measures"),
        ({"means": {"mean": {}}}, "other structures"),
    ],
)
def test_what_was_evaluated_otherwise_is_refused(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    folders = [evaluation(tmp_path / "a", "first"), evaluation(tmp_path / "b", "second", **changes)]
    with pytest.raises(RequestError, match=text):
        read_systems(folders)


def test_folders_of_something_else_are_refused(tmp_path: Path) -> None:
    one, other = evaluation(tmp_path / "a", "first"), evaluation(tmp_path / "b", "second")
    with pytest.raises(RequestError, match="two evaluations at least"):
        read_systems([one])
    with pytest.raises(InputError, match="holds no report.json"):
        read_systems([one, tmp_path])
    with pytest.raises(InputError, match="one training that has ended"):
        Run.read(tmp_path)
    with pytest.raises(RequestError, match="made none of the weights"):
        read_systems([one, other], [training(tmp_path / "run", "third")])


def test_command(tmp_path: Path) -> None:
    folders = [str(evaluation(tmp_path / name, name)) for name in SCORES]
    result = CliRunner().invoke(app, ["compare", *folders, "-o", str(tmp_path / "out")])
    assert result.exit_code == 0 and "| first | A Net |" in result.output and "systems.md" in result.output


def test_systems_of_one_name_are_told_apart(tmp_path: Path) -> None:
    systems = read_systems([evaluation(tmp_path / "tuned", "first"), evaluation(tmp_path / "scratch", "first")])
    assert [system.name for system in systems] == ["first (tuned)", "first (scratch)"]

"""Boundary measures: hand-made cases, scikit-image as the judge of cells, and what `medical evaluate` makes of pictures."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy.ndimage import binary_dilation
from skimage import metrics

from data_specs import SegmentationSpec, find_volumes, load_spec
from hybrid.errors import InputError
from medical.evaluation.boundaries import adapted_rand_error, boundary_f1, boundary_figures, cells, variation_of_information
from medical.evaluation.metrics import Conventions
from tests.command import medical
from tests.medical.picture_stubs import tissue, write_pair

SPEC = {
    "name": "tissue", "title": "Tissue", "task": "segmentation", "source": {"where": "synthetic"}, "licence": "CC0-1.0",
    "citation": "none", "images": None, "folders": ["tissue"], "checksums": None, "modality": "EM", "channels": ["EM"],
    "structures": [{"value": 1, "name": "membrane"}], "label_values": {0: 1, 255: 0},
    "layouts": [{"name": "pairs", "images": ["images/{case}"], "labels": "labels/{case}", "pictures": True}],
    "splits": [{"name": "val", "cases": ["b", "c"], "source": "made up"}],
    "scoring": {"tolerance": 1.0, "unit": "px", "boundary": 1.0, "partition": True},
}  # fmt: skip


def test_boundary_f1_of_hand_made_masks() -> None:
    reference = np.zeros((12, 12), bool)
    reference[2:8, 2:8] = True
    assert boundary_f1(reference, reference, 0) == (1, 1, 1)
    moved = np.roll(reference, 1, 1)
    assert boundary_f1(moved, reference, 1) == (1, 1, 1)
    # Of 20 boundary pixels of each square those on the common parts of top and bottom agree.
    assert boundary_f1(moved, reference, 0) == pytest.approx((0.5, 0.5, 0.5))
    more = reference.copy()
    more[10, 10] = True
    f1, precision, recall = boundary_f1(more, reference, 1)
    assert (precision, recall) == (pytest.approx(20 / 21), 1) and f1 == pytest.approx(2 * 20 / 41)
    nothing = np.zeros_like(reference)
    assert boundary_f1(nothing, reference, 2) == (0, 0, 0) and np.isnan(boundary_f1(nothing, nothing, 2)).all()


@pytest.mark.parametrize("seed", range(4))
def test_cells_against_scikit_image(seed: int) -> None:
    rng = np.random.default_rng(seed)
    _, membrane = tissue(seed, (90, 80), 25)
    worse = (membrane & (rng.random(membrane.shape) > 0.1)) | (binary_dilation(membrane) & (rng.random(membrane.shape) > 0.7))
    ours, theirs = cells(worse, grown=True), cells(membrane)
    assert theirs.max() > 5 and (ours > 0).all() and ((theirs == 0) == membrane).all()
    error, *_ = metrics.adapted_rand_error(theirs, ours, ignore_labels=(0,))
    assert adapted_rand_error(ours, theirs) == pytest.approx(error) and error > 0
    split, merge = metrics.variation_of_information(theirs, ours, ignore_labels=(0,))
    assert variation_of_information(ours, theirs) == pytest.approx((split, merge))


def test_split_and_merge_are_told_apart() -> None:
    whole, halves = np.ones((8, 8), int), np.repeat([[1] * 4 + [2] * 4], 8, 0)
    assert variation_of_information(halves, whole) == (1, 0)
    assert variation_of_information(whole, halves) == (0, 1)
    assert variation_of_information(halves, halves) == (0, 0) and adapted_rand_error(halves, halves) == 0
    assert np.isnan(variation_of_information(whole, whole * 0)).all() and np.isnan(adapted_rand_error(whole, whole * 0))


def test_the_width_of_membranes_is_not_scored_by_cells() -> None:
    _, membrane = tissue(3, (80, 80), 10)
    labels, thick = (np.where(each, 1, 0) for each in (membrane, binary_dilation(membrane)))
    asked = Conventions(unit="px", boundary=2.0, partition=True)
    figures = boundary_figures(thick, labels, {"membrane": (1,)}, asked)
    assert figures["adapted Rand error"] < 0.02 and figures["boundary F1, membrane"] > 0.95
    assert figures["VI"] == pytest.approx(figures["VI split"] + figures["VI merge"])
    assert boundary_figures(thick, labels, {"membrane": (1,)}, Conventions()) == {}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for seed, name in enumerate("abc"):
        write_pair(folder / "tissue", name, *tissue(seed))
    (folder / "tissue.yaml").write_text(yaml.safe_dump(SPEC))
    return folder


def test_evaluate_label_pictures_on_a_data_set(data: Path, tmp_path: Path) -> None:
    found = tmp_path / "found"
    found.mkdir()
    for seed, name in ((1, "b"), (2, "c")):
        Image.fromarray(tissue(seed)[1].astype(np.uint8)).save(found / f"{name}.png")
    spec = str(data / "tissue.yaml")
    said = medical("evaluate", found, "--data", data, "--spec", spec, "--split", "val", "-o", tmp_path / "out", "-q")
    assert said.code == 0, said.err
    assert "HD95 (px)" in said.out and "adapted Rand error" in said.out and "NSD (1 px)" in said.out
    facts = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert facts["means"]["membrane"]["dice"]["mean"] == 1 and facts["means"]["membrane"]["hd95"]["mean"] == 0
    assert facts["boundaries"]["adapted Rand error"]["mean"] == 0
    assert facts["boundaries"]["boundary F1, membrane"]["mean"] == 1
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "## Boundaries" in report and "boundary pixels within 1 px" in report
    with (tmp_path / "out" / "boundaries.csv").open(encoding="utf-8") as stream:
        assert {row["case"] for row in csv.DictReader(stream)} == {"b", "c"}
    # A worse one, tested against the first.
    Image.fromarray(binary_dilation(tissue(1)[1], iterations=2).astype(np.uint8)).save(found / "b.png")
    options = ("--data", data, "--spec", spec, "--split", "val", "-q")
    again = medical("evaluate", found, *options, "-o", tmp_path / "two", "--against", tmp_path / "out")
    assert again.code == 0, again.err
    worse = json.loads((tmp_path / "two" / "report.json").read_text(encoding="utf-8"))
    scores = worse["results"][0]["scores"]["membrane"]
    both = binary_dilation(tissue(1)[1], iterations=2)
    assert scores["dice"] == pytest.approx(2 * tissue(1)[1].sum() / (tissue(1)[1].sum() + both.sum()))
    assert 1 <= scores["hd95"] <= 4 and scores["nsd"] < 0.9 and worse["comparison"] is not None


def test_evaluate_two_folders_of_label_pictures(data: Path, tmp_path: Path) -> None:
    said = medical("evaluate", data / "tissue" / "labels", data / "tissue" / "labels", "-o", tmp_path / "out", "-q")
    assert said.code == 0, said.err
    assert "label 255" in said.out and "HD95 (px)" in said.out
    header = (tmp_path / "out" / "scores.csv").read_text(encoding="utf-8").splitlines()[0]
    assert "hd95_px" in header
    (tmp_path / "few").mkdir()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "few" / "a.png")
    other = medical("evaluate", tmp_path / "few", data / "tissue" / "labels", "-q")
    assert other.code == 1 and "no prediction b.png" in other.err and "another grid" in other.err


def test_descriptions_of_pictures(data: Path) -> None:
    spec = load_spec(data / "tissue.yaml", SegmentationSpec)
    found = find_volumes(spec, data, "all")
    assert [case.name for case in found.cases] == ["a", "b", "c"] and found.cases[0].images[0].name == "a.png"
    assert find_volumes(spec, data / "tissue", "val").cases[0].labels.parent.name == "labels"
    membrane = load_spec("membrane", SegmentationSpec)
    sizes = {split.name: len(split.cases or ()) for split in membrane.splits}
    assert sizes == {"train": 20, "val": 5} and membrane.label_values == {0: 1, 255: 0}
    for change in ({"scoring": {"unit": "mm"}}, {"layouts": [{"name": "x", "images": ["i/{case}"], "labels": "l/{case}"}]}):
        (data / "bad.yaml").write_text(yaml.safe_dump(SPEC | change))
        with pytest.raises(InputError, match="pictures, and they alone, are scored in px"):
            load_spec(data / "bad.yaml", SegmentationSpec)


def test_the_shipped_split_is_all_of_the_folder(shared: Path) -> None:
    spec = load_spec("membrane", SegmentationSpec)
    names = {split: [case.name for case in find_volumes(spec, shared / "data", split).cases] for split in ("train", "val", "all")}
    assert names["train"] + names["val"] == names["all"] and len(names["all"]) == 25

"""A data set of balls, predictions of it, and a network that finds them."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from data_specs import SegmentationSpec
from medical.cli.evaluate import evaluate
from medical.evaluation.network import Network
from medical.segmentation.run import SegmentSettings
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


def command(*arguments: object) -> tuple[int, str, BaseException | None]:
    import typer

    app = typer.Typer()
    app.command()(evaluate)
    ran = CliRunner().invoke(app, [str(each) for each in arguments])
    return ran.exit_code, ran.output, ran.exception

"""Networks for scans as ONNX files, judged by ONNX Runtime; the small configurations of their contract."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hybrid.errors import RequestError
from hybrid.onnx_export import INPUT, OUTPUT
from medical.exporting import export_network
from tests.command import medical
from tests.medical.test_model_contract import scan, small

onnx = pytest.importorskip("onnx", reason="the export is not tested: pip install -e .[dev] brings onnx, onnxscript, onnxruntime")
onnxruntime = pytest.importorskip("onnxruntime", reason="the export is not tested: pip install -e .[dev] brings onnxruntime")

CASES = [
    ("swin_unetr", 0, (9, 23, 17)),  # windows that have to be filled up, and rolled
    ("swin_unetr", 1, (37, 23)),
    ("swin_unetr", 2, (16, 16, 32)),
    ("neunet", 0, (16, 16, 32)),
    ("neunet", 1, (37, 23)),
    ("cswin_unet", 0, (64, 40)),
    ("cswin_unet", 2, (16, 24, 16)),
]


def session_of(file: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(("name", "number", "sides"), CASES)
def test_a_window_gives_the_logits_of_the_network(name: str, number: int, sides: tuple[int, ...], tmp_path: Path) -> None:
    network, file = small(name, number), tmp_path / "network.onnx"
    made = export_network(network, file, size=sides)
    assert made.sides.fixed == sides
    x = scan(network, *sides)
    with torch.inference_mode():
        expected = network(x).numpy()
    got = session_of(file).run([OUTPUT], {INPUT: x.numpy()})[0]
    np.testing.assert_allclose(got, expected, atol=1e-4 * max(1.0, np.abs(expected).max()), rtol=0)


def test_the_shipped_network_with_its_protocol(tmp_path: Path) -> None:
    file = tmp_path / "hippocampus.onnx"
    said = medical("export", "hippocampus", "-o", file)
    assert said.code == 0, said.err
    told = {each.key: each.value for each in onnx.load(file).metadata_props}
    assert json.loads(told["protocol"])["patch"] == [32, 48, 32] and told["overlap"] == "0.5"
    assert "not a medical device" in told["research_use"] and told["weights_licence"]
    [given] = session_of(file).get_inputs()
    assert given.shape == [1, 1, 32, 48, 32]


def test_slices_of_any_size_for_a_restorer(tmp_path: Path) -> None:
    file = tmp_path / "mr.onnx"
    said = medical("export", "denoise-mr-compact", "-o", file)
    assert said.code == 0, said.err
    told = {each.key: each.value for each in onnx.load(file).metadata_props}
    assert "intensity" in json.loads(told["protocol"]) and "not a medical device" in told["research_use"]
    assert session_of(file).get_inputs()[0].shape[2:] == ["height", "width"]


def test_a_window_has_to_be_known(tmp_path: Path) -> None:
    network = small("neunet", 0)
    with pytest.raises(RequestError, match="--size 96x96x96"):
        export_network(network, tmp_path / "a.onnx")
    with pytest.raises(RequestError, match="windows of 3 sides"):
        export_network(network, tmp_path / "a.onnx", size=(16, 16))
    assert not list(tmp_path.iterdir())

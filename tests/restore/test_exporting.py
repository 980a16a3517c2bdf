"""Networks as ONNX files, judged by ONNX Runtime; each family in the small configuration of its contract."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hybrid.errors import OutputError, RequestError
from hybrid.onnx_export import INPUT, OUTPUT, TOLERANCE
from restore.exporting import export_network, sides_of
from restore.models import MODULES, family
from restore.models.base import RestorationNetwork
from tests.command import restore
from tests.restore.parity import draw
from tests.restore.test_model_contract import SMALL, picture

onnx = pytest.importorskip("onnx", reason="the export is not tested: pip install -e .[dev] brings onnx, onnxscript, onnxruntime")
onnxruntime = pytest.importorskip("onnxruntime", reason="the export is not tested: pip install -e .[dev] brings onnxruntime")

SHALLOW: dict[str, dict[str, Any]] = {
    "hat": {"depths": (2,), "num_heads": (2,)},
    "drct": {"heads": ((3, 2, 2, 3, 4),)},
    "craft": {"depths": (1,), "num_heads": (4,)},
    "nafnet": {"encoder_depths": (1, 1), "middle_depth": 1, "tlc_train_size": (32, 32), "n_heads": 2},
    "restormer": {"depths": (1, 0, 0, 1), "refinement": 0},
    "mirnet": {"blocks": 1},
}
"""What the contract's configurations have more of than a graph needs to show all its kinds of steps."""
SMALLEST = {name: family(name).create(**SMALL[name]) for name in MODULES}
NO_GRAPH = [name for name, network in SMALLEST.items() if network.not_exported is not None]
FIXED = [name for name, network in SMALLEST.items() if network.card.face_size and name not in NO_GRAPH]
SIZE_ASKED_FOR = [name for name, network in SMALLEST.items() if not network.open_sides and name not in {*NO_GRAPH, *FIXED}]
OPEN = sorted(set(MODULES) - {*NO_GRAPH, *FIXED, *SIZE_ASKED_FOR})


def shallow(name: str) -> RestorationNetwork:
    network = family(name).create(**(SMALL[name] | SHALLOW.get(name, {})))
    state = network.state_dict()
    network.load_state_dict({k: draw(k, list(v.shape), 0) if v.is_floating_point() else v for k, v in state.items()})
    return network.eval()


def assert_same(network: RestorationNetwork, file: Path, *sizes: tuple[int, int]) -> None:
    """The file gives what the network gives, at each size."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for height, width in sizes:
        x = picture(network, height, width)
        with torch.inference_mode():
            expected = network.result(x).numpy()
        found = session.run([OUTPUT], {INPUT: x.numpy()})[0]
        np.testing.assert_allclose(found, expected, atol=TOLERANCE * max(1, np.abs(expected).max()), rtol=0)


@pytest.mark.parametrize("name", OPEN)
def test_open_graphs_give_what_the_network_gives(name: str, tmp_path: Path) -> None:
    network, file = shallow(name), tmp_path / "network.onnx"
    made = export_network(network, file)
    least = network.card.multiple + 1
    assert made.sides.least == least and len(made.differences) >= 3 and made.largest <= TOLERANCE * 10
    assert_same(network, file, (least, 3 * least + 2), (5 * least, least), (61, 40), (48, 32))


@pytest.mark.parametrize("name", FIXED)
def test_a_face_network_has_the_size_of_its_faces(name: str, tmp_path: Path) -> None:
    network, file = shallow(name), tmp_path / "network.onnx"
    made, side = export_network(network, file), SMALL[name]["resolution"]
    assert made.sides.fixed == (side, side) and list(made.differences) == [(side, side)]
    assert_same(network, file, (side, side))


@pytest.mark.parametrize("name", SIZE_ASKED_FOR)
def test_where_sides_cannot_be_open_a_size_is_asked_for(name: str, tmp_path: Path) -> None:
    network, file = shallow(name), tmp_path / "network.onnx"
    with pytest.raises(RequestError, match="one size alone.*--size"):
        export_network(network, file)
    assert export_network(network, file, size=(33, 40)).sides.fixed == (33, 40)
    assert_same(network, file, (33, 40))


def test_a_fixed_size_can_be_asked_for(tmp_path: Path) -> None:
    network, file = shallow("mixer"), tmp_path / "network.onnx"
    made = export_network(network, file, size=(19, 26))
    model = onnx.load(file)
    [given], [result] = model.graph.input, model.graph.output
    assert [n.dim_value for n in given.type.tensor_type.shape.dim] == [1, 3, 19, 26]
    assert [n.dim_value for n in result.type.tensor_type.shape.dim] == [1, 3, 38, 52]
    assert list(made.differences) == [(19, 26)]


@pytest.mark.parametrize("name", NO_GRAPH)
def test_what_has_no_graph_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"cannot be exported: \w+"):
        export_network(shallow(name), tmp_path / "network.onnx")
    assert not list(tmp_path.iterdir())


def test_sizes_that_cannot_be() -> None:
    for size in ((0, 5), (5, 10**6)):
        with pytest.raises(RequestError, match="Sides are 1 to"):
            sides_of(shallow("espcn"), size)


class Wrong(torch.nn.Module):
    """Another network in a graph than beside it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(x, scale_factor=3) * (1.01 if torch.compiler.is_exporting() else 1.0)


def test_a_graph_of_other_values_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = shallow("espcn")
    monkeypatch.setattr(type(network), "restore", lambda self, x: Wrong()(x))
    file = tmp_path / "network.onnx"
    file.write_bytes(b"the file before")
    with pytest.raises(OutputError, match="other values than PyTorch"):
        export_network(network, file, overwrite=True)
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == {"network.onnx": b"the file before"}


class Impossible(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if float(x.sum()) > 0 else -x


def test_steps_that_depend_on_values_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = shallow("espcn")
    monkeypatch.setattr(type(network), "restore", lambda self, x: Impossible()(x))
    with pytest.raises(RequestError, match="cannot be exported"):
        export_network(network, tmp_path / "network.onnx")
    assert not list(tmp_path.iterdir())


def test_the_command_writes_file_and_record(tmp_path: Path) -> None:
    file = tmp_path / "espcn.onnx"
    said = restore("export", "espcn-compact", "--scale", "2", "-o", file)
    assert said.code == 0, said.err
    assert "height and width from 2" in said.err and str(file) in said.out
    told = {each.key: each.value for each in onnx.load(file).metadata_props}
    record = json.loads((tmp_path / "espcn.onnx.json").read_text())
    assert told["scale"] == "2" and told["multiple"] == "1" and told["overlap"] == "8" and told["task"] == "super-resolution"
    assert told["source_sha256"] == record["weights_sha256"] and len(told["source_sha256"]) == 64
    assert json.loads(told["value_range"]) == [0.0, 1.0] and told["colours"] == "RGB"
    assert told["weights_licence"] == "Apache-2.0, as the package"
    assert record["figures"]["opset"] == onnx.load(file).opset_import[0].version
    assert max(record["figures"]["largest_difference"].values()) < 1e-5
    onnx.checker.check_model(onnx.load(file), full_check=True)
    again = restore("export", "espcn-compact", "--scale", "2", "-o", file)
    assert again.code == 6 and "--overwrite" in again.err


def test_the_command_refuses_before_it_works(tmp_path: Path) -> None:
    assert "named as an ONNX file" in restore("export", "espcn-compact", "--scale", "2", "-o", tmp_path / "a.pth").err
    assert "several scales" in restore("export", "espcn-compact", "-o", tmp_path / "a.onnx").err
    assert "does not exist" in restore("export", "denoise-compact", "-o", tmp_path / "none" / "a.onnx").err
    assert "--size" in restore("export", "denoise-compact", "--size", "9by9", "-o", tmp_path / "a.onnx").err
    assert "restores no picture" in restore("export", "yunet", "-o", tmp_path / "a.onnx").err
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybrid.onnx_export.PACKAGES", ("onnx", "no_such_package"))
    said = restore("export", "denoise-compact", "-o", tmp_path / "a.onnx")
    assert said.code == 2 and "no_such_package" in said.err and 'pip install "hybrid-imaging[onnx]"' in said.err

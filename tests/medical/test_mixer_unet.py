"""The segmentation network with each mixer, of slices and of volumes; and a comparison by the command."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from hybrid.blocks.mixers import MIXERS
from hybrid.errors import RequestError
from hybrid.parameter_budget import parameters_of
from medical.exporting import export_network
from medical.loading import load_model, save_model
from medical.models import mixer_unet
from medical.models.mixer_unet import MixerUNet
from tests.command import medical
from tests.restore.parity import draw

SMALL = {"in_channels": 1, "out_channels": 3, "stem": 6, "embed_dim": 24, "depths": (1, 1), "mlp_width": 30}
EVERY = [(name, dims) for name in MIXERS for dims in (2, 3)]
SIZES = {2: [(1, 1), (37, 23)], 3: [(1, 1, 1), (9, 14, 17)]}


def drawn(name: str, dims: int) -> MixerUNet:
    """A small network whose numbers are all different."""
    network = mixer_unet.create(**SMALL | {"mixer": name, "spatial_dims": dims})  # type: ignore[arg-type]
    state = network.state_dict()
    network.load_state_dict({k: draw(k, list(v.shape), 0) if v.is_floating_point() else v for k, v in state.items()})
    return network.eval()


def scan(*sides: int) -> Tensor:
    return torch.randn(1, 1, *sides, generator=torch.Generator().manual_seed(sum(sides)))


@pytest.mark.parametrize(("name", "dims"), EVERY)
def test_equal_parameters(name: str, dims: int) -> None:
    network = mixer_unet.create(parameters=400_000, mixer=name, spatial_dims=dims, out_channels=3)
    assert 0.98 * 400_000 < parameters_of(network) <= 400_000
    again = mixer_unet.create(parameters=400_000, mixer=name, spatial_dims=dims, out_channels=3)
    assert again.config == network.config and network.config.embed_dim % (4 * dims) == 0


def test_parameters_and_widths_do_not_go_together() -> None:
    with pytest.raises(ValueError, match="parameters and mlp_width say the same"):
        mixer_unet.create(parameters=100_000, mlp_width=32)


@pytest.mark.parametrize(("name", "dims"), EVERY)
def test_any_size_and_a_file_that_tells_all(name: str, dims: int, tmp_path: Path) -> None:
    network = drawn(name, dims)
    save_model(tmp_path / "x.safetensors", network)
    loaded = load_model(tmp_path / "x.safetensors", device="cpu")
    assert isinstance(loaded, MixerUNet) and loaded.config == network.config and loaded.card == network.card
    for sides in SIZES[dims]:
        x = scan(*sides)
        with torch.inference_mode():
            y = loaded(x)
            assert y.shape == (1, 3, *sides) and bool(y.isfinite().all()) and torch.equal(y, network(x))
        torch.testing.assert_close(network(x).detach(), y, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("name", "dims"), EVERY)
def test_every_parameter_learns(name: str, dims: int) -> None:
    learning = drawn(name, dims).train()
    learning(scan(*SIZES[dims][1])).square().mean().backward()
    for key, parameter in learning.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, key


def test_levels_and_shifts() -> None:
    network = MixerUNet(mixer_unet.MixerUNetConfig(embed_dim=12, depths=(2, 1, 1), mlp_width=24))
    widths = {key: block.mlp.fc1.weight.shape for key, block in network.named_modules() if hasattr(block, "mlp")}
    assert {key: tuple(shape) for key, shape in widths.items()} == {
        "encoder.0.0": (24, 12), "encoder.0.1": (24, 12), "encoder.1.0": (48, 24), "encoder.2.0": (96, 48),
        "decoder.0.0": (48, 24), "decoder.1.0": (24, 12), "decoder.1.1": (24, 12),
    }  # fmt: skip
    levels = [*network.encoder, *network.decoder]
    shifted = [[any(step.shift) for block in level for step in block.mixer.values()] for level in levels]
    assert shifted == [[False, True], [False], [True], [False], [False, True]]


@pytest.mark.parametrize("name", MIXERS)
def test_graphs(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the export is not tested: pip install -e .[dev] brings onnxruntime")
    network = drawn(name, 3)
    if network.not_exported:
        with pytest.raises(RequestError, match="cannot be exported"):
            export_network(network, tmp_path / "x.onnx", size=(16, 16, 16))
        return
    assert export_network(network, tmp_path / "x.onnx", size=(16, 16, 16)).differences


# The command -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    names = [f"hippocampus_{number:03}" for number in range(4)]
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir()
    for name in names:
        values = rng.normal(100, 10, (16, 18, 16)).astype(np.float32)
        labels = (values > 105).astype(np.uint8) + (values > 115)
        nib.save(nib.Nifti1Image(values, np.eye(4)), folder / "imagesTr" / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(labels, np.eye(4)), folder / "labelsTr" / f"{name}.nii.gz")
    splits = {"train": names[:2], "val": names[2:]}
    (folder / "dataset.json").write_text(json.dumps({"licence": "none", "splits": splits}))
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped one, made small."""
    shipped = Path(mixer_unet.__file__).parents[1] / "recipes" / "mixer-hippocampus.yaml"
    whole = yaml.safe_load(shipped.read_text())
    whole["network"]["options"] |= {"parameters": 60_000, "depths": [1, 1]}
    whole["protocol"]["patch"] = [16, 16, 16]
    whole["training"] |= {"steps": 2, "batch": 1, "log_every": 1, "validate_every": 1, "precision": "32-true"}
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(whole))
    return path


def test_two_arms_are_trained_and_told_in_a_table(recipe: Path, cases: Path, tmp_path: Path) -> None:
    asked = ("--mixers", "channel,large-kernel", "--recipe", recipe, "--data", cases, "-o", tmp_path / "out", "-q")
    said = medical("train", "compare", *asked, "--accelerator", "cpu", "--bench", "msd-hippocampus")
    assert said.code == 0 and "Research use, not a medical device." in said.out, said.err
    with (tmp_path / "out" / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["mixer"] for row in rows] == ["channel", "large-kernel"]
    for row in rows:
        stem = tmp_path / "out" / row["mixer"] / f"mixer-hippocampus-{row['mixer']}"
        network = load_model(stem.with_suffix(".safetensors"), device="cpu")
        assert isinstance(network, MixerUNet) and network.config.mixer == row["mixer"]
        assert network.protocol is not None and network.protocol.patch == (16, 16, 16)
        assert int(row["parameters"].replace(",", "")) == parameters_of(network)
        record = json.loads(stem.with_suffix(".json").read_text())
        assert float(row["final"]) == pytest.approx(record["result"]["dice"], abs=6e-5)
        report = json.loads((tmp_path / "out" / "bench" / row["mixer"] / "report.json").read_text())
        mean = report["means"]["mean"]["dice"]["mean"]
        assert float(row["Dice (val)"]) == pytest.approx(mean, rel=1e-3)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}
    said = medical("train", "compare", *asked, "--accelerator", "cpu")
    assert said.code == 0 and before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}


def test_a_network_without_mixers_is_refused(cases: Path, tmp_path: Path) -> None:
    said = medical("train", "compare", "--mixers", "all", "--recipe", "hippocampus", "--data", cases, "-o", tmp_path / "out")
    assert said.code != 0 and "hippocampus has no option mixer" in said.err

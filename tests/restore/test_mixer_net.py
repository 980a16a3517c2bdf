"""The restoration network with each mixer: equal sizes, files that tell it, tiles, graphs; and a comparison by the command."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from hybrid.blocks.mixers import MIXERS
from hybrid.errors import RequestError
from hybrid.parameter_budget import parameters_of
from hybrid.training.comparison import seconds_a_step
from hybrid.weights.checkpoints import write_checkpoint
from restore import load_model
from restore.exporting import export_network
from restore.models import mixer_net
from restore.models.mixer_net import MixerNet, MixerNetConfig
from tests.command import files, restore, smooth
from tests.restore.parity import draw

SMALL = {"embed_dim": 16, "depths": (2, 1), "mlp_width": 24, "scale": 2}


def drawn(name: str, **options: int) -> MixerNet:
    """A small network whose numbers are all different."""
    network = mixer_net.create(**SMALL | {"mixer": name} | options)  # type: ignore[arg-type]
    state = network.state_dict()
    network.load_state_dict({k: draw(k, list(v.shape), 0) if v.is_floating_point() else v for k, v in state.items()})
    return network.eval()


def picture(height: int, width: int) -> Tensor:
    return torch.from_numpy(smooth(height, width).transpose(2, 0, 1).astype(np.float32))[None]


@pytest.mark.parametrize("name", MIXERS)
def test_equal_parameters(name: str) -> None:
    for parameters in (150_000, 400_000):
        network = mixer_net.create(parameters=parameters, mixer=name)
        assert 0.98 * parameters < parameters_of(network) <= parameters
        again = mixer_net.create(parameters=parameters, mixer=name)
        assert again.config == network.config and network.config.mlp_width >= 2 * network.config.embed_dim


def test_parameters_and_widths_do_not_go_together() -> None:
    with pytest.raises(ValueError, match="parameters and embed_dim say the same"):
        mixer_net.create(parameters=100_000, embed_dim=32)
    with pytest.raises(ValueError, match="100 parameters are too few"):
        mixer_net.create(parameters=100)


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_a_file_tells_all_of_its_network(name: str, scale: int, tmp_path: Path) -> None:
    network = drawn(name, scale=scale)
    write_checkpoint(tmp_path / "x.safetensors", network.state_dict())
    loaded = load_model(tmp_path / "x.safetensors", device="cpu")
    assert isinstance(loaded, MixerNet) and loaded.config == network.config and loaded.card == network.card
    x = picture(13, 22)
    with torch.inference_mode():
        y = loaded(x)
        assert y.shape == (1, 3, 13 * scale, 22 * scale) and torch.equal(y, network(x))


@pytest.mark.parametrize("name", MIXERS)
def test_any_size_and_the_same_with_gradients(name: str) -> None:
    network = drawn(name)
    for height, width in ((1, 1), (37, 23), (3, 64)):
        x = picture(height, width)
        with torch.inference_mode():
            y = network(x)
        torch.testing.assert_close(network(x).detach(), y, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name, kind in MIXERS.items() if not kind.global_context])
def test_what_is_far_away_is_not_seen(name: str) -> None:
    """Of mixers that are not global; so that tiles equal the whole once they overlap by enough."""
    network, x = drawn(name), picture(96, 8).requires_grad_()
    network(x)[0, :, 0, 0].sum().backward()
    assert x.grad is not None
    found = x.grad[0].abs().sum((0, 2))
    assert found[:4].min() > 0 and found[80:].max() < 1e-20 * found.max()


def test_with_no_last_convolution_it_enlarges_by_nearest_neighbours() -> None:
    network = drawn("window")
    with torch.no_grad():
        network.conv_last.weight.zero_()
        network.conv_last.bias.zero_()  # type: ignore[union-attr]
    x = picture(9, 11)
    np.testing.assert_array_equal(network(x).detach(), x.numpy().repeat(2, 2).repeat(2, 3))


def test_odd_blocks_are_shifted_through_all_groups() -> None:
    network = MixerNet(MixerNetConfig(embed_dim=16, depths=(3, 2)))
    shifts = [step.shift for group in network.groups for block in group.blocks for step in block.mixer.values()]
    assert shifts == [(0, 0), (4, 4), (0, 0), (4, 4), (0, 0)]


@pytest.mark.parametrize("name", MIXERS)
def test_graphs(name: str, tmp_path: Path) -> None:
    """`export_network` compares its graph with the network; of two mixers in several sizes, which take longer."""
    pytest.importorskip("onnxruntime", reason="the export is not tested: pip install -e .[dev] brings onnxruntime")
    network = drawn(name, depths=(2,))  # type: ignore[arg-type]
    if network.not_exported:
        with pytest.raises(RequestError, match="cannot be exported"):
            export_network(network, tmp_path / "x.onnx")
        return
    opened = name in ("channel", "wavelet")  # one that fills nothing up, and one that no other family has
    made = export_network(network, tmp_path / "x.onnx", size=None if opened else (24, 32))
    assert len(made.differences) >= (3 if opened else 1) and (network.open_sides or name == "cross-shaped")


# The command -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (80, 96)), ("b.png", (96, 80)), ("c.png", (48, 48))):
        noisy = smooth(*size) * 255 + rng.integers(-12, 13, (*size, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    network = {"family": "mixer", "options": {"mixer": "window", "parameters": 30_000, "depths": [1]}}
    data = {"patch": 8, "validation": ["c.png"], "validation_crop": 32}
    training = {"steps": 2, "batch": 1, "learning_rate": 0.001, "log_every": 1, "validate_every": 1}
    parts = {"name": "tiny", "scale": 2, "licence": "none", "network": network, "data": data, "training": training}
    path.write_text(yaml.safe_dump(parts))
    return path


def compare(recipe: Path, photos: Path, out: Path, *more: str | Path) -> tuple[int, str]:
    asked = ("--mixers", "channel,wavelet", "--recipe", recipe, "--data", photos, "-o", out, "--accelerator", "cpu", "-q")
    said = restore("train", "compare", *asked, *more)
    return said.code, said.out + said.err


def test_two_arms_are_trained_and_told_in_a_table(recipe: Path, photos: Path, tmp_path: Path) -> None:
    code, said = compare(recipe, photos, tmp_path / "out", "--bench", "mini")
    assert code == 0, said
    with (tmp_path / "out" / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["mixer"] for row in rows] == ["channel", "wavelet"]
    for row in rows:
        name = row["mixer"]
        stem = tmp_path / "out" / name / f"tiny-{name}"
        network = load_model(stem.with_suffix(".safetensors"), device="cpu")
        assert isinstance(network, MixerNet) and network.config.mixer == name
        assert int(row["parameters"].replace(",", "")) == parameters_of(network) <= 30_000
        assert int(row["dim"]) == network.config.embed_dim and int(row["steps"]) == 2
        record = json.loads(stem.with_suffix(".json").read_text())
        assert float(row["final"]) == pytest.approx(record["result"]["psnr"], abs=0.006)
        assert record["recipe"]["network"]["options"]["mixer"] == name
        with stem.with_suffix(".csv").open() as file:
            validated = [float(each["psnr"]) for each in csv.DictReader(file)]
        assert float(row["best"]) == pytest.approx(max(validated), abs=0.006)
        scores = json.loads((tmp_path / "out" / "bench" / "report.json").read_text())
        assert scores["failures"] == 0 and any(key.endswith("PSNR") and float(row[key]) > 1 for key in row)
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 5000
    assert "wavelet" in (tmp_path / "out" / "comparison.md").read_text()


def test_finished_arms_are_left_alone_and_others_go_on(recipe: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert compare(recipe, photos, out)[0] == 0
    before = files(out)
    (out / "wavelet" / "tiny-wavelet.png").unlink()  # as if it had been killed while it wrote
    (out / "comparison.md").unlink()
    weights = out / "channel" / "tiny-channel.safetensors"
    stamp = weights.stat().st_mtime_ns
    assert compare(recipe, photos, out)[0] == 0
    assert weights.stat().st_mtime_ns == stamp
    after = files(out)
    assert after.keys() == before.keys()
    assert after["wavelet/log.csv"] == before["wavelet/log.csv"]  # the checkpoint was at the end
    assert after["comparison.csv"] == before["comparison.csv"]


def test_another_recipe_in_the_same_folder_is_refused(recipe: Path, photos: Path, tmp_path: Path) -> None:
    assert compare(recipe, photos, tmp_path / "out")[0] == 0
    code, said = compare(recipe, photos, tmp_path / "out", "--steps", "3")
    assert code != 0 and "channel holds a training by another recipe" in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--mixers", "window,windows"), "no mixer 'windows'.*Choose among window, cross-shaped"),
        (("--mixers", "window,window"), "named twice"),
        (("--recipe", "hat-compact-x4"), "hat-compact-x4 has no option mixer"),
    ],
)
def test_what_cannot_be_compared(more: tuple[str, str], message: str, recipe: Path, photos: Path, tmp_path: Path) -> None:
    code, said = compare(recipe, photos, tmp_path / "out", *more)
    assert code != 0 and re.search(message, said, re.DOTALL), said
    assert not (tmp_path / "out").exists()


def test_help_of_both_commands() -> None:
    said = restore("train", "compare", "--help")
    assert said.code == 0 and "--mixers" in said.out and "train compare" in said.out
    plain = restore("train", "--help")
    assert plain.code == 0 and "--mixers" not in plain.out and "train compare" in " ".join(plain.out.split())


def test_time_of_a_step_leaves_validation_out() -> None:
    rows = [{"step": s, "seconds": t} for s, t in ((10, 20.0), (20, 40.0), (30, 60.0), (40, 180.0), (50, 200.0))]
    rows[2]["psnr"] = 20.0
    assert seconds_a_step(rows, "psnr") == 2.0
    assert seconds_a_step(rows[:1], "psnr") == 2.0

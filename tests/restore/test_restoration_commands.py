"""`restore deblur`, `denoise`, `dejpeg`: judged by Pillow, tifffile and NumPy, with networks whose right answer is known.

The networks are small NAFNets. Where their last convolution has weights of 0, each head gives the picture plus its bias.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms
from torch import Tensor

from hybrid.cards import ModelCard
from hybrid.errors import RequestError
from restore import load_model
from restore.faces.training import load_face_recipe
from restore.images import Picture, probe
from restore.loading import catalogue
from restore.models.base import RestorationNetwork
from restore.models.restormer import KEYS as RESTORMER_KEYS
from restore.models.restormer import Restormer, RestormerConfig
from restore.restoration.run import RunSettings, plan_file, restore_file, restore_picture
from restore.tasks import COMMANDS, DEBLUR, DENOISE, SR, Command
from restore.training.run import load_recipe
from tests.command import files, restore
from tests.restore.command_stubs import OFFSETS, cache, embedded, photo, pixels, record, run, unit, weights

__all__ = ["cache"]  # a fixture


# One output ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", ["off", "256"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("network_channels", [1, 3])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_network_that_changes_nothing_gives_the_same_bits(
    tmp_path: Path, dtype: str, network_channels: int, channels: int, tile: str
) -> None:
    before = photo(tmp_path / "in.tif", dtype, channels, (300, 280))
    network = weights(tmp_path / "w.pth", channels=network_channels)
    said = run("denoise", tmp_path / "in.tif", "--weights", network, "--tile", tile)
    assert said.code == 0, said.err
    after = tifffile.imread(tmp_path / "in_denoised.tif")
    assert after.dtype == before.dtype
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(("command", "tag"), [("deblur", "_deblurred"), ("denoise", "_denoised"), ("dejpeg", "_cleaned")])
def test_each_command_names_its_result_and_its_record(tmp_path: Path, command: str, tag: str) -> None:
    photo(tmp_path / "in.png")
    said = run(command, tmp_path / "in.png", "--weights", weights(tmp_path / "w.pth", (0.2,)))
    output = tmp_path / f"in{tag}.png"
    assert said.code == 0 and said.err.startswith(f"{output}  52 x 40, ")
    facts = record(output)
    assert (facts["task"], facts["input"], facts["output"], facts["family"]) == (command, "in.png", output.name, "nafnet")
    assert "figures" not in facts and embedded(output)["task"] == command


def test_the_network_does_what_it_does(tmp_path: Path) -> None:
    before = photo(tmp_path / "in.png")
    file = weights(tmp_path / "w.pth", (0.1,), strength=0.05)
    assert run("deblur", tmp_path / "in.png", "--weights", file).code == 0
    x = torch.from_numpy((before / 255).astype(np.float32).transpose(2, 0, 1))[None]
    with torch.inference_mode():
        y = load_model(file, device="cpu")(x)[0].numpy().transpose(1, 2, 0)
    expected = np.clip(y, 0, 1) * 255
    after = pixels(tmp_path / "in_deblurred.png").astype(float)
    assert np.abs(after - expected).max() <= 0.5001
    assert np.abs(after - before).mean() > 5


def test_alpha_profile_and_resolution_stay(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    values = rng.integers(0, 256, (20, 24, 4), np.uint8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(values, "RGBA").save(tmp_path / "in.png", dpi=(300, 300), icc_profile=profile)
    assert run("dejpeg", tmp_path / "in.png", "--weights", weights(tmp_path / "w.pth", (0.1,), strength=0.05)).code == 0
    with Image.open(tmp_path / "in_cleaned.png") as judge:
        assert judge.mode == "RGBA" and judge.info["icc_profile"] == profile and round(judge.info["dpi"][0]) == 300
        np.testing.assert_array_equal(np.asarray(judge)[..., 3], values[..., 3])  # alpha is neither noise nor blurred


def test_a_network_of_gray_works_on_each_colour_by_itself(tmp_path: Path) -> None:
    before = photo(tmp_path / "in.png")
    file = weights(tmp_path / "w.pth", (0.1,), channels=1, strength=0.05)
    assert run("denoise", tmp_path / "in.png", "--weights", file).code == 0
    after = pixels(tmp_path / "in_denoised.png")
    for channel in range(3):
        Image.fromarray(before[..., channel]).save(tmp_path / "one.png")
        assert run("denoise", tmp_path / "one.png", "--weights", file, "--overwrite").code == 0
        np.testing.assert_array_equal(after[..., channel], pixels(tmp_path / "one_denoised.png"))


def test_tiles_are_near_the_whole_and_the_record_says_that_they_are_not_it(tmp_path: Path) -> None:
    photo(tmp_path / "in.png", size=(400, 300))
    file = weights(tmp_path / "w.pth", strength=0.02)
    command = ("denoise", tmp_path / "in.png", "--weights", file)
    assert run(*command, "-o", tmp_path / "whole.png", "--tile", "off").code == 0
    said = run(*command, "-o", tmp_path / "tiles.png", "--tile", "288")
    whole, tiles = pixels(tmp_path / "whole.png").astype(int), pixels(tmp_path / "tiles.png").astype(int)
    assert 0 < np.abs(whole - tiles).mean() < 1
    note = "NAFNet sees more of a picture than its tiles share"
    assert note in said.err and any(note in each for each in record(tmp_path / "tiles.png")["notes"])
    assert record(tmp_path / "whole.png")["notes"] == []


def test_a_list_of_stages_is_no_obstacle() -> None:
    class Staged(RestorationNetwork):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()), requires_grad=False)
            self.card = ModelCard("staged", "Staged", "none", "none", 1, 3, 4, 8, False, 10, result=0)

        def restore(self, x: Tensor) -> list[Tensor]:
            return [x, x * 0]

    colour = np.random.default_rng(3).integers(0, 256, (30, 31, 3), np.uint8)
    np.testing.assert_array_equal(restore_picture(Staged(), Picture(colour)).colour, colour)


def test_a_plan_writes_nothing(tmp_path: Path) -> None:
    photo(tmp_path / "in.png")
    file = weights(tmp_path / "w.pth", OFFSETS)
    before = files(tmp_path)
    said = run("deblur", tmp_path / "in.png", "--weights", file, "--outputs", "2", "--plan", "--json")
    assert said.code == 0 and json.loads(said.out)["size"] == [52, 40]
    assert files(tmp_path) == before


def test_a_large_tiff_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("restore.restoration.plan.STREAM_FROM", 0)
    before = photo(tmp_path / "in.tif", "uint16", size=(600, 300))
    file = weights(tmp_path / "w.pth", OFFSETS)
    said = run("deblur", tmp_path / "in.tif", "--weights", file, "--tile", "288")
    assert said.code == 0 and "streamed in" in said.err
    expected = np.floor((unit(before) + np.mean(OFFSETS)) * 65535 + 0.5)
    after = tifffile.imread(tmp_path / "in_deblurred.tif")
    assert np.abs(after - expected).max() <= 1  # the mean: outputs of a streamed picture cannot be compared
    assert any("the mean of the outputs was taken" in note for note in record(tmp_path / "in_deblurred.tif")["notes"])


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--outputs", "7"), "has 6 outputs.*at most 6"),
        (("--select", "7"), "number from 1 to 6"),
        (("--select", "0"), "--select 0 is not understood.*best, mean"),
        (("--select", "worst"), "--select worst is not understood"),
        (("--uncertainty", "map.jpg"), "is a PNG file.*map.png"),
    ],
)
def test_requests_that_make_no_sense_name_the_repair(tmp_path: Path, arguments: tuple[str, ...], error: str) -> None:
    photo(tmp_path / "in.png")
    file = weights(tmp_path / "w.pth", OFFSETS)
    before = files(tmp_path)
    said = run("deblur", tmp_path / "in.png", "--weights", file, *arguments)
    assert said.code == 2
    assert re.search(error, said.err, re.DOTALL), said.err
    assert files(tmp_path) == before


@pytest.mark.parametrize("arguments", [("--outputs", "2"), ("--select", "1"), ("--uncertainty", "m.png")])
def test_one_output_cannot_be_several(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    photo(tmp_path / "in.png")
    said = run("deblur", tmp_path / "in.png", "--weights", weights(tmp_path / "w.pth"), *arguments)
    assert said.code == 2 and "NAFNet has one output" in said.err and "Leave out --outputs" in said.err


def test_models_of_another_task_are_refused_before_anything_is_looked_for(tmp_path: Path) -> None:
    photo(tmp_path / "in.png")
    for command, model, repair in (
        ("denoise", "hat-compact", "restore sr --model hat-compact"),
        ("deblur", "restormer-color-blind", "restore denoise --model restormer-color-blind"),
        ("sr", "nafnet-gopro-width32", "restore deblur --model nafnet-gopro-width32"),
        ("dejpeg", "restormer-deraining", "models list"),
    ):
        said = run(command, tmp_path / "in.png", "--model", model)
        assert said.code == 2 and f"{model} is a network for" in said.err and repair in said.err, said.err


def test_files_of_another_scale_are_refused(tmp_path: Path) -> None:
    photo(tmp_path / "in.png")
    shipped = catalogue().shipped_path(catalogue().entry("espcn-compact"), 2)
    assert shipped is not None
    said = run("denoise", tmp_path / "in.png", "--weights", shipped)
    assert said.code == 2 and "is a network for super-resolution, not for noise" in said.err and "restore sr" in said.err
    said = run("sr", tmp_path / "in.png", "--weights", weights(tmp_path / "w.pth"))
    assert said.code == 2 and "is a network for denoising, not for super-resolution" in said.err
    assert "use restore deblur or restore denoise or restore dejpeg" in said.err
    face = ModelCard("f", "F", "none", "none", 1, 3, 1, 0, True, 10, tasks=("face restoration",))
    with pytest.raises(RequestError, match="for face restoration, not for noise"):
        DENOISE.check_card(face, "f.pth")


def test_networks_of_two_views_are_refused(tmp_path: Path) -> None:
    photo(tmp_path / "in.png")
    network = Restormer(RestormerConfig(6, 3, 8, (1, 1, 1, 1), (1, 1, 1, 1), 1, (16, 32, 64, 128), dual_pixel=True))
    torch.save({"params": {RESTORMER_KEYS.to_published(k): v for k, v in network.state_dict().items()}}, tmp_path / "w.pth")
    said = run("deblur", tmp_path / "in.png", "--weights", tmp_path / "w.pth")
    assert said.code == 2 and "takes 6 channels and gives 3, not one gray or RGB picture" in said.err


def test_candidates_are_not_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo(tmp_path / "in.tif", size=(600, 300))
    file = weights(tmp_path / "w.pth", OFFSETS)
    monkeypatch.setattr("restore.restoration.plan.activation_budget", lambda *of: 10**6)
    monkeypatch.setattr("restore.restoration.plan.STREAM_SIDES", (288,))
    said = run("deblur", tmp_path / "in.tif", "--weights", file, "--outputs", "2", "--memory", "100MB")
    assert said.code != 0 and "Or leave out --outputs and --uncertainty: then it is streamed" in said.err


def test_every_entry_of_the_catalogue_names_its_task() -> None:
    known = {task for command in COMMANDS for task in command.tasks} | {"deraining", "enhancement", "face", "detection", "metric"}
    assert all(entry.task in known for entry in catalogue())
    assert all(1 not in entry.files or entry.task != "super-resolution" or entry.family == "mirnet" for entry in catalogue())
    said = restore("models", "list")
    assert "task" in said.out and "denoising" in said.out and "defocus" in said.out


@pytest.mark.parametrize("command", [DEBLUR, DENOISE, SR])
def test_entries_are_told_apart(command: object) -> None:
    with pytest.raises(RequestError):
        command.check_entry(catalogue().entry("mirnet-lol"))  # type: ignore[attr-defined]


def test_memory_counts_every_output(tmp_path: Path) -> None:
    photo(tmp_path / "in.png")
    several, one = (load_model(weights(tmp_path / f"{n}.pth", (0.0,) * n), device="cpu") for n in (4, 1))
    info = probe(tmp_path / "in.png")
    plans = [plan_file(network, info, tmp_path / "out.png", RunSettings()) for network in (several, one)]
    assert [plan.tiles.out_channels for plan in plans] == [30, 3]
    outcome = restore_file(several, tmp_path / "in.png", tmp_path / "out.png")
    assert outcome.figures["outputs"] == 10


# Defaults --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [each for each in COMMANDS if each is not SR], ids=lambda command: command.name)
def test_a_default_network_ships_with_the_package_and_its_recipe(command: Command) -> None:
    """SR is left out: it chooses among those that are here."""
    entry = catalogue().entry(command.model)
    assert entry.task in command.tasks and catalogue().shipped_path(entry, 1) is not None
    recipe = load_face_recipe(command.model) or load_recipe(command.model)
    assert recipe.task in command.tasks


def test_the_shipped_denoiser_denoises(tmp_path: Path) -> None:
    """Smooth colours and noise of sigma 25: most of it goes, in 8 bits and in 16."""
    y, x = np.mgrid[:64, :80] / 80
    clean = np.stack([x, y, 1 - x], -1) * 0.6 + 0.2
    noisy = np.clip(clean + np.random.default_rng(0).normal(0, 25 / 255, clean.shape), 0, 1)
    for bits, dtype in ((8, np.uint8), (16, np.uint16)):
        tifffile.imwrite(tmp_path / f"{bits}.tif", np.rint(noisy * (2**bits - 1)).astype(dtype), photometric="rgb")
        assert restore("denoise", tmp_path / f"{bits}.tif", "-o", tmp_path / f"out{bits}.tif").code == 0
        result = tifffile.imread(tmp_path / f"out{bits}.tif")
        assert result.dtype == dtype
        assert np.std(result / (2**bits - 1) - clean) < 0.25 * np.std(noisy - clean)

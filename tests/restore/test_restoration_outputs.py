"""Several outputs of one network by the commands: the best, candidates, maps of uncertainty."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from restore import load_model
from restore.images import Picture, read_picture
from restore.restoration.one_output import Selection
from restore.restoration.run import RunSettings, restore_picture
from tests.command import files
from tests.restore.command_stubs import OFFSETS, PAIRS, cache, embedded, photo, pixels, record, run, unit, weights

__all__ = ["cache"]  # a fixture


# Several outputs -----------------------------------------------------------------------------------------------------


def test_the_best_is_the_output_nearest_to_the_mean(tmp_path: Path) -> None:
    before = photo(tmp_path / "in.png")
    said = run("deblur", tmp_path / "in.png", "--weights", weights(tmp_path / "w.pth", OFFSETS))
    values = [np.mean([OFFSETS[i], OFFSETS[j]]) for i, j in PAIRS]
    best = int(np.abs(np.array(values) - np.mean(OFFSETS)).argmin())
    output = tmp_path / "in_deblurred.png"
    assert np.abs(pixels(output) - (before + 255 * values[best])).max() <= 0.501
    figures = record(output)["figures"]
    assert (figures["outputs"], figures["heads"], figures["main"], figures["criterion"]) == (6, [1, 3, 6], best + 1, "agreement")
    np.testing.assert_allclose(figures["scores"], np.square(np.array(values) - np.mean(OFFSETS)), atol=2e-3)
    assert f"output {best + 1} of 6, the best by agreement" in said.err
    assert sorted(files(tmp_path)) == ["in.png", "in_deblurred.png", "in_deblurred.png.json", "w.pth"]


@pytest.mark.parametrize(("select", "value"), [("mean", np.mean(OFFSETS)), ("1", -0.1), ("4", 0.1), ("6", 0.3)])
def test_any_output_or_the_mean_can_be_the_result(tmp_path: Path, select: str, value: float) -> None:
    before = photo(tmp_path / "in.png")
    file = weights(tmp_path / "w.pth", OFFSETS)
    for more, name in (((), "a.png"), (("--outputs", "1"), "b.png")):  # the network alone, and by way of the disk
        said = run("deblur", tmp_path / "in.png", "--weights", file, "--select", select, *more, "-o", tmp_path / name)
        assert said.code == 0, said.err
        assert np.abs(pixels(tmp_path / name) - (before + 255 * value)).max() <= 0.501
    assert any(("mean" if select == "mean" else f"Output {select} of 6") in note for note in record(tmp_path / "a.png")["notes"])


@pytest.mark.parametrize("tile", ["off", "256"])
@pytest.mark.parametrize("ensemble", [(), ("--ensemble",)])
def test_candidates_are_outputs_by_their_numbers_heads_first(tmp_path: Path, tile: str, ensemble: tuple[str, ...]) -> None:
    before = photo(tmp_path / "in.png", size=(300, 40))
    file = weights(tmp_path / "w.pth", OFFSETS)
    said = run("deblur", tmp_path / "in.png", "--weights", file, "--outputs", "4", "--tile", tile, *ensemble)
    assert said.code == 0, said.err
    figures = record(tmp_path / "in_deblurred.png")["figures"]
    # Heads by their distance to the mean: 0.0, -0.1, 0.3; then the nearest average, which is the best of all.
    assert list(figures["candidates"].values()) == [3, 1, 6, 4] and figures["main"] == 4
    for name, number in figures["candidates"].items():
        i, j = PAIRS[number - 1]
        assert name == f"in_deblurred_{number}.png"
        assert np.abs(pixels(tmp_path / name) - (before + 255 * (OFFSETS[i] + OFFSETS[j]) / 2)).max() <= 0.501
        assert embedded(tmp_path / name)["output"] == name
    assert len(list(tmp_path.glob("in_deblurred*.png"))) == 5


def test_gray_alpha_and_16_bits_hold_for_candidates_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    values = rng.integers(13000, 40000, (30, 20, 2)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "in.tif", values, photometric="minisblack", extrasamples=["unassalpha"])
    said = run("deblur", tmp_path / "in.tif", "--weights", weights(tmp_path / "w.pth", OFFSETS), "--outputs", "6")
    assert said.code == 0, said.err
    for number, (i, j) in enumerate(PAIRS, 1):
        after = tifffile.imread(tmp_path / f"in_deblurred_{number}.tif")
        expected = np.floor((unit(values[..., 0]) + (OFFSETS[i] + OFFSETS[j]) / 2) * 65535 + 0.5)
        assert np.abs(after[..., 0] - expected).max() <= 1
        np.testing.assert_array_equal(after[..., 1], values[..., 1])


def test_several_outputs_of_a_network_of_gray_are_of_each_colour(tmp_path: Path) -> None:
    before = photo(tmp_path / "in.png")
    file = weights(tmp_path / "w.pth", OFFSETS, channels=1)
    assert run("deblur", tmp_path / "in.png", "--weights", file, "--outputs", "6").code == 0
    for number, (i, j) in enumerate(PAIRS, 1):
        after = pixels(tmp_path / f"in_deblurred_{number}.png")
        assert after.shape == before.shape and np.abs(after - (before + 255 * (OFFSETS[i] + OFFSETS[j]) / 2)).max() <= 0.501


def test_the_map_is_the_standard_deviation_of_the_heads(tmp_path: Path) -> None:
    before = photo(tmp_path / "in.png", size=(300, 40))
    file = weights(tmp_path / "w.pth", OFFSETS, strength=0.05)
    said = run("deblur", tmp_path / "in.png", "--weights", file, "--uncertainty", tmp_path / "map.png", "--tile", "256")
    assert said.code == 0 and "map.png: white is a standard deviation of" in said.err
    network = load_model(file, device="cpu")
    x = torch.from_numpy((before / 255).astype(np.float32).transpose(2, 0, 1))[None]
    with torch.inference_mode():
        heads = network(x)[0, [0, 2, 5]].double().numpy()
    expected = np.sqrt(np.var(heads, axis=0).mean(0))  # over colours the root of the mean square
    with Image.open(tmp_path / "map.png") as judge:
        assert judge.mode == "I;16" and judge.size == (40, 300)
        shown = np.asarray(judge).astype(float)
    scale = record(tmp_path / "in_deblurred.png")["figures"]["uncertainty"]
    assert scale["file"] == "map.png" and "standard deviation" in scale["unit"]
    np.testing.assert_allclose(scale["white"], np.quantile(expected, 0.999), rtol=0.02)
    error = np.abs(shown / 65535 * scale["white"] - np.minimum(expected, scale["white"]))
    assert np.median(error) < 1e-3 and error.max() < 0.02  # tiles are not the whole
    np.testing.assert_allclose(scale["mean"], expected.mean(), rtol=0.01)


def test_heads_that_agree_make_a_black_map(tmp_path: Path) -> None:
    photo(tmp_path / "in.png")
    file = weights(tmp_path / "w.pth", (0.1, 0.1))
    assert run("deblur", tmp_path / "in.png", "--weights", file, "--uncertainty", tmp_path / "map.png").code == 0
    assert not pixels(tmp_path / "map.png").any()


def test_several_pictures_get_a_folder_of_maps(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        photo(tmp_path / name)
    file = weights(tmp_path / "w.pth", OFFSETS)
    command = ("deblur", tmp_path / "a.png", tmp_path / "b.png", "--weights", file, "-o", tmp_path / "out")
    refused = run(*command, "--uncertainty", tmp_path / "map.png")
    assert refused.code == 2 and "there are 2 inputs" in refused.err and "Give --uncertainty a folder" in refused.err
    assert not (tmp_path / "out").exists()
    assert run(*command, "--uncertainty", tmp_path / "maps").code == 0
    assert sorted(files(tmp_path / "maps")) == ["a.png", "b.png"]
    same = run(*command, "--overwrite", "--uncertainty", tmp_path / "out")
    assert same.code == 2 and "would both be written to" in same.err


def test_nothing_is_left_of_a_run_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo(tmp_path / "in.png")
    file = weights(tmp_path / "w.pth", OFFSETS)
    before = files(tmp_path)

    def full(*of: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    for name in (
        "restore.restoration.candidates.RowFiles.write",
        "restore.restoration.candidates.os.replace",
        "restore.restoration.run.write_record",
    ):
        with monkeypatch.context() as patch:
            patch.setattr(name, full)
            try:
                said = run(
                    "deblur", tmp_path / "in.png", "--weights", file, "--outputs", "2", "--uncertainty", tmp_path / "m.png"
                )
                assert said.code != 0
            except OSError:
                assert name.endswith("write_record")
        assert files(tmp_path) == before


def test_inputs_are_never_in_the_way_of_candidates(tmp_path: Path) -> None:
    photo(tmp_path / "in.png")
    photo(tmp_path / "in_deblurred_3.png")
    file = weights(tmp_path / "w.pth", OFFSETS)
    before = files(tmp_path)
    said = run("deblur", tmp_path / "in.png", tmp_path / "in_deblurred_3.png", "--weights", file, "--outputs", "3", "--overwrite")
    assert said.code == 2 and "is the input" in said.err
    assert run("deblur", tmp_path / "in.png", "--weights", file, "--outputs", "3").code == 6  # it is there already
    assert files(tmp_path) == before


def test_in_memory_the_selection_holds_too(tmp_path: Path) -> None:
    file = weights(tmp_path / "w.pth", OFFSETS)
    colour = photo(tmp_path / "in.png")
    network = load_model(file, device="cpu")
    for main, value in (("best", 0.1), ("mean", np.mean(OFFSETS)), (6, 0.3)):
        result = restore_picture(network, Picture(colour), RunSettings(selection=Selection(main)))  # type: ignore[arg-type]
        assert np.abs(result.colour - (colour + 255 * value)).max() <= 0.501
    assert run("deblur", tmp_path / "in.png", "--weights", file, "--tile", "off").code == 0
    np.testing.assert_array_equal(
        read_picture(tmp_path / "in_deblurred.png").colour, restore_picture(network, Picture(colour)).colour
    )


def test_pictures_of_floats_keep_their_range(tmp_path: Path) -> None:
    values = (photo(tmp_path / "x.png") / 255 * 4 - 1).astype(np.float32)
    values[0, 0], values[0, 1] = -1, 3
    tifffile.imwrite(tmp_path / "in.tif", values, photometric="rgb")
    file = weights(tmp_path / "w.pth", OFFSETS)
    said = run("deblur", tmp_path / "in.tif", "--weights", file, "--outputs", "6", "--uncertainty", tmp_path / "m.png")
    assert said.code == 0, said.err
    np.testing.assert_allclose(read_picture(tmp_path / "in_deblurred_6.tif").colour, values + 0.3 * 4, atol=1e-5)
    scale = record(tmp_path / "in_deblurred.tif")["figures"]["uncertainty"]
    np.testing.assert_allclose(scale["greatest"], np.std(OFFSETS), rtol=1e-4)  # a part of the range, which is 4

"""Pictures for networks for slices: how they are read, what is segmented, and volumes slice by slice."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageOps
from pydicom import Dataset

from hybrid.errors import InputError, RequestError, ResourceError
from medical.files.inputs import read_scan
from medical.pictures.reading import PictureOrigin, is_picture, read_picture_file
from medical.segmentation.run import SegmentSettings, segment
from medical.segmentation.sliding import plan_scan
from medical.volumes.volume import Volume
from tests.medical.dicom_stubs import pixels, private, save, slices_of
from tests.medical.picture_stubs import convolution_2d, picture, protocol_2d, threshold, tissue
from tests.medical.stubs import Stub, convolution, protocol, smooth, volume

RNG = np.random.default_rng(0)
GRAY8 = RNG.integers(0, 256, (7, 9), np.uint8)
GRAY16 = RNG.integers(0, 65536, (7, 9), np.uint16)
COLOUR = RNG.integers(0, 256, (7, 9, 3), np.uint8)


def origin(found: Volume) -> PictureOrigin:
    assert isinstance(found.origin, PictureOrigin)
    return found.origin


@pytest.mark.parametrize("array", [GRAY8, GRAY16])
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_stored_values_of_gray_pictures(tmp_path: Path, array: np.ndarray, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    Image.fromarray(array).save(path)
    found = read_picture_file(path)
    assert found.values.shape == (1, 7, 9, 1) and found.values.dtype == array.dtype
    np.testing.assert_array_equal(found.values[0, ..., 0], array)
    assert origin(found).white == np.iinfo(array.dtype).max and origin(found).pixel_mm is None
    assert found.name == "a" and found.warnings == ()


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.kron(GRAY8, np.ones((8, 8), np.uint8))).save(path, quality=100, exif=exif)
    with Image.open(path) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    found = read_picture_file(path).values[0, ..., 0]
    assert found.shape == (72, 56)
    assert np.abs(found.astype(int) - expected).max() <= 2  # two JPEG decoders


def test_colour_gray_and_transparency(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "colour.png")
    both = read_picture_file(tmp_path / "colour.png", channels=3)
    np.testing.assert_array_equal(both.values[..., 0].transpose(1, 2, 0), COLOUR)
    gray = read_picture_file(tmp_path / "colour.png")
    assert np.abs(gray.values[0, ..., 0].astype(int) - np.asarray(Image.fromarray(COLOUR).convert("L"))).max() <= 1
    assert any("gray" in warning for warning in gray.warnings)
    Image.fromarray(GRAY8).convert("RGB").save(tmp_path / "grayish.png")
    alike = read_picture_file(tmp_path / "grayish.png")
    np.testing.assert_array_equal(alike.values[0, ..., 0], GRAY8)
    assert alike.warnings == ()
    Image.fromarray(GRAY8).save(tmp_path / "gray.png")
    three = read_picture_file(tmp_path / "gray.png", channels=3)
    assert three.values.shape == (3, 7, 9, 1) and "alike" in three.warnings[0]
    clear = np.dstack([COLOUR, GRAY8])
    Image.fromarray(clear).save(tmp_path / "clear.png")
    assert any("transparency" in warning for warning in read_picture_file(tmp_path / "clear.png", channels=3).warnings)
    with pytest.raises(InputError, match=r"gray.png has 1 channel, and the network takes 2"):
        read_picture_file(tmp_path / "gray.png", channels=2)
    with pytest.raises(InputError, match="finite"):
        tifffile.imwrite(tmp_path / "nan.tif", np.full((4, 4), np.nan, np.float32))
        read_picture_file(tmp_path / "nan.tif")


def test_the_size_of_pixels(tmp_path: Path) -> None:
    def size(name: str, **choices: object) -> Volume:
        tifffile.imwrite(tmp_path / name, GRAY8, **choices)  # type: ignore[arg-type]
        return read_picture_file(tmp_path / name)

    measured = size("cm.tif", resolution=(2000, 1000), resolutionunit="CENTIMETER")
    assert origin(measured).pixel_mm == pytest.approx((0.01, 0.005), rel=1e-4)
    assert measured.grid.spacing[:2] == pytest.approx((0.01, 0.005), rel=1e-4)
    printed = size("dpi.tif", resolution=(300, 300), resolutionunit="INCH")
    assert origin(printed).pixel_mm is None and "300 dpi" in printed.warnings[0]
    fiji = size("fiji.tif", imagej=True, resolution=(4.0, 2.0), metadata={"unit": "um"})
    assert origin(fiji).pixel_mm == pytest.approx((0.0005, 0.00025))
    assert origin(size("none.tif")).pixel_mm is None
    Image.fromarray(GRAY8).save(tmp_path / "density.png", dpi=(1000, 1000))
    assert origin(read_picture_file(tmp_path / "density.png")).pixel_mm is None


def test_single_frames_of_dicom(tmp_path: Path) -> None:
    def change(_: int, one: Dataset) -> None:
        one.RescaleSlope, one.RescaleIntercept = 2, -100

    stored = pixels(1, 8, 6)
    folder = save(tmp_path / "one", slices_of(stored, modality="CR", change=change))
    (path,) = folder.iterdir()
    assert is_picture(path) and not is_picture(folder)
    found = read_scan([path])
    np.testing.assert_array_equal(found.values[0, ..., 0], stored[0] * 2 - 100)
    assert origin(found).pixel_mm == (0.8, 0.7) and origin(found).modality == "CR" and origin(found).white == 1
    assert not private(" ".join(found.warnings))

    def coloured(_: int, one: Dataset) -> None:
        one.SamplesPerPixel, one.PhotometricInterpretation, one.PlanarConfiguration = 3, "RGB", 0
        one.PixelData, one.BitsAllocated = COLOUR.tobytes() + b"\0", 8
        one.Rows, one.Columns = COLOUR.shape[:2]
        del one.ImagePositionPatient

    (path,) = save(tmp_path / "rgb", slices_of(pixels(1, high=255), bits=8, modality="US", change=coloured)).iterdir()
    np.testing.assert_array_equal(read_picture_file(path, channels=3).values[..., 0].transpose(1, 2, 0), COLOUR)

    def dark(_: int, one: Dataset) -> None:
        one.PhotometricInterpretation = "MONOCHROME1"

    (path,) = save(tmp_path / "dark", slices_of(stored, change=dark)).iterdir()
    inverted = read_picture_file(path)
    assert origin(inverted).inverted and "MONOCHROME1" in inverted.warnings[0]
    np.testing.assert_array_equal(inverted.values[0, ..., 0], stored[0])


def test_what_cannot_be_read_says_so(tmp_path: Path) -> None:
    Image.fromarray(RNG.integers(0, 256, (63, 81), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:900])
    with pytest.raises(InputError, match="damaged or cut short"):
        read_scan([tmp_path / "cut.png"])
    with pytest.raises(RequestError, match="is a picture"):
        read_scan([tmp_path / "a.png"], series="1")


def test_a_picture_larger_than_the_memory_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.tile(GRAY8, (9, 9))).save(tmp_path / "a.png")
    monkeypatch.setattr("medical.pictures.reading.available_bytes", lambda: 10_000)
    with pytest.raises(ResourceError, match=r"81 x 63 pixels"):
        read_picture_file(tmp_path / "a.png")


def test_white_is_one_for_all_depths() -> None:
    values, membrane = tissue(0)
    fine = values.astype(np.uint16) * 257
    settings, network = SegmentSettings(), threshold()
    for each, white in ((values, 255.0), (fine, 65535.0), (values.astype(np.float32) / 255, 1.0)):
        found = segment(picture(each, white=white), network, settings, protocol=protocol_2d())
        np.testing.assert_array_equal(found.labels[..., 0], values > 127.5)
    assert found.labels.shape == (48, 64, 1) and "picture of 64 x 48 pixels" in found.way
    assert (found.labels[..., 0] != membrane).mean() > 0.9  # the picture is what it was made to be


def test_windows_are_a_weighted_mean_of_what_the_network_says() -> None:
    """Against windows, Gaussian weights and mirror images written out in numpy; no orientation turns a picture."""
    values, patch, network = smooth(40, 61), (16, 24), convolution_2d()
    asked = protocol_2d(3, intensity={"kind": "z-score"}, mirror=(0, 1), orientation="PLS")
    found = segment(picture(values), network, SegmentSettings(mirror=True, probabilities=True), protocol=asked)
    scaled = (values - values.mean()) / values.std()
    total, weight = np.zeros((3, 40, 61)), np.zeros((40, 61))
    bells = [np.exp(-(((np.arange(n) - (n - 1) / 2) / (n / 8)) ** 2) / 2) for n in patch]
    for top, left in product([*range(0, 24, 8), 24], [*range(0, 37, 12), 37]):
        window = torch.from_numpy(scaled[top : top + 16, left : left + 24].astype(np.float32))[None, None]
        views = [network(window.flip(axes)).flip(axes) for axes in ([], [2], [3], [2, 3])]
        mean = torch.stack(views).mean(0)[0].numpy()
        total[:, top : top + 16, left : left + 24] += mean * np.outer(*bells)
        weight[top : top + 16, left : left + 24] += np.outer(*bells)
    logits = total / weight
    clear = np.sort(logits, 0)[-1] - np.sort(logits, 0)[-2] > 1e-4
    assert clear.mean() > 0.99 and len(np.unique(found.labels)) > 1
    np.testing.assert_array_equal(found.labels[..., 0][clear], logits.argmax(0)[clear])
    shares = np.exp(logits) / np.exp(logits).sum(0)
    assert found.probabilities is not None
    np.testing.assert_allclose(found.probabilities[..., 0], shares, atol=1e-5)


def test_memory_does_not_grow_with_the_rows() -> None:
    card, asked = convolution_2d().card, protocol_2d()
    short, tall = (plan_scan((rows, 64, 1), card, asked) for rows in (128, 12800))
    assert tall.axis == 0 and tall.tiles.memory_bytes == short.tiles.memory_bytes
    assert tall.describe().startswith("7995 windows of 16 x 24 over 12800 x 64,")
    # The network fills up rows and columns, not the one slice.
    odd = plan_scan((64, 64, 1), threshold().card, protocol_2d(patch=(15, 24)))
    assert odd.tiles.tile_bytes == pytest.approx(4 * (10 + 2 * 2) * 16 * 24, rel=0.1)


def test_pictures_of_another_pixel_size_are_resampled_if_they_say_it() -> None:
    asked = protocol_2d(spacing=(0.5, 0.5))
    values = np.zeros((40, 30), np.float32)
    values[10:30, 6:24] = 1
    seen: list[tuple[int, ...]] = []

    def watch(x: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(x.shape))
        return torch.cat([0.5 - x, x - 0.5], 1)

    network = Stub(watch, 1, 2, spatial_dims=2)
    known = segment(picture(values, pixel_mm=(1.0, 1.0)), network, protocol=asked)
    np.testing.assert_array_equal(known.labels[..., 0], values > 0)
    assert "resampled to 0.5 x 0.5 mm" in known.way and known.plan.shape == (80, 60, 1)
    unknown = segment(picture(values), network, protocol=asked)
    assert unknown.plan.shape == (40, 30, 1) and "does not say how large its pixels are" in unknown.notes[0]
    assert set(seen) == {(1, 1, 16, 24)}


def test_a_part_of_a_picture() -> None:
    values, _ = tissue(1)
    found = segment(picture(values, white=255), threshold(), SegmentSettings(roi="8:40,10:50"), protocol=protocol_2d())
    expected = np.zeros(values.shape, bool)
    expected[8:40, 10:50] = values[8:40, 10:50] > 127.5
    np.testing.assert_array_equal(found.labels[..., 0], expected)


def test_volumes_are_segmented_slice_by_slice() -> None:
    values = smooth(20, 30, 5)
    network, asked = convolution_2d(), protocol_2d(3, intensity={"kind": "window", "low": -1, "high": 1})
    found = segment(volume(values), network, protocol=asked)
    each = [segment(picture(values[..., k]), network, protocol=asked).labels for k in range(5)]
    assert len(np.unique(found.labels)) > 1
    np.testing.assert_array_equal(found.labels, np.concatenate(each, -1))
    # Slices lie along the last axis of the protocol's orientation, wherever the file has that.
    turned = segment(volume(values.transpose(2, 0, 1), np.eye(4)[[1, 2, 0, 3]]), network, protocol=asked)
    np.testing.assert_array_equal(turned.labels.transpose(1, 2, 0), found.labels)


def test_networks_and_pictures_that_do_not_go_together() -> None:
    values, _ = tissue(0)
    with pytest.raises(InputError, match="is a picture, and this network segments volumes") as caught:
        segment(picture(values), convolution(), protocol=protocol())
    assert "network for slices" in caught.value.hint
    with pytest.raises(RequestError, match="a network for slices here, and the patch of its protocol has 3 axes"):
        segment(picture(values), threshold(), protocol=protocol(2))
    with pytest.raises(InputError, match="it is no picture"):
        segment(picture(values[:1]), threshold(), protocol=protocol_2d())
    with pytest.raises(InputError, match="everywhere"):
        segment(picture(values * 0), threshold(), protocol=protocol_2d())
    with pytest.raises(ValueError, match="has no axis 2"):
        protocol_2d(mirror=(0, 2))
    with pytest.raises(ValueError, match="a spacing of 3 axes"):
        protocol_2d(spacing=(1, 1, 1))

"""`medical segment` on pictures from the command line: what is left on disk, batches, refusals; label pictures by themselves."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, PngImagePlugin
from skimage.measure import regionprops

from hybrid.errors import InputError, OutputError, RequestError
from hybrid.records import sha256_file
from medical import load_model
from medical.files.picture_outputs import output_names, write_page_probabilities
from medical.loading import save_model
from medical.models import family
from medical.pictures.label_maps import read_label_picture, write_label_picture
from medical.pictures.reading import PictureOrigin, read_picture_file
from medical.pictures.statistics import picture_statistics
from medical.results.overlay import overlay
from medical.segmentation.run import segment
from medical.structures import PALETTE, Structure
from tests.command import Said, files, medical
from tests.medical.dicom_stubs import BORN, IDENTITY, NAME, pixels, save, slices_of
from tests.medical.picture_stubs import protocol_2d, tissue
from tests.medical.stubs import protocol

KINDS = (".labels.json", ".png", ".png.json", "_overlay.png", "_statistics.csv")
PARTS = (Structure(value=1, name="one"), Structure(value=3, name="three", colour=(1, 2, 3)))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny neU-Net for slices that has learnt nothing, with its protocol in the file."""
    torch.manual_seed(0)
    network = family("neunet").create(spatial_dims=2, in_channels=1, out_channels=3, features=(4, 8))
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_model(path, network, protocol=protocol_2d(3, patch=(32, 32), mirror=(0, 1), intensity={"kind": "z-score"}))
    return path


def run(*arguments: str | Path) -> Said:
    return medical("segment", *arguments, "--threads", "1", "--precision", "float32")


def write(path: Path, seed: int = 0) -> np.ndarray:
    values, _ = tissue(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return values


def test_one_picture_gives_a_label_picture_and_all_that_goes_with_it(tmp_path: Path, weights: Path) -> None:
    path = tmp_path / "in" / "cell.01.png"
    write(path)
    before = path.read_bytes()
    said = run(path, "--weights", weights, "--save-probabilities")
    assert said.code == 0, said.err
    assert "cell.01_seg.png" in said.err and "pixels" in said.err and "Research use" in said.err
    assert path.read_bytes() == before
    kinds = (*KINDS, "_probabilities.tif")
    assert sorted(p.name for p in path.parent.iterdir()) == sorted(["cell.01.png", *(f"cell.01_seg{kind}" for kind in kinds)])
    expected = segment(read_picture_file(path), load_model(weights, device="cpu")).labels[..., 0]
    with Image.open(path.with_name("cell.01_seg.png")) as opened:
        assert opened.mode == "P" and tuple(opened.getpalette()[3:6]) == PALETTE[0]  # type: ignore[index]
        labels = np.asarray(opened)
    np.testing.assert_array_equal(labels, expected)
    assert len(np.unique(labels)) > 1
    shares = tifffile.imread(path.with_name("cell.01_seg_probabilities.tif"))
    assert shares.shape == (3, 48, 64) and shares.dtype == np.float32
    np.testing.assert_allclose(shares.sum(0), 1, atol=1e-5)
    clear = np.sort(shares, 0)[-1] - np.sort(shares, 0)[-2] > 1e-4
    np.testing.assert_array_equal(shares.argmax(0)[clear], labels[clear])
    with tifffile.TiffFile(path.with_name("cell.01_seg_probabilities.tif")) as file:
        assert [page.tags["PageName"].value for page in file.pages] == ["background", "part 1", "part 2"]
    text = path.with_name("cell.01_seg.png.json").read_text(encoding="utf-8")
    facts = json.loads(text)
    assert facts["input_sha256"] == sha256_file(path) and facts["shape"] == [48, 64] and facts["affine"] == []
    assert facts["windows"]["window"] == [32, 32, 1] and str(tmp_path) not in text
    assert set(facts["outputs"]) == {f"cell.01_seg{kind}" for kind in kinds}


def test_a_dicom_picture_gives_areas_and_no_identity(tmp_path: Path, weights: Path) -> None:
    (path,) = save(tmp_path / "one", slices_of(pixels(1, 40, 36), modality="CR"), ending=".dcm").iterdir()
    said = run(path, "--weights", weights, "-o", tmp_path / "out" / "mask.png", "--json", "--any-modality")
    assert said.code == 0, said.err
    assert {name.replace("mask", "") for name in files(tmp_path / "out")} == set(KINDS)
    structure = json.loads(said.out)["structures"][0]
    assert structure["mm2"] == pytest.approx(structure["pixels"] * 0.8 * 0.7)
    written = b"".join(file.read_bytes() for file in (tmp_path / "out").iterdir()).decode("latin-1") + said.err + said.out
    assert not any(word in written for word in (NAME, IDENTITY, BORN))


def test_a_folder_goes_on_after_a_bad_picture_and_again_after_a_stop(tmp_path: Path, weights: Path) -> None:
    root = tmp_path / "pictures"
    write(root / "a.png"), write(root / "deep" / "b.tif", 1)
    (root / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    said = run(root, "--weights", weights, "-o", tmp_path / "out", "--no-report")
    assert said.code == 1 and "bad.jpg" in said.err
    assert set(files(tmp_path / "out")) == {
        "deep", "run.jsonl", *(f"a{kind}" for kind in KINDS[:3]), *(f"deep/b{kind}" for kind in KINDS[:3]),
    }  # fmt: skip
    (root / "bad.jpg").unlink()
    assert "skipped" in run(root, "--weights", weights, "-o", tmp_path / "out", "--no-report").err
    beside = run(root / "a.png", "--weights", weights)
    assert beside.code == 0
    # What was made beside a picture is no picture to segment in its turn.
    planned = run(root, "--weights", weights, "-o", tmp_path / "new", "--plan")
    assert planned.code == 0 and len(planned.out.splitlines()) == 2, planned.out
    assert "windows of 32 x 32 over 48 x 64" in planned.out


def test_pictures_beside_volumes_are_previews(tmp_path: Path, weights: Path) -> None:
    nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(size=(34, 35, 4)), np.eye(4)), tmp_path / "in.nii.gz")
    write(tmp_path / "in_preview.png")
    said = run(tmp_path, "--weights", weights, "-o", tmp_path / "out", "--no-report")
    assert said.code == 0, said.err
    assert set(files(tmp_path / "out")) == {"in.nii.gz", "in.labels.json", "in.nii.gz.json", "run.jsonl"}  # slice by slice
    assert nib.load(tmp_path / "out" / "in.nii.gz").shape == (34, 35, 4)


def test_refusals(tmp_path: Path, weights: Path) -> None:
    write(tmp_path / "a.png"), write(tmp_path / "b.png", 1)
    nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(size=(34, 35, 4)), np.eye(4)), tmp_path / "v.nii.gz")
    before = files(tmp_path)
    for arguments, message in (
        (("a.png", "--format", "nifti"), "label maps of pictures are PNG, not nifti"),
        (("a.png", "-o", tmp_path / "x.nii.gz"), "The label map of a picture is PNG"),
        (("v.nii.gz", "-o", tmp_path / "x.png"), "is no picture, so its label map is no PNG"),
        (("a.png", "-o", tmp_path / "x.tif"), "is no name for a label map"),
        (("a.png", "-o", tmp_path / "a.png"), "is the scan"),
        (("a.png", "b.png", "-o", tmp_path / "x.png"), "names a file, but there are 2"),
        (("a.png", "--volume", "0"), "is a picture"),
        (("a.png", "--memory", "1MB"), "of memory needed"),
    ):
        inputs = [tmp_path / each if str(each).endswith((".png", ".gz")) else each for each in arguments]
        said = run(*inputs, "--weights", weights)
        assert said.code != 0 and message in said.err, (arguments, said.err)
    assert run(tmp_path / "a.png").code != 0  # the default network is for volumes
    assert files(tmp_path) == before


def test_all_or_nothing(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.png")
    monkeypatch.setattr("medical.files.picture_outputs.write_overlay", lambda *_: (_ for _ in ()).throw(OutputError("disk full")))
    said = run(tmp_path / "a.png", "--weights", weights)
    assert said.code != 0 and "disk full" in said.err and sorted(files(tmp_path)) == ["a.png"]


@pytest.mark.parametrize("highest", [3, 255, 256, 65535])
def test_label_pictures_keep_every_value(tmp_path: Path, highest: int) -> None:
    labels = np.random.default_rng(0).integers(0, highest + 1, (9, 7, 1)).astype(np.uint16)
    labels[0, 0], labels[0, 1] = highest, 0
    write_label_picture(tmp_path / "a.png", labels, PARTS)
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.mode == ("P" if highest < 256 else "I;16")
        np.testing.assert_array_equal(np.asarray(opened), labels[..., 0])
        if highest == 3:
            assert opened.getpalette()[9:12] == [1, 2, 3]  # type: ignore[index]
    found = read_label_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(found.labels, labels)
    assert found.labels.dtype == (np.uint8 if highest < 256 else np.uint16)
    assert {each.value: each.name for each in found.structures}[3] == "three"


def test_a_label_picture_that_is_read_back_otherwise_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.ones((4, 4, 1), np.uint8)
    monkeypatch.setattr(PngImagePlugin, "PngImageFile", lambda _: np.zeros((4, 4), np.uint8))
    with pytest.raises(OutputError, match="read back otherwise"):
        write_label_picture(tmp_path / "a.png", labels, PARTS)
    assert files(tmp_path) == {}
    with pytest.raises(RequestError, match=r"does not end in \.png"):
        write_label_picture(tmp_path / "a.tif", labels, PARTS)


def test_label_pictures_of_others(tmp_path: Path) -> None:
    plane = np.array([[0, 255], [255, 0]], np.uint8)
    Image.fromarray(plane).save(tmp_path / "gray.png")
    mapped = read_label_picture(tmp_path / "gray.png", {0: 1, 255: 0})
    np.testing.assert_array_equal(mapped.labels[..., 0], [[1, 0], [0, 1]])
    assert mapped.structures[0].name == "label 1"
    Image.fromarray(plane).convert("RGB").save(tmp_path / "rgb.png")
    np.testing.assert_array_equal(read_label_picture(tmp_path / "rgb.png").labels[..., 0], plane)
    Image.fromarray(plane > 0).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_label_picture(tmp_path / "bits.png").labels[..., 0], plane > 0)
    tifffile.imwrite(tmp_path / "a.tif", plane.astype(np.uint16) * 4)
    np.testing.assert_array_equal(read_label_picture(tmp_path / "a.tif").labels[..., 0], plane.astype(int) * 4)
    Image.fromarray(np.dstack([plane, plane * 0, plane])).save(tmp_path / "colour.png")
    with pytest.raises(InputError, match="no label map"):
        read_label_picture(tmp_path / "colour.png")
    Image.fromarray(plane).save(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="with losses"):
        read_label_picture(tmp_path / "a.jpg")
    (tmp_path / "no.png").write_bytes(b"no")
    with pytest.raises(InputError, match="cannot be read"):
        read_label_picture(tmp_path / "no.png")


def test_figures_against_scikit_image(tmp_path: Path, weights: Path) -> None:
    labels = np.zeros((30, 40), np.uint8)
    labels[3:9, 5:20], labels[15:18, 2:4], labels[20:29, 30:38] = 1, 1, 3
    found = picture_statistics(labels[..., None], PARTS, (0.5, 0.25))
    for row, region in zip(found, regionprops(labels), strict=True):
        assert (row.value, row.pixels) == (region.label, region.area)
        assert row.centroid == pytest.approx(region.centroid[::-1])
        top, left, bottom, right = region.bbox
        assert row.box == (left, top, right - 1, bottom - 1)
        assert row.mm2 == pytest.approx(region.area * 0.125)
    assert [row.pieces for row in found] == [2, 1] and found[1].rgb == (1, 2, 3)
    nothing = picture_statistics(labels[..., None] * 0, PARTS, None)[0]
    assert (nothing.pixels, nothing.mm2, nothing.centroid, nothing.amount) == (0, None, None, "not found")
    write(tmp_path / "a.png")
    assert run(tmp_path / "a.png", "--weights", weights).code == 0
    with (tmp_path / "a_seg_statistics.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    counts = np.bincount(np.asarray(Image.open(tmp_path / "a_seg.png")).ravel(), minlength=3)
    assert [int(row["pixels"]) for row in rows] == counts[1:].tolist() and rows[0]["mm2"] == ""
    assert rows[0]["colour"] == "#e69f00" and rows[0]["note"].startswith("Research use")


def test_the_overlay_tints_inside_and_draws_outlines() -> None:
    values = np.full((1, 600, 40, 1), 100, np.uint8)  # more rows than are drawn at a time
    labels = np.zeros((600, 40, 1), np.uint8)
    labels[250:262, 10:30] = 1
    drawn = overlay(values, labels, [Structure(value=1, name="x", colour=(200, 0, 0))], PictureOrigin(Path("a.png"), 255))
    assert drawn.shape == (600, 40, 3) and (drawn[labels[..., 0] == 0] == 100).all()
    for row, column in ((250, 15), (261, 15), (255, 10), (255, 29)):
        assert tuple(drawn[row, column]) == (200, 0, 0)
    for row in (254, 255, 256, 257):  # across the border of two strips
        assert tuple(drawn[row, 20]) == (130, 70, 70)
    wide = (np.linspace(0, 60000, 600 * 40).reshape(1, 600, 40, 1)).astype(np.uint16)
    shown = overlay(wide, labels * 0, [], PictureOrigin(Path("a.png"), 65535, inverted=True))
    assert shown[0, 0, 0] == 255 and shown[-1, -1, 0] == 0


def test_pages_of_probabilities(tmp_path: Path) -> None:
    shares = np.random.default_rng(0).random((2, 70, 9), np.float32)
    write_page_probabilities(tmp_path / "p.tif", shares, ["a", "b"])
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "p.tif"), shares)
    regions = protocol(3, regions=[{"channel": 1, "value": 1}, {"channel": 0, "value": 2, "name": "core"}])
    assert output_names(regions) == ["core", "part 1"]

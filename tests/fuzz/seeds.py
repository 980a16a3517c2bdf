"""Small valid inputs of every reader, made on the spot; the same ones each time."""

from __future__ import annotations

import gzip
import io
import json
import tempfile
import zipfile
from argparse import Namespace
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import safetensors.torch
import tifffile
import torch
from PIL import Image, ImageCms, PngImagePlugin

from tests.fuzz.mutations import Files

ROOT = Path(__file__).resolve().parents[2]
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'


def _gradient(height: int, width: int, channels: int, dtype: Any = np.uint8) -> np.ndarray:
    y, x, c = np.mgrid[0:height, 0:width, 0:channels]
    plane = (x * 7 + y * 5 + c * 40) % 256
    return (plane * 257 if dtype == np.uint16 else plane / 255 if dtype == np.float32 else plane).astype(dtype)


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A], exif[0x011B], exif[0x0128] = 6, "Maker", 300.0, 300.0, 2
    exif.get_ifd(0x8769).update({0x9003: "2026:01:02 03:04:05", 0xA002: 12, 0xA003: 9, 0x927C: b"MAKER NOTE"})
    exif.get_ifd(0x8825).update({1: "N", 2: (50.0, 5.0, 12.34)})
    return exif.tobytes()


@cache
def pictures() -> list[Files]:
    """Every format and kind of sample that is read, most of them 12 x 9."""
    rgb, gray = Image.fromarray(_gradient(9, 12, 3)), Image.fromarray(_gradient(9, 12, 1)[..., 0])
    rgba = Image.fromarray(_gradient(9, 12, 4))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif, text = _exif(), PngImagePlugin.PngInfo()
    text.add_text("Comment", "x" * 20)
    png = [
        *(_saved(gray, "PNG"), _saved(rgb, "PNG", dpi=(300, 300), exif=exif), _saved(rgba, "PNG", pnginfo=text)),
        *(
            _saved(rgb.convert("P"), "PNG", transparency=0),
            _saved(gray.convert("1"), "PNG"),
            _saved(rgb, "PNG", icc_profile=profile),
        ),
        _saved(Image.fromarray(_gradient(9, 12, 1, np.uint16)[..., 0]), "PNG"),
        _saved(rgb, "PNG", save_all=True, append_images=[rgba.convert("RGB")]),
    ]
    jpeg = [
        *(_saved(rgb, "JPEG", exif=exif, xmp=XMP), _saved(gray, "JPEG"), _saved(rgb.convert("CMYK"), "JPEG")),
        *(_saved(rgb, "JPEG", progressive=True, dpi=(72, 72)), _saved(rgb, "JPEG", icc_profile=profile)),
    ]
    webp = [_saved(rgb, "WEBP", exif=exif, xmp=XMP), _saved(rgba, "WEBP", lossless=True)]
    webp.append(_saved(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(90)]))
    avif = [_saved(Image.fromarray(_gradient(16, 16, 3)), "AVIF", speed=10), _saved(rgba.resize((16, 16)), "AVIF", exif=exif)]
    named = [(".png", png), (".jpg", jpeg), (".tif", tiffs()), (".webp", webp), (".avif", avif)]
    return [{f"picture{suffix}": data} for suffix, files in named for data in files]


@cache
def tiffs() -> list[bytes]:
    """Strips and tiles, classic and big, every compression that is at hand."""
    found = []
    rgb = _gradient(20, 20, 3)
    kinds: list[tuple[np.ndarray, dict[str, Any]]] = [
        (rgb, {}), (rgb, {"bigtiff": True}), (rgb, {"byteorder": ">"}), (_gradient(20, 20, 1)[..., 0], {"compression": "zlib"}),
        (_gradient(20, 20, 3, np.uint16), {"compression": "zlib", "predictor": True}), (rgb, {"tile": (16, 16)}),
        (_gradient(20, 20, 1, np.float32)[..., 0], {}), (_gradient(20, 20, 4), {"extrasamples": ["unassalpha"]}),
        (rgb, {"tile": (16, 16), "compression": "zlib", "bigtiff": True}), (rgb, {"rowsperstrip": 4, "resolution": (100, 100)}),
    ]  # fmt: skip
    for array, options in kinds:
        stream = io.BytesIO()
        photometric = "rgb" if array.ndim == 3 else "minisblack"
        tifffile.imwrite(stream, array, photometric=photometric, metadata=None, software="x", **options)
        found.append(stream.getvalue())
    image, exif = Image.fromarray(rgb), Image.Exif()
    exif.get_ifd(0x8769).update({0x9003: "2026:01:02 03:04:05"})
    exif.get_ifd(0x8825).update({1: "N", 2: (50.0, 5.0, 12.34)})
    found += [_saved(image, "TIFF", compression=kind) for kind in ("tiff_lzw", "packbits", "jpeg")]
    return [*found, _saved(image, "TIFF", exif=exif), _saved(image.convert("P"), "TIFF"), _saved(image.convert("CMYK"), "TIFF")]


@cache
def medical_pictures() -> list[Files]:
    """TIFF files, with the size of their pixels as microscopes write it: by their density, and by ImageJ's description."""
    found = [*tiffs()]
    for order in "<>":
        stream = io.BytesIO()
        options = {"resolution": (4.0, 4.0), "metadata": {"unit": "um", "axes": "YX"}}
        tifffile.imwrite(stream, _gradient(9, 12, 1)[..., 0], imagej=True, byteorder=order, **options)
        found.append(stream.getvalue())
    return [{"picture.tif": data} for data in found]


@cache
def exif_blocks() -> list[Files]:
    """EXIF blocks as cameras leave them, and TIFF files that carry such tags."""
    body = _exif()
    return [{"block": body if body.startswith(b"Exif") else b"Exif\0\0" + body}, {"block": b"Exif\0\0MM\0*" + tiffs()[2][4:]}] + [
        {"block": data} for data in (tiffs()[0], tiffs()[1], tiffs()[-3], XMP)
    ]


@cache
def niftis() -> list[Files]:
    """Three and four dimensions, integers and floats, both versions and byte orders, packed, in pairs, with an extension."""
    affine = np.array([[-2.0, 0, 0, 20], [0, 1.5, 0, -30], [0, 0, 3, 5], [0, 0, 0, 1]])
    found: list[Files] = []
    with tempfile.TemporaryDirectory() as folder:
        for at, (shape, dtype, kind, name) in enumerate(_NIFTI_KINDS):
            values = (np.arange(np.prod(shape)) % 7).reshape(shape).astype(dtype)
            image = getattr(nib, kind)(values, affine)
            image.set_qform(affine, 1)
            if at % 3 == 0:
                image.header.set_slope_inter(2, 1)
            if at % 2 == 0 and not name.endswith(".hdr"):
                image.header.extensions.append(
                    nib.nifti1.Nifti1Extension("comment", b'{"structures": [{"value": 1, "name": "a"}]}')
                )
            place = Path(folder, str(at))
            place.mkdir()
            nib.save(image, place / name)
            found.append({path.name: path.read_bytes() for path in sorted(place.iterdir(), key=lambda p: p.name != name)})
    big = bytearray(found[0]["scan.nii"])
    swapped = nib.Nifti1Image.from_bytes(bytes(big)).header.as_byteswapped()
    found.append({"scan.nii": swapped.binaryblock + bytes(4) + bytes(big[352:])})
    found.append({"scan.nii.gz": gzip.compress(found[0]["scan.nii"], 1, mtime=0)})
    return found


_NIFTI_KINDS = (
    ((5, 4, 3), np.int16, "Nifti1Image", "scan.nii"),
    ((5, 4, 3), np.uint8, "Nifti1Image", "scan.nii.gz"),
    ((4, 3, 2, 2), np.float32, "Nifti1Image", "scan.nii"),
    ((5, 4, 3), np.float64, "Nifti2Image", "scan.nii"),
    ((5, 4, 3), np.int32, "Nifti2Image", "scan.nii.gz"),
    ((5, 4, 3), np.int16, "Nifti1Pair", "scan.hdr"),
)


@cache
def label_maps() -> list[Files]:
    """Label maps, with names in an extension, in a label table, and in a file beside them."""
    beside = json.dumps({"structures": [{"value": 1, "name": "Spleen", "colour": [1, 2, 3]}, {"value": 2, "name": "b"}]})
    table = b'<LabelTable><Label Key="1" Red="1" Green="0" Blue="0">Liver</Label><Label Key="2">b</Label></LabelTable>'
    found: list[Files] = []
    with tempfile.TemporaryDirectory() as folder:
        for at, extension in enumerate((None, b'{"structures": [{"value": 1, "name": "a"}]}', table)):
            image = nib.Nifti1Image((np.arange(60) % 4).reshape(5, 4, 3).astype((np.uint8, np.int16, np.float32)[at]), np.eye(4))
            if extension is not None:
                image.header.extensions.append(nib.nifti1.Nifti1Extension(6, extension))
            path = Path(folder, f"map{at}.nii")
            nib.save(image, path)
            found.append({"map.nii": path.read_bytes()})
    found.append({"map.nii": found[0]["map.nii"], "map.labels.json": beside.encode()})
    plane = Image.fromarray((np.arange(30) % 3).reshape(5, 6).astype(np.uint8))
    painted = plane.copy()
    painted.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    found.append({"map.png": _saved(painted, "PNG"), "map.labels.json": beside.encode()})
    found.append({"map.png": _saved(plane, "PNG", exif=_exif())})
    found.append({"map.tif": _saved(plane, "TIFF", compression="tiff_lzw")})
    found.append({"map.png": _saved(Image.fromarray((np.arange(30) * 99).reshape(5, 6).astype(np.uint16)), "PNG")})
    return found


@cache
def dicoms() -> list[Files]:
    """Series in folders and in a zip, multi-frame files, compressed ones, and files without a preamble."""
    from tests.medical.dicom_stubs import enhanced, pixels, save, slices_of
    from tests.medical.test_dicom_pixels import transcode

    plain = slices_of(pixels(3, 8, 6), bits=12, signed=True)
    for at, one in enumerate(plain):
        one.RescaleSlope, one.RescaleIntercept, one.PixelPaddingValue = 1, -1024 * (at == 5), 0
        _number(one, f"1.2.3.{at + 1}")
    found: list[Files] = [{f"I{at}": _dicom(one) for at, one in enumerate(plain)}]
    for syntax in ("RLELossless", "JPEGLSLossless", "JPEG2000Lossless", "JPEGLosslessProcess14_1", "JPEGExtendedProcess2_4"):
        files = slices_of(pixels(2, 8, 8), bits=12)
        for at, one in enumerate(files):
            _number(one, f"1.2.4.{at + 1}")
        with tempfile.TemporaryDirectory() as folder:
            transcode(save(Path(folder), files), syntax)
            found.append({path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())})
    whole = enhanced(plain, order=(2, 0, 1), echoes=(1.0, 1.0, 1.0))
    _number(whole, "1.2.5.1")
    found.append({"whole.dcm": _dicom(whole)})
    found.append({name: data[132:] for name, data in found[0].items()})
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in found[0].items():
            archive.writestr(zipfile.ZipInfo(f"study/{name}"), data, zipfile.ZIP_DEFLATED)
    return [*found, {"study.zip": packed.getvalue()}]


@cache
def dicom_pictures() -> list[Files]:
    """Single frames: gray, inverted, colours."""
    from tests.medical.dicom_stubs import pixels, slices_of

    found = []
    for kind in ("MONOCHROME2", "MONOCHROME1", "RGB"):
        (one,) = slices_of(pixels(1, 8, 6, high=255), bits=8)
        one.PhotometricInterpretation = kind
        if kind == "RGB":
            one.SamplesPerPixel, one.PlanarConfiguration, one.PixelData = 3, 0, bytes(range(144))
        _number(one, "1.2.6.1")
        found.append({"picture.dcm": _dicom(one)})
    return found


def _number(one: Any, uid: str) -> None:
    """UIDs that are the same each time."""
    one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = "1.2.3", "1.2.3.4", "1.2.3.5"
    one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = uid
    one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID


def _dicom(one: Any) -> bytes:
    stream = io.BytesIO()
    one.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


@cache
def checkpoints() -> list[Files]:
    """Both formats of torch.save, with and without wrappers; safetensors, plain and packed."""
    from hybrid.weights.packing import MARK, pack_rows

    state = {"conv.weight": torch.arange(24.0).view(2, 3, 2, 2), "conv.bias": torch.tensor([0.5, -2.0])}
    half = {"a": torch.ones(3, dtype=torch.float16), "n": torch.arange(4), "f": torch.tensor(True)}
    trees: tuple[object, ...] = (
        *(state, {"params_ema": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}, half),
        {"state_dict": state, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}, "args": Namespace(lr=0.1)},
    )
    found: list[Files] = []
    for tree in trees:
        for zipped in (True, False):
            stream = io.BytesIO()
            torch.save(tree, stream, _use_new_zipfile_serialization=zipped)
            found.append({"weights.pth": stream.getvalue()})
    packed = pack_rows(state, least=4)
    for tensors, header in ((state, None), (half, {"protocol": "{}"}), (packed, dict([MARK]))):
        found.append({"weights.safetensors": safetensors.torch.save(dict(tensors), header)})
    return found


@cache
def catalogues() -> list[Files]:
    """A short catalogue, and the beginning of the shipped one."""
    short = (
        "format: 1\nmodels:\n  small-net:\n    family: hat\n    title: Small\n    summary: A small one.\n    code_licence: MIT\n"
        "    weights_licence: unknown\n    training_data: none\n    options: {window: 8, sizes: [1, 2]}\n    files:\n"
        f"      4: {{name: small_x4.pth, urls: [https://example.org/small_x4.pth], size: 1000, sha256: {'a' * 64},\n"
        "          published: {set5: {psnr: 38.6}}}\n      2: {name: small_x2.safetensors, shipped: weights/small.safetensors}\n"
    )
    shipped = (ROOT / "restore/weights/catalogue.yaml").read_text(encoding="utf-8")
    return [{"catalogue.yaml": short.encode()}, {"catalogue.yaml": _entries(shipped, 3).encode()}]


def _entries(text: str, count: int) -> str:
    """The first entries of a catalogue."""
    lines = text.split("\n")
    starts = [at for at, line in enumerate(lines) if line.startswith("  ") and line[2:3].isalnum()]
    return "\n".join(line for line in lines[: starts[count]] if "fallback:" not in line) + "\n"


@cache
def shipped(pattern: str, name: str) -> list[Files]:
    """Files of the repository."""
    return [{name: path.read_bytes()} for path in sorted(ROOT.glob(pattern))]


@cache
def protocols() -> list[Files]:
    """What networks ask of a scan, as files for --protocol."""
    import yaml

    found: list[Files] = []
    for path in sorted(set(ROOT.glob("medical/recipes/*.yaml")) - set(ROOT.glob("medical/recipes/pretrain*"))):
        if "protocol" in (plain := yaml.safe_load(path.read_text(encoding="utf-8"))):
            found.append({"protocol.yaml": yaml.safe_dump(plain["protocol"], sort_keys=False).encode()})
    return found


@cache
def journals() -> list[Files]:
    """The journal of a batch: done, failed, and a torn line."""
    from hybrid.batch.journal import Entry, Mark

    mark = {"a.png": Mark("0" * 64, 1234), "a.png.json": Mark("1" * 64, 99)}
    lines = [
        Entry("a.png", "a.jpg", "done", "2" * 64, "3" * 64, "4" * 64, mark, 1.5).to_line(),
        Entry("sub/b.png", "sub/b.jpg", "failed", error="It is damaged.", hint="Copy it again.", attempt=2).to_line(),
        Entry("c.png", "c.jpg", "started").to_line(),
    ]
    return [{"run.jsonl": "".join(lines).encode()}, {"run.jsonl": "".join(lines)[:-30].encode()}]


@cache
def listings() -> list[Files]:
    """The JSON files that people write or other programs leave: boxes of faces, splits, kernels, reports."""
    boxes = [[1, 2, 30, 40], {"box": [1, 2, 30, 40], "landmarks": [[1, 2]] * 5, "score": 0.9}]
    kernel = json.loads((ROOT / "data_specs/kodak24-blur.json").read_text(encoding="utf-8"))
    kernel["kernels"] = kernel["kernels"][:1]
    splits = {"splits": {"train": ["a", "b"], "val": ["c"]}, "licence": "CC0", "label_values": {"255": 1}}
    report = {"model": {"sha256": "0", "title": "x"}, "means": {"mean": {}}, "cases": 1, "conventions": {}, "results": []}
    trees = {"boxes.json": boxes, "named.json": {"a.png": boxes}, "kernels.json": kernel, "dataset.json": splits}
    return [{name: json.dumps(tree).encode()} for name, tree in (trees | {"report.json": report}).items()]


@cache
def archives() -> list[Files]:
    """An archive of weights as `models pack` writes it, of one file."""
    import hashlib

    content = checkpoints()[-3]["weights.safetensors"]
    packed = {
        "file": "small_x4.pth", "model": "small-net", "scale": 4, "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "code_licence": "MIT", "weights_licence": "unknown", "training_data": "none",
    }  # fmt: skip
    manifest = {"format": "hybrid-imaging weights, 1", "version": "1", "files": [packed]}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as bundle:
        for name, data in (("small_x4.pth", content), ("manifest.json", json.dumps(manifest).encode())):
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, 0o100644 << 16
            bundle.writestr(info, data)
    return [{"weights.zip": stream.getvalue()}]

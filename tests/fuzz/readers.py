"""Every reader of files, and what holds for each of them whatever the file: a valid result, or one of our errors with a hint."""

from __future__ import annotations

import io
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hybrid.errors import HybridError
from tests.fuzz import seeds
from tests.fuzz.mutations import Files, Rng, damaged


@dataclass(frozen=True)
class Reader:
    """A way in.

    Attributes:
        name: What it is called.
        inputs: Small valid inputs.
        read: Reads the folder in which an input lies; `first` is the file that a user would name.
        keeps: Whether nothing at all may be in the folder afterwards but the input, unchanged.
    """

    name: str
    inputs: Callable[[], list[Files]]
    read: Callable[[Path, Path], object]
    keeps: bool = True


def input_of(reader: Reader, seed: int, number: int) -> Files:
    """The damaged input of that number; the first ones are sound."""
    import numpy as np

    sound = reader.inputs()
    if number < len(sound):
        return sound[number]
    rng: Rng = np.random.default_rng([seed, number])
    return damaged(sound[rng.integers(len(sound))], sound, rng)


def place(files: Files, folder: Path) -> Path:
    """Write an input into an empty folder; the file that a user would name."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder / next(iter(files))


def check(reader: Reader, files: Files, folder: Path) -> str:
    """Read an input, and hold the reader to what it promises: "valid", or the name of our error.

    Raises:
        AssertionError: An error without a hint, an input that was changed, or something left behind.
        Exception: Whatever else the reader lets through.
    """
    first = place(files, folder)
    try:
        reader.read(folder, first)
        outcome = "valid"
    except HybridError as error:
        assert error.message and error.hint, f"no hint: {error.message}"
        assert len(str(error)) < 100_000, "an error that nobody can read"
        outcome = type(error).__name__
    finally:
        found = {path.name: path.read_bytes() if path.is_file() else b"" for path in folder.iterdir()}
        for path in list(folder.iterdir()):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if reader.keeps:
        assert found == files, f"changed or left behind: {sorted(set(found) ^ set(files)) or 'contents'}"
    else:
        assert set(found) == set(files), f"left behind: {sorted(set(found) ^ set(files))}"
    return outcome


def _picture(folder: Path, first: Path) -> object:
    from restore.images import probe, read_picture

    probe(first)
    return read_picture(first)


def _regions(folder: Path, first: Path) -> object:
    from restore.images.regions import RegionReader

    inside = folder / "scratch"
    inside.mkdir()
    try:
        reader = RegionReader(first, inside)
        if reader.info.width * reader.info.height <= 100_000:
            return reader.read(slice(0, min(4, reader.info.height)), slice(0, min(5, reader.info.width)))
    finally:
        shutil.rmtree(inside)
    return None


def _exif(folder: Path, first: Path) -> object:
    from restore.images.metadata import add_record, read_record, upright_exif, upright_xmp
    from restore.images.tiff import attach_blocks, exif_directories, exif_from_tiff, is_palette_tiff, is_tiled_tiff

    data = first.read_bytes()
    told = exif_from_tiff(first), is_palette_tiff(first), is_tiled_tiff(first), upright_exif(data)
    packet = upright_xmp(data)
    read_record(packet), read_record(add_record(packet, "{}"))
    for block in (data, told[0] or b""):
        try:
            exif_directories(block, 3, 4)
        except ValueError:  # which is what it says
            continue
        copy = io.BytesIO(seeds.tiffs()[0])
        target = folder / "target"
        try:
            target.write_bytes(copy.getvalue())
            attach_blocks(target, block, None, 3, 4)
        finally:
            target.unlink()
    return told


def _nifti(folder: Path, first: Path) -> object:
    from medical.volumes.volume import read_volume

    return read_volume(first, volume=0)


def _label_map(folder: Path, first: Path) -> object:
    from medical.pictures.label_maps import read_any_label_map

    return read_any_label_map(first)


def _dicom(folder: Path, first: Path) -> object:
    from medical.dicom.files import is_other_zip
    from medical.dicom.volume import is_dicom, read_dicom

    where = first if first.suffix in (".zip", ".dcm") else folder
    is_dicom(where), is_other_zip(first)
    return read_dicom(where, series="1")


def _dicom_picture(folder: Path, first: Path) -> object:
    from medical.pictures.reading import read_picture_file

    return read_picture_file(first)


def _medical_picture(folder: Path, first: Path) -> object:
    from medical.pictures.reading import read_picture_file

    return read_picture_file(first, channels=3)


def _checkpoint(folder: Path, first: Path) -> object:
    from hybrid.weights.checkpoints import read_checkpoint

    return read_checkpoint(first)


def _catalogue(folder: Path, first: Path) -> object:
    from hybrid.weights.catalogue import Catalogue

    return Catalogue.load(first, folder)


def _recipe(folder: Path, first: Path) -> object:
    from restore.faces.training import load_face_recipe
    from restore.training.run import load_recipe

    return load_face_recipe(first) or load_recipe(first)


def _scan_recipe(folder: Path, first: Path) -> object:
    import medical.restoration.training
    import medical.training.pretraining
    import medical.training.run

    last: HybridError | None = None
    for kind in (medical.training.run, medical.training.pretraining, medical.restoration.training):
        try:
            return kind.load_recipe(first)
        except HybridError as error:
            assert error.hint, f"no hint: {error.message}"
            last = error
    assert last is not None
    raise last


def _protocol(folder: Path, first: Path) -> object:
    from medical.cli.segment import read_protocol
    from medical.restoration.loading import read_restoration_protocol

    try:
        return read_protocol(first)
    except HybridError as error:
        assert error.hint, f"no hint: {error.message}"
        return read_restoration_protocol(first)


def _data_spec(folder: Path, first: Path) -> object:
    from data_specs import DataSpec, load_spec

    return load_spec(str(first), DataSpec)


def _journal(folder: Path, first: Path) -> object:
    from hybrid.batch.journal import open_journal

    with open_journal(first) as journal:
        return dict(journal.entries)


def _listing(folder: Path, first: Path) -> object:
    from medical.evaluation.system_table import System
    from medical.training.cases import Folder
    from restore.evaluation.degraded import read_kernels
    from restore.faces.boxes import read_boxes

    if first.name == "kernels.json":
        return read_kernels(first)
    if first.name == "dataset.json":
        return Folder.read(folder)
    if first.name == "report.json":
        return System.read(folder)
    return read_boxes(first)


def _archive(folder: Path, first: Path) -> object:
    from hybrid.weights.archive import unpack
    from hybrid.weights.catalogue import Catalogue
    from hybrid.weights.find import Store

    known, cache = folder / "catalogue", folder / "cache"
    try:
        known.write_bytes(seeds.catalogues()[0]["catalogue.yaml"].replace(b"a" * 64, b"null"))
        return unpack(first, Catalogue.load(known, folder), Store(cache), check=lambda path, entry, scale: None)
    finally:
        known.unlink()
        left = [path.name for path in cache.glob(".import-*")]
        shutil.rmtree(cache, ignore_errors=True)
        assert not left, f"left behind: {left}"


READERS = {
    reader.name: reader
    for reader in (
        Reader("picture", seeds.pictures, _picture),
        Reader("picture-regions", seeds.pictures, _regions),
        Reader("exif", seeds.exif_blocks, _exif),
        Reader("nifti", seeds.niftis, _nifti),
        Reader("label-map", seeds.label_maps, _label_map),
        Reader("dicom", seeds.dicoms, _dicom),
        Reader("dicom-picture", seeds.dicom_pictures, _dicom_picture),
        Reader("medical-picture", seeds.medical_pictures, _medical_picture),
        Reader("checkpoint", seeds.checkpoints, _checkpoint),
        Reader("weights-archive", seeds.archives, _archive),
        Reader("catalogue", seeds.catalogues, _catalogue),
        Reader("recipe", lambda: seeds.shipped("restore/recipes/*.yaml", "recipe.yaml"), _recipe),
        Reader("scan-recipe", lambda: seeds.shipped("medical/recipes/*.yaml", "recipe.yaml"), _scan_recipe),
        Reader("protocol", seeds.protocols, _protocol),
        Reader("data-spec", lambda: seeds.shipped("data_specs/*.yaml", "spec.yaml"), _data_spec),
        Reader("journal", seeds.journals, _journal, keeps=False),
        Reader("listing", seeds.listings, _listing),
    )
}


def quieten() -> None:
    """Warnings that the readers log on purpose go nowhere."""
    logging.getLogger().addHandler(logging.NullHandler())

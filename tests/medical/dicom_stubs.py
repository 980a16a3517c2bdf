"""Synthetic DICOM series, compressed and broken in every way that the tests need; all names in them are made up."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage, generate_uid

NAME, IDENTITY, BORN, ACCESSION = "Quixote^Alonso", "LAMANCHA-1605", "15470929", "88231605"
"""What must be in no message."""

Change = Callable[[int, Dataset], None]


def private(text: str) -> list[str]:
    """What of the patient's identity a text quotes."""
    return [word for word in ("quixote", "alonso", IDENTITY.lower(), BORN, ACCESSION) if word in text.lower()]


def pixels(slices: int = 5, rows: int = 8, columns: int = 6, *, low: int = 0, high: int = 3000, seed: int = 0) -> np.ndarray:
    """(slices, rows, columns) int64 that vary smoothly but are all different, ends of the range included."""
    rng = np.random.default_rng(seed)
    k, j, i = np.meshgrid(np.arange(slices), np.arange(rows), np.arange(columns), indexing="ij")
    wave = 0.5 + 0.3 * np.sin(i / 3 + k) * np.cos(j / 4) + rng.uniform(0, 0.1, k.shape)
    values = np.rint(low + wave * (high - low)).astype(np.int64)
    values[:, 0, 0], values[:, 0, 1] = low, high
    return values


def slices_of(
    values: np.ndarray,
    *,
    origin: Sequence[float] = (-10.0, 20.0, 5.0),
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
    spacing: Sequence[float] = (0.8, 0.7),
    step: Sequence[float] = (0, 0, 2.5),
    bits: int = 12,
    signed: bool = False,
    modality: str = "MR",
    change: Change | None = None,
) -> list[Dataset]:
    """One file for each of (slices, rows, columns) stored values; `change` alters the data set of slice k."""
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    found = []
    for k, plane in enumerate(values):
        one = Dataset()
        one.SpecificCharacterSet = "ISO_IR 192"
        one.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        one.SOPClassUID, one.SOPInstanceUID = MRImageStorage, generate_uid()
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = study, series, frame
        one.PatientName, one.PatientID, one.PatientBirthDate, one.PatientSex = NAME, IDENTITY, BORN, "M"
        one.AccessionNumber, one.StudyID, one.StudyDate, one.StudyTime = ACCESSION, "1", "20200101", "101500"
        one.ReferringPhysicianName, one.Manufacturer, one.PositionReferenceIndicator = "", "", ""
        one.Modality, one.SeriesDescription, one.SeriesNumber, one.InstanceNumber = modality, "T1 axial", 3, k + 1
        one.SliceThickness = 1.0
        one.ImagePositionPatient = [round(float(o + k * s), 6) for o, s in zip(origin, step, strict=True)]
        one.ImageOrientationPatient, one.PixelSpacing = list(orientation), list(spacing)
        one.Rows, one.Columns = plane.shape
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit = 8 if bits <= 8 else 16, bits, bits - 1
        one.PixelRepresentation = int(signed)
        one.PixelData = plane.astype(f"<{'i' if signed else 'u'}{one.BitsAllocated // 8}").tobytes()
        one["PixelData"].VR = "OB" if bits <= 8 else "OW"
        one.file_meta = FileMetaDataset()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        if change is not None:
            change(k, one)
        found.append(one)
    return found


def save(folder: Path, slices: Sequence[Dataset], *, seed: int = 1, ending: str = "") -> Path:
    """Write data sets under names that say nothing of their order."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, one in zip(np.random.default_rng(seed).permutation(len(slices)), slices, strict=True):
        if one.get("SOPInstanceUID"):
            one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
            one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID
        one.save_as(folder / f"I{name:04d}{ending}", enforce_file_format=bool(one.get("SOPInstanceUID")))
    return folder


def series(folder: Path, values: np.ndarray | None = None, **choices: object) -> Path:
    """Write a series; choices as of `slices_of`."""
    return save(folder, slices_of(pixels() if values is None else values, **choices))  # type: ignore[arg-type]


def enhanced(slices: Sequence[Dataset], *, order: Sequence[int], echoes: Sequence[float] = ()) -> Dataset:
    """One multi-frame file of the given slices in the given order; `echoes` adds an echo time and its dimension to each."""
    first = slices[0]
    one = Dataset()
    for element in first:
        if element.keyword not in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
            one.add(copy.copy(element))
    one.file_meta = copy.copy(first.file_meta)
    one.SOPClassUID, one.SOPInstanceUID = UID("1.2.840.10008.5.1.4.1.1.4.1"), generate_uid()
    one.NumberOfFrames = len(order)
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = first.PixelSpacing, 1.0
    plane.ImageOrientationPatient = first.ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Items([measures]), Items([plane])
    one.SharedFunctionalGroupsSequence = Items([shared])
    own = []
    for at in order:
        group, place, content, value = Dataset(), Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = slices[at].ImagePositionPatient
        value.RescaleSlope, value.RescaleIntercept = slices[at].get("RescaleSlope", 1), slices[at].get("RescaleIntercept", 0)
        content.DimensionIndexValues = [1, at + 1]
        group.PlanePositionSequence, group.FrameContentSequence = Items([place]), Items([content])
        group.PixelValueTransformationSequence = Items([value])
        if echoes:
            echo = Dataset()
            echo.EffectiveEchoTime = float(echoes[at])
            group.MREchoSequence = Items([echo])
            content.DimensionIndexValues = [sorted(set(echoes)).index(echoes[at]) + 1, at + 1]
        own.append(group)
    one.PerFrameFunctionalGroupsSequence = Items(own)
    one.PixelData = b"".join(slices[at].PixelData for at in order)
    one["PixelData"].VR = "OW"
    return one

"""Pixels of every transfer syntax that an encoder at hand can write, and every way of rescaling them."""

from __future__ import annotations

from pathlib import Path

import gdcm
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID, JPEGLSLossless, RLELossless

from hybrid.errors import InputError, ResourceError
from medical.dicom.volume import read_dicom
from tests.medical.dicom_stubs import enhanced, pixels, save, series, slices_of

DEPTHS = [(8, False), (12, False), (12, True), (16, False), (16, True)]
LOSSLESS = ["JPEGLosslessProcess14", "JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless", "RLELossless"]


def ends(bits: int, signed: bool) -> tuple[int, int]:
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)


def transcode(folder: Path, syntax: str) -> Path:
    """Compress every file of a folder in place by GDCM."""
    for file in sorted(folder.iterdir()):
        reader = gdcm.ImageReader()
        reader.SetFileName(str(file))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(file))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        assert pydicom.dcmread(file).file_meta.TransferSyntaxUID.is_compressed
    return folder


@pytest.mark.parametrize("syntax", LOSSLESS)
@pytest.mark.parametrize(("bits", "signed"), DEPTHS)
def test_lossless_syntaxes_are_exact_to_the_bit(tmp_path: Path, syntax: str, bits: int, signed: bool) -> None:
    low, high = ends(bits, signed)
    values = pixels(3, 24, 20, low=low, high=high)
    folder = transcode(series(tmp_path / "scan", values, bits=bits, signed=signed), syntax)
    read = read_dicom(folder).values[0]
    assert read.dtype.kind in "iu"
    np.testing.assert_array_equal(read, values.T)


@pytest.mark.parametrize(
    ("syntax", "bits", "off"),
    [
        ("JPEGBaselineProcess1", 8, 2), ("JPEGExtendedProcess2_4", 8, 2), ("JPEGExtendedProcess2_4", 12, 3),
        ("JPEGLSNearLossless", 12, 3), ("JPEG2000", 12, 3),
    ],
)  # fmt: skip
def test_lossy_syntaxes_are_near(tmp_path: Path, syntax: str, bits: int, off: int) -> None:
    j, i = np.mgrid[:24, :20]
    smooth = np.rint((1 << bits) * (0.5 + 0.3 * np.sin(i / 6) * np.cos(j / 7))).astype(int)
    values = np.stack([smooth, smooth.max() - smooth])
    read = read_dicom(transcode(series(tmp_path / "scan", values, bits=bits), syntax)).values[0]
    assert np.abs(read.astype(int) - values.T).max() <= off


@pytest.mark.parametrize("syntax", [JPEGLSLossless, RLELossless])
def test_compressed_multi_frame_files_are_cut_apart(tmp_path: Path, syntax: UID) -> None:
    """Compressed by pydicom, since GDCM writes the positions of frames anew, in even steps."""
    values = pixels(4, 24, 20)
    one = enhanced(slices_of(values), order=(2, 0, 3, 1))
    one.compress(syntax, generate_instance_uid=False)
    np.testing.assert_array_equal(read_dicom(save(tmp_path, [one])).values[0], values.T)


def test_a_12_bit_extended_jpeg_by_another_hand() -> None:
    """A file that comes with pydicom; the pixels are those that its own documents give for other decoders."""
    from pydicom.data import get_testdata_file

    from medical.dicom.files import DicomFile
    from medical.dicom.frames import frames_of
    from medical.dicom.pixels import read_frames

    path = Path(str(get_testdata_file("JPGExtended.dcm")))
    (frame,) = frames_of(DicomFile(path), pydicom.dcmread(path, stop_before_pixels=True))
    values, _ = read_frames([frame])
    assert values.shape == (1, 256, 1024, 1)
    assert values[0, 140:144, 420, 0].tolist() == [244, 242, 249, 260]


def test_a_syntax_without_decoder_is_named_with_what_to_install(tmp_path: Path) -> None:
    def high_throughput(k: int, one: Dataset) -> None:
        one.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.201")
        one.PixelData = pydicom.encaps.encapsulate([b"\0" * 64])

    folder = series(tmp_path / "scan", change=high_throughput)
    with pytest.raises(InputError, match="scan: The pixels are compressed by High-Throughput JPEG 2000") as caught:
        read_dicom(folder)
    assert caught.value.hint == "pip install pylibjpeg pylibjpeg-openjpeg"

    def film(k: int, one: Dataset) -> None:
        one.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.102")
        one.PixelData = pydicom.encaps.encapsulate([b"\0" * 64])

    with pytest.raises(InputError, match="MPEG-4.*cannot be decoded"):
        read_dicom(series(tmp_path / "film", change=film))


@pytest.mark.parametrize("syntax", ["JPEG2000Lossless", "JPEGLSLossless", "JPEGLosslessProcess14_1", "RLELossless", None])
def test_damaged_pixels_are_refused(tmp_path: Path, syntax: str | None) -> None:
    """A slice that was cut short gives an error with its number, and no pixels that are none."""
    values = pixels(3, 24, 20)
    folder = series(tmp_path / "scan", values)
    file = folder / "I0001"
    if syntax:
        transcode(folder, syntax)
    one = pydicom.dcmread(file)
    if syntax:
        (coded,) = pydicom.encaps.generate_frames(one.PixelData, number_of_frames=1)
        one.PixelData = pydicom.encaps.encapsulate([coded[: len(coded) // 3]])
    else:
        one.PixelData = one.PixelData[:300]
    one.save_as(file)
    with pytest.raises(InputError, match=r"scan: The pixels of slice \d are damaged"):
        read_dicom(folder)


def test_a_shared_whole_intercept_keeps_integers(tmp_path: Path) -> None:
    def hounsfield(k: int, one: Dataset) -> None:
        one.RescaleSlope, one.RescaleIntercept = 1, -1024

    values = pixels(high=4095)
    volume = read_dicom(series(tmp_path, values, modality="CT", change=hounsfield))
    assert volume.values.dtype == np.int16 and not volume.warnings
    np.testing.assert_array_equal(volume.values[0], values.T - 1024)


def test_sixteen_bits_below_an_intercept_do_not_wrap(tmp_path: Path) -> None:
    def below(k: int, one: Dataset) -> None:
        one.RescaleSlope, one.RescaleIntercept = 1, -1024

    values = pixels(low=0, high=65535)
    volume = read_dicom(series(tmp_path, values, bits=16, change=below))
    assert volume.values.dtype == np.int32
    np.testing.assert_array_equal(volume.values[0], values.T - 1024)


def test_each_slice_has_its_own_slope(tmp_path: Path) -> None:
    """As in PET, where slopes differ from slice to slice."""

    def scaled(k: int, one: Dataset) -> None:
        one.RescaleSlope, one.RescaleIntercept = 0.1 + k, 0

    values = pixels()
    volume = read_dicom(series(tmp_path, values, modality="PT", change=scaled))
    assert volume.values.dtype == np.float32
    np.testing.assert_allclose(volume.values[0], (values * (0.1 + np.arange(5))[:, None, None]).T, rtol=1e-6)


def test_a_fraction_in_the_intercept_makes_floats(tmp_path: Path) -> None:
    def half(k: int, one: Dataset) -> None:
        one.RescaleSlope, one.RescaleIntercept = 1, 0.5

    np.testing.assert_array_equal(read_dicom(series(tmp_path, change=half)).values[0], pixels().T + 0.5)


def test_a_table_of_the_modality_goes_before_the_slope(tmp_path: Path) -> None:
    def table(k: int, one: Dataset) -> None:
        look = Dataset()
        look.LUTDescriptor, look.ModalityLUTType = [256, 0, 16], "US"
        look.add_new("LUTData", "OW", (3 * np.arange(256, dtype="<u2")).tobytes())
        one.ModalityLUTSequence = [look]

    values = pixels(high=255)
    np.testing.assert_array_equal(read_dicom(series(tmp_path, values, bits=8, change=table)).values[0], 3 * values.T)


def test_monochrome1_is_not_inverted(tmp_path: Path) -> None:
    def inverse(k: int, one: Dataset) -> None:
        one.PhotometricInterpretation = "MONOCHROME1"

    np.testing.assert_array_equal(read_dicom(series(tmp_path, change=inverse)).values[0], pixels().T)


@pytest.mark.parametrize(("stated", "modality", "fill"), [(-2000, "CT", -1024), (63536, "CT", -1024), (-2000, "MR", -500)])
def test_padding_becomes_air_or_the_lowest_value(tmp_path: Path, stated: int, modality: str, fill: int) -> None:
    """The value is also found where it was written as unsigned."""
    values = pixels(low=-500, high=2000)
    padded = values.copy()
    padded[:, 3:5, 2] = -2000

    def pad(k: int, one: Dataset) -> None:
        one.add_new("PixelPaddingValue", "US" if stated > 0 else "SS", stated)

    volume = read_dicom(series(tmp_path, padded, bits=16, signed=True, modality=modality, change=pad))
    values[:, 3:5, 2] = fill
    np.testing.assert_array_equal(volume.values[0], values.T)


def test_a_range_of_padding(tmp_path: Path) -> None:
    def pad(k: int, one: Dataset) -> None:
        one.PixelPaddingValue, one.PixelPaddingRangeLimit = 0, 9

    values = pixels(low=10, high=2000)
    padded = values.copy()
    padded[:, 3, 1:4] = (0, 5, 9)
    values[:, 3, 1:4] = 10
    np.testing.assert_array_equal(read_dicom(series(tmp_path, padded, change=pad)).values[0], values.T)


def test_float_pixels_and_what_is_no_number(tmp_path: Path) -> None:
    exact = np.linspace(-1, 1, 240, dtype=np.float32).reshape(5, 8, 6)

    def floats(k: int, one: Dataset) -> None:
        del one.PixelData, one.BitsStored, one.HighBit, one.PixelRepresentation
        one.BitsAllocated, one.FloatPixelData = 32, exact[k].tobytes()

    np.testing.assert_array_equal(read_dicom(series(tmp_path / "sound", change=floats)).values[0], exact.T)
    exact[2, 1, 1] = np.nan
    with pytest.raises(InputError, match="Slice 3 holds values that are no finite numbers"):
        read_dicom(series(tmp_path / "nan", change=floats))


def test_doubtful_values_are_pointed_out(tmp_path: Path) -> None:
    raw = read_dicom(series(tmp_path / "raw", modality="CT"))
    assert "its slices say no rescale" in raw.warnings[0]
    flat = read_dicom(series(tmp_path / "flat", np.full((3, 8, 6), 7)))
    assert "one value alone" in flat.warnings[0]


def test_more_than_the_memory_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        available = 100

    folder = series(tmp_path)
    monkeypatch.setattr("psutil.virtual_memory", Memory)
    with pytest.raises(ResourceError, match="GB of memory"):
        read_dicom(folder)


def test_progress_counts_slices(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    read_dicom(series(tmp_path), on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 5) for n in range(1, 6)]

"""NIfTI files in: judged by nibabel, and by headers written byte by byte."""

from __future__ import annotations

import gzip
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hybrid.errors import HybridError, InputError, RequestError, ResourceError
from medical.volumes.volume import Volume, is_nifti, read_volume, stack, stem

AFFINE = np.array([[-2.0, 0, 0, 20], [0, 1.5, 0, -30], [0, 0, 3, 5], [0, 0, 0, 1]])
SHAPE = (5, 4, 3)


def ramp(dtype: Any = np.int16, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def saved(path: Path, values: np.ndarray, affine: np.ndarray | None = AFFINE, kind: Any = nib.Nifti1Image, **fields: Any) -> Path:
    """A file by nibabel, some fields of its header then set as given."""
    header = kind.header_class()
    header.set_xyzt_units("mm")
    header.set_data_dtype(values.dtype)
    image = kind(values, affine, header)
    for name, value in fields.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def patched(path: Path, **fields: Any) -> Path:
    """The file with header fields overwritten as they are, without nibabel's care."""
    opened = gzip.open if path.name.endswith(".gz") else open
    with opened(path, "rb") as stream:
        content = bytearray(stream.read())
    header = np.frombuffer(content, dtype=nib.Nifti1Header.template_dtype, count=1)
    for name, value in fields.items():
        header[name] = value
    with opened(path, "wb") as stream:
        stream.write(content)
    return path


def refused(path: Path, match: str, kind: type[HybridError] = InputError, **arguments: Any) -> None:
    with pytest.raises(kind, match=match) as caught:
        read_volume(path, **arguments)
    assert caught.value.hint and str(path.parent) not in str(caught.value) and caught.value.message.count("\n") == 0


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_every_type_and_version(ending: str, dtype: str, kind: Any, tmp_path: Path) -> None:
    path = saved(tmp_path / f"a{ending}", ramp(dtype), kind=kind)
    volume = read_volume(path)
    assert volume.values.shape == (1, *SHAPE) and volume.values.dtype == (np.float32 if dtype[0] == "f" else np.dtype(dtype))
    assert np.array_equal(volume.values[0], nib.load(path).get_fdata())
    assert np.array_equal(volume.grid.affine, AFFINE) and volume.grid.codes == "LAS" and volume.name == "a"
    origin: Any = volume.origin
    assert origin.version == (2 if kind is nib.Nifti2Image else 1) and origin.unit == "mm" and volume.warnings == ()


@pytest.mark.parametrize("ending", [".hdr", ".img"])
def test_a_pair_by_either_name(ending: str, tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(ramp(), AFFINE), tmp_path / "a.img")
    volume = read_volume(tmp_path / f"a{ending}")
    assert np.array_equal(volume.values[0], ramp()) and volume.name == "a"
    other = tmp_path / {".hdr": "a.img", ".img": "a.hdr"}[ending]
    other.unlink()
    refused(tmp_path / f"a{ending}", "a.(hdr|img)")


def test_the_other_byte_order(tmp_path: Path) -> None:
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype("i2")
    with (tmp_path / "a.nii").open("wb") as stream:
        header.set_data_shape(SHAPE)
        header.set_sform(AFFINE, 1)
        header.write_to(stream)
        stream.write(ramp(">i2").tobytes(order="F"))
    assert (tmp_path / "a.nii").read_bytes()[:4] == b"\x00\x00\x01\x5c"
    volume = read_volume(tmp_path / "a.nii")
    assert np.array_equal(volume.values[0], ramp()) and volume.values.dtype == np.int16 and volume.values.dtype.isnative


def test_slope_and_intercept(tmp_path: Path) -> None:
    path = patched(saved(tmp_path / "a.nii", ramp()), scl_slope=2.5, scl_inter=-1024)
    values = read_volume(path).values
    assert values.dtype == np.float32
    np.testing.assert_allclose(values[0], ramp() * 2.5 - 1024)
    for slope in (0, np.nan):
        assert np.array_equal(read_volume(patched(path, scl_slope=slope, scl_inter=7)).values[0], ramp())
    refused(patched(path, scl_slope=1, scl_inter=np.inf), "intercept")


@pytest.mark.parametrize(("code", "name", "factor"), [(0, "unknown", 1), (1, "meter", 1000), (2, "mm", 1), (3, "micron", 0.001)])
def test_units_become_millimetres(code: int, name: str, factor: float, tmp_path: Path) -> None:
    volume = read_volume(patched(saved(tmp_path / "a.nii", ramp()), xyzt_units=code + 8))
    np.testing.assert_allclose(volume.grid.affine[:3], AFFINE[:3] * factor)
    origin: Any = volume.origin
    assert origin.unit == name and np.array_equal(origin.sform, AFFINE)


def test_a_unit_that_is_none_is_warned_of(tmp_path: Path) -> None:
    volume = read_volume(patched(saved(tmp_path / "a.nii", ramp()), xyzt_units=5))
    assert "unit" in volume.warnings[0] and np.array_equal(volume.grid.affine, AFFINE)


def test_sform_before_qform_before_sizes(tmp_path: Path) -> None:
    moved = AFFINE + np.pad([[0.5], [0], [0]], ((0, 1), (3, 0)))
    image = nib.Nifti1Image(ramp(), AFFINE)
    image.set_qform(moved, 1)
    image.set_sform(AFFINE, 4)
    nib.save(image, tmp_path / "a.nii")
    both = read_volume(tmp_path / "a.nii")
    assert np.array_equal(both.grid.affine, AFFINE) and "differ by up to 0.5 mm" in both.warnings[0]
    origin: Any = both.origin
    assert (origin.sform_code, origin.qform_code) == (4, 1) and np.allclose(origin.qform, moved)

    quaternion = read_volume(patched(tmp_path / "a.nii", sform_code=0))
    np.testing.assert_allclose(quaternion.grid.affine, moved, atol=1e-6)
    assert quaternion.warnings == () and quaternion.origin.sform is None  # type: ignore[union-attr]

    sizes = read_volume(patched(tmp_path / "a.nii", qform_code=0))
    np.testing.assert_allclose(sizes.grid.affine, np.diag([2, 1.5, 3, 1]))
    assert "does not say how the patient lies" in sizes.warnings[0]


def test_shear_is_kept_and_warned_of(tmp_path: Path) -> None:
    sheared = AFFINE.copy()
    sheared[1, 2] = 0.4
    image = nib.Nifti1Image(ramp(), sheared)
    image.set_qform(None, 0)
    nib.save(image, tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    np.testing.assert_allclose(volume.grid.affine, sheared, atol=1e-6)
    assert "sheared" in volume.warnings[0]


def test_trailing_edges_of_one_are_dropped(tmp_path: Path) -> None:
    for shape in ((*SHAPE, 1), (*SHAPE, 1, 1)):
        volume = read_volume(saved(tmp_path / "a.nii", ramp(shape=shape)))
        assert np.array_equal(volume.values[0], ramp())


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_one_volume_or_the_channels_of_a_4d_file(ending: str, tmp_path: Path) -> None:
    values = ramp(shape=(*SHAPE, 4))
    path = saved(tmp_path / f"a{ending}", values)
    refused(path, "4 volumes.*--volume 0 to 3", RequestError)
    refused(path, "no volume 4", RequestError, volume=4)
    refused(path, "no volume -1", RequestError, volume=-1)
    refused(path, "holds 4 channels, and the network takes 3", channels=3)
    refused(path, "Leave --volume out", RequestError, channels=4, volume=1)
    for number in range(4):
        assert np.array_equal(read_volume(path, volume=number).values, values[None, ..., number])
    assert np.array_equal(read_volume(path, channels=4).values, np.moveaxis(values, -1, 0))
    vector = saved(tmp_path / f"v{ending}", values[..., None, :])
    assert np.array_equal(read_volume(vector, channels=4).values, np.moveaxis(values, -1, 0))
    flat = saved(tmp_path / f"b{ending}", values[..., 0])
    refused(flat, "holds 1 channel, and the network takes 4", channels=4)
    refused(flat, "no volume 1", RequestError, volume=1)
    assert np.array_equal(read_volume(flat, volume=0).values, values[None, ..., 0])


def test_other_shapes_are_refused(tmp_path: Path) -> None:
    refused(saved(tmp_path / "a.nii", ramp(shape=(5, 4))), r"2-D \(5 x 4\), and a volume is needed")
    refused(saved(tmp_path / "a.nii", ramp(shape=(*SHAPE, 2, 3))), "5-D")
    refused(patched(saved(tmp_path / "a.nii", ramp()), dim=[3, 5, 0, 3, 1, 1, 1, 1]), "shape")
    refused(patched(saved(tmp_path / "a.nii", ramp()), dim=[3, 5, -4, 3, 1, 1, 1, 1]), "shape")
    single = read_volume(saved(tmp_path / "a.nii", ramp(shape=(5, 4, 1))))
    assert "single slice" in single.warnings[0]


def test_other_kinds_of_numbers_are_refused(tmp_path: Path) -> None:
    colour = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colour, AFFINE), tmp_path / "a.nii")
    refused(tmp_path / "a.nii", "colours")
    refused(saved(tmp_path / "a.nii", ramp("c8")), "complex")
    refused(patched(saved(tmp_path / "a.nii", ramp()), datatype=1), "NIfTI file that can be read")


@pytest.mark.parametrize(
    ("wrong", "said"), [(np.nan, "2 NaN and 0 infinite"), (np.inf, "0 NaN and 2 infinite"), (-np.inf, "0 NaN and 2 infinite")]
)
def test_voxels_that_are_no_number_are_counted(wrong: float, said: str, tmp_path: Path) -> None:
    values = ramp("f4")
    values[1, 1, 1] = values[2, 3, 2] = wrong
    refused(saved(tmp_path / "a.nii.gz", values), said)


def test_a_number_beyond_float32_is_named(tmp_path: Path) -> None:
    values = ramp("f8")
    values[0, 0, 0] = 1e300
    refused(saved(tmp_path / "a.nii", values), "1 infinite")


def test_an_empty_image_is_warned_of(tmp_path: Path) -> None:
    assert "one value alone" in read_volume(saved(tmp_path / "a.nii", np.full(SHAPE, 7, np.uint8))).warnings[0]
    channels = np.stack([ramp(), np.zeros(SHAPE, np.int16)], axis=-1)
    assert "one value alone" in read_volume(saved(tmp_path / "a.nii", channels), channels=2).warnings[0]


def test_affines_that_are_none_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.nii", ramp())
    refused(patched(path, sform_code=1, srow_x=0, srow_y=0, srow_z=0), "a.nii: The affine .* no volume")
    refused(patched(path, sform_code=1, srow_x=np.nan), "affine is not finite")
    refused(patched(path, sform_code=0, qform_code=1, quatern_b=2.0), "q-form.* out of range")
    bad = read_volume(patched(saved(tmp_path / "c.nii", ramp()), qform_code=1, quatern_b=2.0))
    assert "q-form of c.nii is no rotation" in bad.warnings[0] and np.array_equal(bad.grid.affine, AFFINE)
    refused(patched(path, sform_code=0, qform_code=0, pixdim=0), "no volume")
    # A good s-form goes before a bad q-form of code 0.
    good = saved(tmp_path / "b.nii", ramp())
    assert np.array_equal(read_volume(patched(good, qform_code=0, quatern_b=2.0)).grid.affine, AFFINE)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 30000, (20, 20, 20)).astype(np.int16)
    path = saved(tmp_path / "a.nii.gz", noise)
    whole = path.read_bytes()
    for length in (0, 1, 20, 100, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(path, "damaged|NIfTI file")
    changed = bytearray(whole)
    changed[-6] ^= 0xFF  # the checksum
    path.write_bytes(changed)
    refused(path, "cannot be unpacked")
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 0xFF
    path.write_bytes(changed)
    refused(path, "damaged")
    path.write_bytes(b"no gzip at all" * 100)
    refused(path, "NIfTI file")
    plain = saved(tmp_path / "b.nii", noise)
    content = plain.read_bytes()
    for length in (0, 100, 348, 400, len(content) - 1):
        plain.write_bytes(content[:length])
        refused(plain, "damaged|NIfTI file")
    plain.write_bytes(whole)
    refused(plain, "NIfTI file")
    refused(tmp_path / "absent.nii", "no file")
    (tmp_path / "folder.nii").mkdir()
    refused(tmp_path / "folder.nii", "is a folder")


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_header_that_promises_too_much_takes_no_memory(ending: str, tmp_path: Path) -> None:
    path = patched(saved(tmp_path / f"a{ending}", ramp()), dim=[3, 32000, 32000, 32000, 1, 1, 1, 1])
    tracemalloc.start()
    refused(path, "promises")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 << 20


def test_a_scan_larger_than_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Small:
        available = 100

    monkeypatch.setattr("medical.volumes.nifti.psutil.virtual_memory", Small)
    refused(saved(tmp_path / "a.nii", ramp()), "memory", ResourceError)


def test_analyze_files_are_refused(tmp_path: Path) -> None:
    nib.save(nib.AnalyzeImage(ramp(), AFFINE), tmp_path / "a.img")
    refused(tmp_path / "a.hdr", "Analyze")


@pytest.mark.parametrize("slope", [1.0, 0.5])
def test_values_are_in_memory_once(slope: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medical.volumes.nifti._PIECE", 1 << 18)
    values = np.zeros((128, 128, 256), dtype=np.int16)
    values[64] = 8
    path = patched(saved(tmp_path / "a.nii.gz", values), scl_slope=slope, scl_inter=0)
    tracemalloc.start()
    found = read_volume(path).values
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = found.nbytes
    assert peak < size + (4 << 20)
    assert np.array_equal(found[0], values * slope)


def test_pieces_join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medical.volumes.nifti._PIECE", 13)
    assert np.array_equal(read_volume(saved(tmp_path / "a.nii.gz", ramp(">i4"))).values[0], ramp())


def test_no_word_of_nibabel_reaches_the_screen(tmp_path: Path) -> None:
    path = patched(saved(tmp_path / "a.nii", ramp()), pixdim=[5, -2, 1.5, 3, 1, 1, 1, 1], sform_code=77)
    # In a process of its own: here the test runner catches what would be printed.
    code = f"from medical.volumes.volume import read_volume; read_volume({str(path)!r})"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True
    )
    assert (ended.stdout, ended.stderr) == ("", "")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 367), st.integers(0, 255)), min_size=1, max_size=6))
def test_any_header_is_read_or_refused(changes: list[tuple[int, int]], tmp_path: Path) -> None:
    content = bytearray(saved(tmp_path / "a.nii", ramp()).read_bytes())
    for place, value in changes:
        content[place] = value
    (tmp_path / "b.nii").write_bytes(content)
    try:
        volume = read_volume(tmp_path / "b.nii")
    except HybridError as error:
        assert error.hint
    else:
        assert np.isfinite(volume.values).all()


def of(path: Path, **fields: Any) -> Volume:
    return read_volume(saved(path, ramp(), **fields))


def test_files_become_channels(tmp_path: Path) -> None:
    one, two = of(tmp_path / "t1.nii"), read_volume(saved(tmp_path / "t2.nii", ramp() + 100))
    both = stack([one, two])
    assert np.array_equal(both.values, np.stack([ramp(), ramp() + 100])) and both.name == "t1" and both.origin is one.origin
    assert stack([one]) is one
    moved = of(tmp_path / "t3.nii", affine=AFFINE + np.pad([[0.01], [0], [0]], ((0, 1), (3, 0))))
    with pytest.raises(InputError, match=r"t1 .* and t3 .* different grids"):
        stack([one, moved])
    with pytest.raises(ValueError, match="no volumes"):
        stack([])


def test_names() -> None:
    assert is_nifti("a.nii") and is_nifti(Path("x/A.NII.GZ")) and is_nifti("a.img") and is_nifti("a.hdr")
    assert not is_nifti("a.gz") and not is_nifti("a.dcm") and not is_nifti("nii")
    assert [stem(name) for name in ("a.nii.gz", "b/a.img", "a.b.nii", "a.dcm", "a.zip", "1.2.3", "a.NII", ".nii")] == [
        "a", "a", "a.b", "a", "a", "1.2.3", "a", ".nii",
    ]  # fmt: skip


def test_real_scans(shared: Path) -> None:
    samples = shared / "data" / "medical_samples"
    expected = {"mr_small": "LPS", "ct_small": "RAS", "ct_pitch": "RAS"}
    for name, codes in expected.items():
        volume = read_volume(samples / f"{name}.nii.gz")
        judge = nib.load(samples / f"{name}.nii.gz")
        assert volume.grid.codes == codes and volume.warnings == ()
        assert np.array_equal(volume.values[0], judge.get_fdata()) and np.allclose(volume.grid.affine, judge.affine)

"""One patient stored in every way that a file can hold, NIfTI and DICOM: the same labels at the same places in the patient.

Left and right are told apart by values, anatomy and network alike, so that no mirroring can hide.
"""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import highdicom
import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from scipy.spatial.transform import Rotation

from medical.files.inputs import Job
from medical.files.outputs import FileSettings
from medical.files.segment import segment_file
from tests.medical.dicom_stubs import save, slices_of
from tests.medical.stubs import convolution, protocol, smooth

SPACING = (1.1, 0.9, 1.6)
CODES = [
    "".join(letters)
    for order in permutations(("LR", "PA", "IS"))
    for letters in product(*order)
]  # fmt: skip
TURNS = {"aligned": (0, 0, 0), "oblique": (17, -11, 23)}
ASKED = protocol(4, orientation="LPS", patch=(8, 10, 12))


def patient(turn: str) -> tuple[np.ndarray, np.ndarray]:
    """(i, j, k) values stored R-A-S, and their affine."""
    values = np.rint(smooth(9, 11, 13) * 60 + 600).astype(np.int16)
    values[-3:] += 40  # the patient's right
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", TURNS[turn], degrees=True).as_matrix() * SPACING
    affine[:3, 3] = (12.5, -31, 44)
    return values, affine


def stored(turn: str, codes: str) -> tuple[np.ndarray, np.ndarray]:
    """The patient's values and affine with the axes of an orientation."""
    values, affine = patient(turn)
    way = ornt_transform(io_orientation(affine), axcodes2ornt(codes))
    return apply_orientation(values, way), affine @ inv_ornt_aff(way, values.shape)


def dicom(folder: Path, values: np.ndarray, affine: np.ndarray) -> Path:
    """Slices along the last axis, in its order, whichever way it runs."""
    lps = np.diag([-1, -1, 1, 1]) @ affine
    step = np.linalg.norm(lps[:3, :3], axis=0)
    orientation = [*(lps[:3, 0] / step[0]), *(lps[:3, 1] / step[1])]
    slices = slices_of(
        values.transpose(2, 1, 0), origin=lps[:3, 3], orientation=orientation, spacing=(step[1], step[0]), step=lps[:3, 2]
    )
    return save(folder, slices)


def found_in(labels: np.ndarray, affine: np.ndarray, turn: str) -> np.ndarray:
    """The labels on the voxels of `patient`, each put there by its place in millimetres."""
    values, home = patient(turn)
    indices = np.argwhere(labels)
    world = indices @ affine[:3, :3].T + affine[:3, 3]
    at = (world - home[:3, 3]) @ np.linalg.inv(home[:3, :3]).T
    np.testing.assert_allclose(at, np.rint(at), atol=0.01)
    painted = np.zeros(values.shape, np.uint8)
    painted[tuple(np.rint(at).astype(int).T)] = labels[tuple(indices.T)]
    return painted


@pytest.mark.parametrize("turn", TURNS)
def test_every_way_to_store_a_patient_gives_the_same_labels(tmp_path: Path, turn: str) -> None:
    network = convolution(4)
    expected: np.ndarray | None = None
    for number, codes in enumerate(CODES):
        values, affine = stored(turn, codes)
        assert "".join(nib.aff2axcodes(affine)) == codes
        scan = tmp_path / f"{codes}.nii.gz"
        nib.save(nib.Nifti1Image(values, affine), scan)
        settings = FileSettings(report=False, protocol=ASKED)
        segment_file(network, Job((scan,), tmp_path / f"{codes}_seg.nii.gz"), settings)
        image = nib.load(tmp_path / f"{codes}_seg.nii.gz")
        np.testing.assert_allclose(image.affine, affine, atol=1e-5)
        found = found_in(np.asarray(image.dataobj), image.affine, turn)
        expected = found if expected is None else expected
        np.testing.assert_array_equal(found, expected, codes)
        if number % 4 != 0:  # three in four are only stored as NIfTI: a SEG takes its time
            continue
        study = dicom(tmp_path / codes, values, affine)
        segment_file(network, Job((study,), tmp_path / f"{codes}_dicom.nii.gz"), settings)
        image = nib.load(tmp_path / f"{codes}_dicom.nii.gz")
        np.testing.assert_array_equal(found_in(np.asarray(image.dataobj), image.affine, turn), expected, f"{codes} as DICOM")
        volume = highdicom.seg.segread(tmp_path / f"{codes}_dicom.dcm").get_volume(combine_segments=True)
        ras = np.diag([-1, -1, 1, 1]) @ volume.affine
        np.testing.assert_array_equal(found_in(volume.array, ras, turn), expected, f"{codes} as DICOM SEG")
    assert expected is not None and len(np.unique(expected)) > 2
    for axis in range(3):
        assert (np.flip(expected, axis) != expected).any(), "a mirrored result would pass"

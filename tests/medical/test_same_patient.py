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

from medical.inputs import Job
from medical.segment_files import segment_file
from medical.segment_outputs import FileSettings
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


def places(labels: np.ndarray, affine: np.ndarray) -> set[tuple[int, ...]]:
    """Label and place in the patient of every labelled voxel, in hundredths of a mm."""
    indices = np.argwhere(labels)
    world = indices @ affine[:3, :3].T + affine[:3, 3]
    return {(int(labels[tuple(i)]), *np.rint(p * 100).astype(int).tolist()) for i, p in zip(indices, world, strict=True)}


def near(found: set[tuple[int, ...]], expected: set[tuple[int, ...]]) -> bool:
    """Whether every voxel is where it should be, to a hundredth of a mm either way."""
    steps = [(0, *step) for step in product((-1, 0, 1), repeat=3)]
    around = {tuple(a + b for a, b in zip(place, step, strict=True)) for place in expected for step in steps}
    return len(found) == len(expected) and found <= around


@pytest.mark.parametrize("turn", TURNS)
def test_every_way_to_store_a_patient_gives_the_same_labels(tmp_path: Path, turn: str) -> None:
    network = convolution(4)
    expected: set[tuple[int, ...]] | None = None
    for number, codes in enumerate(CODES):
        values, affine = stored(turn, codes)
        assert "".join(nib.aff2axcodes(affine)) == codes
        scan = tmp_path / f"{codes}.nii.gz"
        nib.save(nib.Nifti1Image(values, affine), scan)
        settings = FileSettings(report=False, protocol=ASKED)
        segment_file(network, Job((scan,), tmp_path / f"{codes}_seg.nii.gz"), settings)
        image = nib.load(tmp_path / f"{codes}_seg.nii.gz")
        np.testing.assert_allclose(image.affine, affine, atol=1e-5)
        found = places(np.asarray(image.dataobj), image.affine)
        expected = expected if expected is not None else found
        assert near(found, expected), codes

        if number % 4 != 0:  # three in four are only stored as NIfTI: a SEG takes its time
            continue
        study = dicom(tmp_path / codes, values, affine)
        segment_file(network, Job((study,), tmp_path / f"{codes}_dicom.nii.gz"), settings)
        image = nib.load(tmp_path / f"{codes}_dicom.nii.gz")
        assert near(places(np.asarray(image.dataobj), image.affine), expected), f"{codes} as DICOM"
        volume = highdicom.seg.segread(tmp_path / f"{codes}_dicom.dcm").get_volume(combine_segments=True)
        ras = np.diag([-1, -1, 1, 1]) @ volume.affine
        assert near(places(volume.array, ras), expected), f"{codes} as DICOM SEG"
    assert expected is not None and len({place[0] for place in expected}) == 3

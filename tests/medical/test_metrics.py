"""Dice, HD95 and surface Dice, judged by MONAI, by a slow numpy version, by scikit-image's marching cubes, and by hand."""

from __future__ import annotations

import tracemalloc
from itertools import product
from math import dist, isnan

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from hybrid.errors import RequestError
from medical.evaluation.metrics import Conventions, _element_areas, dice, hd95, score, score_labels, surface_dice

EMPTY = ("nan", "monai-ignore", "monai-strict", "transunet")
SPACINGS = {2: (0.8, 1.7), 3: (0.7, 1.3, 2.9)}


def blob(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Smooth random mask that touches the border now and then."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.6, mode="nearest")
    return noise > np.quantile(noise, 0.7)


def slow_surface(mask: np.ndarray) -> list[tuple[int, ...]]:
    """Voxels with a neighbour across a face that is outside the mask, or outside the array."""
    found = []
    for place in zip(*np.nonzero(mask), strict=True):
        for axis, step in product(range(mask.ndim), (-1, 1)):
            near = list(place)
            near[axis] += step
            if not 0 <= near[axis] < mask.shape[axis] or not mask[tuple(near)]:
                found.append(place)
                break
    return found


def slow_distances(a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    points = [[[x * s for x, s in zip(p, spacing, strict=True)] for p in slow_surface(mask)] for mask in (a, b)]
    return np.array([min(dist(p, q) for q in points[1]) for p in points[0]])


def onehot(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(mask.astype(np.float32))[None, None]


PAIRS = [(shape, seed) for shape in ((17, 23), (13, 16, 9)) for seed in range(3)]


@pytest.mark.parametrize(("shape", "seed"), PAIRS)
def test_against_a_slow_version(shape: tuple[int, ...], seed: int) -> None:
    a, b, spacing = blob(shape, seed), blob(shape, seed + 50), SPACINGS[len(shape)]
    there, back = slow_distances(a, b, spacing), slow_distances(b, a, spacing)
    assert hd95(a, b, spacing) == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))
    assert hd95(a, b, spacing, variant="pooled") == pytest.approx(np.percentile([*there, *back], 95))
    for tolerance in (0.0, 1.0, 2.5):
        within = (there <= tolerance + 1e-9).sum() + (back <= tolerance + 1e-9).sum()
        assert surface_dice(a, b, spacing, tolerance, method="voxel") == pytest.approx(within / (len(there) + len(back)))
    assert dice(a, b) == pytest.approx(2 * (a * b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize(("shape", "seed"), PAIRS)
def test_against_monai(shape: tuple[int, ...], seed: int) -> None:
    from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice

    a, b, spacing = blob(shape, seed), blob(shape, seed + 50), SPACINGS[len(shape)]
    given = {"y_pred": onehot(a), "y": onehot(b), "include_background": True}
    assert dice(a, b) == pytest.approx(compute_dice(**given).item(), rel=1e-6)
    theirs = compute_hausdorff_distance(**given, percentile=95, spacing=spacing).item()
    assert hd95(a, b, spacing) == pytest.approx(theirs, rel=1e-5)
    for tolerance, subvoxel in product((0.5, 1.0, 2.5), (True, False)):
        theirs = compute_surface_dice(**given, class_thresholds=[tolerance], spacing=spacing, use_subvoxels=subvoxel).item()
        method = "subvoxel" if subvoxel else "voxel"
        assert surface_dice(a, b, spacing, tolerance, method=method) == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 1.3, 2.9)])
def test_areas_are_those_of_marching_cubes(spacing: tuple[float, float, float]) -> None:
    """Each pattern of inner voxels, or of outer ones where those are fewer: a surface looks alike from both sides."""
    from skimage.measure import marching_cubes, mesh_surface_area

    areas, bits = _element_areas(spacing)
    for pattern in range(1, 255):
        inside = (pattern & bits) > 0
        inside = inside if inside.sum() <= 4 else ~inside
        vertices, faces, *_ = marching_cubes(inside.astype(float), 0.5, spacing=spacing, method="lorensen")
        assert areas[pattern] == pytest.approx(mesh_surface_area(vertices, faces), rel=1e-4), pattern


def test_by_hand() -> None:
    a = np.zeros((20, 20, 20), bool)
    a[4:8, 4:8, 4:8] = True
    b = np.roll(a, 3, axis=2)
    assert dice(a, b) == pytest.approx(2 * 16 / 128)
    assert hd95(a, b, (1, 1, 2)) == 6.0
    assert hd95(a, a, (1, 1, 2)) == 0.0
    assert surface_dice(a, a, (1, 1, 2), 0) == 1.0
    # the faces across the shift are 3 voxels apart, the others partly coincide
    assert surface_dice(a, b, (1, 1, 1), 3) == 1.0 and surface_dice(a, b, (1, 1, 1), 2.9) < 1
    assert surface_dice(a, b, (1, 1, 1.1), 3) < 1


def test_lengths_of_a_square_by_hand() -> None:
    """A square of 4 pixels a side: 3 whole steps on each side and a cut corner; half of it moved away by 5 pixels."""
    a, b = np.zeros((12, 30), bool), np.zeros((12, 30), bool)
    a[4:8, 4:8] = b[4:8, 4:8] = True
    b[4:8, 20:24] = True
    assert surface_dice(a, b, (1, 1), 1) == pytest.approx(2 / 3)  # one length of three is far from the other mask


def test_a_tolerance_forgives_the_rounding_of_headers() -> None:
    a = np.zeros((9, 9, 9), bool)
    a[4, 4, 4] = True
    spacing = (float(np.float32(1.0000001)), 1.0, 1.0)
    assert surface_dice(np.roll(a, 1, 0), a, spacing, 1.0, method="voxel") == 1.0
    assert surface_dice(np.roll(a, 1, 0), a, (1.001, 1.0, 1.0), 1.0, method="voxel") == 0.0


@pytest.mark.parametrize(
    ("empty", "expected"),
    [("nan", (np.nan, 0, 0)), ("monai-ignore", (np.nan, np.nan, 0)), ("monai-strict", (1, 0, 0)), ("transunet", (0, 1, 0))],
)
@pytest.mark.parametrize("ndim", [2, 3])
def test_empty_masks(empty: str, expected: tuple[float, float, float], ndim: int) -> None:
    nothing = np.zeros((5,) * ndim, bool)
    something = nothing.copy()
    something[(2,) * ndim] = True
    spacing = (1.0,) * ndim
    cases = {"both": (nothing, nothing), "reference": (something, nothing), "prediction": (nothing, something)}
    for (which, (p, r)), wanted in zip(cases.items(), expected, strict=True):
        found = score(p, r, spacing, Conventions(empty=empty))  # type: ignore[arg-type]
        assert found.dice == pytest.approx(wanted, nan_ok=True)
        assert found.dice == pytest.approx(dice(p, r, empty=empty), nan_ok=True)  # type: ignore[arg-type]
        assert found.hd95 == 0 if empty == "transunet" else isnan(found.hd95)  # never 0 for a miss otherwise
        assert isnan(found.nsd) if which == "both" else found.nsd == 0
        assert (found.predicted_voxels, found.reference_voxels) == (p.sum(), r.sum())


@pytest.mark.parametrize("ignore", [True, False])
def test_empty_masks_as_monai(ignore: bool) -> None:
    from monai.metrics import compute_dice

    nothing, something = np.zeros((4, 4), bool), np.ones((4, 4), bool)
    for p, r in product((nothing, something), repeat=2):
        theirs = compute_dice(onehot(p), onehot(r), include_background=True, ignore_empty=ignore).item()
        assert dice(p, r, empty="monai-ignore" if ignore else "monai-strict") == pytest.approx(theirs, nan_ok=True)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_what_holds_for_all_masks(data: st.DataObject) -> None:
    shape = data.draw(array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=6))
    a, b = (data.draw(arrays(bool, shape)) for _ in range(2))
    spacing = data.draw(st.tuples(*[st.floats(0.2, 5)] * len(shape)))
    found, turned = score(a, b, spacing, Conventions()), score(b, a, spacing, Conventions())
    for name in ("dice", "hd95", "nsd"):
        assert getattr(found, name) == pytest.approx(getattr(turned, name), nan_ok=True)
    flipped = score(a[::-1].swapaxes(0, 1), b[::-1].swapaxes(0, 1), (spacing[1], spacing[0], *spacing[2:]), Conventions())
    assert found.dice == pytest.approx(flipped.dice, nan_ok=True) and found.hd95 == pytest.approx(flipped.hd95, nan_ok=True)
    assert score(np.pad(a, 2), np.pad(b, 2), spacing, Conventions()).nsd == pytest.approx(found.nsd, nan_ok=True)
    if a.any() and b.any():
        assert 0 <= found.dice <= 1 and 0 <= found.nsd <= 1
        doubled = score(a, b, tuple(2 * each for each in spacing), Conventions(tolerance=2.0))
        assert doubled.hd95 == pytest.approx(2 * found.hd95) and doubled.nsd == pytest.approx(found.nsd)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_label_maps_are_scored_structure_by_structure(dtype: type) -> None:
    shape, spacing = (18, 15, 12), (1.0, 0.8, 2.0)
    prediction, reference = (np.select([blob(shape, seed), blob(shape, seed + 1)], [3, 1], 0).astype(dtype) for seed in (5, 50))
    reference = np.asfortranarray(reference)
    structures = [(1,), (3,), (1, 3), (2,)]
    found = score_labels(prediction, reference, spacing, structures, Conventions())
    for values, each in zip(structures, found, strict=True):
        whole = score(np.isin(prediction, values), np.isin(reference, values), spacing, Conventions())
        assert [each.dice, each.hd95, each.nsd] == pytest.approx([whole.dice, whole.hd95, whole.nsd], nan_ok=True)
        assert (each.reference_voxels, each.predicted_voxels) == (whole.reference_voxels, whole.predicted_voxels)


def test_a_large_scan_needs_memory_for_its_structures_alone() -> None:
    scan = np.zeros((512, 512, 400), np.uint8)
    scan[100:140, 200:250, 50:90] = 1
    other = scan.copy()
    other[140:144, 200:250, 50:90] = 1
    score_labels(scan[:8], other[:8], (1, 1, 1), [(1,)], Conventions())  # imports
    tracemalloc.start()
    found = score_labels(scan, other, (0.8, 0.8, 1.5), [(1,)], Conventions())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found[0].dice == pytest.approx(2 * 40 / 84)
    assert peak < 20e6  # a distance transform of the scan would take 3 GB


def test_what_cannot_be_scored_is_refused() -> None:
    mask = np.ones((3, 4), bool)
    with pytest.raises(RequestError, match=r"shapes \(3, 4\) and \(4, 3\)"):
        dice(mask, mask.T)
    with pytest.raises(RequestError, match="boolean, not uint8"):
        dice(mask.astype(np.uint8), mask)
    with pytest.raises(RequestError, match="does not fit 2-D"):
        hd95(mask, mask, (1, 1, 1))
    with pytest.raises(RequestError, match="does not fit"):
        surface_dice(mask, mask, (1, 0), 1)
    with pytest.raises(RequestError, match="2-D or 3-D"):
        dice(mask[0], mask[0])
    with pytest.raises(RequestError, match="label maps of shapes"):
        score_labels(mask.astype(int), mask.T.astype(int), (1, 1), [(1,)], Conventions())
    with pytest.raises(RequestError, match="tolerance of -1"):
        Conventions(tolerance=-1)

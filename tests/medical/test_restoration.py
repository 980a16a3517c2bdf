"""Restoration of scans in memory: what the network sees, and what of the scan must not change."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from hybrid.errors import InputError, RequestError, ResourceError
from hybrid.weights.checkpoints import write_checkpoint
from medical.restoration.loading import Restorer, load_restorer, save_restorer
from medical.restoration.preview import draw
from medical.restoration.protocol import SAMPLED, FixedRange, Percentiles, RestorationProtocol, seen_slices
from medical.restoration.run import RestoreSettings, plan_slices, restore
from medical.volumes.geometry import Grid
from restore.models import family
from tests.medical.restoration_stubs import Stub, protocol, restorer, values
from tests.medical.stubs import volume


def blur(x: torch.Tensor) -> torch.Tensor:
    """Weights that are the same neither mirrored nor turned, within the slice; zeros outside."""
    kernel = torch.tensor([[0.1, 0.0, 0.0], [0.0, 0.5, 0.3], [0.0, 0.1, 0.0]])
    return torch.nn.functional.conv2d(x, kernel.expand(x.shape[1], 1, 3, 3), padding=1, groups=x.shape[1])


# What must stay ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32])
def test_a_network_that_changes_nothing_changes_nothing(dtype: type) -> None:
    array = (
        (values() * (0.2 if dtype is np.uint8 else 1777.7 if dtype in (np.int32, np.float32) else 1)).clip(0, 2e6).astype(dtype)
    )
    found = restore(volume(array), restorer(neighbours=2), RestoreSettings(tile=12))
    assert found.values.dtype == dtype and found.removed == 0
    np.testing.assert_array_equal(found.values, array)


def test_a_scan_is_not_changed_in_place() -> None:
    array = values().astype(np.int16)
    given = volume(array.copy())
    found = restore(given, restorer(lambda x: x * 0.5))
    np.testing.assert_array_equal(given.values[0], array)
    assert abs(found.values.mean() - array.mean() / 2) < 1


def test_results_are_in_the_units_of_the_scan() -> None:
    array = values().astype(np.float32) * 1000
    high = float(np.percentile(array, 99))
    found = restore(volume(array), restorer(lambda x: x + 0.1))
    inside = array < array.max() - 0.2 * high
    np.testing.assert_allclose(found.values[inside], (array + 0.1 * high)[inside], rtol=1e-5)
    assert found.bounds == (0.0, pytest.approx(high))
    assert found.values.max() == array.max(), "no value beyond the scan's brightest"


def test_whole_numbers_are_rounded_and_float32_is_not() -> None:
    array = values().astype(np.int16)
    network = restorer(lambda x: x * 0.9, intensity={"kind": "range", "low": 0, "high": 1000})
    found = restore(volume(array), network)
    assert found.values.dtype == np.int16 and np.abs(found.values - array * 0.9).max() <= 0.5 + 1e-3
    plain = restore(volume(array), network, RestoreSettings(dtype="float32"))
    np.testing.assert_allclose(plain.values, array * 0.9, atol=1e-3)
    assert plain.values.dtype == np.float32 and plain.removed == pytest.approx(np.sqrt(np.mean((array * 0.1) ** 2)), rel=1e-4)


def test_values_stay_within_what_the_type_holds() -> None:
    array = values().clip(0, 255).astype(np.uint8)
    found = restore(volume(array), restorer(lambda x: x - 3))
    assert found.values.max() == 0 and found.values.dtype == np.uint8


# What the network sees -----------------------------------------------------------------------------------------------

TURNS = [(axes, signs) for axes in permutations(range(3)) for signs in product((1, -1), repeat=3)]


@pytest.mark.parametrize("turn", TURNS, ids=str)
def test_all_orientations_give_one_result(turn: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    """The same patient stored another way is restored the same; judged by nibabel's turning of array and affine."""
    axes, signs = turn
    array, affine = values((9, 12, 7)).astype(np.float32), np.diag([1.0, 1.1, 2.0, 1.0])
    network = restorer(lambda x: blur(x) + 0.01 * x[:, :1], neighbours=1)
    expected = restore(volume(array, affine), network).values
    ornt = np.array([[axis, sign] for axis, sign in zip(axes, signs, strict=True)])
    turned = nib.orientations.apply_orientation(array, ornt)
    moved = affine @ nib.orientations.inv_ornt_aff(ornt, array.shape)
    found = restore(volume(np.ascontiguousarray(turned), moved), network).values
    np.testing.assert_allclose(found, nib.orientations.apply_orientation(expected, ornt), rtol=1e-5, atol=1e-3)


def test_slices_of_a_phantom_are_seen_in_order_with_their_neighbours() -> None:
    """Every voxel of slice k has the value k + 1 along the thickest axis, from foot to head; the file runs the other way."""
    array = np.broadcast_to(np.arange(6, 0, -1, dtype=np.float32)[None, :, None], (12, 6, 14)).copy()
    affine = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -3, 0, 0], [0, 0, 0, 1]])
    assert Grid((12, 6, 14), affine).codes == "RIA"
    seen: list[list[float]] = []

    def look(x: torch.Tensor) -> torch.Tensor:
        assert x.shape == (1, 5, 12, 14)
        seen.append((x[0, :, 3, 4] * 6).round().tolist())
        return x

    restore(volume(array, affine), restorer(look, neighbours=2, intensity={"kind": "range", "low": 0, "high": 6}))
    assert seen == [[3, 2, 1, 2, 3], [2, 1, 2, 3, 4], [1, 2, 3, 4, 5], [2, 3, 4, 5, 6], [3, 4, 5, 6, 5], [4, 5, 6, 5, 4]]


def test_slices_lie_across_the_longest_voxels_or_the_axis_that_is_named() -> None:
    given = volume(values((6, 7, 8)), np.diag([1.0, 4.0, 1.0, 1.0]))
    plan = plan_slices(given, restorer(), RestoreSettings())
    assert (plan.count, plan.tiles.shape) == (7, (6, 8)) and plan.describe().startswith(
        "7 slices of 6 x 8 from P to A, 4 mm apart"
    )
    assert plan_slices(given, restorer(axis=0), RestoreSettings()).count == 6
    even = volume(values((6, 7, 8)), np.diag([1.0, 1.0, 1.0, 1.0]))
    assert plan_slices(even, restorer(), RestoreSettings()).count == 8


def test_a_network_of_slices_is_scipy_s_filter_slice_by_slice() -> None:
    array = values((10, 11, 5)).astype(np.float32)
    found = restore(volume(array, np.diag([1.0, 1, 3, 1])), restorer(blur))
    kernel = np.array([[0.1, 0, 0], [0, 0.5, 0.3], [0, 0.1, 0]])
    expected = np.stack([ndimage.correlate(array[..., k], kernel, mode="constant") for k in range(5)], -1)
    np.testing.assert_allclose(found.values, np.clip(expected, 0, array.max()), rtol=1e-4, atol=1e-2)


def test_tiles_of_a_slice_give_what_the_whole_gives() -> None:
    array = values((60, 50, 3)).astype(np.float32)
    network = restorer(blur, card={"exact": True})
    whole = restore(volume(array), network)
    tiled = restore(volume(array), network, RestoreSettings(tile=24))
    assert tiled.plan.tiles.count > 1 and whole.plan.tiles.whole
    np.testing.assert_allclose(tiled.values, whole.values, rtol=1e-5, atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(0, 5), st.data())
def test_neighbours_are_numpy_s_mirror(count: int, neighbours: int, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, count - 1))
    expected = np.pad(np.arange(count), neighbours, mode="reflect")[number : number + 2 * neighbours + 1]
    assert seen_slices(number, count, neighbours) == expected.tolist()


def test_percentiles_of_large_scans_are_of_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    array = values((40, 41, 42))
    exact = Percentiles(low=2, high=98).bounds(array)
    assert exact == tuple(np.percentile(array, (2, 98)))
    monkeypatch.setattr("medical.restoration.protocol.SAMPLED", 10_000)
    assert Percentiles(low=2, high=98).bounds(array) == pytest.approx(exact, rel=0.05)
    assert SAMPLED == 1 << 24 and FixedRange(low=-1024, high=3072).bounds(array) == (-1024, 3072)


# Memory --------------------------------------------------------------------------------------------------------------


def test_a_large_scan_takes_its_result_and_little_else() -> None:
    array = np.asfortranarray(values((160, 160, 120)).astype(np.int16))  # 6 MB; a float32 copy would be 12
    given = volume(array)
    tracemalloc.start()
    restore(given, restorer(neighbours=1))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The result, the sorted copy from which the percentile is taken, and slices.
    assert peak < 2.5 * array.nbytes


def test_what_does_not_fit_is_refused_and_a_small_bound_makes_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    given = volume(values((300, 300, 2)).astype(np.int16))
    network = restorer(card={"activation_floats": 1000})
    monkeypatch.setattr("medical.restoration.run.activation_budget", lambda limit, device, reserve=0: 100_000_000)
    plan = plan_slices(given, network, RestoreSettings(memory=1))
    assert plan.tiles.count > 1 and plan.tiles.memory_bytes <= 100_000_000
    monkeypatch.setattr("medical.restoration.run.activation_budget", lambda limit, device, reserve=0: -5_000_000)
    with pytest.raises(ResourceError, match=r"5\.0 MB are missing"):
        plan_slices(given, network, RestoreSettings())


# Refusals and doubts -------------------------------------------------------------------------------------------------


def test_scans_that_do_not_fit_are_refused() -> None:
    array = values().astype(np.float32)
    cases = [
        (volume(np.full((5, 6, 7), 3, np.int16)), "everywhere"),
        (volume(np.where(array > 100, np.nan, array)), "not finite"),
        (volume(np.stack([array, array])), "2 channels"),
        (volume(array - 500), "far below 0"),
        (volume(np.where(np.arange(15) == 3, array * (array > 600), 0).astype(np.float32)), "almost empty"),
    ]
    for refused, words in cases:
        with pytest.raises(InputError, match=words):
            restore(refused, restorer())


def test_another_modality_is_refused() -> None:
    given = volume(values())
    said = replace(given, origin=type("Origin", (), {"modality": "CT"})())
    with pytest.raises(InputError, match="trained on MR, and scan says that it is CT"):
        restore(said, restorer())


def test_doubts_are_told() -> None:
    array = values().astype(np.float32)
    coarse = restore(volume(array, np.diag([3.0, 3.0, 5.0, 1.0])), restorer(neighbours=1, spacing=(1, 1)))
    assert ["quite another size" in note or "further than" in note for note in coarse.notes] == [True, True]
    array[0, 0, 0] = -1
    assert any("below 0" in note for note in restore(volume(array), restorer()).notes)
    assert restore(volume(values()), restorer(spacing=(1, 1))).notes == ()


def test_networks_that_cannot_restore_slices_are_refused() -> None:
    with pytest.raises(RequestError, match="enlarges"):
        restorer(card={"scale": 2})
    with pytest.raises(RequestError, match="absolute position embedding: it takes 16 x 16 pixels alone"):
        restorer(card={"fixed_size": 16})
    with pytest.raises(RequestError, match=r"takes 1 channels and gives 1, and its protocol shows it 3 slices"):
        Restorer(Stub(lambda x: x), protocol(neighbours=1), {})


def test_a_written_restorer_is_the_one_that_was_loaded(tmp_path: Path) -> None:
    """A factor that went into the weights is not there twice; options of NumPy are written as numbers."""
    torch.manual_seed(0)
    kind, path = family("craft"), tmp_path / "x.safetensors"
    network = kind.create(
        in_channels=1, embed_dim=8, depths=(1,), num_heads=(2,), split_size=(4, 8), mlp_width=16, gated_width=16, scale=1
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    write_checkpoint(path, {kind.keys.to_published(key): tensor for key, tensor in network.state_dict().items()}, {})
    options = {"split_size": np.array([4, 8]), "qk_scale": np.float32(0.05)}
    usual = load_restorer(path, protocol=protocol(), split_size=(4, 8))
    made = load_restorer(path, protocol=protocol(), **options)
    save_restorer(tmp_path / "again.safetensors", made)
    x = torch.rand(1, 1, 16, 16)
    with torch.inference_mode():
        found, again, other = (each.network(x) for each in (made, load_restorer(tmp_path / "again.safetensors"), usual))
    assert torch.equal(found, again)
    assert (found - other).abs().max() > 1e-2
    assert json.dumps(dict(made.options))


def test_protocols_are_checked() -> None:
    with pytest.raises(ValueError, match="is empty"):
        FixedRange(low=3, high=3)
    with pytest.raises(ValueError, match="orientation"):
        RestorationProtocol.model_validate({"modality": "MR", "orientation": "RAR", "intensity": {"kind": "percentiles"}})


# The preview ---------------------------------------------------------------------------------------------------------


def test_the_preview_says_how_much_its_difference_is_amplified() -> None:
    before = values().astype(np.float32)
    after = before + np.random.default_rng(5).normal(0, 3, before.shape).astype(np.float32)
    figure = draw(before, after, Grid(before.shape, np.eye(4)), "case")
    first, _, third = (axes for axes in figure.axes[:3])
    factor = float(third.get_title().removeprefix("taken away (before - after), contrast x "))
    spans = [np.ptp(axes.images[0].get_clim()) for axes in (first, third)]
    assert factor == pytest.approx(spans[0] / spans[1], rel=0.01) and factor > 1
    same = draw(before, before, Grid(before.shape, np.eye(4)), "case")
    assert same.axes[2].get_title() == "taken away (before - after), nothing"

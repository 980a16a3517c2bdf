"""The pretext tasks of pretraining: views and their labels, losses, heads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medical.models.swin_unetr import Encoder, SwinUNETRConfig
from medical.training.pretext import PretextPart, Views, boxes, turned
from medical.training.pretraining import make_network
from medical.training.pretraining_network import Answers, PretextLoss, PretrainingNetwork, contrastive_loss
from tests.medical.pretraining_stubs import SMALL, egg, of, protocol

# Views -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plane", [(1, 2), (0, 2), (0, 1)])
def test_views_are_turned_by_what_their_labels_say(plane: tuple[int, int]) -> None:
    """The scans are as large as the patch, so that a crop is the whole scan; judged by numpy's and torch's own rotation."""
    scan = np.random.default_rng(0).random((1, 8, 8, 8), np.float32)
    views = Views([scan], protocol(patch=(8, 8, 8)), PretextPart(plane=plane))
    seen = set()
    for seed in range(20):
        shown, target = views(np.random.default_rng(seed))
        assert shown.shape == (2, 1, 8, 8, 8) and target.shape == (2, 2, 8, 8, 8) and shown.dtype == target.dtype == np.float32
        for view, (whole, label) in zip(shown[:, 0], target, strict=True):
            (turns,) = np.unique(label)
            np.testing.assert_array_equal(whole, np.rot90(scan[0], int(turns), plane))
            np.testing.assert_array_equal(whole, torch.rot90(torch.from_numpy(scan[0]), int(turns), plane).numpy())
            assert 0.4 < np.mean(view == whole) < 1  # something was cut out, and most is there
            seen.add(int(turns))
        assert not np.array_equal(shown[0], shown[1])
    assert seen == {0, 1, 2, 3}


def test_published_plane_is_of_the_last_two_axes_of_volumes_and_slices() -> None:
    assert PretextPart().turning(protocol()) == (1, 2)
    assert PretextPart().turning(protocol(patch=(16, 16), spacing=None)) == (0, 1)


def test_boxes_cover_a_uniform_share_and_have_the_published_sides() -> None:
    shape, pretext, rng = (40, 60, 20), PretextPart(), np.random.default_rng(0)
    shares = np.array([boxes(shape, pretext, rng).mean() for _ in range(400)])
    largest = (0.25**3, 0.25**3 * 1.2)
    assert 0 < shares.min() < 0.01 and 0.28 < shares.max() < 0.3 + largest[1]
    assert shares.mean() == pytest.approx(0.15 + 0.15**3 / 2, abs=0.012)  # of a uniform share, and half a box beyond
    assert np.quantile(shares, [0.25, 0.5, 0.75]) == pytest.approx([0.075, 0.15, 0.225], abs=0.03)
    sides = []
    for _ in range(400):
        places = np.argwhere(boxes(shape, PretextPart(cut_out=1e-9), rng))  # one box
        first, last = places.min(0), places.max(0) + 1
        assert len(places) == np.prod(last - first)
        sides.append((last - first) / shape)
    low, high = np.min(sides, 0), np.max(sides, 0)
    assert low == pytest.approx([0.05] * 3, abs=0.025) and high == pytest.approx([0.25] * 3, abs=0.025)
    assert np.mean(sides) == pytest.approx(0.15, abs=0.01)


@pytest.mark.parametrize("window", [True, False])
def test_boxes_are_filled_with_noise_and_then_with_another_sample(window: bool) -> None:
    """Two scans that can be told apart by their values, and both from noise."""
    rng = np.random.default_rng(1)
    low, high = (0, 1) if window else (-3, 5)
    places = np.arange(12**3, dtype=np.float32).reshape(1, 12, 12, 12) / 12**3
    scans = [low + (high - low) * places, 100 + places]
    intensity = {"kind": "window", "low": 0, "high": 1} if window else {"kind": "z-score"}
    views = Views(scans, protocol(patch=(12, 12, 12), intensity=intensity), PretextPart())
    noises, others = [], 0
    for _ in range(30):
        shown, target = views(rng)
        for view, whole in zip(shown[:, 0], target[:, 0], strict=True):
            if whole.min() >= 100:
                continue
            other = view >= 100
            np.testing.assert_array_equal(view[other], scans[1][0][other])  # in its place, and not turned
            others += int(other.sum())
            noises.append(view[(view != whole) & ~other])
    noise = np.concatenate(noises)
    assert others > 1000 and len(noise) > 5000
    assert low <= noise.min() < low + 0.15 * (high - low) and high - 0.15 * (high - low) < noise.max() <= high
    assert noise.mean() == pytest.approx((low + high) / 2, abs=0.05 * (high - low))
    assert 0.1 < noise.std() / (high - low) < 0.2  # a normal distribution between its extremes


def test_the_other_sample_lies_over_the_noise() -> None:
    """Where both are drawn, with large shares, so that they meet often: 0.45 of the other sample, 0.45 * 0.55 of noise left."""
    places = np.random.default_rng(0).random((1, 12, 12, 12), np.float32)
    intensity = {"kind": "window", "low": 0, "high": 1}
    views = Views([places, 100 + places], protocol(patch=(12, 12, 12), intensity=intensity), PretextPart(cut_out=0.9))
    pairs = [views(np.random.default_rng(seed)) for seed in range(200)]
    shown, whole = (np.stack(side)[:, :, 0] for side in zip(*pairs, strict=True))
    mixed = (whole.max((2, 3, 4)) < 100) & (shown.max((2, 3, 4)) >= 100)  # views of one scan with the other in it
    other, noise = shown[mixed] >= 100, (shown[mixed] != whole[mixed]) & (shown[mixed] < 100)
    assert other.mean() == pytest.approx(0.46, abs=0.05) and noise.mean() == pytest.approx(0.25, abs=0.04)


def test_crops_of_air_are_drawn_again_and_scans_smaller_than_the_patch_are_filled_up() -> None:
    scan = np.zeros((1, 6, 60, 60), np.float32)
    scan[:, :, :30] = np.random.default_rng(0).random((1, 6, 30, 60), np.float32) + 1
    views = Views([scan], protocol(patch=(8, 8, 8)), PretextPart())
    wholes = [views(np.random.default_rng(seed))[1][:, 0] for seed in range(40)]
    assert all(whole.max() > 0 for pair in wholes for whole in pair)
    assert all((whole == 0).mean() >= 0.25 for pair in wholes for whole in pair)


def test_views_are_a_function_of_the_generator() -> None:
    views = Views([egg(0)[None], egg(1)[None]], protocol(), PretextPart())
    once, again, other = (views(np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True)) and not np.array_equal(once[0], other[0])


def test_turning_an_axis_of_several_channels() -> None:
    values = np.random.default_rng(0).random((3, 4, 5, 5))
    for turns in range(4):
        np.testing.assert_array_equal(turned(values, turns, (1, 2)), np.stack([np.rot90(v, turns, (1, 2)) for v in values]))


# Losses ----------------------------------------------------------------------------------------------------------


def test_contrastive_loss_against_its_definition() -> None:
    """Equation 1 of SimCLR, in plain loops: each view against all 2N - 1 others."""
    rng = np.random.default_rng(0)
    pairs, temperature = rng.normal(size=(5, 2, 7)), 0.5
    views = [(n, v) for n in range(5) for v in range(2)]

    def like(a: tuple[int, int], b: tuple[int, int]) -> float:
        x, y = pairs[a], pairs[b]
        return float(np.exp(x @ y / np.linalg.norm(x) / np.linalg.norm(y) / temperature))

    rest = {view: sum(like(view, other) for other in views if other != view) for view in views}
    losses = [-np.log(like((n, v), (n, 1 - v)) / rest[n, v]) for n, v in views]
    assert float(contrastive_loss(torch.from_numpy(pairs), temperature)) == pytest.approx(np.mean(losses), rel=1e-5)


def answers_and_target(seed: int = 0) -> tuple[Answers, Tensor, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    whole, turns = rng.normal(size=(3, 2, 1, 4, 4, 4)), rng.integers(0, 4, (3, 2))
    label = np.broadcast_to(turns[:, :, None, None, None, None], whole.shape)
    given = Answers(
        torch.from_numpy(rng.normal(size=(3, 2, 4))),
        torch.from_numpy(rng.normal(size=(3, 2, 6))),
        torch.from_numpy(rng.normal(size=whole.shape)),
        torch.tensor([0.5, 1.0, 2.0]),
    )
    return given, torch.from_numpy(np.concatenate([whole, label], 2)).float(), whole, turns


def test_rotation_and_reconstruction_losses_and_their_weights() -> None:
    given, target, whole, turns = answers_and_target()
    logits = given.rotation.numpy()
    chosen = np.take_along_axis(logits - np.log(np.exp(logits).sum(-1, keepdims=True)), turns[..., None], -1)
    errors = np.abs(given.reconstruction.numpy() - whole)
    expected = [-chosen.mean(), float(contrastive_loss(given.embedding, 0.5)), errors.mean()]
    plain = PretextLoss(PretextPart())
    assert [float(term) for term in plain.terms(given, target)] == pytest.approx(expected, rel=1e-5)
    assert float(plain(given, target)) == pytest.approx(sum(expected), rel=1e-5)  # 1 : 1 : 1
    weights = {"rotation": 0.0, "contrastive": 2.0, "reconstruction": 3.0}
    weighted = PretextLoss(PretextPart.model_validate({"weights": weights}))
    assert float(weighted(given, target)) == pytest.approx(2 * expected[1] + 3 * expected[2], rel=1e-5)
    learned = PretextLoss(PretextPart(weights="learned"))
    sigmas = [0.5, 1.0, 2.0]
    balanced = sum(0.5 / s**2 * term + np.log(1 + s**2) for s, term in zip(sigmas, expected, strict=True))
    assert float(learned(given, target)) == pytest.approx(balanced, rel=1e-5)


# Heads -----------------------------------------------------------------------------------------------------------


def test_published_widths() -> None:
    """Of the published encoder, with 48 features: 768-384-192-96-48-48 and a projection, 4 turns, 512 numbers."""
    network = PretrainingNetwork(Encoder(SwinUNETRConfig(feature_size=48)), 1, (64, 32, 32), PretextPart())
    with torch.inference_mode():
        answers = network(torch.zeros(1, 2, 1, 64, 32, 32))
    widths = [(step.in_channels, step.out_channels) for step in network.reconstruction.steps]  # type: ignore[union-attr]
    assert widths == [(768, 384), (384, 192), (192, 96), (96, 48), (48, 48)]
    assert network.reconstruction.strides == [(2, 2, 2)] * 5
    assert network.rotation.weight.shape == (4, 768) and network.embedding.weight.shape == (512, 768)
    assert [tuple(answer.shape) for answer in answers[:3]] == [(1, 2, 4), (1, 2, 512), (1, 2, 1, 64, 32, 32)]


@pytest.mark.parametrize("kind", SMALL)
def test_heads_read_the_last_grid(kind: str) -> None:
    chosen = of(kind)
    network = PretrainingNetwork(make_network(chosen).get_submodule("encoder"), 1, chosen.protocol.patch, chosen.pretext).eval()
    views = torch.randn(3, 2, 1, *chosen.protocol.patch)
    with torch.inference_mode():
        answers = network(views)
        first = (0,) * chosen.protocol.spatial_dims
        second = (*first[:-1], 1)
        for n, v in [(0, 0), (2, 1)]:
            grid = network.encoder(views[n, v][None])[-1][0]
            torch.testing.assert_close(answers.rotation[n, v], network.rotation(grid[(slice(None), *first)]))
            torch.testing.assert_close(answers.embedding[n, v], network.embedding(grid[(slice(None), *second)]))
    assert answers.reconstruction.shape == views.shape


def test_the_decoder_as_it_is_published() -> None:
    """Step by step with torch's own layers, the projection last."""
    chosen = of("swin 3-D")
    network = PretrainingNetwork(make_network(chosen).get_submodule("encoder"), 1, (16, 16, 16), chosen.pretext).eval()
    grid = x = torch.randn(2, 16, 2, 2, 2)
    with torch.inference_mode():
        for step in network.reconstruction.steps:
            assert isinstance(step, nn.Conv3d)
            x = F.leaky_relu(F.instance_norm(step(x)), 0.01)
            x = F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=False)
        x = network.reconstruction.head(x)
        torch.testing.assert_close(network.reconstruction(grid), x, atol=1e-5, rtol=1e-4)

"""Losses against plain numpy and MONAI: classes and regions, labels and shares, one scale and several, slices and volumes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.losses import DeepSupervisionLoss, DiceCELoss
from torch import Tensor, nn
from torch.nn import functional as F

from medical.protocol import Protocol, Region
from medical.training.losses import AllScales, ClassLoss, LossPart, RegionLoss, scale_weights

SIZES = [(8, 6), (4, 5, 6)]
VALUES = [1, 2, 4]
REGIONS = [
    Region(channel=1, value=2, values=(1, 2, 4)),
    Region(channel=0, value=1, values=(1, 4)),
    Region(channel=2, value=4, values=(4,)),
]


def protocol(regions: bool) -> Protocol:
    values = VALUES if regions else [1, 2]
    return Protocol.model_validate(
        {
            "modality": "MR",
            "channels": ["T1w"],
            "intensity": {"kind": "z-score"},
            "patch": [8, 8, 8],
            "structures": [{"value": value, "name": f"label {value}"} for value in values],
            "regions": REGIONS if regions else [],
        }
    )


def drawn(size: tuple[int, ...], outputs: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits, and labels 0 to outputs - 1."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(size=(2, outputs, *size))).float()
    return logits, torch.from_numpy(rng.integers(0, outputs, (2, 1, *size))).float()


def random_shares(size: tuple[int, ...], classes: int, seed: int = 1) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(2, classes, *size)) * 3).softmax(1).float()


def soft_dice(p: np.ndarray, t: np.ndarray, batch: bool) -> np.ndarray:
    """1 - sum |p - t| / sum (p + t), which is the usual Dice where t is 0 or 1."""
    axes = tuple(axis for axis in range(p.ndim) if axis != 1 and (batch or axis))
    return 1 - np.abs(p - t).sum(axes) / (p.sum(axes) + t.sum(axes))


# Classes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("batch", [False, True])
def test_labels_of_classes_give_monais_dice_and_cross_entropy(size: tuple[int, ...], background: bool, batch: bool) -> None:
    logits, labels = drawn(size)
    judge = DiceCELoss(to_onehot_y=True, softmax=True, include_background=background, batch=batch)
    found = LossPart(batch=batch, background=background).function(protocol(False))(logits, labels)
    torch.testing.assert_close(found, judge(logits, labels), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("background", [False, True])
def test_shares_of_classes_against_numpy(size: tuple[int, ...], background: bool) -> None:
    logits, shares = drawn(size)[0], random_shares(size, 3)
    x, t = logits.double().numpy(), shares.double().numpy()
    p = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    dice = soft_dice(p, t, batch=False)
    expected = (1 - (dice if background else dice[:, 1:])).mean() - (t * np.log(p)).sum(1).mean()
    assert float(ClassLoss([1, 2], batch=False, background=background)(logits, shares)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_labels_and_their_shares_are_one_target(size: tuple[int, ...]) -> None:
    logits, labels = drawn(size)
    hot = F.one_hot(labels[:, 0].long(), 3).movedim(-1, 1).float()
    loss = ClassLoss([1, 2], batch=True, background=False)
    assert torch.equal(loss(logits, labels), loss(logits, hot))


@pytest.mark.parametrize("regions", [False, True])
def test_the_loss_is_least_where_the_network_gives_the_shares(regions: bool) -> None:
    """The usual form of Dice would be less still where the network is surer than the shares."""
    part = LossPart(batch=True)
    loss, shares = part.function(protocol(regions)), random_shares((6, 5, 4), 4 if regions else 3)
    if regions:
        _, one, two, four = shares.unbind(1)
        exact = torch.stack([one + four, one + two + four, four], 1).logit(1e-6)
    else:
        exact = shares.log()
    least = loss(exact, shares)
    for seed in range(5):
        step = torch.randn(exact.shape, generator=torch.Generator().manual_seed(seed))
        assert loss(exact + 0.1 * step, shares) > least
    assert loss(exact * 1.2, shares) > least < loss(exact / 1.2, shares)


# Regions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch", [False, True])
def test_regions_against_numpy(size: tuple[int, ...], batch: bool) -> None:
    rng = np.random.default_rng(3)
    labels = rng.choice([0, *VALUES], (2, 1, *size))
    logits = drawn(size)[0]
    t = np.stack([np.isin(labels[:, 0], values) for values in ((1, 4), (1, 2, 4), (4,))], 1).astype(float)
    p = 1 / (1 + np.exp(-logits.double().numpy()))
    entropy = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()
    expected = (1 - soft_dice(p, t, batch)).mean() + entropy
    found = LossPart(batch=batch).function(protocol(True))(logits, torch.from_numpy(labels).float())
    assert float(found) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_shares_of_regions_are_those_of_their_labels(size: tuple[int, ...]) -> None:
    logits, labels = drawn(size)[0], torch.from_numpy(np.random.default_rng(3).choice([0, *VALUES], (2, 1, *size))).float()
    loss = RegionLoss(REGIONS, VALUES, batch=False)
    hot = torch.cat([labels == value for value in (0, *VALUES)], 1).float()
    assert torch.equal(loss(logits, hot), loss(logits, labels))
    p, t = logits.double().sigmoid().numpy(), random_shares(size, 4).double().numpy()
    mixed = np.stack([t[:, 1] + t[:, 3], t[:, 1:].sum(1), t[:, 3]], 1)
    expected = (1 - soft_dice(p, mixed, False)).mean() - (mixed * np.log(p) + (1 - mixed) * np.log(1 - p)).mean()
    assert float(loss(logits, torch.from_numpy(t).float())) == pytest.approx(expected, abs=1e-5)


# Several scales --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scales", "weights"), [(1, [1]), (2, [1, 0]), (3, [2 / 3, 1 / 3, 0]), (5, [8 / 15, 4 / 15, 2 / 15, 1 / 15, 0])]
)
def test_weights_of_the_scales(scales: int, weights: list[float]) -> None:
    assert scale_weights(scales) == pytest.approx(weights)


def pyramid(size: tuple[int, ...], outputs: int = 3) -> list[Tensor]:
    """Logits at the whole, a half and a quarter of the size, rounded up, as odd sides have it."""
    return [drawn(tuple(-(-n // step) for n in size), outputs, seed)[0].requires_grad_() for seed, step in enumerate((1, 2, 4))]


@pytest.mark.parametrize("size", [(8, 6), (9, 7), (8, 4, 6), (7, 5, 6)])
@pytest.mark.parametrize("soft", [False, True])
def test_the_loss_of_all_scales_is_their_weighted_sum(size: tuple[int, ...], soft: bool) -> None:
    loss, scales = ClassLoss([1, 2], batch=False, background=False), pyramid(size)
    target = random_shares(size, 3) if soft else drawn(size)[1]
    places = [torch.from_numpy(np.floor((np.arange(-(-n // 2)) + 0.5) * n / -(-n // 2)).astype(int)) for n in size]
    half = target[(slice(None), slice(None), *torch.meshgrid(*places, indexing="ij"))]
    expected = (loss(scales[0], target) + loss(scales[1], half) / 2) / 1.5
    found = AllScales(loss)(scales, target)
    torch.testing.assert_close(found, expected)
    judge = DeepSupervisionLoss(lambda x, y: loss(x, y), weights=[2 / 3, 1 / 3, 0.0])  # type: ignore[arg-type]
    torch.testing.assert_close(found, judge(scales, target))
    torch.testing.assert_close(AllScales(loss)(scales[:1], target), loss(scales[0], target))
    torch.testing.assert_close(AllScales(loss)(scales[0], target), loss(scales[0], target))


def test_gradients_reach_the_heads_that_count_and_none_is_without() -> None:
    scales = pyramid((8, 8, 8))
    AllScales(ClassLoss([1, 2], batch=False, background=False))(scales, drawn((8, 8, 8))[1]).backward()
    gradients = [scale.grad for scale in scales]
    assert all(gradient is not None for gradient in gradients)
    assert [bool((gradient != 0).any()) for gradient in gradients if gradient is not None] == [True, True, False]


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("soft", [False, True])
def test_a_supervised_head_learns_its_target(regions: bool, soft: bool) -> None:
    """Free logits, stepped down the loss, come to paint the label map."""
    size, values = (6, 6, 6), VALUES if regions else [1, 2]
    labels = torch.from_numpy(np.random.default_rng(5).choice([0, *values], (1, 1, *size))).float()
    target = torch.cat([labels == value for value in (0, *values)], 1).float() if soft else labels
    logits = nn.Parameter(torch.zeros(1, 3, *size))
    loss, step = LossPart().function(protocol(regions)), torch.optim.Adam([logits], 0.5)
    for _ in range(40):
        step.zero_grad()
        loss([logits, logits[..., ::2, ::2, ::2]], target).backward()
        step.step()
    if regions:
        members = [(1, 4), (1, 2, 4), (4,)]
        wanted = torch.stack([torch.isin(labels[:, 0], torch.tensor(member)) for member in members], 1)
        assert torch.equal(logits > 0, wanted)
    else:
        assert torch.equal(logits.argmax(1), labels[:, 0].long())

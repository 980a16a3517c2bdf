"""Losses and scores of several outputs against plain NumPy and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor

from restore.evaluation.metrics_multi import output_scores, score_outputs
from restore.models.multi_output import Heads
from restore.training import losses_multi as losses

SHAPE = (3, 4, 3, 9, 12)
"""Pictures, outputs, channels, rows, columns."""


@pytest.fixture(scope="module")
def outputs() -> np.ndarray:
    return np.random.default_rng(0).random(SHAPE)


@pytest.fixture(scope="module")
def label() -> np.ndarray:
    return np.random.default_rng(1).random((SHAPE[0], *SHAPE[2:]))


def blurred(plane: np.ndarray) -> np.ndarray:
    line = np.array([0.05, 0.25, 0.4, 0.25, 0.05])
    return correlate(plane, np.outer(line, line), mode="nearest")


def numpy_laplacian(plane: np.ndarray) -> np.ndarray:
    small = blurred(plane)[::2, ::2]
    large = np.zeros_like(plane)
    large[::2, ::2] = small * 4
    return plane - blurred(large)


def numpy_errors(kind: str, outputs: np.ndarray, label: np.ndarray) -> np.ndarray:
    """(pictures, outputs), one after the other."""
    table = np.empty(outputs.shape[:2])
    for m, n in np.ndindex(table.shape):
        d = outputs[m, n] - label[m]
        if kind == "squared":
            table[m, n] = (d**2).mean()
        elif kind == "absolute":
            table[m, n] = np.abs(d).mean()
        else:
            edges = np.stack([numpy_laplacian(p) - numpy_laplacian(q) for p, q in zip(outputs[m, n], label[m], strict=True)])
            table[m, n] = np.sqrt(d**2 + 1e-6).mean() + 0.05 * np.sqrt(edges**2 + 1e-6).mean()
    return table


def both(*arrays: np.ndarray) -> list[Tensor]:
    return [torch.from_numpy(array) for array in arrays]


def test_psnr_loss(outputs: np.ndarray, label: np.ndarray) -> None:
    nearest = numpy_errors("squared", outputs, label).min(1)
    expected = np.mean([10 * math.log10(error + 1e-8) for error in nearest])
    assert losses.psnr_loss(*both(outputs, label)).item() == pytest.approx(expected, abs=1e-9)
    exact = torch.from_numpy(label)
    assert losses.psnr_loss(exact, exact).item() == pytest.approx(-80)  # 1e-8: no infinity


def test_l1_loss(outputs: np.ndarray, label: np.ndarray) -> None:
    expected = numpy_errors("absolute", outputs, label).min(1).mean()
    assert losses.l1_loss(*both(outputs, label)).item() == pytest.approx(expected, abs=1e-9)


def test_charbonnier_and_edge_loss(outputs: np.ndarray, label: np.ndarray) -> None:
    """The minimum is that of the sum of both, with edges of odd and even sides."""
    expected = numpy_errors("edges", outputs, label).min(1).mean()
    assert losses.charbonnier_edge_loss(*both(outputs, label)).item() == pytest.approx(expected, abs=1e-9)


def test_stages_each_have_their_own_nearest_output(outputs: np.ndarray, label: np.ndarray) -> None:
    stages = [outputs, outputs[:, ::-1] * 0.5]
    tensors = [torch.from_numpy(stage.copy()) for stage in stages]
    squared = [np.mean(10 * np.log10(numpy_errors("squared", stage, label).min(1) + 1e-8)) for stage in stages]
    edges = [numpy_errors("edges", stage, label).min(1).mean() for stage in stages]
    target = torch.from_numpy(label)
    assert losses.hinet_loss(tensors, target).item() == pytest.approx(0.5 * sum(squared), abs=1e-9)
    assert losses.mprnet_loss(tensors, target).item() == pytest.approx(sum(edges), abs=1e-9)


def test_one_output_has_the_ordinary_loss(outputs: np.ndarray, label: np.ndarray) -> None:
    single, target = both(outputs[:, 0], label)
    assert losses.l1_loss(single, target).item() == pytest.approx(torch.nn.functional.l1_loss(single, target).item())
    assert torch.equal(losses.l1_loss(single, target), losses.l1_loss(single[:, None], target))


def test_only_the_nearest_output_learns(outputs: np.ndarray, label: np.ndarray) -> None:
    """And the gradient is that of the plain minimum over all."""
    target = torch.from_numpy(label)
    a, b = (torch.from_numpy(outputs).clone().requires_grad_() for _ in range(2))
    losses.psnr_loss(a, target).backward()
    plain = (b - target[:, None]).square().flatten(2).mean(2).min(1).values
    (10 / math.log(10) * torch.log(plain + 1e-8)).mean().backward()
    assert a.grad is not None and b.grad is not None
    torch.testing.assert_close(a.grad, b.grad)
    touched = a.grad.flatten(2).abs().sum(2) > 0
    assert touched.sum(1).tolist() == [1, 1, 1]
    best = losses.best_of(losses.squared_error, a, target)
    assert best.output.tolist() == touched.int().argmax(1).tolist()
    assert best.output.tolist() == numpy_errors("squared", outputs, label).argmin(1).tolist()


def test_an_average_that_wins_gives_half_to_each_of_its_heads() -> None:
    """Heads at 0 and 1 and a label of one half: the average is nearest, and neither third head."""
    y = torch.tensor([0.0, 1.0, 5.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4).clone().requires_grad_()
    heads = Heads(3, 1)
    label = torch.full((1, 1, 4, 4), 0.75)
    outputs = heads.apart(heads.mix(y))
    assert losses.best_of(losses.absolute_error, outputs, label - 0.25).output.tolist() == [1]
    losses.l1_loss(outputs, label - 0.2).backward()
    assert y.grad is not None
    assert y.grad.sum((0, 2, 3)).tolist() == pytest.approx([-0.5, -0.5, 0])


def test_shapes_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match="does not go with outputs"):
        losses.l1_loss(torch.zeros(2, 4, 3, 8, 8), torch.zeros(2, 3, 8, 9))


def test_wins_are_counted() -> None:
    assert losses.win_counts(torch.tensor([3, 0, 3]), 5) == [1, 0, 0, 2, 0]


# Scores ----------------------------------------------------------------------------------------------------------


def test_scores_of_one_picture_are_those_of_its_8_bits() -> None:
    rng = np.random.default_rng(2)
    outputs = rng.normal(0.5, 0.4, (4, 3, 16, 20))  # some beyond [0, 1]
    label = rng.integers(0, 256, (16, 20, 3), np.uint8)
    expected = [
        peak_signal_noise_ratio(label, np.rint(np.clip(output, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0))
        for output in outputs
    ]
    np.testing.assert_allclose(score_outputs(outputs, label), expected)
    shares = score_outputs(outputs, label, lambda a, b: float((a == b).mean()))
    assert shares.shape == (4,) and shares.max() < 0.2


def test_best_overall_and_best_single_output() -> None:
    table = np.random.default_rng(3).normal(30, 2, (7, 5))
    found = output_scores(table)
    best, worst, sums, wins = 0.0, 0.0, [0.0] * 5, [0] * 5
    for row in table.tolist():
        best, worst = best + max(row) / 7, worst + min(row) / 7
        wins[row.index(max(row))] += 1
        sums = [total + value for total, value in zip(sums, row, strict=True)]
    assert found.best_overall == pytest.approx(best) and found.worst_overall == pytest.approx(worst)
    assert found.single == pytest.approx([total / 7 for total in sums])
    assert found.best_output == sums.index(max(sums)) and found.best_single == pytest.approx(max(sums) / 7)
    assert list(found.wins) == wins
    assert found.worst_overall <= found.best_single <= found.best_overall


def test_scores_that_are_no_table_are_refused() -> None:
    for shape in [(3,), (0, 4), (2, 0)]:
        with pytest.raises(ValueError, match="pictures, outputs"):
            output_scores(np.zeros(shape))

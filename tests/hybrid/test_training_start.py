"""Starting from earlier weights: what fits is taken, the rest stays, and nothing is taken silently from another network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hybrid.errors import WeightsError
from hybrid.training.start import start_from


def network(width: int = 4, classes: int = 3) -> nn.Sequential:
    torch.manual_seed(width * 10 + classes)
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, classes, 1))


def test_all_that_fits_is_taken_and_the_rest_stays_as_initialised() -> None:
    old, new = network(classes=5), network(classes=3)
    old[1].running_mean.fill_(7.0)
    before = {name: value.clone() for name, value in new.state_dict().items()}
    report = start_from(new, old.state_dict())
    after = new.state_dict()
    assert report.left == ("2.weight", "2.bias") == report.unused
    assert set(report.taken) | set(report.left) == set(before)
    for name in report.taken:
        assert torch.equal(after[name], old.state_dict()[name]), name
    for name in report.left:
        assert torch.equal(after[name], before[name]), name
    assert float(new[1].running_mean[0]) == 7.0  # buffers too
    assert str(report) == ("7 of 9 tensors taken; 2 initialised (2.weight, 2.bias); 2 of the file not used (2.weight, 2.bias)")


def test_half_precision_becomes_the_type_of_the_network() -> None:
    old, new = network(), network()
    state = {name: value.half() if value.is_floating_point() else value for name, value in old.state_dict().items()}
    report = start_from(new, state)
    assert not report.left and not report.unused
    assert new[0].weight.dtype == torch.float32
    assert torch.equal(new[0].weight, old[0].weight.half().float())


def test_names_can_be_translated_and_a_part_of_a_network_serves() -> None:
    encoder = network()[0]
    new = network(classes=7)
    report = start_from(new, encoder.state_dict(), rename=lambda name: f"0.{name}")
    assert report.taken == ("0.weight", "0.bias") and "2.weight" in report.left
    assert torch.equal(new[0].weight, encoder.weight)


def test_weights_of_another_network_are_refused_and_change_nothing() -> None:
    new = network()
    before = {name: value.clone() for name, value in new.state_dict().items()}
    other = {"module.0.weight": torch.zeros(4, 1, 3, 3), "1.num_batches_tracked": torch.tensor(9)}
    with pytest.raises(WeightsError, match=r"None of the 2 tensors.*module\.0\.weight.*same family"):
        start_from(new, other)
    assert all(torch.equal(value, before[name]) for name, value in new.state_dict().items())


def test_the_copy_goes_on_to_be_trained() -> None:
    old, new = network(), network()
    start_from(new, old.state_dict())
    new(torch.ones(2, 1, 5, 5)).sum().backward()
    assert all(p.grad is not None for p in new.parameters())
    new[0].weight.data.add_(1)
    assert not torch.equal(new[0].weight, old[0].weight)

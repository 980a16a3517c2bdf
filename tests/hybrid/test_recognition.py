"""Telling whose weights a state dict holds, and loading them strictly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hybrid.errors import WeightsError
from hybrid.weights.checkpoints import load_strict, recognise

STATE = {"conv.weight": torch.ones(2, 3, 2, 2), "conv.bias": torch.ones(2)}


class Has:
    def __init__(self, key: str) -> None:
        self.key = key

    def matches(self, state: Mapping[str, Tensor]) -> bool:
        return self.key in state


def test_recognise_asks_the_families() -> None:
    families = {"a": Has("x"), "b": Has("conv.bias"), "c": Has("conv.bias")}
    assert recognise(STATE, families) == "b"
    with pytest.raises(WeightsError, match=r"no supported network.*conv\.weight.*Supported: a\."):
        recognise(STATE, {"a": Has("x")})


@pytest.mark.parametrize(
    ("keys", "title"),
    [
        (["conv_first.weight", "layers.0.residual_group.blocks.0.attn.relative_position_bias_table"], "SwinIR"),
        (
            [
                "layers.0.residual_group.blocks.0.attn.relative_position_bias_table",
                "layers.0.residual_group.overlap_attn.qkv.weight",
            ],
            "HAT",
        ),
        (["conv_first.weight", "body.0.rdb1.conv1.weight", "body.0.rdb2.conv1.weight"], "ESRGAN"),
        (["model.0.weight", "model.1.sub.0.RDB1.conv1.0.weight"], "ESRGAN"),
        (["body.0.weight", "body.0.bias", "body.1.weight", "body.2.weight", "body.2.bias"], "Real-ESRGAN compact"),
        (["head.0.weight", "body.0.body.0.weight", "body.0.body.0.body.3.conv_du.0.weight", "tail.0.0.weight"], "RCAN"),
        (["head.0.weight", "body.0.body.0.weight", "tail.0.0.weight"], "EDSR"),
        (["conv_body_first.weight", "stylegan_decoder.style_mlp.1.weight"], "GFPGAN"),
        (["intro.weight", "middle_blks.0.sca.1.weight"], "NAFNet"),
    ],
)
def test_strangers_are_called_by_name(keys: list[str], title: str) -> None:
    with pytest.raises(WeightsError, match=rf"They look like {title}.*Supported: hat"):
        recognise({key: torch.ones(1) for key in keys}, {"hat": Has("nothing")})


def small_net() -> nn.Module:
    return nn.ModuleDict({"first": nn.Conv2d(3, 4, 1), "norm": nn.BatchNorm2d(4)})


def published(net: nn.Module) -> dict[str, Tensor]:
    """The net's own state as another code base would write it."""
    state = {name.replace("first", "layers.0.conv"): tensor.clone() + 1 for name, tensor in net.state_dict().items()}
    return {name: tensor for name, tensor in state.items() if "num_batches" not in name} | {"layers.0.attn_mask": torch.ones(9)}


RENAME = {r"^layers\.0\.conv\.": "first."}
DERIVED = ("*.attn_mask", "*.num_batches_tracked")


@pytest.mark.parametrize("rename", [RENAME, lambda name: name.replace("layers.0.conv", "first")])
def test_strict_loading_uses_everything(rename: Mapping[str, str] | Callable[[str], str]) -> None:
    source, target = small_net(), small_net()
    load_strict(target, published(source), rename=rename, derived=DERIVED)
    for name, tensor in target.state_dict().items():
        if "num_batches" not in name:
            assert torch.equal(tensor, source.state_dict()[name] + 1)
    halved = {name: tensor.half() for name, tensor in published(source).items()}
    load_strict(target, halved, rename=rename, derived=DERIVED)
    assert all(parameter.dtype == torch.float32 for parameter in target.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("norm.weight"), r"1 missing \(norm\.weight\)"),
        (lambda state: state.update(extra=torch.ones(1)), r"1 not known to the network \(extra\)"),
        (
            lambda state: state.update({"norm.bias": torch.ones(5)}),
            r"1 of another shape \(norm\.bias \(5,\) float32 for \(4,\) float32\)",
        ),
        (lambda state: state.update({"norm.bias": torch.ones(4, dtype=torch.int64)}), r"norm\.bias \(4,\) int64 for"),
        (lambda state: state.update({"first.bias": torch.ones(4)}), r"Two tensors of the file become first\.bias"),
    ],
)
def test_strict_loading_refuses(change: Callable[[dict[str, Tensor]], Any], message: str) -> None:
    net = small_net()
    state, before = published(net), {name: tensor.clone() for name, tensor in net.state_dict().items()}
    change(state)
    with pytest.raises(WeightsError, match=message):
        load_strict(net, state, rename=RENAME, derived=DERIVED)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_derived_names_are_ignored_only_when_said() -> None:
    with pytest.raises(WeightsError, match=r"num_batches_tracked.*layers\.0\.attn_mask"):
        load_strict(small_net(), published(small_net()), rename=RENAME)

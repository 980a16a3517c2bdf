"""HINet and MPRNet with one output, written out step by step from their formulas, with no thought for speed or memory.

A measuring stick as `plain_forms` is. Each takes weights under their published names and gives the last stage's result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from hybrid.weights.keys import count_numbered

State = Mapping[str, Tensor]
Maps = Sequence[Tensor]


def _convolution(state: State, name: str, x: Tensor) -> Tensor:
    weight = state[name + ".weight"]
    return F.conv2d(x, weight, state.get(name + ".bias"), padding=weight.shape[-1] // 2)


def _supervised_attention(state: State, name: str, x: Tensor, image: Tensor) -> Tensor:
    picture = _convolution(state, name + ".conv2", x) + image
    return _convolution(state, name + ".conv1", x) * torch.sigmoid(_convolution(state, name + ".conv3", picture)) + x


# HINet -----------------------------------------------------------------------------------------------------------


def hinet(state: State, x: Tensor) -> Tensor:
    """(B, C, H, W) to the same; sides are multiples of 16."""
    encoded = _down(state, "down_path_1", _convolution(state, "conv_01", x), None)
    decoded = _up(state, "1", encoded)
    features = _supervised_attention(state, "sam12", decoded[0], x)
    y = _convolution(state, "cat12", torch.cat([_convolution(state, "conv_02", x), features], 1))
    encoded = _down(state, "down_path_2", y, (encoded, decoded))
    return _convolution(state, "last", _up(state, "2", encoded)[0]) + x


def _down(state: State, name: str, x: Tensor, earlier: tuple[Maps, Maps] | None) -> list[Tensor]:
    maps = []
    for level in range(count_numbered(state, name + ".")):
        block = f"{name}.{level}."
        y = _block(state, block, x)
        if earlier and block + "csff_enc.weight" in state:
            y = y + _convolution(state, block + "csff_enc", earlier[0][level])
            y = y + _convolution(state, block + "csff_dec", earlier[1][level])
        maps.append(y)
        if block + "downsample.weight" in state:
            x = F.conv2d(y, state[block + "downsample.weight"], stride=2, padding=1)
    return maps


def _block(state: State, name: str, x: Tensor) -> Tensor:
    y = _convolution(state, name + "conv_1", x)
    if name + "norm.weight" in state:
        first, second = y.chunk(2, 1)
        y = torch.cat([F.instance_norm(first, weight=state[name + "norm.weight"], bias=state[name + "norm.bias"]), second], 1)
    y = F.leaky_relu(_convolution(state, name + "conv_2", F.leaky_relu(y, 0.2)), 0.2)
    return y + _convolution(state, name + "identity", x)


def _up(state: State, stage: str, encoded: Maps) -> list[Tensor]:
    maps = [encoded[-1]]
    for step, beside in enumerate(reversed(encoded[:-1])):
        block = f"up_path_{stage}.{step}."
        y = F.conv_transpose2d(maps[0], state[block + "up.weight"], state[block + "up.bias"], stride=2)
        skip = _convolution(state, f"skip_conv_{stage}.{step}", beside)
        maps.insert(0, _block(state, block + "conv_block.", torch.cat([y, skip], 1)))
    return maps


# MPRNet ----------------------------------------------------------------------------------------------------------


def mprnet(state: State, x: Tensor) -> Tensor:
    """(B, C, H, W) to the same; sides are multiples of 8."""
    halves = x.chunk(2, 2)
    encoded, decoded, features = [], [], []
    for half in halves:
        quarters = [_encode(state, "stage1", _shallow(state, "1", part), None) for part in half.chunk(2, 3)]
        encoded.append([torch.cat(maps, 3) for maps in zip(*quarters, strict=True)])
        decoded.append(_decode(state, "stage1", encoded[-1]))
        features.append(_supervised_attention(state, "sam12", decoded[-1][0], half))
    parts = []
    for half, *earlier, feature in zip(halves, encoded, decoded, features, strict=True):
        y = _convolution(state, "concat12", torch.cat([_shallow(state, "2", half), feature], 1))
        parts.append(_encode(state, "stage2", y, (earlier[0], earlier[1])))
    whole = [torch.cat(maps, 2) for maps in zip(*parts, strict=True)]
    up = _decode(state, "stage2", whole)
    y = torch.cat([_shallow(state, "3", x), _supervised_attention(state, "sam23", up[0], x)], 1)
    return _convolution(state, "tail", _full_size(state, _convolution(state, "concat23", y), whole, up)) + x


def _shallow(state: State, stage: str, image: Tensor) -> Tensor:
    return _attended(state, f"shallow_feat{stage}.1.", _convolution(state, f"shallow_feat{stage}.0", image))


def _attended(state: State, name: str, x: Tensor) -> Tensor:
    y = F.prelu(_convolution(state, name + "body.0", x), state["shallow_feat1.1.body.1.weight"])
    y = _convolution(state, name + "body.2", y)
    hidden = F.relu(_convolution(state, name + "CA.conv_du.0", y.mean((2, 3), keepdim=True)))
    return y * torch.sigmoid(_convolution(state, name + "CA.conv_du.2", hidden)) + x


def _several(state: State, name: str, x: Tensor) -> Tensor:
    for n in range(count_numbered(state, name)):
        x = _attended(state, f"{name}{n}.", x)
    return x


def _encode(state: State, stage: str, x: Tensor, earlier: tuple[Maps, Maps] | None) -> list[Tensor]:
    maps: list[Tensor] = []
    for level in (1, 2, 3):
        if level > 1:
            small = F.interpolate(maps[-1], scale_factor=0.5, mode="bilinear", align_corners=False)
            x = _convolution(state, f"{stage}_encoder.down{level - 1}{level}.down.1", small)
        x = _several(state, f"{stage}_encoder.encoder_level{level}.", x)
        if earlier:
            x = x + _convolution(state, f"{stage}_encoder.csff_enc{level}", earlier[0][level - 1])
            x = x + _convolution(state, f"{stage}_encoder.csff_dec{level}", earlier[1][level - 1])
        maps.append(x)
    return maps


def _decode(state: State, stage: str, encoded: Maps) -> list[Tensor]:
    maps = [_several(state, f"{stage}_decoder.decoder_level3.", encoded[2])]
    for level in (2, 1):
        y = _enlarged(state, f"{stage}_decoder.up{level + 1}{level}.up.1", maps[0])
        y = y + _attended(state, f"{stage}_decoder.skip_attn{level}.", encoded[level - 1])
        maps.insert(0, _several(state, f"{stage}_decoder.decoder_level{level}.", y))
    return maps


def _full_size(state: State, x: Tensor, encoded: Maps, decoded: Maps) -> Tensor:
    name = "stage3_orsnet."
    steps: list[list[str]] = [[], ["1.up.1"], ["2.0.up.1", "2.1.up.1"]]
    for level in range(3):
        body = f"{name}orb{level + 1}.body."
        y, last = x, count_numbered(state, body) - 1
        for n in range(last):
            y = _attended(state, f"{body}{n}.", y)
        x = _convolution(state, f"{body}{last}", y) + x
        for side, maps in (("enc", encoded), ("dec", decoded)):
            y = maps[level]
            for step in steps[level]:
                y = _enlarged(state, f"{name}up_{side}{step}", y)
            x = x + _convolution(state, f"{name}conv_{side}{level + 1}", y)
    return x


def _enlarged(state: State, name: str, x: Tensor) -> Tensor:
    return _convolution(state, name, F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False))

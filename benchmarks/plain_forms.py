"""MIRNet and Restore-RWKV written out step by step from their formulas, with no thought for speed or memory.

The measuring stick where no other package holds a network: `benchmarks/restoration_networks.py` times against it. Each takes
weights under their published names.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from hybrid.weights.keys import count_numbered

State = Mapping[str, Tensor]


# MIRNet ----------------------------------------------------------------------------------------------------------


def mirnet(state: State, x: Tensor) -> Tensor:
    """(B, C, H, W) to the same; sides are multiples of 4."""
    y = F.conv2d(x, state["conv_in.weight"], padding=1)
    for group in range(count_numbered(state, "body.")):
        last = count_numbered(state, f"body.{group}.body.")
        skip = y
        while f"body.{group}.body.{last}.weight" not in state:
            last -= 1
        for block in range(last):
            y = _multi_scale_block(state, f"body.{group}.body.{block}.", y)
        y = _convolution(state, f"body.{group}.body.{last}", y) + skip
    return F.conv2d(y, state["conv_out.weight"], padding=1) + x


def _multi_scale_block(state: State, name: str, x: Tensor) -> Tensor:
    rows, columns = count_numbered(state, name + "blocks."), count_numbered(state, name + "blocks.0.")
    maps: list[Tensor] = []
    for row in range(rows):
        source = x if row == 0 else _resized(state, name, maps[-1], 1)
        maps.append(_dual_attention(state, f"{name}blocks.{row}.0.", source))
    for column in range(1, columns):
        fused = [_fused(state, f"{name}selective_kernel.{row}.", [_resized(state, name, m, row - k) for k, m in enumerate(maps)])
                 for row in range(rows)]  # fmt: skip
        maps = [_dual_attention(state, f"{name}blocks.{row}.{column}.", each) for row, each in enumerate(fused)]
    raised = [_up(state, f"{name}last_up.{row}.", maps[row], row) for row in range(1, rows)]
    y = _fused(state, f"{name}selective_kernel.0.", [maps[0], *raised])
    return _convolution(state, name + "conv_out", y) + x


def _resized(state: State, name: str, x: Tensor, rows: int) -> Tensor:
    if rows > 0:
        return _down(state, f"{name}down.{x.shape[1]}_{2**rows}.", x, rows)
    return _up(state, f"{name}up.{x.shape[1]}_{2**-rows}.", x, -rows) if rows else x


def _fused(state: State, name: str, maps: list[Tensor]) -> Tensor:
    stacked = torch.stack(maps, 1)
    mean = stacked.sum(1).mean((2, 3), keepdim=True)
    hidden = F.prelu(_convolution(state, name + "conv_du.0", mean), state[name + "conv_du.1.weight"])
    logits = torch.stack([_convolution(state, f"{name}fcs.{k}", hidden) for k in range(len(maps))], 1)
    return (stacked * torch.softmax(logits, 1)).sum(1)


def _dual_attention(state: State, name: str, x: Tensor) -> Tensor:
    y = F.prelu(_convolution(state, name + "body.0", x), state[name + "body.1.weight"])
    y = _convolution(state, name + "body.2", y)
    summary = torch.cat([y.amax(1, keepdim=True), y.mean(1, keepdim=True)], 1)
    by_space = y * torch.sigmoid(_convolution(state, name + "SA.spatial.conv", summary))
    hidden = F.relu(_convolution(state, name + "CA.conv_du.0", y.mean((2, 3), keepdim=True)))
    by_channel = y * torch.sigmoid(_convolution(state, name + "CA.conv_du.2", hidden))
    return _convolution(state, name + "conv1x1", torch.cat([by_space, by_channel], 1)) + x


def _down(state: State, name: str, x: Tensor, times: int) -> Tensor:
    for n in range(times):
        step = f"{name}body.{n}."
        y = F.prelu(_convolution(state, step + "top.0", x), state[step + "top.1.weight"])
        y = F.prelu(_convolution(state, step + "top.2", y), state[step + "top.3.weight"])
        x = _convolution(state, step + "top.5", _blurred(y)) + _convolution(state, step + "bot.1", _blurred(x))
    return x


def _up(state: State, name: str, x: Tensor, times: int) -> Tensor:
    for n in range(times):
        step = f"{name}body.{n}."
        y = F.prelu(_convolution(state, step + "top.0", x), state[step + "top.1.weight"])
        y = F.conv_transpose2d(y, state[step + "top.2.weight"], stride=2, padding=1, output_padding=1)
        y = _convolution(state, step + "top.4", F.prelu(y, state[step + "top.3.weight"]))
        x = y + _convolution(state, step + "bot.1", F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False))
    return x


def _blurred(x: Tensor) -> Tensor:
    line = torch.tensor([1.0, 2.0, 1.0])
    kernel = (torch.outer(line, line) / 16).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, [1] * 4, mode="reflect"), kernel, stride=2, groups=x.shape[1])


def _convolution(state: State, name: str, x: Tensor) -> Tensor:
    weight = state[name + ".weight"]
    return F.conv2d(x, weight, state.get(name + ".bias"), padding=weight.shape[-1] // 2)


# Restore-RWKV ----------------------------------------------------------------------------------------------------


def restore_rwkv(state: State, x: Tensor) -> Tensor:
    """(B, C, H, W) to the same; sides are multiples of 8."""
    y = _convolution(state, "patch_embed", x)
    kept = []
    for level in (1, 2, 3):
        y = _blocks(state, f"encoder_level{level}.", y)
        kept.append(y)
        y = F.pixel_unshuffle(_convolution(state, f"down{level}_{level + 1}.body.0", y), 2)
    y = _blocks(state, "latent.", y)
    for level in (3, 2, 1):
        y = F.pixel_shuffle(_convolution(state, f"up{level + 1}_{level}.body.0", y), 2)
        y = torch.cat([y, kept.pop()], 1)
        y = _convolution(state, f"reduce_chan_level{level}", y) if level > 1 else y
        y = _blocks(state, f"decoder_level{level}.", y)
    return _convolution(state, "output", _blocks(state, "refinement.", y)) + x


def _blocks(state: State, name: str, x: Tensor) -> Tensor:
    channels, height, width = x.shape[1:]
    tokens = x.flatten(2).transpose(1, 2)
    for n in range(count_numbered(state, name)):
        block = f"{name}{n}."
        normed = F.layer_norm(tokens, (channels,), state[block + "ln1.weight"], state[block + "ln1.bias"])
        tokens = tokens + state[block + "gamma1"] * _spatial_mix(state, block + "att.", normed, (height, width))
        normed = F.layer_norm(tokens, (channels,), state[block + "ln2.weight"], state[block + "ln2.bias"])
        tokens = tokens + state[block + "gamma2"] * _channel_mix(state, block + "ffn.", normed, (height, width))
    return tokens.transpose(1, 2).unflatten(2, (height, width))


def _spatial_mix(state: State, name: str, x: Tensor, size: tuple[int, int]) -> Tensor:
    x = _shifted(state, name + "omni_shift.", x, size)
    key, value, gate = (F.linear(x, state[f"{name}{part}.weight"]) for part in ("key", "value", "receptance"))
    for j, (decay, bonus) in enumerate(zip(state[name + "spatial_decay"], state[name + "spatial_first"], strict=True)):
        turn = [size, size[::-1]][j % 2]
        key, value = (_turned(t, size) if j % 2 else t for t in (key, value))
        value = bidirectional_wkv(key, value, decay, bonus)
        key, value = (_turned(t, turn) if j % 2 else t for t in (key, value))
    return F.linear(torch.sigmoid(gate) * value, state[name + "output.weight"])


def _turned(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    return tokens.unflatten(1, size).transpose(1, 2).flatten(1, 2)


def _channel_mix(state: State, name: str, x: Tensor, size: tuple[int, int]) -> Tensor:
    x = _shifted(state, name + "omni_shift.", x, size)
    hidden = torch.square(F.relu(F.linear(x, state[name + "key.weight"])))
    return torch.sigmoid(F.linear(x, state[name + "receptance.weight"])) * F.linear(hidden, state[name + "value.weight"])


def _shifted(state: State, name: str, tokens: Tensor, size: tuple[int, int]) -> Tensor:
    x = tokens.transpose(1, 2).unflatten(2, size)
    total = state[name + "alpha"][0] * x
    for factor, edge in zip(state[name + "alpha"][1:], (1, 3, 5), strict=True):
        kernel = state[f"{name}conv{edge}x{edge}.weight"]
        total = total + factor * F.conv2d(x, kernel, padding=edge // 2, groups=len(kernel))
    return total.flatten(2).transpose(1, 2)


def bidirectional_wkv(key: Tensor, value: Tensor, decay: Tensor, bonus: Tensor) -> Tensor:
    """(B, T, C) by running sums over all tokens, in float64; overflows where the decay or the keys are large."""
    count = key.shape[1]
    step, place = decay.double() / count, torch.arange(count, dtype=torch.float64)[:, None]
    weight = (key.double() - key.amax(1, keepdim=True)).exp()
    own = (bonus.double() / count).exp()
    sums = []
    for x in (weight * value, weight):
        rising, falling = (place * step).exp() * x, (-place * step).exp() * x
        before = (rising.cumsum(1) - rising) * (-step * (place - 1)).exp()
        after = (falling.flip(1).cumsum(1).flip(1) - falling) * (step * (place + 1)).exp()
        sums.append(before + after + own * x)
    return (sums[0] / sums[1]).to(value.dtype)

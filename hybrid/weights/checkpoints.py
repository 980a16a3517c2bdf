"""Read checkpoint files of unknown make safely, tell whose weights they hold, and load them strictly.

Everything that publishers do to a state dict on its way into a file is undone here once, for all families: the
container (safetensors, torch's zip format, torch's format before 1.6), the dictionaries around it, the prefixes that
wrappers put before every key. What the keys mean is each family's own matter.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from hybrid.errors import WeightsError
from hybrid.records import sha256_file
from hybrid.weights.containers import GET_AGAIN, few, read_container, write_checkpoint
from hybrid.weights.packing import is_packed, unpack_rows

__all__ = ["Checkpoint", "Family", "load_strict", "read_checkpoint", "recognise", "write_checkpoint"]

# Moving averages first: they are what publishers evaluate.
_WRAPPERS = (
    *("params_ema", "state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "g_ema", "net_g_ema", "generator_ema"),
    *("ema", "shadow", "params", "state_dict", "model_state_dict", "model_state", "net_state_dict", "generator_state_dict"),
    *("generator", "net_g", "netG", "g", "model", "network", "net", "module", "weights"),
)
_OTHER_STATE = re.compile(r"optim|sched|scaler|discriminator|net_?d\b|^d$|callback|loop|hyper", re.IGNORECASE)
_WRAPPER_DEPTH = 6

# DistributedDataParallel and torch.compile; no network of ours begins a name so.
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")
# Attributes under which training code keeps its network.
_ATTRIBUTE_PREFIXES = ("model.", "net.", "network.", "net_g.", "netG.", "generator.", "backbone.", "vqvae.")
# And those of the losses beside it, which have weights of their own: Lightning saves one state dict of all.
_LOSS = re.compile(r"(loss|losses|criterion|discriminator|perceptual_loss)\.")
# RestoreFormer's training keeps its network here, and networks of its losses beside it under any name. No other network of ours
# has names that begin so; these are of every one of that kind.
_FACES = "vqvae."
_FACE_KEYS = {_FACES + key for key in ("quantize.embedding.weight", "encoder.conv_in.weight", "decoder.conv_out.weight")}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Tensors read from a file, freed from what was wrapped around them.

    Attributes:
        path: The file.
        sha256: Hash of its bytes.
        state: Name to tensor on the CPU, in the type in which it is stored.
        wrapper: Keys that led to the tensors, joined by dots, such as ``params_ema``; empty for a bare state dict.
        prefix: What was taken from the front of every name, such as ``module.``.
        ignored: Entries that were left aside: other copies, optimizers, counters.
        metadata: Header entries of a safetensors file.
    """

    path: Path
    sha256: str
    state: dict[str, Tensor]
    wrapper: str = ""
    prefix: str = ""
    ignored: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)


class Family(Protocol):
    """What `recognise` asks of a family."""

    def matches(self, state: Mapping[str, Tensor]) -> bool:
        """Whether these are the weights of a network of this family, told from names and shapes alone."""


def read_checkpoint(path: str | Path, *, allow_nan: bool = False) -> Checkpoint:
    """Read the tensors of a checkpoint file without running anything that the file holds.

    The format is told from the content, not from the suffix.

    Args:
        path: A ``.safetensors`` file or what ``torch.save`` wrote, of either torch format.
        allow_nan: Return weights that hold NaN too, which otherwise are refused.

    Raises:
        WeightsError: The file is absent, empty, damaged, of another kind, wants to run code, claims more than it
            holds, or holds no tensors.
    """
    path = Path(path)
    if path.is_dir():
        raise WeightsError(f"{path.name} is a folder, not a checkpoint file.", hint="Give one file inside it.")
    if path.exists() and not path.is_file():  # a pipe would be waited for, a device never ends
        raise WeightsError(f"{path.name} is a pipe or device, not a checkpoint file.", hint="Give a file.")
    try:
        sha256 = sha256_file(path)
        tree, metadata = read_container(path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}.", hint="Check the path of the weights.") from error
    state, wrapper, ignored = _unwrap(path.name, tree)
    state, losses = _without_losses(state)
    state, prefix = _strip_prefixes(state)
    _check_claims(path.name, state, path.stat().st_size)
    if is_packed(metadata):
        try:
            state = unpack_rows(state)
        except ValueError as error:
            raise WeightsError(f"{path.name} is damaged: {error}.", hint=GET_AGAIN) from error
    if not allow_nan and (bad := [name for name, tensor in state.items() if _has_nan(tensor)]):
        raise WeightsError(
            f"{path.name} holds NaN in {len(bad)} of {len(state)} tensors ({few(bad)}): its training failed.",
            hint="Use an earlier checkpoint of the same training.",
        )
    return Checkpoint(path, sha256, state, wrapper, prefix, (*ignored, *losses), metadata)


def recognise(state: Mapping[str, Tensor], families: Mapping[str, Family]) -> str:
    """Name of the first family that says the weights are its own.

    Raises:
        WeightsError: None does. The message lists the families and, where the keys are known, whose they are.
    """
    for name, family in families.items():
        if family.matches(state):
            return name
    looks = next((title for title, patterns in _TELL_TALES if _holds_all(state, patterns)), None)
    guess = f"They look like {looks}." if looks else f"Their first names are {few(list(state))}."
    raise WeightsError(
        f"These weights belong to no supported network. {guess}",
        hint=f"Supported: {', '.join(families)}. Give a checkpoint of one of these.",
    )


def load_strict(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    rename: Mapping[str, str] | Callable[[str], str] | None = None,
    derived: Iterable[str] = (),
) -> None:
    """Load weights so that every tensor of the file is used and none of the module is left as it was.

    Values are converted to the module's types, so weights stored as float16 load into a float32 network.

    Args:
        module: The network.
        state: Weights under their published names.
        rename: From a published name to the module's: a function, or a table of regular expressions and their
            replacements, all applied in order with `re.sub`.
        derived: Shell patterns (``*.attn_mask``) of published or own names that the module computes itself: they may
            be in the file or not and are left alone.

    Raises:
        WeightsError: Names are missing or left over, or shapes differ. The module is then unchanged.
    """
    new_name = rename if callable(rename) else _renamer(rename or {})
    patterns = tuple(derived)
    own = {name: tensor for name, tensor in module.state_dict().items() if not _like(name, patterns)}
    given: dict[str, Tensor] = {}
    for published, tensor in state.items():
        if _like(published, patterns) or _like(name := new_name(published), patterns):
            continue
        if name in given:
            raise WeightsError(f"Two tensors of the file become {name}; the second is {published}.", hint=GET_AGAIN)
        given[name] = tensor
    problems = [
        _problem("missing", [name for name in own if name not in given]),
        _problem("not known to the network", [name for name in given if name not in own]),
        _problem("of another shape", [_shapes(n, given[n], own[n]) for n in own if n in given and not _fits(given[n], own[n])]),
    ]
    if any(problems):
        raise WeightsError(
            f"The weights do not fit {type(module).__name__}: {'; '.join(p for p in problems if p)}.",
            hint="The file is of another configuration, incomplete or changed; give the published file as it is.",
        )
    module.load_state_dict(given, strict=False)


# Wrappers --------------------------------------------------------------------------------------------------------


def _unwrap(name: str, tree: object) -> tuple[dict[str, Tensor], str, tuple[str, ...]]:
    """Descend to the state dict: (state, keys on the way, what was left aside)."""
    trail: list[str] = []
    ignored: list[str] = []
    for _ in range(_WRAPPER_DEPTH):
        if not isinstance(tree, Mapping):
            break
        level = {str(key): value for key, value in tree.items()}
        chosen = _inner(level)
        state = {key: value for key, value in level.items() if _is_plain(value)} if chosen is None else {}
        ignored += [".".join([*trail, key]) for key in level if key != chosen and key not in state]
        if chosen is None and not state:
            break
        if chosen is None:
            return state, ".".join(trail), tuple(ignored)
        trail.append(chosen)
        tree = level[chosen]
    held = f"it holds {few(ignored)}" if ignored else f"it holds a {type(tree).__name__}"
    raise WeightsError(
        f"{name} has no tensors that could be weights: {held}.", hint="Give the file that holds the network's weights."
    )


def _inner(level: Mapping[str, object]) -> str | None:
    """The key under which the weights of this level lie, or None when they lie at this level."""
    groups = [key for key, value in level.items() if _holds_tensors(value)]
    known = next((key for key in _WRAPPERS if key in groups), None)
    if known is not None or any(_is_plain(value) for value in level.values()):
        return known
    networks = [key for key in groups if not _OTHER_STATE.search(key)]
    return networks[0] if len(networks) == 1 else None


def _holds_tensors(value: object, depth: int = _WRAPPER_DEPTH) -> bool:
    # The depth is bounded because a pickle may put a dictionary into itself.
    if not isinstance(value, Mapping) or depth == 0:
        return False
    return any(_is_plain(v) or _holds_tensors(v, depth - 1) for v in value.values())


def _is_plain(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized and value.device.type == "cpu"


def _without_losses(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Leave aside the losses of a training, where all the rest is one network's: (state, names left aside)."""
    faces = state.keys() >= _FACE_KEYS
    network = {n: tensor for n, tensor in state.items() if (n.startswith(_FACES) if faces else not _LOSS.match(n))}
    if len(network) == len(state) or not network or _common_prefix(network) is None:
        return state, ()
    return network, tuple(name for name in state if name not in network)


def _strip_prefixes(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Take off the prefixes that all names carry; also the counter that torch's AveragedModel puts beside its `module.`."""
    averaged = {name: tensor for name, tensor in state.items() if name != "n_averaged"}
    if averaged and all(name.startswith("module.") for name in averaged):
        state = averaged
    taken = ""
    while (prefix := _common_prefix(state)) is not None:
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        taken += prefix
    return state, taken


def _common_prefix(state: Mapping[str, Tensor]) -> str | None:
    for prefix in (*_WRAPPER_PREFIXES, *_ATTRIBUTE_PREFIXES):
        if not all(name.startswith(prefix) and len(name) > len(prefix) for name in state):
            continue
        # `model.0.weight` is a network that is one nn.Sequential named `model` (ESRGAN of 2018, MONAI's UNet): its own name.
        if prefix in _ATTRIBUTE_PREFIXES and any(name[len(prefix)].isdigit() for name in state):
            continue
        return prefix
    return None


def _check_claims(name: str, state: Mapping[str, Tensor], size: int) -> None:
    """Refuse tensors larger than the file, such as one number that is spread over a huge shape with stride zero."""
    stored = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in state.values()}
    spread = (t.numel() * t.element_size() for t in state.values() if t.numel() * t.element_size() > t.untyped_storage().nbytes())
    claimed = sum(stored.values()) + sum(spread)
    if claimed > size:
        raise WeightsError(f"{name} is refused: it claims {claimed:,} bytes of tensors and has {size:,}.", hint=GET_AGAIN)


def _has_nan(tensor: Tensor) -> bool:
    floats = (tensor.is_floating_point() or tensor.is_complex()) and tensor.element_size() > 1
    # A sum is one fast pass; it is NaN also where infinities meet, hence the second look.
    return floats and bool(tensor.sum().isnan()) and bool(tensor.isnan().any())


# Names -----------------------------------------------------------------------------------------------------------

# Each network's keys as its reference code writes them: title, then patterns of which each must match some key.
# The narrow ones come first; SwinIR and EDSR are what remains of their kin.
_TELL_TALES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("HAT", (r"layers\.0\.residual_group\.overlap_attn\..*",)),
    ("CRAFT", (r"layers\.0\.residual_group\.hf_blocks\..*",)),
    ("DRCT", (r"layers\.0\.swin1\..*", r"layers\.0\.adjust1\.weight")),
    ("CFSR", (r"layers\.0\.blocks\.0\.attn\.a\.2\..*",)),
    ("ATD", (r"layers\.0\.residual_group\.layers\.0\.attn_atd\..*",)),
    ("DAT", (r"before_RG\..*", r"layers\.0\.blocks\.\d+\.attn\.channel_interaction\..*")),
    ("Swin2SR", (r"layers\.0\.residual_group\.blocks\.0\.attn\.logit_scale",)),
    ("SwinIR", (r"layers\.0\.residual_group\.blocks\.0\.attn\.relative_position_bias_table",)),
    ("OmniSR", (r"residual_layer\.0\.residual_layer\..*",)),
    ("SPAN", (r"block_1\.c1_r\..*",)),
    ("PLKSR", (r"feats\.\d+\.lk\.conv\.weight",)),
    ("ESRGAN (RRDB)", (r"body\.0\.rdb1\.conv1\.weight|RRDB_trunk\.0\..*|model\.1\.sub\.0\.RDB1\..*",)),
    ("RCAN", (r"body\.0\.body\.0\.body\.3\.conv_du\..*|body\.0\.residual_group\.0\.rcab\..*",)),
    ("MIRNet", (r"body\.0\.body\.0\.selective_kernel\.0\.fcs\.0\.weight",)),
    ("MIRNet-v2", (r"body\.0\.body\.0\.skff_top\..*",)),
    ("EDSR", (r"body\.0\.body\.0\.weight|body\.0\.conv1\.weight", r"tail\.0\..*|conv_after_body\.weight")),
    ("GFPGAN", (r"stylegan_decoder(H|h)?\..*",)),
    ("CodeFormer", (r"idx_pred_layer\..*", r"ft_layers\.0\..*")),
    ("RestoreFormer or another VQGAN", (r"(vqvae\.)?quantize\.embedding\.weight", r"(vqvae\.)?encoder\.down\.0\.block\..*")),
    ("Restore-RWKV", (r"encoder_level1\.0\.att\.spatial_decay",)),
    ("Restormer", (r"encoder_level1\.0\.attn\.temperature", r"refinement\.0\..*")),
    ("NAFNet", (r"middle_blks\.0\.sca\.1\.weight", r"intro\.weight")),
    ("HINet", (r"down_path_1\.0\..*", r"sam12\..*")),
    ("MPRNet", (r"shallow_feat1\..*", r"sam12\..*")),
    ("Uformer", (r"encoderlayer_0\.blocks\.0\..*",)),
    ("SCUNet", (r"m_head\.0\.weight", r"m_down1\.0\.trans_block\..*")),
    ("DRUNet", (r"m_head\.weight", r"m_down1\.0\.res\..*")),
    ("Swin UNETR, or an encoder of it, with which a training can begin", (r"swinViT\.patch_embed\.proj\.weight",)),
    (
        "an encoder of Swin UNETR alone, with which a training can begin",
        (r"(encoder\.)?layers1\.0\.(0\.)?downsample\.norm\.weight",),
    ),
    ("Real-ESRGAN compact (SRVGG)", (r"body\.0\.weight", r"body\.1\.weight", r"body\.2\.bias")),
)


def _holds_all(state: Mapping[str, Tensor], patterns: Iterable[str]) -> bool:
    return all(any(re.fullmatch(pattern, name) for name in state) for pattern in patterns)


def _renamer(table: Mapping[str, str]) -> Callable[[str], str]:
    rules = [(re.compile(pattern), replacement) for pattern, replacement in table.items()]

    def new_name(name: str) -> str:
        for pattern, replacement in rules:
            name = pattern.sub(replacement, name)
        return name

    return new_name


def _like(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _fits(given: Tensor, own: Tensor) -> bool:
    return given.shape == own.shape and given.is_floating_point() == own.is_floating_point()


def _shapes(name: str, given: Tensor, own: Tensor) -> str:
    return f"{name} {tuple(given.shape)} {given.dtype} for {tuple(own.shape)} {own.dtype}".replace("torch.", "")


def _problem(what: str, names: list[str]) -> str:
    return f"{len(names)} {what} ({few(names)})" if names else ""

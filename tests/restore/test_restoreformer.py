"""RestoreFormer, RestoreFormer++ and their auto-encoders: recorded outputs of the published networks, a plain form of the
paper's network written down from its keys, and what files tell."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hybrid.errors import RequestError, WeightsError
from hybrid.families import created
from hybrid.initialisation import SkipRandomFill
from hybrid.weights.catalogue import Catalogue
from hybrid.weights.checkpoints import load_strict, read_checkpoint, write_checkpoint
from hybrid.weights.find import Resolved
from restore import load_model
from restore.loading import build, catalogue
from restore.models.restoreformer import FAMILY, KEYS, VARIANTS, RestoreFormer, RestoreFormerConfig, matches, read_config
from restore.training import record
from tests.restore.parity import SMALL_CASES, draw, fill, largest_difference, load_case

CASES = SMALL_CASES / "restoreformer"
TOLERANCE = 4e-5
"""Tighter than the cases' own."""

SMALL = RestoreFormerConfig(
    num_heads=2, width=8, multipliers=(1, 2, 2, 4), attention=(3,), latent=12, entries=40, embed_dim=6, groups=4
)


def small(variant: str) -> RestoreFormer:
    network = RestoreFormer(replace(SMALL, variant=variant))
    network.load_state_dict({key: draw(key, list(value.shape), 0) for key, value in network.state_dict().items()})
    return network.eval()


def published(network: RestoreFormer) -> dict[str, Tensor]:
    return {KEYS.to_published(key): value for key, value in network.state_dict().items()}


def restored(path: Path, x: Tensor, **options: Any) -> Tensor:
    with torch.inference_mode():
        return load_model(path, device="cpu", **options).result(x)


def faces(height: int = 32, width: int = 48, batch: int = 2) -> Tensor:
    return 2 * torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(5)) - 1


# Numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["restoreformer_64x96", "restoreformerpp_b2_64x64"])
def test_recorded_outputs_and_indices(name: str) -> None:
    case = load_case(CASES / name)
    recorded = json.loads((CASES / name / "case.json").read_text())["quantizer"]
    state = fill(case)
    with SkipRandomFill():
        network = FAMILY.build(state, **case.given)
    assert isinstance(network, RestoreFormer)
    load_strict(network, state, rename=KEYS.to_ours, derived=FAMILY.derived)
    assert sum(p.numel() for p in network.parameters()) == case.parameters
    with torch.inference_mode():
        found = network.decompose(torch.from_numpy(case.input))
    assert found.quantised.indices.flatten().tolist() == recorded["indices"]
    assert largest_difference(found.image, case) < TOLERANCE
    # With gradients nothing is in strips or in place: the same numbers by the other path.
    found = network.decompose(torch.from_numpy(case.input))
    assert largest_difference(found.image.detach(), case) < TOLERANCE
    assert found.quantised.loss is not None and found.quantised.loss.item() == pytest.approx(recorded["codebook_loss"], rel=1e-5)


class Plain:
    """The network by its published keys, channels first, no step fused with another."""

    def __init__(self, state: dict[str, Tensor], variant: str, heads: int, groups: int) -> None:
        self.state, self.kind, self.heads, self.groups = state, VARIANTS[variant], heads, groups

    def conv(self, x: Tensor, key: str, **options: int) -> Tensor:
        weight = self.state[f"{key}.weight"]
        options = options or {"padding": weight.shape[-1] // 2}
        return F.conv2d(x, weight, self.state[f"{key}.bias"], **options)

    def norm(self, x: Tensor, key: str) -> Tensor:
        return F.group_norm(x, self.groups, self.state[f"{key}.weight"], self.state[f"{key}.bias"], 1e-6)

    def residual(self, x: Tensor, key: str) -> Tensor:
        h = self.conv(F.silu(self.norm(x, f"{key}.norm1")), f"{key}.conv1")
        h = self.conv(F.silu(self.norm(h, f"{key}.norm2")), f"{key}.conv2")
        return h + (self.conv(x, f"{key}.nin_shortcut") if f"{key}.nin_shortcut.weight" in self.state else x)

    def attention(self, x: Tensor, key: str, context: Tensor | None) -> Tensor:
        answering = self.norm(x, f"{key}.norm1")
        asking = answering if context is None else self.norm(context, f"{key}.norm2")
        q, k, v = (self.conv(part, f"{key}.{n}") for part, n in ((asking, "q"), (answering, "k"), (answering, "v")))
        q, k, v = (part.flatten(2).unflatten(1, (self.heads, -1)) for part in (q, k, v))
        weights = torch.softmax(q.transpose(2, 3) @ k / k.shape[2] ** 0.5, -1)
        return x + self.conv((v @ weights.transpose(2, 3)).flatten(1, 2).view(x.shape), f"{key}.proj_out")

    def level(self, x: Tensor, key: str, blocks: int, context: Tensor | None = None) -> Tensor:
        for n in range(blocks):
            x = self.residual(x, f"{key}.block.{n}")
            if f"{key}.attn.{n}.q.weight" in self.state:
                x = self.attention(x, f"{key}.attn.{n}", context)
        return x

    def __call__(self, x: Tensor, levels: int, blocks: int) -> tuple[Tensor, Tensor]:
        features: dict[str | int, Tensor] = {}
        h = self.conv(x, "encoder.conv_in")
        for level in range(levels):
            h = features[level] = self.level(h, f"encoder.down.{level}", blocks)
            if level < levels - 1:
                h = self.conv(F.pad(h, (0, 1, 0, 1)), f"encoder.down.{level}.downsample.conv", stride=2)
        h = features[levels - 1] = self.residual(h, "encoder.mid.block_1")
        h = features["mid"] = self.residual(self.attention(h, "encoder.mid.attn_1", None), "encoder.mid.block_2")
        z = self.conv(self.conv(F.silu(self.norm(h, "encoder.norm_out")), "encoder.conv_out"), "quant_conv")
        table, rows = self.state["quantize.embedding.weight"], z.movedim(1, -1)
        indices = (rows[..., None, :] - table).square().sum(-1).argmin(-1)
        asking = features if self.kind.asks else {}
        h = self.conv(self.conv(table[indices].movedim(-1, 1), "post_quant_conv"), "decoder.conv_in")
        h = self.attention(self.residual(h, "decoder.mid.block_1"), "decoder.mid.attn_1", asking.get("mid"))
        h = self.residual(h, "decoder.mid.block_2")
        for level in reversed(range(levels)):
            h = self.level(h, f"decoder.up.{level}", blocks + 1, asking.get(level))
            if level:
                h = self.conv(F.interpolate(h, scale_factor=2), f"decoder.up.{level}.upsample.conv")
        return self.conv(F.silu(self.norm(h, "decoder.norm_out")), "decoder.conv_out"), indices


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_against_the_plain_form(variant: str) -> None:
    network, x = small(variant), faces()
    image, indices = Plain(published(network), variant, heads=2, groups=4)(x, levels=4, blocks=2)
    with torch.inference_mode():
        found = network.decompose(x)
    assert torch.equal(found.quantised.indices, indices) and len(indices.unique()) > 5
    torch.testing.assert_close(found.image, image.detach(), atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(network.result(x).detach(), image.detach(), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("attention", "decoder", "channels", "options"),
    [
        ((), None, (3, 3), {"num_heads": 2}),  # the middle alone attends, and still asks
        ((), None, (3, 3), {"num_heads": 2, "variant": "rohqd"}),
        ((3,), None, (3, 1), {"num_heads": 2}),
        ((3,), None, (6, 3), {"num_heads": 2}),
        ((2, 3), None, (3, 3), {"num_heads": 2}),
        # As ex_multi_scale_num gives them: twice [first, 2 * last], thrice, and once of two levels.
        ((3,), (1, 3), (3, 3), {"num_heads": 2}),
        ((3,), (1, 3), (3, 3), {"variant": "restoreformer++"}),
        ((3,), (0, 3), (3, 3), {"num_heads": 2}),
        ((2, 3), (1, 3), (3, 3), {"num_heads": 4}),
        ((2, 3), (2,), (3, 3), {"num_heads": 2}),
    ],
)
def test_layouts_that_keys_describe(attention: tuple, decoder: tuple | None, channels: tuple, options: dict, tmp_path) -> None:
    inputs, outputs = channels
    shape = replace(SMALL, attention=attention, decoder_attention=decoder, in_channels=inputs, out_channels=outputs)
    network = RestoreFormer(shape)
    state = {KEYS.to_published(key): draw(key, list(value.shape), 0) for key, value in network.state_dict().items()}
    torch.save(state, tmp_path / "x.pth")
    variant, heads = options.get("variant", "restoreformer"), options.get("num_heads", 4)
    x = faces().repeat(1, 2, 1, 1)[:, :inputs]
    expected, _ = Plain(state, variant, heads=heads, groups=4)(x, levels=4, blocks=2)
    found = restored(tmp_path / "x.pth", x, groups=4, **options)
    assert found.shape == (2, outputs, 32, 48)
    torch.testing.assert_close(found, expected.detach(), atol=2e-5, rtol=1e-5)
    assert load_model(tmp_path / "x.pth", device="cpu", groups=4, **options).card.out_channels == outputs


def test_unpublished_layouts_are_not_guessed_at(tmp_path: Path) -> None:
    """How many heads share the channels is in no file."""
    torch.save(published(RestoreFormer(replace(SMALL, decoder_attention=(1, 3)))), tmp_path / "x.pth")
    with pytest.raises(RequestError, match=r"attends at levels \[1, 3\] and its encoder at \[3\].*Give num_heads"):
        load_model(tmp_path / "x.pth", device="cpu", groups=4)


def test_entries_are_the_same_in_bf16() -> None:
    network, x = small("restoreformer++"), faces()
    with torch.inference_mode():
        expected = network.decompose(x).quantised.indices
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(network.decompose(x).quantised.indices, expected)


def test_restorer_keeps_the_dictionary_and_auto_encoder_learns_it() -> None:
    for variant, learnt in (("rohqd", True), ("restoreformer++", False)):
        network = small(variant).train()
        found = network.decompose(faces())
        assert found.quantised.loss is not None
        (found.image.square().mean() + found.quantised.loss).backward()
        assert (network.quantiser.embedding.weight.grad is not None) == learnt
        without = {name for name, p in network.named_parameters() if p.grad is None}
        assert without == {name for name, p in network.named_parameters() if not p.requires_grad}


def test_restorer_begins_with_the_auto_encoder() -> None:
    """All of it fits; RestoreFormer++ has the attentions of one more level, of its own."""
    dictionary = small("rohqd").state_dict()
    first, second = (RestoreFormer(replace(SMALL, variant=variant)) for variant in ("restoreformer", "restoreformer++"))
    first.load_state_dict(dictionary)
    left = second.load_state_dict(dictionary, strict=False)
    assert not left.unexpected_keys and all(key.startswith("decoder.levels.2.attentions.") for key in left.missing_keys)


# Files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_published_layouts(variant: str) -> None:
    with torch.device("meta"), SkipRandomFill():
        network = RestoreFormer(RestoreFormerConfig(variant=variant))
    parameters = 73_472_579 if variant == "restoreformer++" else 72_680_003
    state = published(network)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert len(state) == (441 if variant == "restoreformer++" else 405) and matches(state)
    listed: Catalogue = catalogue()
    if variant in listed:
        entry = listed.entry(variant)
        assert entry.files[1].parameters == parameters and entry.options == {"variant": variant} and entry.task == "face"
    card = network.card
    assert (card.multiple, card.value_range, card.face_size) == (32, (-1.0, 1.0), 512)
    assert card.title == VARIANTS[variant].title


def test_kinds_are_told_as_far_as_files_tell() -> None:
    told = {variant: read_config(published(small(variant))).variant for variant in VARIANTS}
    assert told == {"restoreformer": "restoreformer", "restoreformer++": "restoreformer++", "rohqd": "restoreformer",
                    "hq-dictionary": "restoreformer"}  # fmt: skip
    state = published(small("rohqd"))
    norm = "decoder.mid.attn_1.norm2."  # which an auto-encoder never trains
    fresh = {norm + "weight": torch.ones(32), norm + "bias": torch.zeros(32)}
    assert read_config(state | fresh).variant == "rohqd"


@pytest.mark.parametrize("decoder", [(1, 3), (2, 3)])  # no variant's layout, and that of RestoreFormer++
def test_auto_encoders_of_other_layouts_are_told_by_their_unused_norm(decoder: tuple, tmp_path: Path) -> None:
    shape = replace(SMALL, variant="rohqd", decoder_attention=decoder)
    network = RestoreFormer(shape)
    fresh = {k: v for k, v in network.state_dict().items() if "attn_1.norm2." in k}
    network.load_state_dict({k: draw(k, list(v.shape), 0) for k, v in network.state_dict().items()} | fresh)
    state, x = published(network.eval()), faces()
    assert read_config(state) == replace(shape, num_heads=None, groups=32)
    torch.save(state, tmp_path / "x.pth")
    with torch.inference_mode():
        assert torch.equal(restored(tmp_path / "x.pth", x, num_heads=2, groups=4), network.result(x))
    with pytest.raises(RequestError, match="as in no published ROHQD, .*Give num_heads"):
        load_model(tmp_path / "x.pth", device="cpu", groups=4)


TINY: dict[str, Any] = {"width": 8, "multipliers": [1, 2, 2, 4], "attention": [3], "latent": 12, "entries": 40, "embed_dim": 6,
                        "groups": 4}  # fmt: skip
"""As a recipe gives options: lists, and only what is not the default."""


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_heads": 2},
        {"decoder_attention": [3]},
        {"decoder_attention": [1, 3], "num_heads": 2},
        {"decoder_attention": [1, 3], "variant": "restoreformer"},
        {"decoder_attention": [1, 3], "variant": "restoreformer++", "num_heads": 2},
        {"decoder_attention": [1, 3], "variant": "rohqd"},
        {"decoder_attention": [1, 3], "variant": "hq-dictionary"},
        {"decoder_attention": [2, 3], "variant": "restoreformer++"},
        {"attention": [], "decoder_attention": [3], "num_heads": 2},
    ],
    ids=str,
)
def test_what_can_be_created_loads_by_what_a_training_writes(options: dict, tmp_path: Path, monkeypatch) -> None:
    """The same picture, with no option said at loading."""
    given, x = TINY | options, faces()
    network = created(FAMILY, given)
    network.load_state_dict({k: draw(k, list(v.shape), 0) for k, v in network.state_dict().items()})
    facts = {"recipe": {"network": {"family": "restoreformer", "options": given}, "licence": "CC0-1.0", "task": "face"}}
    monkeypatch.setattr(record, "write_training", lambda folder, name, save, *_: save(folder / f"{name}.safetensors"))
    record.write_result(network, facts, tmp_path, "x")
    with torch.inference_mode():
        expected = network.half().float().eval().result(x)
        torch.testing.assert_close(restored(tmp_path / "x.safetensors", x), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder_attention": [1, 3]}, r"\[1, 3\] needs the variant that has it; if none has, variant or num_heads"),
        ({"decoder_attention": [1, 3], "num_heads": None}, "if none has, variant or num_heads"),
        ({"decoder_attention": []}, r"\[\] needs"),
        ({"decoder_attention": [2, 3], "variant": "restoreformer"}, "needs the variant that has it"),
        ({"decoder_attention": [2, 3], "num_heads": 2}, "needs the variant that has it"),
        ({"decoder_attention": [3], "variant": "restoreformer++"}, "needs the variant that has it"),
    ],
    ids=str,
)
def test_what_would_not_load_again_is_not_created(options: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        created(FAMILY, TINY | options)


def test_an_option_without_a_value_is_none(tmp_path: Path) -> None:
    torch.save(published(RestoreFormer(replace(SMALL, decoder_attention=(1, 3)))), tmp_path / "x.pth")
    with pytest.raises(RequestError, match="Give num_heads"):
        load_model(tmp_path / "x.pth", device="cpu", groups=4, num_heads=None)


def test_configuration_is_read_back() -> None:
    config = replace(SMALL, variant="restoreformer++", blocks=1, multipliers=(1, 1, 3), attention=(2,), in_channels=1)
    state = {key: draw(key, list(value.shape), 0) for key, value in published(RestoreFormer(config)).items()}
    assert read_config(state) == replace(config, num_heads=None, groups=32)


@pytest.mark.parametrize("variant", ["restoreformer", "rohqd", "hq-dictionary"])
def test_option_variant(variant: str, tmp_path: Path) -> None:
    network, x = small(variant), faces()
    torch.save({"params": published(network)}, tmp_path / "x.pth")  # as GFPGAN's copy
    with torch.inference_mode():
        expected = network.result(x)
    assert torch.equal(restored(tmp_path / "x.pth", x, variant=variant, num_heads=2, groups=4), expected)
    other = "rohqd" if VARIANTS[variant].asks else "restoreformer"
    assert not torch.allclose(restored(tmp_path / "x.pth", x, variant=other, num_heads=2, groups=4), expected, atol=1e-2)
    assert not torch.allclose(restored(tmp_path / "x.pth", x, variant=variant, num_heads=4, groups=4), expected, atol=1e-2)


def test_training_checkpoint_of_lightning(tmp_path: Path) -> None:
    """The network under `vqvae.`, losses with networks of their own, and a counter of old files."""
    network, x = small("restoreformer++"), faces()
    state = {f"vqvae.{key}": value for key, value in published(network).items()}
    state |= {"vqvae.quantize.utility_counter": torch.zeros(40), "loss.discriminator.main.0.weight": torch.rand(4, 3, 4, 4)}
    state |= {"loss.perceptual_loss.lin0.model.1.weight": torch.rand(1, 8, 1, 1)}
    tree = {"epoch": 3, "state_dict": state, "optimizer_states": [{"state": {}}], "hparams_name": "kwargs"}
    torch.save(tree, tmp_path / "x.ckpt")
    with torch.inference_mode():
        expected = network.result(x)
    assert torch.equal(restored(tmp_path / "x.ckpt", x, num_heads=2, groups=4), expected)


def test_networks_of_losses_under_names_of_their_own_are_left_aside(tmp_path: Path) -> None:
    """All that does not begin with `vqvae.`; what does has to fit."""
    network, x = small("restoreformer++"), faces()
    state = {f"vqvae.{key}": value for key, value in published(network).items()}
    foreign = ("arcface.conv1.weight", "lpips.lin0.weight", "net_d.conv.weight", "loss.logvar", "quant_conv.weight")
    torch.save({"state_dict": state | {key: torch.rand(2, 3) for key in foreign}}, tmp_path / "x.ckpt")
    with torch.inference_mode():
        expected = network.result(x)
    assert torch.equal(restored(tmp_path / "x.ckpt", x, num_heads=2, groups=4), expected)
    assert set(read_checkpoint(tmp_path / "x.ckpt").ignored) == set(foreign)
    torch.save({"state_dict": state | {"vqvae.extra.weight": torch.rand(2)}}, tmp_path / "y.ckpt")
    with pytest.raises(WeightsError, match=r"not known to the network \(extra.weight\)"):
        load_model(tmp_path / "y.ckpt", device="cpu", num_heads=2, groups=4)


def test_catalogue_tells_what_files_do_not(tmp_path: Path) -> None:
    torch.save(published(small("rohqd")), tmp_path / "ROHQD.ckpt")
    entry, scale = catalogue().whose_file("ROHQD.ckpt") or (None, None)
    network = build(Resolved(tmp_path / "ROHQD.ckpt", entry, scale, "cache"), device="cpu", num_heads=2, groups=4)
    assert isinstance(network, RestoreFormer) and network.config.variant == "rohqd"


def test_our_own_files_tell_what_keys_do_not(tmp_path: Path) -> None:
    network, x = small("rohqd"), faces()
    options = {"variant": "rohqd", "num_heads": 2, "groups": 4, "width": 8}
    write_checkpoint(tmp_path / "x.safetensors", published(network), {"options": json.dumps(options)})
    with torch.inference_mode():
        assert torch.equal(restored(tmp_path / "x.safetensors", x), network.result(x))


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    state = published(small("restoreformer++"))
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(RequestError, match=r"There is no variant 'codeformer' of RestoreFormer. Choose one of restoreformer, "):
        load_model(tmp_path / "x.pth", device="cpu", variant="codeformer")
    with pytest.raises(WeightsError, match=r"its attentions are those of RestoreFormer\+\+, asked for was rohqd"):
        load_model(tmp_path / "x.pth", device="cpu", variant="rohqd")
    for key in ("quant_conv.bias", "decoder.up.2.attn.1.norm2.weight", "encoder.down.3.attn.0.norm2.bias"):
        torch.save({name: value for name, value in state.items() if name != key}, tmp_path / "less.pth")
        with pytest.raises(WeightsError, match="1 missing"):
            load_model(tmp_path / "less.pth", device="cpu", groups=4)
    torch.save(state | {"decoder.extra.weight": torch.zeros(3)}, tmp_path / "more.pth")
    with pytest.raises(WeightsError, match=r"not known to the network \(decoder.extra.weight\)"):
        load_model(tmp_path / "more.pth", device="cpu", groups=4)


def test_other_vector_quantised_networks_are_not_taken_for_one() -> None:
    state = published(small("restoreformer"))
    assert not matches({key: value for key, value in state.items() if ".norm2." not in key})


def test_unknown_variant_is_named() -> None:
    with pytest.raises(ValueError, match="there is no variant 'vqgan'; known: restoreformer, "):
        RestoreFormerConfig(variant="vqgan")

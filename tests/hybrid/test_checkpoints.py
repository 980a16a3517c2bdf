"""Reading checkpoints of every make, refusing what is none, and writing them."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from torch import Tensor, nn

from hybrid.errors import OutputError, WeightsError
from hybrid.records import sha256_file
from hybrid.weights.checkpoints import read_checkpoint, write_checkpoint

WEIGHTS = {"conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2), "conv.bias": np.array([0.5, -2], np.float32)}


def tensors(prefix: str = "") -> dict[str, Tensor]:
    return {prefix + name: torch.from_numpy(value.copy()) for name, value in WEIGHTS.items()}


def noise(prefix: str = "") -> dict[str, Tensor]:
    return {name: tensor + 100 for name, tensor in tensors(prefix).items()}


def save(tree: object, path: Path, kind: str) -> Path:
    if kind == "safetensors":
        safetensors.torch.save_file(tree, path)  # type: ignore[arg-type]
    else:
        torch.save(tree, path, _use_new_zipfile_serialization=kind == "zip")
    return path


def assert_weights(state: Mapping[str, Tensor]) -> None:
    assert set(state) == set(WEIGHTS)
    for name, value in WEIGHTS.items():
        np.testing.assert_array_equal(state[name].numpy(), value)


class Runs:
    """Runs `call(*args)` when it is unpickled by anything that allows it."""

    def __init__(self, call: Callable[..., Any], *args: object) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.args


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".bin", ""])
def test_format_is_told_from_content(tmp_path: Path, kind: str, suffix: str) -> None:
    path = save(tensors(), tmp_path / f"w{suffix}", kind)
    checkpoint = read_checkpoint(str(path))
    assert_weights(checkpoint.state)
    assert (checkpoint.wrapper, checkpoint.prefix, checkpoint.ignored) == ("", "", ())
    assert checkpoint.path == path and checkpoint.sha256 == sha256_file(path)


@pytest.mark.parametrize(
    ("tree", "wrapper", "prefix"),
    [
        ({"params": tensors()}, "params", ""),
        ({"params": noise(), "params_ema": tensors()}, "params_ema", ""),
        ({"params": tensors(), "params_ema": {}}, "params", ""),
        (
            {"state_dict": tensors("module."), "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
            "state_dict",
            "module.",
        ),
        ({"state_dict": tensors("model."), "hyper_parameters": {"lr": 1e-4}}, "state_dict", "model."),
        ({"state_dict": noise(), "state_dict_ema": tensors()}, "state_dict_ema", ""),
        ({"model": {"state_dict": tensors("module._orig_mod.")}}, "model.state_dict", "module._orig_mod."),
        ({"model": noise(), "ema": {"decay": 0.999, "module": tensors()}}, "ema.module", ""),
        ({"model_state_dict": tensors("net."), "loss": 0.1}, "model_state_dict", "net."),
        ({"g_ema": tensors(), "g": noise(), "d": noise(), "d_optim": {}}, "g_ema", ""),
        ({"generator": tensors(), "discriminator": noise()}, "generator", ""),
        ({"some_net": tensors(), "optimizer": {"x": torch.ones(1)}, "iter": 5}, "some_net", ""),
        ({"n_averaged": torch.tensor(3)} | tensors("module."), "", "module."),
        (OrderedDict(tensors("generator.")), "", "generator."),
    ],
)
def test_wrappers_are_taken_off(tmp_path: Path, tree: dict[str, Any], wrapper: str, prefix: str) -> None:
    checkpoint = read_checkpoint(save(tree, tmp_path / "w.pth", "zip"))
    assert_weights(checkpoint.state)
    assert (checkpoint.wrapper, checkpoint.prefix) == (wrapper, prefix)


def test_prefixes_come_off_only_when_all_names_carry_them(tmp_path: Path) -> None:
    mixed = tensors("module.") | {"other.weight": torch.ones(1)}
    assert set(read_checkpoint(save(mixed, tmp_path / "a.pth", "zip")).state) == set(mixed)
    sequential = {"model.0.weight": torch.ones(1), "model.2.bias": torch.ones(1)}
    assert set(read_checkpoint(save(sequential, tmp_path / "b.pth", "zip")).state) == set(sequential)
    parallel = {"module.0.weight": torch.ones(1)}
    assert set(read_checkpoint(save(parallel, tmp_path / "c.pth", "zip")).state) == {"0.weight"}


def test_foreign_names_beside_a_network_stay_unless_it_is_that_of_faces(tmp_path: Path) -> None:
    """So that a loader refuses them."""
    for prefix in ("vqvae.", "net.", ""):
        mixed = tensors(prefix) | {"arcface.conv1.weight": torch.ones(1)}
        assert set(read_checkpoint(save(mixed, tmp_path / "w.pth", "zip")).state) == set(mixed)
    faces = {f"vqvae.{name}.weight": torch.ones(1) for name in ("quantize.embedding", "encoder.conv_in", "decoder.conv_out")}
    checkpoint = read_checkpoint(save(faces | {"arcface.conv1.weight": torch.ones(1)}, tmp_path / "w.pth", "zip"))
    assert set(checkpoint.state) == {name.removeprefix("vqvae.") for name in faces}
    assert checkpoint.ignored == ("arcface.conv1.weight",)


def test_what_is_left_aside_is_named(tmp_path: Path) -> None:
    inner = tensors() | {"_extra": {"a": 1}, "version": 2}
    checkpoint = read_checkpoint(save({"epoch": 1, "params_ema": inner, "params": noise()}, tmp_path / "w.pth", "zip"))
    assert_weights(checkpoint.state)
    assert set(checkpoint.ignored) == {"epoch", "params", "params_ema._extra", "params_ema.version"}


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_plain_facts_beside_the_weights_are_allowed(tmp_path: Path, kind: str) -> None:
    facts = {"args": argparse.Namespace(lr=1e-4), "best_acc": np.float64(0.8), "when": np.float32(1), "n": np.int64(2)}
    assert_weights(read_checkpoint(save(facts | {"state_dict": tensors()}, tmp_path / "w.pt", kind)).state)


def test_types_are_returned_as_stored(tmp_path: Path) -> None:
    state = {"half": torch.ones(2, dtype=torch.float16), "brain": torch.ones(2, dtype=torch.bfloat16), "index": torch.arange(3)}
    for kind in ("zip", "legacy", "safetensors"):
        read = read_checkpoint(save(state, tmp_path / "w", kind)).state
        assert {name: tensor.dtype for name, tensor in read.items()} == {name: tensor.dtype for name, tensor in state.items()}


def test_shared_tensors_count_once(tmp_path: Path) -> None:
    big = torch.randn(1000)
    state = read_checkpoint(save({"a": big, "b": big, "c": big[:500]}, tmp_path / "w.pth", "zip")).state
    assert torch.equal(state["a"], big) and torch.equal(state["b"], big) and torch.equal(state["c"], big[:500])


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain pickle"])
@pytest.mark.parametrize("place", ["top", "beside the weights", "in a namespace", "as a tensor", "as an argument"])
def test_code_in_a_file_is_not_run(tmp_path: Path, kind: str, place: str) -> None:
    marker = tmp_path / "marker"
    attack = Runs(os.system, f"echo ran > {marker}")
    trees: dict[str, object] = {
        "top": attack,
        "beside the weights": {"params": tensors(), "epoch": attack},
        "in a namespace": {"params": tensors(), "args": argparse.Namespace(x=[{"y": attack}])},
        "as a tensor": {"params": tensors() | {"x": attack}},
        "as an argument": {"params": tensors(), "x": Runs(OrderedDict, [("a", Runs(eval, f"open({str(marker)!r}, 'w')"))])},
    }
    path = tmp_path / "w.pth"
    if kind == "plain pickle":
        path.write_bytes(pickle.dumps(trees[place], protocol=2))
    else:
        save(trees[place], path, kind)
    with pytest.raises(WeightsError, match=r"refused.* execute code.*nothing was run.*\.") as caught:
        read_checkpoint(path)
    assert caught.value.hint and not marker.exists()
    # The file is a real attack: an unsafe loader does run it.
    unsafe = pickle.loads if kind == "plain pickle" else lambda _: torch.load(path, weights_only=False)
    unsafe(path.read_bytes())
    assert marker.exists()


def test_whole_modules_and_torchscript_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(WeightsError, match=r"refused.*torch\.nn\.modules\.linear\.Linear.*nothing was run"):
        read_checkpoint(tmp_path / "module.pt")
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        for name in ("script/data.pkl", "script/constants.pkl", "script/code/__torch__.py"):
            archive.writestr(name, b"x")
    with pytest.raises(WeightsError, match="TorchScript"):
        read_checkpoint(tmp_path / "script.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello, this is text\n" * 20, "is no checkpoint"),
        (b"\n<!DOCTYPE html><html><title>Sign in</title></html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"\x89PNG\r\n\x1a\n" + bytes(64), "is no checkpoint"),
        (b"PK\x03\x04" + bytes(64), "is damaged or not complete"),
        (struct.pack("<Q", 40) + b"{" + bytes(10), "damaged safetensors"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message) as caught:
        read_checkpoint(path)
    assert caught.value.hint
    assert path.read_bytes() == content


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_any_truncation_is_an_error(tmp_path: Path, kind: str) -> None:
    path = save({f"layer{i}": torch.randn(50) for i in range(4)}, tmp_path / "w", kind)
    whole = path.read_bytes()
    for length in [0, 1, 4, 9, 30, *range(50, len(whole) - 1, max(1, len(whole) // 40)), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError):
            read_checkpoint(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_damage_is_an_error_or_harmless(tmp_path: Path, kind: str) -> None:
    """Flipped bytes in the structural part of the file never surface as anything but a WeightsError."""
    path = save({"a": torch.ones(3), "b": {"c": torch.ones(2)}} if kind != "safetensors" else tensors(), tmp_path / "w", kind)
    whole = path.read_bytes()
    outcomes = set()
    for position in range(0, min(len(whole), 700), 3):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x5A]) + whole[position + 1 :])
        try:
            read_checkpoint(path, allow_nan=True)
            outcomes.add("read")
        except WeightsError:
            outcomes.add("refused")
    assert "refused" in outcomes


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"absent\.pth cannot be read.*Check the path"):
        read_checkpoint(tmp_path / "absent.pth")
    with pytest.raises(WeightsError, match="is a folder"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "tree",
    [{}, {"params": {}}, {"epoch": 3}, [torch.ones(2)], torch.ones(2), {"optimizer": {"state": {0: {"m": torch.ones(2)}}}}],
)
def test_files_without_weights(tmp_path: Path, tree: object) -> None:
    with pytest.raises(WeightsError, match="has no tensors that could be weights"):
        read_checkpoint(save(tree, tmp_path / "w.pth", "zip"))


def test_a_dictionary_inside_itself_ends(tmp_path: Path) -> None:
    loop: dict[str, Any] = {}
    loop["model"] = loop
    with pytest.raises(WeightsError, match="no tensors"):
        read_checkpoint(save(loop, tmp_path / "w.pth", "zip"))


def test_nan_is_refused_unless_asked_for(tmp_path: Path) -> None:
    bad = tensors()
    bad["conv.bias"][1] = torch.nan
    path = save(bad, tmp_path / "w.pth", "zip")
    with pytest.raises(WeightsError, match=r"NaN in 1 of 2 tensors \(conv\.bias\)"):
        read_checkpoint(path)
    assert read_checkpoint(path, allow_nan=True).state["conv.bias"].isnan().any()
    masked = tensors() | {"mask": torch.full((4,), -torch.inf)}
    assert len(read_checkpoint(save(masked, path, "zip")).state) == 3


def rezip(source: Path, target: Path, changed: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, changed.get(name, old.read(name)))


def test_claims_beyond_the_file_are_refused(tmp_path: Path) -> None:
    spread = save({"a": torch.ones(1).expand(10**10)}, tmp_path / "spread.pth", "zip")
    with pytest.raises(WeightsError, match="claims 40,000,000,004 bytes"):
        read_checkpoint(spread)
    zeros = save({"a": torch.zeros(10**6)}, tmp_path / "zeros.pth", "zip")
    bomb = tmp_path / "bomb.pth"
    rezip(zeros, bomb, {}, zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 50_000
    with pytest.raises(WeightsError, match="compressed or claims more bytes than it holds"):
        read_checkpoint(bomb)
    # What does not get smaller is no bomb, but torch would map the deflated bytes as if they were the values.
    rezip(save({"a": torch.randn(1000)}, tmp_path / "noise.pth", "zip"), bomb, {}, zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match="compressed or claims more bytes than it holds"):
        read_checkpoint(bomb)


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_storages_larger_than_the_file_are_refused(tmp_path: Path, kind: str) -> None:
    path = save({"a": torch.randn(1000)}, tmp_path / "w.pth", kind)
    count, claimed = b"M" + struct.pack("<H", 1000), b"\x8a\x06" + (2**44).to_bytes(6, "little")
    if kind == "zip":
        with zipfile.ZipFile(path) as archive:
            pickled = archive.read("w/data.pkl")
        assert count in pickled
        rezip(path, tmp_path / "over.pth", {"w/data.pkl": pickled.replace(count, claimed)})
    else:
        assert count in path.read_bytes()
        (tmp_path / "over.pth").write_bytes(path.read_bytes().replace(count, claimed))
    with pytest.raises(WeightsError):
        read_checkpoint(tmp_path / "over.pth")


def test_archives_are_told_apart(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("models/X2.pth", b"x")
    with pytest.raises(WeightsError, match=r"archive of several files.*models/X2\.pth"):
        read_checkpoint(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("word/document.xml", b"x")
    with pytest.raises(WeightsError, match="zip archive, but no checkpoint"):
        read_checkpoint(tmp_path / "b.zip")


def test_written_files_are_safetensors_with_their_metadata(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    tied = torch.randn(3, 4)
    state = tensors() | {"tied.a": tied, "tied.b": tied, "turned": tied.T, "index": torch.arange(5)}
    metadata = {"recipe": "größe", "data": "CC0", "z": "1", "a": "2"}
    write_checkpoint(path, state, metadata)
    judged = safetensors.numpy.load_file(path)
    for name, tensor in state.items():
        np.testing.assert_array_equal(judged[name], tensor.numpy())
    assert read_checkpoint(path).metadata == metadata
    once = path.read_bytes()
    for _ in range(4):
        write_checkpoint(path, state, metadata)
        assert path.read_bytes() == once
    assert os.listdir(tmp_path) == ["w.safetensors"]
    length = int.from_bytes(once[:8], "little")
    assert length % 8 == 0 and json.loads(once[8 : 8 + length])["__metadata__"] == metadata


def test_half_precision_files(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    state = {"a": torch.tensor([0.1, 1e-3, 7.0]), "index": torch.arange(3)}
    write_checkpoint(path, state, half=True)
    judged = safetensors.numpy.load_file(path)
    np.testing.assert_array_equal(judged["a"], np.array([0.1, 1e-3, 7.0], np.float32).astype(np.float16))
    assert judged["index"].dtype == np.int64
    before = path.read_bytes()
    with pytest.raises(OutputError, match="a holds values too large for float16"):
        write_checkpoint(path, {"a": torch.tensor([1e6])}, half=True)
    assert path.read_bytes() == before
    with pytest.raises(OutputError, match="could not be written"):
        write_checkpoint(tmp_path / "absent" / "w.safetensors", state)

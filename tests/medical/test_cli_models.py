"""`medical models`: what is listed, told, moved and taken in. The commands are those of `restore models`, tested there too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hybrid.records import sha256_file
from hybrid.weights.catalogue import Catalogue
from medical.loading import catalogue, save_model
from medical.models import family
from medical.models.base import SegmentationNetwork
from medical.protocol import Protocol
from tests.command import Said, files, medical
from tests.medical.stubs import protocol

TINY = "swin_unetr.tiny_5000ep_f12_lr2e-4_pretrained.pt"
ENCODER = "model_swinvit.pt"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No network, and a cache that is not there yet."""
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RESTORE_OFFLINE", "1")
    monkeypatch.delenv("RESTORE_MIRROR", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def models(*arguments: str | Path) -> Said:
    return medical("models", *arguments)


def line(said: Said, heading: str) -> str:
    (found,) = [line.removeprefix(heading).strip() for line in said.out.splitlines() if line.startswith(f"{heading} ")]
    return found


def small(**options: object) -> SegmentationNetwork:
    torch.manual_seed(0)
    chosen = {"in_channels": 1, "out_channels": 3, "feature_size": 12, "depths": (1, 1), "num_heads": (2, 4), "window": 3}
    return family("swin_unetr").create(**chosen | options)


def published(network: SegmentationNetwork) -> dict[str, torch.Tensor]:
    keys = family("swin_unetr").keys
    return {keys.to_published(name): tensor for name, tensor in network.state_dict().items()}


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A network of this package's, with its protocol."""
    path = tmp_path / "mine.safetensors"
    save_model(path, small(merging="v2"), protocol=protocol(spacing=(1, 1.5, 2), mirror=(0,)))
    return path


@pytest.fixture
def small_for_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalogue with fourteen classes but without a number of parameters for the tiny model of BTCV."""
    whole = catalogue()
    entry = whole.entry("swin-unetr-btcv-tiny")
    changed = entry.model_copy(update={"files": {1: entry.files[1].model_copy(update={"parameters": None})}})
    known = Catalogue(whole.entries | {entry.name: changed}, whole.package)
    monkeypatch.setattr("medical.loading.catalogue", lambda: known)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A file as BTCV's are published, but smaller."""
    path = tmp_path / TINY
    state = {f"module.{name}": tensor for name, tensor in published(small(out_channels=14)).items()}
    torch.save({"state_dict": state, "epoch": 1}, path)
    return path


@pytest.mark.parametrize("command", [(), ("models",), ("models", "info"), ("segment",)])
def test_help_needs_no_torch(command: tuple[str, ...]) -> None:
    code = (
        "import sys; from medical.cli.app import app\n"
        "try: app([*sys.argv[1:], '--help'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert not {'torch', 'monai', 'nibabel', 'pydicom'} & set(sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code, *command], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_there_are_no_scales() -> None:
    for command in ("list", "info", "pull", "path", "verify", "pack", "import"):
        said = models(command, "--help")
        assert said.code == 0 and "scale" not in said.out.lower()
    assert "A name from `models list`." in models("pull", "--help").out


def test_every_model_is_listed_with_its_licence() -> None:
    said = models("list")
    assert said.code == 0 and "x1" not in said.out
    for entry in catalogue():
        line = next(line for line in said.out.splitlines() if f" {entry.name} " in line)
        assert ("shipped" if entry.shipped else "not here") in line and entry.weights_licence in line


# info ----------------------------------------------------------------------------------------------------------------


def test_info_of_a_file_that_says_all(mine: Path) -> None:
    said = models("info", mine)
    assert said.code == 0
    assert line(said, "family").startswith("Swin UNETR (Hatamizadeh")
    assert line(said, "input") == "3-D, 1 channel"
    assert line(said, "output") == "3 classes, the first of them the background"
    assert line(said, "merging") == "v2, as the file says"
    assert line(said, "scans") == "MR: T1w; RAS, 1 x 1.5 x 2 mm"
    assert line(said, "windows") == "8 x 10 x 12 voxels, overlap 0.5; may be mirrored along axis: 0"
    assert line(said, "structures") == "1 part 1, 2 part 2"
    assert line(said, "parameters") == f"{sum(p.numel() for p in small().parameters()):,}"
    assert line(said, "sha256") == sha256_file(mine)
    assert line(said, "licence") == "of the reference code Apache-2.0; of these weights unknown"
    assert line(said, "not told") == "by the file: drop_path"
    assert "trained on" not in said.out


def test_info_of_a_published_file_says_what_it_does_not_tell(tiny: Path) -> None:
    said = models("info", tiny)
    assert said.code == 0
    assert line(said, "merging").startswith("legacy, assumed") and "--option merging=" in line(said, "merging")
    assert line(said, "output") == "14 classes" and "--protocol FILE" in line(said, "protocol")
    assert line(said, "wrapper") == "state_dict, prefix module."
    assert line(said, "licence").endswith("of these weights unknown (by the name of the file)")
    assert "BTCV" in line(said, "trained on")
    assert line(said, "not told") == "by a file: merging, normalize, drop_path"


def test_info_of_regions(tmp_path: Path) -> None:
    regions = [{"channel": 1, "value": 2}, {"channel": 0, "value": 1}, {"channel": 2, "value": 4}]
    structures = [{"value": value, "name": f"part {value}"} for value in (1, 2, 4)]
    asked = Protocol.model_validate(
        {
            "modality": "MR", "channels": ("T1w", "T2w"), "intensity": {"kind": "z-score", "nonzero": True},
            "patch": (8, 8, 8), "structures": structures, "regions": regions,
        }
    )  # fmt: skip
    save_model(tmp_path / "x.safetensors", small(in_channels=2), protocol=asked)
    said = models("info", "x.safetensors")
    assert line(said, "output") == "3 overlapping regions" and line(said, "input") == "3-D, 2 channels"
    assert line(said, "intensity") == "z-score of each channel, voxels of 0 left out"
    assert line(said, "scans") == "MR: T1w, T2w; RAS, any voxel size"


@pytest.mark.usefixtures("small_for_tiny")
def test_info_of_a_name_has_the_protocol_of_the_catalogue(tiny: Path) -> None:
    assert models("import", tiny).code == 0
    said = models("info", "swin-unetr-btcv-tiny")
    assert said.code == 0 and "13 left adrenal gland" in line(said, "structures")
    assert line(said, "intensity") == "-175 to 250 to [0, 1], clipped"


def test_info_of_a_damaged_file(mine: Path) -> None:
    mine.write_bytes(mine.read_bytes()[:-7])
    said = models("info", mine)
    assert said.code == 4 and said.out == "" and "mine.safetensors" in said.err


# path, import, verify, pack ------------------------------------------------------------------------------------------


def test_path_of_what_is_not_here_says_what_to_type(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    said = models("path", "swin-unetr-btcv-tiny")
    assert said.code == 4 and f"save {TINY}, then type: medical models import {TINY}" in said.err
    monkeypatch.setenv("RESTORE_OFFLINE", "0")
    said = models("path", "swin-unetr-btcv-tiny")
    assert said.err.strip().endswith("Get them: medical models pull swin-unetr-btcv-tiny")  # with nothing behind it
    assert models("path") == Said(0, f"{cache}\n", "") and not cache.exists()


def test_another_network_is_not_imported(mine: Path, cache: Path) -> None:
    said = models("import", mine, "--as", "swin-unetr-btcv-tiny")
    assert said.code == 4 and "swin-unetr-btcv-tiny has 4,078,220: it is another network" in said.err
    unnamed = models("import", mine)
    assert unnamed.code == 2 and unnamed.err.strip().endswith("Say it with --as NAME.")
    assert not list(cache.rglob("*"))


@pytest.mark.usefixtures("small_for_tiny")
def test_imported_verified_packed_and_imported_elsewhere(
    tiny: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert models("import", tiny) == Said(0, f"{cache / TINY}\n", "")
    assert " cached " in models("list").out and "cached: x1" not in models("list").out
    said = models("verify")
    assert said.code == 0 and f"swin-unetr-btcv-tiny  {TINY}  sha256 {sha256_file(tiny)} (as recorded)" in said.out
    said = models("pack", "w.zip", "swin-unetr-btcv-tiny")
    assert said.code == 0 and f"swin-unetr-btcv-tiny  {TINY}  licence of weights: unknown" in said.out
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "there"))
    said = models("import", "w.zip")
    assert said == Said(0, f"swin-unetr-btcv-tiny  imported: {tmp_path / 'there' / TINY}\n", "")
    assert files(tmp_path / "there") == files(cache)
    body = bytearray((tmp_path / "there" / TINY).read_bytes())
    body[-1] ^= 1
    (tmp_path / "there" / TINY).write_bytes(body)
    said = models("verify", "swin-unetr-btcv-tiny")
    assert said.code == 4 and said.out.startswith("DAMAGED") and "`medical models path NAME` tells" in said.err


def test_pack_names_what_is_not_here(tmp_path: Path) -> None:
    said = models("pack", "w.zip", "swin-unetr-btcv-tiny")
    assert said.code == 4 and f"swin-unetr-btcv-tiny ({TINY})" in said.err and files(tmp_path) == {}


def test_an_encoder_alone_is_imported_as_one_and_as_nothing_else(tmp_path: Path, cache: Path) -> None:
    """As `model_swinvit.pt` is published: other names than in whole networks, and tensors of pretext tasks."""
    whole = published(small())
    encoder = {
        "module." + name.removeprefix("swinViT.").replace("mlp.linear", "mlp.fc"): tensor
        for name, tensor in whole.items()
        if name.startswith("swinViT.")
    }
    torch.save({"state_dict": encoder | {"module.norm.weight": torch.ones(48)}}, tmp_path / ENCODER)
    assert models("import", ENCODER) == Said(0, f"{cache / ENCODER}\n", "")
    said = models("import", ENCODER, "--as", "swin-unetr-btcv-tiny")
    assert said.code == 4 and "encoder of Swin UNETR alone" in said.err
    said = models("info", ENCODER)
    assert said.code == 4 and "with which a training can begin" in said.err
    torch.save({"state_dict": {"head.weight": torch.ones(3, 3)}}, tmp_path / "other.pt")
    said = models("import", "other.pt", "--as", "swin-unetr-ssl-encoder")
    assert said.code == 4 and "holds no encoder" in said.err

"""Loading by name and from files: catalogue, protocols, what a file says of itself, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from data_specs import SegmentationSpec, load_spec
from hybrid.errors import RequestError, WeightsError
from hybrid.weights.catalogue import Catalogue
from hybrid.weights.checkpoints import write_checkpoint
from medical.loading import catalogue, entry_protocol, find_weights, load_model, save_model
from medical.models import MODULES, family
from medical.models.swin_unetr import KEYS, SwinUNETR
from medical.protocol import Protocol, ZScore
from medical.structures import Structure
from restore import models as pictures

CREATE = {"feature_size": 12, "depths": (1, 1), "num_heads": (2, 3), "window": 2, "out_channels": 3, "merging": "v2"}
PROTOCOL = Protocol(
    modality="MR",
    channels=("T1w",),
    spacing=(1.0, 1.0, 1.5),
    intensity=ZScore(),
    patch=(16, 16, 24),
    structures=(Structure(value=1, name="anterior"), Structure(value=2, name="posterior")),
)


@pytest.fixture
def network() -> SwinUNETR:
    torch.manual_seed(0)
    made = family("swin_unetr").create(**CREATE)
    assert isinstance(made, SwinUNETR)
    return made


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RESTORE_OFFLINE", "1")
    return tmp_path / "cache"


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, medical.models; medical.loading.catalogue(); print('torch' in sys.modules, 'monai' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["False", "False"]


# The catalogue ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", catalogue(), ids=lambda entry: entry.name)
def test_entries(entry) -> None:
    assert entry.family in MODULES or (entry.family in pictures.MODULES and entry.task == "denoising")
    assert entry.fallback is None, "a label map must come from the network that was asked for"
    assert list(entry.files) == [1]
    if entry.protocol is None:
        assert entry.shipped or entry.name.endswith(("-encoder", "-classifier"))  # a shipped file carries its own
        return
    protocol = entry_protocol(entry.name, entry.protocol)
    features = {62_187_296: (1, 14, 48), 15_703_304: (1, 14, 24), 4_078_220: (1, 14, 12), 62_191_941: (4, 3, 48)}
    if entry.files[1].parameters in features:
        inputs, outputs, _ = features[entry.files[1].parameters]
        assert (len(protocol.channels), protocol.outputs) == (inputs, outputs)


def test_published_protocols() -> None:
    """As the specification of the published files has them."""
    btcv = entry_protocol("b", catalogue().entry("swin-unetr-btcv-base").protocol or {})
    assert btcv.intensity.model_dump() == {"kind": "window", "low": -175, "high": 250}
    assert (btcv.spacing, btcv.patch, btcv.orientation) == ((1.5, 1.5, 2.0), (96, 96, 96), "RAS")
    names = "spleen, right kidney, left kidney, gallbladder, oesophagus, liver, stomach, aorta, inferior vena cava"
    assert ", ".join(s.name for s in btcv.structures[:9]) == names and btcv.structures[10].name == "pancreas"
    brats = entry_protocol("b", catalogue().entry("swin-unetr-brats21-fold3").protocol or {})
    assert brats.spacing is None and brats.patch == (128, 128, 128) and brats.overlap == 0.6
    assert brats.intensity == ZScore(nonzero=True)
    tc, wt, et = 0, 1, 2  # the order of the network's channels
    assert [(region.channel, region.value) for region in brats.regions] == [(wt, 2), (tc, 1), (et, 4)]
    scored = {region.name: region.values for region in load_spec("brats21", SegmentationSpec).regions}
    assert {region.name: region.values for region in brats.regions} == scored


def test_unknown_names_and_absent_weights(offline: Path) -> None:
    with pytest.raises(RequestError, match="no model named 'swin-unetr-btcv'.*Did you mean swin-unetr-btcv-"):
        load_model("swin-unetr-btcv")
    with pytest.raises(WeightsError, match=r"tiny_5000ep.*medical models import swin_unetr\.tiny"):
        load_model("swin-unetr-btcv-tiny")
    with pytest.raises(WeightsError, match=r"There is no file nowhere\.pt"):
        load_model("nowhere.pt")


def test_model_by_name_has_the_protocol_of_its_entry(network: SwinUNETR, offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = catalogue().entry("swin-unetr-btcv-tiny").model_copy(update={"protocol": PROTOCOL.model_dump()})
    monkeypatch.setattr("medical.loading.catalogue", lambda: Catalogue({entry.name: entry}, Path()))
    offline.mkdir()
    torch.save({KEYS.to_published(k): v for k, v in network.state_dict().items()}, offline / entry.files[1].name)
    loaded = load_model(entry.name, device="cpu")
    assert loaded.protocol == PROTOCOL
    assert loaded.source is not None and (loaded.source.name, loaded.source.origin) == (entry.name, "cache")
    assert isinstance(loaded, SwinUNETR) and loaded.config.merging == "legacy"  # as all published files were trained
    assert find_weights(entry.name).path == offline / entry.files[1].name


# What a file says of itself --------------------------------------------------------------------------------------


def test_protocol_and_options_travel_with_the_weights(network: SwinUNETR, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_model(path, network, protocol=PROTOCOL, metadata={"seed": "3"}, half=True)
    loaded = load_model(path, device="cpu")
    assert loaded.protocol == PROTOCOL and loaded.options() == network.options() == {"merging": "v2", "normalize": True}
    assert loaded.source is not None and loaded.source.file == "x.safetensors" and len(loaded.source.sha256) == 64
    for key, value in loaded.state_dict().items():
        torch.testing.assert_close(value, network.state_dict()[key], atol=1e-3, rtol=1e-3)
    with safe_open(path, framework="pt") as stream:
        assert stream.metadata()["seed"] == "3" and stream.get_tensor("out.conv.conv.weight").dtype == torch.float16
    save_model(path, loaded)  # a network keeps its protocol
    assert load_model(path, device="cpu").protocol == PROTOCOL


def test_what_the_caller_says_goes_before_what_the_file_says(network: SwinUNETR, tmp_path: Path) -> None:
    save_model(tmp_path / "x.safetensors", network)
    loaded = load_model(tmp_path / "x.safetensors", device="cpu", merging="legacy")
    assert loaded.options()["merging"] == "legacy" and loaded.protocol is None


def test_protocol_of_another_network_is_refused(network: SwinUNETR, tmp_path: Path) -> None:
    other = PROTOCOL.model_copy(update={"channels": ("T1w", "T2w")})
    path = tmp_path / "x.safetensors"
    with pytest.raises(WeightsError, match="speaks of 2 channels in and 3 out; the network has 1 and 3"):
        save_model(path, network, protocol=other)
    assert not path.exists()
    state = {KEYS.to_published(k): v for k, v in network.state_dict().items()}
    write_checkpoint(path, state, {"protocol": other.model_dump_json()})
    with pytest.raises(WeightsError, match="speaks of 2 channels in"):
        load_model(path, device="cpu")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"protocol": "{"}, "protocol that are no JSON"),
        ({"protocol": "[]"}, "protocol that are no JSON object"),
        ({"protocol": "{}"}, r"protocol of x\.safetensors is not valid: modality"),
        ({"options": "3"}, "options that are no JSON object"),
        ({"options": '{"merging": "none"}'}, "no merging order 'none'"),
    ],
)
def test_headers_that_cannot_be_read(header: dict, message: str, network: SwinUNETR, tmp_path: Path) -> None:
    state = {KEYS.to_published(k): v for k, v in network.state_dict().items()}
    write_checkpoint(tmp_path / "x.safetensors", state, header)
    with pytest.raises(WeightsError, match=message):
        load_model(tmp_path / "x.safetensors", device="cpu")


def test_other_networks_are_refused(tmp_path: Path) -> None:
    torch.save({"layers.0.weight": torch.ones(3)}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"no supported network.*Supported: swin_unetr"):
        load_model(tmp_path / "x.pth", device="cpu")

"""Pre-trained CSWin encoders: every published form of file, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hybrid.errors import RequestError, WeightsError
from medical.loading import catalogue, save_model
from medical.models.cswin_pretrained import load_encoder
from medical.models.cswin_unet import FAMILY, KEYS, PREFIX, CSWinUNet
from medical.models.cswin_unet_3d import CSWinUNet3D
from tests.medical.test_cswin_unet import SMALLER, SMALLER_3D, TOLERANCE, case_of, in_file, saved, slices, volumes
from tests.restore.parity import fill, largest_difference


def test_recorded_classifier(shared: Path, tmp_path: Path) -> None:
    """The whole published backbone, as an encoder with the file's classifier behind it; and what of it a U-Net takes."""
    case = case_of("cswin_tiny_224_classifier", shared / "parity")
    state = fill(case)
    path = saved({"state_dict_ema": state}, tmp_path / "cswin_tiny_224.pth")
    network = FAMILY.create(depths=(1, 2, 21, 1))
    assert isinstance(network, CSWinUNet)
    assert load_encoder(network, path) == len(case.entries) - 2
    with torch.inference_mode():
        features = network.eval().encoder(torch.from_numpy(case.input))[-1].mean((2, 3))
        assert largest_difference(F.linear(features, state["head.weight"], state["head.bias"]), case) < TOLERANCE
    published = FAMILY.create()
    assert isinstance(published, CSWinUNet) and load_encoder(published, path) == 224
    assert torch.equal(published.encoder.state_dict()["stages.3.8.mlp.fc1.weight"], state["stage3.8.mlp.fc1.weight"])


def encoder_file(network: CSWinUNet | CSWinUNet3D, path: Path, form: str) -> Path:
    """The encoder of a network as others publish it."""
    if form == "whole":
        save_model(path.with_suffix(".safetensors"), network)
        return path.with_suffix(".safetensors")
    own = {k.removeprefix(PREFIX): v for k, v in in_file(network).items() if k in map(KEYS.to_published, encoder_keys(network))}
    if form == "classifier":
        return saved({"state_dict_ema": own | {"head.weight": torch.ones(10, 64), "head.bias": torch.ones(10)}}, path)
    last = max(network.config.stages)
    norms = {f"norm{i}.weight": torch.ones(network.config.width(i)) for i in range(1, last)}
    segmenting = {k.replace("norm.", f"norm{last}.") if k.startswith("norm.") else k: v for k, v in own.items()} | norms
    head = {"decode_head.conv_seg.weight": torch.ones(3)}
    return saved({"meta": {}, "state_dict": {"backbone." + k: v for k, v in segmenting.items()} | head}, path)


def encoder_keys(network: nn.Module) -> list[str]:
    return [key for key in network.state_dict() if key.startswith("encoder.")]


@pytest.mark.parametrize("form", ["classifier", "upernet", "whole"])
def test_forms_of_encoder_files(form: str, tmp_path: Path) -> None:
    """A deeper one gives its first blocks; the decoder's begin as the encoder's, and the rest of it stays as it was."""
    given, network = slices(depths=(2, 3, 1)), FAMILY.create(**SMALLER)
    assert isinstance(network, CSWinUNet)
    rest = {k: v.clone() for k, v in network.state_dict().items() if not k.startswith(("encoder.", "stages."))}
    count = load_encoder(network, encoder_file(given, tmp_path / "x.pth", form))
    assert count == len(network.encoder.state_dict()) < len(given.encoder.state_dict())
    theirs = given.encoder.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in network.encoder.state_dict().items())
    assert all(torch.equal(value, theirs["stages." + key]) for key, value in network.stages.state_dict().items())
    assert all(torch.equal(network.state_dict()[key], value) for key, value in rest.items())


def test_encoder_of_a_volume_network(tmp_path: Path) -> None:
    given, network = volumes(), FAMILY.create(**SMALLER_3D | {"out_channels": 5})
    assert isinstance(network, CSWinUNet3D)
    count = load_encoder(network, encoder_file(given, tmp_path / "x.pth", "whole"))
    assert count == len(encoder_keys(given))
    assert all(torch.equal(network.state_dict()[key], given.state_dict()[key]) for key in encoder_keys(given))


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_encoder_of_three_channels_serves_others(channels: int, tmp_path: Path) -> None:
    given = slices()
    network = FAMILY.create(**SMALLER | {"in_channels": channels})
    assert isinstance(network, CSWinUNet)
    load_encoder(network, encoder_file(given, tmp_path / "x.pth", "whole"))
    x = torch.rand(1, 1, 16, 24)
    with torch.inference_mode():
        expected = given.encoder.grids(x.expand(-1, 3, -1, -1))
        for grid, other in zip(network.eval().encoder.grids(x.expand(-1, channels, -1, -1)), expected, strict=True):
            torch.testing.assert_close(grid, other, atol=2e-5, rtol=0)


def test_encoders_that_do_not_match_are_refused(tmp_path: Path) -> None:
    given, network = slices(), slices()
    path = encoder_file(given, tmp_path / "x.pth", "classifier")
    state = torch.load(path, weights_only=True)["state_dict_ema"]
    before = {key: value.clone() for key, value in network.state_dict().items()}
    lost = {key: value for key, value in state.items() if key != "merge1.norm.bias"}
    with pytest.raises(WeightsError, match=r"1 missing \(merges\.1\.norm\.bias\)"):
        load_encoder(network, saved(lost, tmp_path / "y.pth"))
    with pytest.raises(WeightsError, match="of another shape"):
        load_encoder(network, encoder_file(slices(mlp_ratio=2.0), tmp_path / "y.pth", "classifier"))
    with pytest.raises(WeightsError, match=r"y\.pth holds no CSWin encoder"):
        load_encoder(network, saved({"conv.weight": torch.ones(3)}, tmp_path / "y.pth"))
    with pytest.raises(RequestError, match=r"trained with 4, 4, 4 heads, and the network has 2, 2, 4.*num_heads=\(4, 4, 4\)"):
        load_encoder(network, encoder_file(slices(num_heads=(4, 4, 4)), tmp_path / "y.pth", "whole"))
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())


def test_published_heads_are_asked_for(tmp_path: Path) -> None:
    """96 channels are published with 4 heads at first, not with one for each 32."""
    wide = {"embed_dim": 96, "depths": (1, 1), "split_size": (1, 2)}
    path = encoder_file(slices(**wide, num_heads=(4, 8)), tmp_path / "cswin_base_224.pth", "classifier")
    with pytest.raises(RequestError, match="trained with 4, 8, 16, 32 heads, and the network has 6, 12"):
        load_encoder(slices(**wide, num_heads=(6, 12)), path)


def test_catalogue_holds_the_published_encoders() -> None:
    names = {file.name for entry in catalogue() if entry.family == "cswin_unet" for file in entry.files.values()}
    assert {"cswin_tiny_224.pth", "cswin_large_384.pth", "upernet_cswin_base.pth"} <= names and len(names) == 10

"""`medical transfer`: slices to volumes and back, what is carried over, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from hybrid.errors import OutputError, RequestError, WeightsError
from hybrid.weights.checkpoints import read_checkpoint, write_checkpoint
from medical import load_model
from medical.loading import save_model
from medical.models import family
from medical.models.base import SegmentationNetwork
from medical.models.cross_d_conv import KEYS
from medical.segmentation.run import segment
from medical.training.losses import ClassLoss
from medical.training.transfer import ASIDE, transfer_file
from medical.volumes.label_maps import read_labels
from tests.medical.stubs import protocol, smooth, volume
from tests.medical.test_cli_segment import medical, weights  # noqa: F401  (a fixture)
from tests.restore.parity import draw, largest_difference, load_case
from tests.restore.parity import write_checkpoint as write_case

UNET: dict[str, Any] = {"in_channels": 1, "out_channels": 3, "depths": (1, 1), "width": 6}
SLICES = protocol(patch=(1, 32, 32), spacing=(4.0, 1.0, 1.0), orientation="SAR", mirror=(2,))
ANEW = {"orientation": "SAR", "patch": [16, 16, 32], "spacing": [2, 1, 1]}


def made(name: str = "cross_d_unet", **options: Any) -> SegmentationNetwork:
    network = family(name).create(**UNET | options)
    state = network.state_dict()
    network.load_state_dict({k: draw(k, list(v.shape), 0) if v.is_floating_point() else v for k, v in state.items()})
    return network.eval()


def saved(path: Path, *, half: bool = False, with_protocol: bool = True, **options: Any) -> Path:
    save_model(path, made(**options), protocol=SLICES if with_protocol else None, half=half)
    return path


def tensors(path: Path) -> dict[str, Tensor]:
    return read_checkpoint(path).state


def header(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def same(first: Path, second: Path) -> bool:
    a, b = tensors(first), tensors(second)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def test_volumes_of_plain_convolutions_are_turned_once_they_are_said_to_be_so(tmp_path: Path) -> None:
    """Whose kernels are called ``X.weight``, as by the authors' evaluation scripts."""
    network = made("cross_d_conv", in_channels=3, spatial_dims=3)
    state = {KEYS.to_published(key): value for key, value in network.state_dict().items()}
    plain = {name.replace("weights_3d", "weight"): value for name, value in state.items()}
    for name, content in (("ours", state), ("plain", plain)):
        torch.save(content, tmp_path / f"{name}.pth")
    with pytest.raises(WeightsError, match="could be another 3-D ResNet.*save_model"):
        transfer_file(tmp_path / "plain.pth", tmp_path / "plain.safetensors", to=2)
    save_model(tmp_path / "said.safetensors", load_model(tmp_path / "plain.pth", device="cpu", plain=True))
    transfer_file(tmp_path / "ours.pth", tmp_path / "ours.safetensors", to=2)
    transfer_file(tmp_path / "said.safetensors", tmp_path / "plain.safetensors", to=2)
    assert same(tmp_path / "ours.safetensors", tmp_path / "plain.safetensors")
    assert torch.equal(tensors(tmp_path / "plain.safetensors")["fc.weight"], state["fc.weight"])


# There and back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("options", [{}, {"bottleneck": True}, {"name": "cross_d_conv", "in_channels": 3}], ids=str)
def test_there_and_back_gives_the_tensors_of_slices_bit_by_bit(options: dict, half: bool, centre: bool, tmp_path: Path) -> None:
    slices = saved(tmp_path / "2d.safetensors", half=half, with_protocol=False, **options)
    before = slices.read_bytes()
    there = transfer_file(slices, tmp_path / "3d.safetensors", centre=centre)
    back = transfer_file(tmp_path / "3d.safetensors", tmp_path / "back.safetensors")
    assert same(slices, tmp_path / "back.safetensors") and slices.read_bytes() == before
    assert (there.spatial_dims, back.spatial_dims, there.roll, back.roll) == (3, 2, int(centre), -int(centre))
    assert not (there.initialised or there.left_out or back.initialised or back.left_out or back.laid_aside)
    x = torch.rand(1, made(**options).card.in_channels, 40, 27, generator=torch.Generator().manual_seed(0))
    first, second = (load_model(path, device="cpu") for path in (slices, tmp_path / "back.safetensors"))
    assert torch.equal(first(x), second(x))


def test_back_and_there_gives_the_tensors_of_volumes(tmp_path: Path) -> None:
    volumes = saved(tmp_path / "3d.safetensors", spatial_dims=3)
    report = transfer_file(volumes, tmp_path / "2d.safetensors")
    assert report.roll == -1 and all("rotation_params" in name for name in report.initialised)
    assert any("begin with angle 0" in note for note in report.notes)
    transfer_file(tmp_path / "2d.safetensors", tmp_path / "again.safetensors")
    found, expected = tensors(tmp_path / "again.safetensors"), tensors(volumes)
    assert {name for name in found if not name.startswith(ASIDE)} == set(expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_what_is_initialised_is_so_alike_each_time(tmp_path: Path) -> None:
    volumes = saved(tmp_path / "3d.safetensors", spatial_dims=3)
    for name in ("a", "b"):
        torch.rand(3)
        transfer_file(volumes, tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


# What it computes ------------------------------------------------------------------------------------------------


def test_recorded_outputs_of_a_transferred_network(shared: Path, tmp_path: Path) -> None:
    case = load_case(shared / "parity" / "cross_d_conv" / "resnet18_3d_transfer")
    transfer_file(write_case(case, tmp_path), tmp_path / "3d.safetensors")
    network = load_model(tmp_path / "3d.safetensors", device="cpu")
    with torch.inference_mode():
        assert largest_difference(network(torch.from_numpy(case.input)), case) < 5e-6


def test_centred_kernels_see_in_their_middle_what_slices_saw_at_angle_0(tmp_path: Path) -> None:
    slices = saved(tmp_path / "2d.safetensors")
    transfer_file(slices, tmp_path / "3d.safetensors", centre=True)
    flat, deep = load_model(slices, device="cpu"), load_model(tmp_path / "3d.safetensors", device="cpu")
    x = torch.rand(1, 1, 21, 18, generator=torch.Generator().manual_seed(0))
    for module in flat.modules():
        if hasattr(module, "reset_angle"):
            module.reset_angle()
    kernel = deep.encoder.stem[0].weights_3d[:, :, 3]
    torch.testing.assert_close(flat.encoder.stem[0](x), F.conv2d(x, kernel, stride=2, padding=3), atol=1e-5, rtol=0)


def test_slices_of_a_network_of_volumes_see_the_middle_of_its_kernels(tmp_path: Path) -> None:
    volumes = saved(tmp_path / "3d.safetensors", spatial_dims=3)
    transfer_file(volumes, tmp_path / "2d.safetensors")
    deep, flat = load_model(volumes, device="cpu"), load_model(tmp_path / "2d.safetensors", device="cpu")
    x = torch.rand(1, 1, 21, 18, generator=torch.Generator().manual_seed(0))
    expected = F.conv2d(x, deep.encoder.stem[0].weights_3d[:, :, 3], stride=2, padding=3)
    torch.testing.assert_close(flat.encoder.stem[0](x), expected, atol=1e-5, rtol=0)


def test_a_transferred_network_learns_on_volumes(tmp_path: Path) -> None:
    """Every parameter of it; and what was laid aside stands in no one's way."""
    transfer_file(saved(tmp_path / "2d.safetensors"), tmp_path / "3d.safetensors")
    network = load_model(tmp_path / "3d.safetensors", device="cpu").requires_grad_(True).train()
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 1, 16, 32, 16, generator=generator), torch.randint(0, 3, (2, 1, 16, 32, 16), generator=generator)
    optimizer, loss = torch.optim.SGD(network.parameters(), lr=0.05), ClassLoss([1, 2], batch=False, background=False)
    values = []
    for _ in range(8):
        values.append(loss(network(x), y))
        optimizer.zero_grad()
        values[-1].backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())
    assert values[-1] < values[0]


# Protocol and report ---------------------------------------------------------------------------------------------


def test_protocol_keeps_what_holds_and_says_what_does_not(tmp_path: Path) -> None:
    slices = saved(tmp_path / "2d.safetensors")
    report = transfer_file(slices, tmp_path / "a.safetensors")
    assert report.anew == ("orientation", "patch") and report.protocol == ()
    network = load_model(tmp_path / "a.safetensors", device="cpu")
    assert network.protocol is None
    with pytest.raises(RequestError, match="Give --protocol FILE"):
        segment(volume(smooth(8, 8, 8)), network)

    transfer_file(slices, tmp_path / "b.safetensors", protocol=ANEW)
    found = load_model(tmp_path / "b.safetensors", device="cpu").protocol
    held = ("modality", "channels", "intensity", "structures", "regions", "overlap")
    assert all(getattr(found, name) == getattr(SLICES, name) for name in held)
    assert (found.orientation, found.patch, found.spacing, found.mirror) == ("SAR", (16, 16, 32), (2, 1, 1), ())

    transfer_file(tmp_path / "b.safetensors", tmp_path / "back.safetensors")
    assert load_model(tmp_path / "back.safetensors", device="cpu").protocol == SLICES


def test_incomplete_and_wrong_protocols_are_refused(tmp_path: Path) -> None:
    slices, target = saved(tmp_path / "2d.safetensors"), tmp_path / "3d.safetensors"
    with pytest.raises(RequestError, match="does not say patch"):
        transfer_file(slices, target, protocol={"orientation": "SAR"})
    with pytest.raises(WeightsError, match="orientation"):
        transfer_file(slices, target, protocol=ANEW | {"orientation": "SUR"})
    with pytest.raises(WeightsError, match="speaks of 2 channels in"):
        transfer_file(slices, target, protocol=ANEW | {"channels": ["T1w", "T2w"]})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2d.safetensors"]


def test_report_lists_each_tensor_once(tmp_path: Path) -> None:
    slices = saved(tmp_path / "2d.safetensors")
    report = transfer_file(slices, tmp_path / "3d.safetensors", centre=True)
    written = json.loads((tmp_path / "3d.safetensors.json").read_text(encoding="utf-8"))
    assert written == json.loads(report.to_json())
    listed = [
        name for kind in ("carried", "rolled", "reshaped", "laid_aside", "initialised", "left_out") for name in written[kind]
    ]
    assert sorted(listed) == sorted(tensors(tmp_path / "3d.safetensors"))
    assert written["reshaped"] == ["head.weight"]
    kernels = {name for name, value in tensors(slices).items() if name.endswith("weights_3d") and value.shape[-1] > 1}
    assert set(written["rolled"]) == kernels
    assert set(written["laid_aside"]) == {f"{ASIDE}{name}" for name in tensors(slices) if "rotation_params" in name}
    past = json.loads(header(tmp_path / "3d.safetensors")["transfer"])
    assert (past["roll"], past["sha256"]) == (1, read_checkpoint(slices).sha256)


# The command -----------------------------------------------------------------------------------------------------


def test_the_command_turns_a_file_and_the_result_segments_a_volume(tmp_path: Path) -> None:
    slices = saved(tmp_path / "2d.safetensors")
    (tmp_path / "anew.yaml").write_text(yaml.safe_dump(ANEW))
    said = medical("transfer", slices, "-o", tmp_path / "3d.safetensors", "--protocol", tmp_path / "anew.yaml")
    assert said.code == 0 and said.err == ""
    for text in (
        "3d.safetensors",
        "now for volumes",
        "carried over: ",
        "laid aside for the way back: ",
        "reshaped: 1 (head.weight)",
    ):
        assert text in said.out
    values = (smooth(15, 19, 21) * 50 + 200).astype(np.int16)
    nib.save(nib.Nifti1Image(values, np.diag([1.0, 1, 2, 1])), tmp_path / "scan.nii.gz")
    said = medical("segment", tmp_path / "scan.nii.gz", "--weights", tmp_path / "3d.safetensors", "--no-report", "-q")
    assert said.code == 0, said.err
    labels, _, structures = read_labels(tmp_path / "scan_seg.nii.gz")
    assert labels.shape == values.shape and len(structures) == 2

    said = medical("transfer", tmp_path / "3d.safetensors", "-o", tmp_path / "back.safetensors", "--json")
    assert json.loads(said.out)["spatial_dims"] == 2
    assert same(slices, tmp_path / "back.safetensors")


def test_a_turned_classifier_is_still_none_that_segments(tmp_path: Path) -> None:
    report = transfer_file(
        saved(tmp_path / "2d.safetensors", name="cross_d_conv", with_protocol=False), tmp_path / "3d.safetensors"
    )
    assert report.anew == ()
    nib.save(nib.Nifti1Image(smooth(9, 9, 9), np.eye(4)), tmp_path / "scan.nii.gz")
    before = sorted(path.name for path in tmp_path.iterdir())
    said = medical("segment", tmp_path / "scan.nii.gz", "--weights", tmp_path / "3d.safetensors")
    assert said.code == 2 and "Cross-D ResNet-6 is made for classification" in said.err
    said = medical("models", "info", tmp_path / "3d.safetensors")
    assert said.code == 0 and "segments nothing" in said.out, said.err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_the_command_refuses(tmp_path: Path, weights: Path) -> None:  # noqa: F811
    slices, target = saved(tmp_path / "2d.safetensors"), tmp_path / "3d.safetensors"
    before = sorted(path.name for path in tmp_path.iterdir())
    for arguments, code, text in (
        ((weights, "-o", target), 2, "is Swin UNETR, whose kernels are for volumes alone"),
        ((slices, "-o", target, "--to", "2d"), 2, "for slices already. Choose --to 3d"),
        ((slices, "-o", tmp_path / "3d.pth"), 2, "Name it 3d.safetensors"),
        ((slices, "-o", slices, "--overwrite"), 2, "is the input"),
        ((slices, "-o", slices), 6, "is there already"),
        ((slices, "-o", target, "--protocol", tmp_path / "none.yaml"), 3, "cannot be read"),
        ((tmp_path / "none.pth", "-o", target), 4, "none.pth"),
    ):
        said = medical("transfer", *arguments)
        assert said.code == code and text in said.err, said.err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_centre_is_for_the_way_to_volumes(tmp_path: Path) -> None:
    volumes = saved(tmp_path / "3d.safetensors", spatial_dims=3)
    with pytest.raises(RequestError, match="--centre is for the way to volumes"):
        transfer_file(volumes, tmp_path / "2d.safetensors", centre=True)


def test_a_changed_header_is_refused(tmp_path: Path) -> None:
    transfer_file(saved(tmp_path / "2d.safetensors"), tmp_path / "3d.safetensors")
    changed = tmp_path / "changed.safetensors"
    write_checkpoint(changed, tensors(tmp_path / "3d.safetensors"), header(tmp_path / "3d.safetensors") | {"transfer": "{"})
    with pytest.raises(WeightsError, match="says of its transfer what is not understood"):
        transfer_file(changed, tmp_path / "back.safetensors")


def test_nothing_is_left_behind_where_the_output_cannot_be_written(tmp_path: Path) -> None:
    slices = saved(tmp_path / "2d.safetensors")
    with pytest.raises(OutputError):
        transfer_file(slices, tmp_path / "absent" / "3d.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2d.safetensors"]


def test_names_are_published_ones(tmp_path: Path) -> None:
    slices = saved(tmp_path / "2d.safetensors")
    transfer_file(slices, tmp_path / "3d.safetensors")
    expected = {KEYS.to_published(name) for name in made(spatial_dims=3).state_dict()}
    assert {name for name in tensors(tmp_path / "3d.safetensors") if not name.startswith(ASIDE)} == expected

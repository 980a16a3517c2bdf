"""Small files under the names that the documents use, so that their commands run as they stand there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import yaml
from PIL import Image

from hybrid.weights.checkpoints import read_checkpoint, write_checkpoint
from medical.loading import save_model
from medical.models import family
from medical.protocol import Protocol
from medical.training.run import load_recipe
from tests.documented import ROOT
from tests.every_command import FACE, write_inputs
from tests.medical.dicom_stubs import series
from tests.medical.picture_stubs import protocol_2d, tissue, write_pair

WEIGHTS = {"hat": "restore/weights/hat-compact-x4", "hippocampus": "medical/weights/hippocampus"}
WEIGHTS |= {"denoise-mr": "medical/weights/denoise-mr-compact"}
SLICES = {"spatial_dims": 2, "width": 8, "depths": (1, 1)}


def write_documented(folder: Path) -> None:
    """Everything that a documented command which is run takes from its working folder."""
    write_inputs(folder / "made")
    _pictures(folder)
    _training(folder)
    _scans(folder)
    _cells(folder)
    _weights(folder)
    shutil.rmtree(folder / "made")


def _pictures(folder: Path) -> None:
    with Image.open(ROOT / "data_specs" / "mini" / "colosseum.png") as crop:
        photo = crop.crop((60, 80, 172, 160))
        photo.save(folder / "input.png")
        photo.save(folder / "photo.png")
        photo.save(folder / "photo.jpg", quality=60)
        Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257).save(folder / "scan.tif")
        photo.save(folder / "huge.tif")
        tiny = crop.resize((24, 20))
    for name in ("holiday/beach/a.png", "holiday/b.png", "scans/a.tif", "scans/b.tif", "album/a.png", "album/b.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        tiny.save(folder / name)
    for example in ("examples/colosseum.png", "medical/examples/hippocampus_141.nii.gz"):
        (folder / example).parent.mkdir(parents=True)
        shutil.copyfile(ROOT / example, folder / example)
    with Image.open(FACE) as faces:
        faces.save(folder / "old.jpg", quality=90)


def _training(folder: Path) -> None:
    """The recipe that docs/training.md writes out, and photographs for it."""
    written = re.search(r"```yaml\n(name: denoiser .*?)```", (ROOT / "docs" / "training.md").read_text(), re.DOTALL)
    assert written is not None
    (folder / "denoiser.yaml").write_text(written[1])
    (folder / "photographs").mkdir()
    for name in ("harbour", "garden", "more"):
        shutil.copyfile(folder / "photo.jpg", folder / "photographs" / f"{name}.jpg")


def _scans(folder: Path) -> None:
    made = folder / "made"
    scan = nib.load(made / "scan.nii.gz")
    values = np.asarray(scan.dataobj)
    for name in ("scan", "ct", "scans/one", "scans/clinic/two"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made / "scan.nii.gz", folder / f"{name}.nii.gz")
    nib.save(nib.Nifti1Image(np.stack([values] * 4, -1), scan.affine), folder / "four_d.nii.gz")
    series(folder / "study", values.transpose(2, 1, 0).astype(np.int64), spacing=(1, 1), step=(0, 0, 1))
    for place in ("hippocampus", "FOLDER"):
        shutil.copytree(made / "set", folder / place)
    shutil.copyfile(made / "set" / "labelsTr" / "case_0.nii.gz", folder / "mask.nii.gz")
    for name, part in {"results": "predictions", "references": "references", "maps": "maps"}.items():
        shutil.copytree(made / "set" / part, folder / name)
    (folder / "study.key").write_text("0123456789abcdef" * 4)


def _cells(folder: Path) -> None:
    for number, name in enumerate("ab"):
        write_pair(folder / "cells", name, *tissue(number))
    shutil.move(folder / "cells" / "images", folder / "sections")
    for name in ("section.png", "slide.tif"):
        Image.open(folder / "sections" / "a.png").save(folder / name)
    for place in ("found", "labels"):
        shutil.copytree(folder / "cells" / "labels", folder / place)
    shutil.rmtree(folder / "cells")


def _weights(folder: Path) -> None:
    """Shipped networks, and small ones with drawn weights, under the names of published and of one's own files."""
    shipped = {name: ROOT / f"{stem}.safetensors" for name, stem in WEIGHTS.items()}
    torch.save({"params_ema": read_checkpoint(shipped["hat"]).state}, folder / "Real_HAT_GAN_SRx4.pth")
    for name in ("runs/mine/mine", "fold0", "fold1", "fold2"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(shipped["hippocampus"], folder / f"{name}.safetensors")
    for number in (1, 2):  # members of an ensemble that are not one and the same
        whole = read_checkpoint(shipped["hippocampus"])
        moved = {key: value * (1 + number / 100) for key, value in whole.state.items()}
        write_checkpoint(folder / f"fold{number}.safetensors", moved, whole.metadata, half=True)
    (folder / "runs" / "denoise").mkdir()
    shutil.copyfile(shipped["denoise-mr"], folder / "runs" / "denoise" / "denoise-mr-compact.safetensors")
    torch.manual_seed(0)
    for name, kind, protocol, options in (
        ("membrane", "cross_d_unet", protocol_2d(patch=(32, 32)), SLICES | {"out_channels": 2}),
        ("my-network", "swin_unetr", None, {"feature_size": 12, "out_channels": 3, "merging": "v2"}),
    ):
        network = family(kind).create(in_channels=1, **options)
        save_model(folder / f"{name}.safetensors", network, protocol=protocol)
    torch.save({"state_dict": read_checkpoint(folder / "my-network.safetensors").state}, folder / "my-network.pt")
    (folder / "my-network.safetensors").unlink()
    asked = Protocol.model_validate_json(read_checkpoint(shipped["hippocampus"]).metadata["protocol"])
    (folder / "protocol.yaml").write_text(yaml.safe_dump(asked.model_dump(mode="json", exclude_none=True)))
    slices = family("cross_d_unet").create(in_channels=1, out_channels=3, **SLICES)
    (folder / "runs" / "slices").mkdir()
    place = folder / "runs" / "slices" / "hippocampus-cross-d-slices.safetensors"
    save_model(place, slices, protocol=load_recipe("hippocampus-cross-d-slices").protocol)
    written = re.search(r"```yaml\n(orientation: .*?)```", (ROOT / "docs" / "systems.md").read_text(), re.DOTALL)
    assert written is not None
    (folder / "volumes.yaml").write_text(written[1])

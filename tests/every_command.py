"""As a script: run every command that leaves files, each on small inputs, into a folder of its own.

    every_command.py INPUTS OUTPUTS

Both folders are the same for everyone who runs it in the same state; `tests/test_determinism.py` runs it twice.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import yaml
from PIL import Image

from restore.models.nafnet import KEYS, NAFNet, NAFNetConfig
from tests.command import Said, medical, restore, smooth
from tests.medical.dicom_stubs import series

SCAN = Path(__file__).resolve().parents[1] / "medical" / "examples" / "hippocampus_141.nii.gz"
FACE = Path(__file__).resolve().parent / "data" / "faces" / "scene.jpg"
TRAINING = {"steps": 4, "batch": 2, "learning_rate": 0.001, "log_every": 2, "validate_every": 2}
NAFNET = {"family": "nafnet", "options": {"width": 8, "encoder_depths": [1], "middle_depth": 1, "decoder_depths": [1]}}
SWIN = {"feature_size": 4, "depths": [1, 1], "num_heads": [1, 2], "window": 2, "merging": "v2"}
NOISE = {"kind": "rician-noise", "sigma": [0.1, 0.1]}
MR = {"modality": "MR", "channels": ["T1w"], "spacing": [1, 1, 1], "intensity": {"kind": "z-score"}, "patch": [16, 16, 16]}
STRUCTURES = [{"value": 1, "name": "Anterior"}, {"value": 2, "name": "Posterior"}]


def write_inputs(folder: Path) -> None:
    """Pictures, scans with label maps, two data sets and recipes."""
    rng = np.random.default_rng(0)
    photos = folder / "photos"
    photos.mkdir(parents=True)
    for name, size in (("a.png", (48, 64)), ("b.png", (64, 48)), ("c.png", (40, 40))):
        grain = rng.integers(-12, 13, (*size, 3))
        Image.fromarray((smooth(*size) * 255 + grain).clip(0, 255).astype(np.uint8)).save(photos / name)
    Image.open(photos / "a.png").save(folder / "photo.tif")
    Image.open(photos / "a.png").save(folder / "photo.jpg", quality=30)
    Image.open(FACE).save(folder / "faces.png")
    scan = nib.load(SCAN)
    values = np.asarray(scan.dataobj)[:24, :26, :24].astype(np.float32)
    labels = (values > np.quantile(values, 0.8)).astype(np.uint8) + (values > np.quantile(values, 0.95))
    for part in ("imagesTr", "labelsTr", "references", "predictions"):
        (folder / "set" / part).mkdir(parents=True)
    for number in range(4):
        noise = rng.normal(0, 3, values.shape).astype(np.float32)
        nib.save(nib.Nifti1Image((values + noise).clip(0), scan.affine), folder / "set" / "imagesTr" / f"case_{number}.nii.gz")
        nib.save(nib.Nifti1Image(labels, scan.affine), folder / "set" / "labelsTr" / f"case_{number}.nii.gz")
        for part, moved in (("references", 0), ("predictions", 1)):
            nib.save(nib.Nifti1Image(np.roll(labels, moved, 0), scan.affine), folder / "set" / part / f"case_{number}.nii.gz")
        (folder / "set" / "maps").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(labels / np.float32(2), scan.affine), folder / "set" / "maps" / f"case_{number}.nii.gz")
    nib.save(nib.Nifti1Image(values, scan.affine), folder / "scan.nii.gz")
    series(folder / "series", values.transpose(2, 1, 0).astype(np.int64), spacing=(1, 1), step=(0, 0, 1))
    network = NAFNet(NAFNetConfig(in_channels=3, width=8, encoder_depths=(1,), middle_depth=1, decoder_depths=(1,)))
    torch.save({"params": {KEYS.to_published(key): value for key, value in network.state_dict().items()}}, folder / "face.pth")
    names = [f"case_{number}" for number in range(4)]
    (folder / "set" / "dataset.json").write_text(
        json.dumps({"licence": "none", "splits": {"train": names[:2], "val": names[2:]}})
    )
    recipes = {
        "picture": {"task": "denoising", "network": NAFNET}
        | {"data": {"patch": 16, "degradation": "gaussian-noise", "validation": ["c.png"], "validation_crop": 32}},
        "segment": {"network": {"family": "swin_unetr", "options": SWIN}, "protocol": MR | {"structures": STRUCTURES}},
        "encoder": {"network": {"family": "swin_unetr", "options": SWIN}, "protocol": MR}
        | {"pretext": {"embedding": 8}, "data": {"validate_on": 4}},
    }
    for name, recipe in recipes.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"name": name, "licence": "none", "training": TRAINING} | recipe))


def commands(inputs: Path, out: Path) -> Iterator[tuple[str, Said]]:
    """Each command, run into the folder `out / name`."""
    pictures, cases = (inputs / "photos" / "a.png", inputs / "photos" / "b.png"), inputs / "set"
    yield "sr", restore("sr", *pictures, "-o", out / "sr")
    yield "sr-tif", restore("sr", inputs / "photo.tif", "-o", out / "sr-tif/x.tif", "--model", "espcn-compact", "--ensemble")
    yield "sr-jpeg", restore("sr", inputs / "photo.jpg", "-o", out / "sr-jpeg/x.webp", "--model", "hat-compact", "--scale", "2")
    yield "deblur", restore("deblur", pictures[0], "-o", out / "deblur/x.png", "--uncertainty", out / "deblur/u.png")
    yield "denoise", restore("denoise", pictures[0], "-o", out / "denoise/x.png", "--select", "mean")
    yield "dejpeg", restore("dejpeg", inputs / "photo.jpg", "-o", out / "dejpeg/x.png")
    yield (
        "face",
        restore("face", inputs / "faces.png", "-o", out / "face/x.png", "--weights", inputs / "face.pth", "--threshold", "0.3"),
    )
    small = ("--model", "espcn-compact")
    yield "compare", restore("compare", pictures[0], "-o", out / "compare.png", "--keep", out / "kept", *small)
    yield "bench", restore("bench", "mini", *small, "-o", out / "bench")
    yield "pack", restore("models", "pack", out / "pack.zip", "yunet")
    yield (
        "train",
        restore("train", inputs / "picture.yaml", "--data", inputs / "photos", "-o", out / "train", "--accelerator", "cpu"),
    )
    network = out / "train" / "picture.safetensors"
    mixed = ("--weight", "0.5", "-o", out / "mixed.safetensors")
    yield "interpolate", restore("models", "interpolate", network, network, *mixed)
    scan = inputs / "scan.nii.gz"
    yield "segment", medical("segment", scan, "-o", out / "segment/x.nii.gz", "--save-probabilities", "--uncertainty")
    yield "segment-seg", medical("segment", inputs / "series", "-o", out / "seg", "--format", "both")
    yield "restore", medical("restore", scan, "-o", out / "restore/x.nii.gz")
    mask = cases / "labelsTr" / "case_0.nii.gz"
    yield "stats", medical("stats", mask, scan, "-o", out / "stats")
    judged = (cases / "predictions", cases / "references")
    yield "evaluate", medical("evaluate", *judged, "-o", out / "evaluate")
    yield "detect", medical("detect-evaluate", cases / "maps", cases / "references", "-o", out / "detect")
    yield "restore-evaluate", medical("restore-evaluate", "--data", cases, "--cases", "1", "-o", out / "restore-evaluate")
    for name, command in (("segment", "train"), ("encoder", "pretrain")):
        trained = out / f"medical-{name}"
        yield f"medical-{name}", medical(command, inputs / f"{name}.yaml", "--data", cases, "-o", trained, "--accelerator", "cpu")


def main() -> None:
    inputs, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir()
    said = {}
    for name, result in commands(inputs, out):
        said[name] = {"code": result.code, "out": result.out, "err": result.err}
        sys.stderr.write(f"{name} {result.code}\n")
    (out / "said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main()

"""Make the kernels of the benchmark `kodak24-blur`, and the sheet that shows them.

    python examples/blur_kernels.py data_specs/kodak24-blur.json docs/kodak24_blur.jpg

Seeds of training kernels are below 2^63; those here are above 2^64, so that no training draws them.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import matplotlib
import numpy as np

from data_specs import RestorationSpec, find_restoration, load_spec
from restore.degradations.motion_kernels import DefocusKernel, MotionKernel, ShakeKernel
from restore.evaluation.degraded import KERNEL_SUM, BenchmarkKernel, blurred, read_kernels, whole_kernel
from restore.images import read_picture

SEED = 2**64
KERNELS = {
    "camera shake 1": ShakeKernel(24, 0.15, 0.005, 0.0, SEED + 3),
    "camera shake 2": ShakeKernel(32, 0.30, 0.010, 0.0, SEED + 5),
    "camera shake 3": ShakeKernel(40, 0.25, 0.015, 0.5, SEED + 9),
    "camera shake 4": ShakeKernel(48, 0.20, 0.010, 1.0, SEED + 6),
    "motion along a line": MotionKernel(17.0, math.radians(25)),
    "motion along an arc": MotionKernel(24.0, math.radians(110), math.radians(75)),
    "defocus 1": DefocusKernel(4.4),
    "defocus 2": DefocusKernel(7.2),
}


def main(target: Path, sheet: Path) -> None:
    entries = [{"name": name, "weights": whole_kernel(kernel.array()).tolist()} for name, kernel in KERNELS.items()]
    lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries)
    target.write_text(f'{{"sum": {KERNEL_SUM}, "kernels": [\n{lines}\n]}}\n', encoding="utf-8")
    draw(read_kernels(target), sheet)


def draw(kernels: tuple[BenchmarkKernel, ...], sheet: Path) -> None:
    """Each kernel above what it makes of a picture."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    mini = find_restoration(load_spec("mini", RestorationSpec, "deblurring"), None)
    path = mini.items[2].clean
    assert path is not None
    picture = read_picture(path).colour
    figure, axes = plt.subplots(2, len(kernels), figsize=(2 * len(kernels), 4.4), layout="constrained")
    for column, kernel in enumerate(kernels):
        size = len(kernel.weights)
        framed = np.pad(kernel.array, (31 - size) // 2)
        axes[0, column].imshow(framed, cmap="gray", interpolation="nearest")
        axes[0, column].set_title(f"{kernel.name}\n{size} x {size} pixels", fontsize=9)
        axes[1, column].imshow(blurred(picture, kernel, 1, column)[:160, :160], interpolation="nearest")
    for ax in axes.ravel():
        ax.set(xticks=[], yticks=[])
    figure.savefig(sheet, dpi=100, pil_kwargs={"quality": 88})


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))

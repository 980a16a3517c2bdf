"""Score networks, and a method of your own, on a benchmark by the protocol of the papers: PSNR and SSIM on Y.

    python examples/evaluate_benchmark.py [SET] [FOLDER]

Without arguments on `mini`, whose six crops ship with the package. `set5 FOLDER` takes Set5 from a folder of data sets
(`data_specs/set5.yaml` says how it may lie there). The table, all scores and a sheet of pictures go to `benchmark/`.
The command for shipped and published networks: `restore bench mini --model cfsr-compact -o benchmark`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

import restore
from data_specs import load_spec
from restore.evaluation.engine import Method, run_benchmark
from restore.evaluation.report import write_report
from restore.evaluation.sr import bicubic_8bit, plan_super_resolution
from restore.images import Picture

SCALE = 4


def lanczos(low: np.ndarray) -> np.ndarray:
    """A method of your own: (h, w, 3) uint8 RGB to (4 h, 4 w, 3) uint8."""
    size = low.shape[1] * SCALE, low.shape[0] * SCALE
    return np.asarray(Image.fromarray(low).resize(size, Image.Resampling.LANCZOS))


def network_method(name: str) -> Method:
    """A network of the catalogue, or a checkpoint file, as a row of the table."""
    network = restore.load_model(name, scale=SCALE)
    return Method(name, lambda low: restore.restore_picture(network, Picture(low)).colour)


def main(name: str = "mini", data: Path | None = None, output: Path = Path("benchmark")) -> None:
    """Print the table and write the report."""
    methods = [bicubic_8bit(SCALE), Method("Lanczos (Pillow)", lanczos), *map(network_method, ("espcn-compact", "cfsr-compact"))]
    plan = plan_super_resolution([load_spec(name)], methods, scale=SCALE, data_dir=data)  # fails early if a file is missing
    result = run_benchmark(plan, output=output)
    for row in result.rows:
        print(f"{row.method.name:24s} {row.psnr:.2f} dB  {row.ssim:.4f}  {row.seconds:.2f} s")
    print(f"{write_report(result, output)[0]}: the whole table")


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(Path, sys.argv[2:]))

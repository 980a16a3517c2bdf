"""Train a small network for a quarter of a minute, and write it as a file that every command takes.

    python examples/train_compact.py [FOLDER] [OUTPUT]

Without arguments on five of the crops in `data_specs/mini`; the sixth is kept out, and tells whether the network beats bicubic.
A folder of your own photographs is used in the same way, the first by name kept out. An ESPCN for x2 begins with the features
of the shipped one for x4, so that few steps are enough. The output folder, `runs/compact`, receives weights, record and curve;
started again, the training goes on from its last checkpoint. From a recipe: `restore train RECIPE --data FOLDER -o OUTPUT`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from restore.training.data import PICTURES
from restore.training.record import write_result
from restore.training.run import Recipe, StartPart, load_recipe, run

CROPS = Path(__file__).resolve().parent.parent / "data_specs" / "mini"


def short_recipe(held_out: str, steps: int) -> Recipe:
    """The shipped recipe with fewer and larger steps and another picture to watch; every field is in restore/training/run.py."""
    shipped = load_recipe("espcn-compact-x2")
    fewer = {"steps": steps, "batch": 8, "learning_rate": 3e-3, "warmup": 10, "ema": 0.98, "validate_every": max(1, steps // 4)}
    return shipped.model_copy(
        update={
            "start_from": StartPart(model="espcn-compact", scale=4),
            "data": shipped.data.model_copy(update={"patch": 24, "source_scales": (1.0,), "validation": (held_out,)}),
            "training": shipped.training.model_copy(update=fewer),
        }
    )


def show(done: int, total: int, figures: dict[str, float]) -> None:
    """Called while it trains; where the held-out picture was enlarged, its figures are there."""
    if "psnr" in figures:
        print(f"step {done} of {total}: {figures['psnr']:.2f} dB, bicubic {figures['psnr_bicubic']:.2f} dB")


def main(folder: Path = CROPS, output: Path = Path("runs/compact"), steps: int = 600) -> None:
    """Train on all pictures of `folder` but the first, and write what came out into `output`."""
    first = min(path.name for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    recipe = short_recipe(first, steps)
    network, facts = run(recipe, folder, output, on_progress=show)
    weights, *_ = write_result(network, facts, output, recipe.name)
    print(f"{weights}: try `restore sr --weights {weights} PICTURE`")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))

"""Networks with several outputs in the app: every output saved, compared and downloaded, and the map of where they differ."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from apps.pictures import run as picture_run
from apps.pictures.controls import SAME
from apps.pictures.models import TASKS
from apps.pictures.run import MAP, Wish, restore_all
from apps.pictures.show import RESULT, Looked, downloads, draw, outcome_table
from apps.pictures.tab import PictureTab
from apps.pictures.view import Window
from apps.serving.workspace import Workspace
from hybrid.cards import ModelCard
from restore.models.base import RestorationNetwork
from restore.restoration.run import RunSettings
from restore.tasks import DEBLUR, DENOISE
from tests.apps.served import example
from tests.command import restore


class Brighter(RestorationNetwork):
    """Three outputs: the picture, a little brighter, and much brighter."""

    def __init__(self) -> None:
        super().__init__()
        card = ModelCard("stub", "Stub", "none", "none", 1, 3, multiple=1, overlap=0, global_context=False, activation_floats=64)
        self.card = replace(card, tasks=("deblurring",), outputs=3, pure_outputs=(0, 1, 2))
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x, x + 0.02, x + 0.2], dim=1)


@pytest.fixture
def looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Looked, Workspace]:
    network = Brighter().eval()
    monkeypatch.setattr(picture_run, "_network", lambda wish, source: ((network, None), RunSettings(task="deblur")))
    workspace = Workspace("ann", tmp_path, "/files")
    source = workspace.new_folder("sent") / "photo.png"
    Image.open(example()).crop((40, 40, 100, 90)).save(source)
    folder = workspace.new_folder("restored")
    results = restore_all(Wish(DEBLUR, "stub", several=True), [source], folder, lambda done, total: None)
    return Looked(folder, tuple(results)), workspace


def test_all_outputs_and_their_map_are_saved_and_shown(looked: tuple[Looked, Workspace]) -> None:
    seen, workspace = looked
    (result,) = seen.results
    assert not result.error and sorted(result.candidates) == [1, 2, 3]
    assert sorted(seen.shown(0)) == sorted([RESULT, "Output 1", "Output 2", "Output 3", MAP])
    source = np.asarray(Image.open(result.source)).astype(int)
    for number, lift in ((1, 0), (2, 0.02), (3, 0.2)):
        _, after = seen.pair(0, f"Output {number}")
        np.testing.assert_allclose(np.asarray(Image.open(after)), np.clip(source + lift * 255, 0, 255), atol=1)
    for shown in seen.shown(0):
        html = draw(seen, 0, shown, Window(1), workspace)
        assert html is not None and ("After" if shown == RESULT else shown) in html
    links = downloads(seen, workspace)
    assert links.count("<a") == 6 and "photo_deblurred_differences.png" in links and links.count("/files/restored-") == 6
    assert str(workspace.folder) not in links + outcome_table(seen)


def test_the_map_is_white_where_outputs_differ_most(looked: tuple[Looked, Workspace]) -> None:
    seen, _ = looked
    (result,) = seen.results
    assert result.beside is not None
    name, path = result.beside
    values = np.asarray(Image.open(path))
    assert name == MAP and values.dtype in (np.uint16, np.int32) and values.max() > 60000


def test_a_result_without_names_is_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_AUTO_PRECISION", "float32")  # no two decisions
    picture_run._loaded.cache_clear()
    folder, by_command = tmp_path / "app", tmp_path / "photo_denoised.jpg"
    folder.mkdir()
    source = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x010F], exif[0x013B] = "Zyxqmaker", "Zyxqartist"
    Image.open(example()).crop((40, 40, 100, 90)).save(source, exif=exif)
    wish = Wish(DENOISE, "denoise-compact", deidentify=True, device="cpu")
    (made,) = restore_all(wish, [source], folder, lambda done, total: None)
    assert made.output is not None, made.error
    assert restore("denoise", source, "-o", by_command, "--deidentify", "--device", "cpu").code == 0
    found = made.output.read_bytes()
    assert b"Zyxq" not in found and found == by_command.read_bytes()
    (plain,) = restore_all(replace(wish, deidentify=False), [source], tmp_path / "app", lambda done, total: None)
    assert plain.output is not None and b"Zyxqmaker" in plain.output.read_bytes()


def test_the_box_for_it_reaches_the_wish() -> None:
    values = ("denoise-compact", 4, SAME, 95, True, "best", False, 0.0, True)
    task = next(name for name, command in TASKS.items() if command is DENOISE)
    handler = SimpleNamespace(context=SimpleNamespace(device="cpu"))
    assert PictureTab._wish(handler, (task, *values)).deidentify is True  # type: ignore[arg-type]

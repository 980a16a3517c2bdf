"""Pictures that are read and written beside the computing of others: the bytes of a run in which nothing overlaps."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import restore
from hybrid.batch.engine import Batch, Local, run_batch
from hybrid.batch.place import open_place
from hybrid.batch.work import Tell
from hybrid.cards import ModelCard
from hybrid.errors import InputError
from restore.images import probe, reading
from restore.models.base import RestorationNetwork
from restore.restoration.batch import PictureWorker, items_of
from restore.restoration.inputs import Job
from restore.restoration.one_output import Selection
from restore.restoration.run import RunSettings, file_stages
from tests.hybrid.batch_stubs import Watching


class ThreeOutputs(RestorationNetwork):
    """Two heads and their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(()))
        self.card = ModelCard("stub", "Stub", "", "", 1, 3, 1, 0, False, 8, outputs=3, pure_outputs=(0, 1))

    def restore(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x * 0.9, x * 0.7, x * 0.8], 1)


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pictures of many kinds, of which one is cut short and one is none; the first of all is bad."""
    folder = tmp_path_factory.mktemp("album")
    random = np.random.default_rng(0)

    def values(*shape: int, most: int = 255) -> np.ndarray:
        return random.integers(0, most, shape).astype(np.uint8 if most == 255 else np.uint16)

    (folder / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    Image.fromarray(values(20, 30, 3)).save(folder / "b.png")
    Image.fromarray(values(24, 17)).save(folder / "c.jpg", quality=90)
    Image.fromarray(values(18, 22, 4)).save(folder / "d.png")
    Image.fromarray(values(16, 16, most=65535)).save(folder / "e.png")
    Image.fromarray(values(40, 40, 3)).save(folder / "f.tif", compression="tiff_deflate")
    (folder / "g.tif").write_bytes((folder / "f.tif").read_bytes()[:2000])
    Image.fromarray(values(12, 40, 3)).save(folder / "h.webp", lossless=True)
    return sorted(folder.iterdir())


def go(network: RestorationNetwork, album: list[Path], out: Path, settings: RunSettings, *, overlap: bool) -> Watching:
    watching = Watching()
    mapped = settings.selection.uncertainty is not None
    jobs = [Job(path, out / path.stem / f"{path.stem}.png", out / path.stem / "map.png" if mapped else None) for path in album]
    with open_place(out, None, retry_failed=False) as place:
        items = items_of(jobs, [str(album[0].parent)], settings, network.card.outputs)
        run_batch(items, Local(PictureWorker(network, settings), overlap), Batch(out, place.journal, "w", "o"), watching)
    return watching


def tree(out: Path) -> dict[str, object]:
    """All files; of records all but the times. No hidden ones are there."""
    found: dict[str, object] = {}
    for path in sorted(out.rglob("*")):
        if path.name.endswith(".png.json"):
            record = json.loads(path.read_text())
            found[str(path.relative_to(out))] = {key: record[key] for key in record if key not in ("seconds", "started")}
        elif path.name != "run.jsonl":
            found[str(path.relative_to(out))] = path.read_bytes() if path.is_file() else None
    return found


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (lambda: restore.load_model("espcn-compact", scale=2), RunSettings()),
        (lambda: restore.load_model("espcn-compact", scale=2), RunSettings(memory=2**40)),
        (ThreeOutputs, RunSettings(selection=Selection(main="best", candidates=2, uncertainty=Path("map.png")))),
    ],
)
def test_bytes_and_failures_are_the_same(make, settings: RunSettings, album: list[Path], tmp_path: Path) -> None:
    network = make()
    network.precision = "float32"
    plain = go(network, album, tmp_path / "plain", settings, overlap=False)
    beside = go(network, album, tmp_path / "beside", settings, overlap=True)
    assert set(plain.made) == set(beside.made) and len(plain.made) == 6
    told = {name: error.message for name, error in plain.errors.items()}
    assert {name: error.message for name, error in beside.errors.items()} == told and set(told) == {"a.png", "g.tif"}
    found = tree(tmp_path / "beside")
    pictures = {name: data for name, data in found.items() if not name.endswith(".json")}
    assert pictures == {name: data for name, data in tree(tmp_path / "plain").items() if not name.endswith(".json")}
    assert found.keys() == tree(tmp_path / "plain").keys() and not any(Path(name).name.startswith(".") for name in found)


def test_with_a_bound_on_memory_nothing_is_read_ahead_or_left_to_be_written(album: list[Path], tmp_path: Path) -> None:
    network = restore.load_model("espcn-compact", scale=2)
    for settings, pauses in ((RunSettings(), 2), (RunSettings(memory=2**40), 1)):
        target = tmp_path / f"{pauses}.png"
        stages = file_stages(network, album[1], target, settings)
        next(stages)
        for pause in range(1, pauses):
            assert pause == 1 and not target.exists()
            stages.send(Tell())
        with pytest.raises(StopIteration):
            stages.send(Tell())
        assert target.exists()


def test_what_is_given_up_at_a_pause_leaves_nothing(album: list[Path], tmp_path: Path) -> None:
    for network in (restore.load_model("espcn-compact", scale=2), ThreeOutputs()):
        for pauses in (1, 2):
            stages = file_stages(network, album[1], tmp_path / "x.png", RunSettings())
            next(stages)
            if pauses == 2:
                stages.send(Tell())
                assert any(tmp_path.iterdir())
            stages.close()
            assert not list(tmp_path.iterdir())


def test_a_complaint_about_one_picture_is_not_taken_for_another_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one thread reads pixels, another meets a broken file: it waits, and its complaint comes later."""
    broken, came_by = tmp_path / "broken.png", threading.Event()
    broken.write_bytes(b"\x89PNG\r\n\x1a\nnothing")

    class Watched:
        """The lock, telling that somebody asks for it."""

        lock = reading.ERRORS

        def __enter__(self) -> None:
            if threading.current_thread() is not threading.main_thread():
                came_by.set()
            self.lock.acquire()

        def __exit__(self, *about: object) -> None:
            self.lock.release()

    refused: list[InputError] = []

    def other() -> None:
        try:
            probe(broken)
        except InputError as error:
            refused.append(error)
        came_by.set()

    monkeypatch.setattr(reading, "ERRORS", Watched())
    thread = threading.Thread(target=other)
    with reading.no_silent_damage():
        thread.start()
        assert came_by.wait(60)
        assert not refused
    thread.join(60)
    assert len(refused) == 1

"""Streamed and resumed runs: judged by the run in memory, by bytes, and by tifffile and libvips."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from torch import Tensor
from torch.nn import functional as F

from hybrid.cards import ModelCard
from hybrid.errors import HybridError, InputError, OutputError, ResourceError
from restore.images import PictureInfo, SaveOptions, read_picture
from restore.models.base import RestorationNetwork
from restore.restoration.final_size import FinalSize
from restore.restoration.plan import FilePlan, plan_file, plan_streamed, streamed_bytes
from restore.restoration.resumable import resumable
from restore.restoration.run import RunSettings, restore_file, restore_picture
from tests.command import files

ROOT = Path(__file__).resolve().parents[2]
TILED = RunSettings(tile=64)


class Uneven(RestorationNetwork):
    """A filter without symmetry, x2; each tile border shows. Raises `fault` at call number `at`."""

    def __init__(self, fault: BaseException | None = None, at: int = -1, gain: float = 1.0) -> None:
        super().__init__()
        kernel = torch.rand(3, 3, 5, 5, generator=torch.Generator().manual_seed(1)) / 38 * gain
        self.kernel = torch.nn.Parameter(kernel, requires_grad=False)
        self.card = ModelCard("uneven", "Uneven", "none", "none", 2, 3, 4, 8, False, 10)
        self.fault, self.at, self.calls = fault, at, 0

    def restore(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.fault is not None and self.calls == self.at:
            raise self.fault
        return F.interpolate(F.conv2d(x, self.kernel, padding=2), scale_factor=2, mode="bilinear")


@pytest.fixture
def streaming(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of any size are streamed."""
    monkeypatch.setattr("restore.restoration.plan.STREAM_FROM", 0)


def noise(height: int, width: int, channels: int, dtype: str = "uint8") -> np.ndarray:
    values = np.random.default_rng(5).random((height, width, channels))
    values = (values + np.mgrid[:height, :width].sum(0)[..., None] / (height + width)) / 2
    return values.astype(dtype) if dtype == "float32" else (values * np.iinfo(dtype).max).astype(dtype)


def save(path: Path, values: np.ndarray, *, tile: tuple[int, int] | None = (128, 128)) -> Path:
    channels = values.shape[2]
    tifffile.imwrite(
        path,
        values if channels > 1 else values[..., 0],
        photometric="rgb" if channels > 2 else "minisblack",
        extrasamples=["unassalpha"] if channels in (2, 4) else None,
        tile=tile,
        compression="zlib",
        metadata=None,
    )
    return path


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """5 x 6 tiles of 64."""
    (tmp_path / "scans").mkdir()
    return save(tmp_path / "scans" / "in.tif", noise(280, 300, 3))


# Against the run in memory ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("streaming")
@pytest.mark.parametrize("final", [None, FinalSize(2.7), FinalSize(0.4), FinalSize(width=700, height=300)])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_streamed_pixels_are_those_of_a_run_in_memory(dtype: str, channels: int, final: FinalSize | None, tmp_path: Path) -> None:
    values = noise(301, 397, channels, dtype)
    if channels in (2, 4):
        values[..., -1] = np.maximum(values[..., -1], 1 if dtype != "float32" else 0.5)  # nothing is transparent
    if dtype == "float32":
        values[..., :1] = values[..., :1] * 5 - 1  # beyond the unit range
    source = save(tmp_path / "in.tif", values, tile=(96, 128) if channels != 3 else None)
    settings = replace(TILED, final=final)
    outcome = restore_file(Uneven(), source, tmp_path / "out.tif", settings)
    assert "streamed in" in outcome.tiles and sorted(files(tmp_path)) == ["in.tif", "out.tif", "out.tif.json"]
    expected = restore_picture(Uneven(), read_picture(source), settings)
    result = read_picture(tmp_path / "out.tif")
    np.testing.assert_array_equal(result.colour, expected.colour)
    assert (result.alpha is None) == (expected.alpha is None)
    if result.alpha is not None:
        np.testing.assert_array_equal(result.alpha, expected.alpha)
    with tifffile.TiffFile(tmp_path / "out.tif") as judge:
        page = judge.pages[0]
        assert judge.is_bigtiff and page.is_tiled and (page.tilewidth, page.tilelength) == (256, 256)
        assert page.dtype == values.dtype and (page.imagewidth, page.imagelength) == outcome.size
        if dtype != "float32":  # whose predictor tifffile reads only with another package
            planes = [result.colour] if result.alpha is None else [result.colour, result.alpha]
            np.testing.assert_array_equal(page.asarray().reshape(*outcome.size[::-1], channels), np.dstack(planes))


@pytest.mark.usefixtures("streaming")
def test_a_png_goes_in_and_formats_without_tiles_go_out_the_ordinary_way(scan: Path) -> None:
    from restore.images import write_picture

    png = scan.with_suffix(".png")
    write_picture(png, read_picture(scan))
    streamed = restore_file(Uneven(), png, scan.with_name("out.tif"), TILED)
    plain = restore_file(Uneven(), png, scan.with_name("out.png"), TILED)
    assert "streamed" in streamed.tiles and "streamed" not in plain.tiles
    np.testing.assert_array_equal(read_picture(streamed.output).colour, read_picture(plain.output).colour)


@pytest.mark.usefixtures("streaming")
def test_what_lies_below_transparency_does_not_show(tmp_path: Path) -> None:
    values = noise(120, 150, 4)
    values[:, 70:, 3] = 0
    other = values.copy()
    other[:, 70:, :3] = 255 - other[:, 70:, :3]
    results = []
    for name, each in (("a", values), ("b", other)):
        restore_file(Uneven(), save(tmp_path / f"{name}.tif", each), tmp_path / f"{name}-out.tif", TILED)
        results.append(read_picture(tmp_path / f"{name}-out.tif"))
    shows = results[0].alpha > 0
    np.testing.assert_array_equal(results[0].colour[shows], results[1].colour[shows])


# Interruptions ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def uninterrupted(scan: Path, streaming: None, tmp_path: Path) -> bytes:
    (tmp_path / "whole").mkdir()
    restore_file(Uneven(), scan, tmp_path / "whole" / "out.tif", TILED)
    return (tmp_path / "whole" / "out.tif").read_bytes()


@pytest.mark.parametrize("at", [7, 9, 13, 19, 30])
@pytest.mark.parametrize("final", [None, FinalSize(1.5)])
def test_a_run_that_was_broken_off_goes_on_to_the_same_bytes(
    at: int, final: FinalSize | None, scan: Path, streaming: None, tmp_path: Path
) -> None:
    target, settings, total = scan.with_name("out.tif"), replace(TILED, final=final), 30
    (tmp_path / "whole").mkdir()
    restore_file(Uneven(), scan, tmp_path / "whole" / "out.tif", settings)
    with pytest.raises(KeyboardInterrupt) as stop:
        restore_file(Uneven(KeyboardInterrupt(), at), scan, target, settings)
    rows = (at - 1) // 6
    assert f"rows of tiles ({rows}): the same command goes on" in stop.value.__notes__[0]
    assert (
        not target.exists() and json.loads((scan.parent / "out.tif.part/progress.json").read_text())["progress"]["rows"] == rows
    )
    said: list[str] = []
    network = Uneven()
    restore_file(network, scan, target, settings, on_note=said.append)
    assert network.calls == total - 6 * rows  # nothing finished is done again
    assert f"Resumed after {rows} of 5 rows of tiles." in said
    assert target.read_bytes() == (tmp_path / "whole" / "out.tif").read_bytes()
    assert sorted(files(scan.parent)) == ["in.tif", "out.tif", "out.tif.json"]
    assert said[-1] in json.loads((scan.parent / "out.tif.json").read_text())["notes"]


KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
import restore.restoration.plan
from pathlib import Path
from tests.restore.test_gigapixel import TILED, Uneven
from restore.restoration.run import restore_file
restore.restoration.plan.STREAM_FROM = 0
calls = 0
def fsync(number):
    global calls
    calls += 1
    if calls == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
os.fsync = fsync
restore_file(Uneven(), Path({source!r}), Path({target!r}), TILED)
"""


@pytest.mark.parametrize("at", [3, 11])
def test_a_killed_run_goes_on_to_the_same_bytes(at: int, scan: Path, uninterrupted: bytes) -> None:
    """Killed while a row of tiles is being brought to the disk."""
    target = scan.with_name("out.tif")
    program = KILLED.format(root=str(ROOT), source=str(scan), target=str(target), at=at)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=280)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not target.exists() and (scan.parent / "out.tif.part").is_dir()
    restore_file(Uneven(), scan, target, TILED)
    assert target.read_bytes() == uninterrupted
    assert sorted(files(scan.parent)) == ["in.tif", "out.tif", "out.tif.json"]


@pytest.mark.parametrize("at", range(1, 32, 3))
def test_wherever_bringing_to_the_disk_is_broken_off(
    at: int, scan: Path, uninterrupted: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each of the files in turn that are brought there after a row of tiles."""
    target, calls, real = scan.with_name("out.tif"), [0], os.fsync

    def fsync(number: int) -> None:
        calls[0] += 1
        if calls[0] == at:
            raise KeyboardInterrupt
        real(number)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.fsync", fsync)
        restore_file(Uneven(), scan, target, TILED)
    assert not target.exists()
    restore_file(Uneven(), scan, target, TILED)
    assert target.read_bytes() == uninterrupted


def test_twice_broken_off(scan: Path, uninterrupted: bytes) -> None:
    target = scan.with_name("out.tif")
    for at in (9, 8, 2):
        with pytest.raises(KeyboardInterrupt):
            restore_file(Uneven(KeyboardInterrupt(), at), scan, target, TILED)
    restore_file(Uneven(), scan, target, TILED)
    assert target.read_bytes() == uninterrupted


@pytest.mark.usefixtures("streaming")
@pytest.mark.parametrize("fault", [KeyboardInterrupt(), ValueError("odd")])
def test_before_a_row_is_finished_nothing_is_left(fault: BaseException, scan: Path) -> None:
    before = files(scan.parent)
    with pytest.raises(type(fault)):
        restore_file(Uneven(fault, 3), scan, scan.with_name("out.tif"), TILED)
    assert files(scan.parent) == before


@pytest.mark.usefixtures("streaming")
def test_an_error_says_in_its_hint_how_to_go_on(scan: Path) -> None:
    with pytest.raises(ResourceError, match=r"Close it\. .*out\.tif\.part keeps .* the same command goes on"):
        restore_file(Uneven(ResourceError("Full.", hint="Close it."), 20), scan, scan.with_name("out.tif"), TILED)


@pytest.mark.parametrize(
    ("changed", "word"),
    [("input", "the input"), ("weights", "the network")] + [(name, "the settings") for name in ("tile", "final", "deidentify")],
)
def test_a_part_of_another_request_is_not_gone_on_with(
    changed: str, word: str, scan: Path, streaming: None, tmp_path: Path
) -> None:
    target = scan.with_name("out.tif")
    with pytest.raises(KeyboardInterrupt):
        restore_file(Uneven(KeyboardInterrupt(), 20), scan, target, TILED)
    network = Uneven()
    settings = {
        "tile": replace(TILED, tile=72),
        "final": replace(TILED, final=FinalSize(3.0)),
        "deidentify": replace(TILED, save=SaveOptions(deidentify=True)),
    }.get(changed, TILED)
    if changed == "input":
        save(scan, noise(280, 300, 3)[::-1])
    if changed == "weights":
        network.card = replace(network.card, family="another")
    said: list[str] = []
    restore_file(network, scan, target, settings, on_note=said.append)
    assert f"begun anew: {word} changed" in said[-1]
    np.testing.assert_array_equal(read_picture(target).colour, restore_picture(Uneven(), read_picture(scan), settings).colour)


@pytest.mark.usefixtures("streaming")
def test_a_resumed_run_takes_over_the_tiles(scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The free memory, and with it the tile that would be chosen, is another one."""
    target, free = scan.with_name("out.tif"), {"bytes": 3_000_000}
    monkeypatch.setattr("restore.restoration.plan.activation_budget", lambda *of: free["bytes"])
    with pytest.raises(KeyboardInterrupt):
        restore_file(Uneven(KeyboardInterrupt(), 19), scan, target)
    free["bytes"] = 10**9
    said: list[str] = []
    restore_file(Uneven(), scan, target, on_note=said.append)
    assert "tiles of 64 x 64" in said[0] and "Resumed after" in said[1]


@pytest.mark.usefixtures("streaming")
def test_two_runs_do_not_work_on_one_output(scan: Path) -> None:
    target = scan.with_name("out.tif")
    with resumable(target, {}) as part, pytest.raises(OutputError, match=r"Another run is at work in .*out\.tif\.part"):
        part.folder.joinpath("picture").touch()
        restore_file(Uneven(), scan, target, TILED)


@pytest.mark.usefixtures("streaming")
@pytest.mark.parametrize("folder", [True, False])
def test_what_is_called_like_a_part_and_is_none_stays(folder: bool, scan: Path) -> None:
    place = scan.with_name("out.tif.part")
    if folder:
        place.mkdir()
        (place / "precious.txt").write_text("precious")
    else:
        place.write_text("precious")
    before = files(scan.parent)
    with pytest.raises(HybridError, match=r"out\.tif\.part"):
        restore_file(Uneven(), scan, scan.with_name("out.tif"), TILED)
    assert files(scan.parent) == before


# Plans ------------------------------------------------------------------------------------------------------------------


def facts(width: int, height: int, dtype: str = "uint8") -> PictureInfo:
    return PictureInfo(Path("in.tif"), width, height, 3, False, dtype, "tiff", "rgb")


def plan(width: int, height: int, settings: RunSettings, target: str = "out.tif", floats: int = 10) -> FilePlan:
    network = Uneven()
    network.card = replace(network.card, activation_floats=floats)
    return plan_file(network, facts(width, height), Path(target), settings)


def test_large_pictures_are_streamed_to_tiff_alone() -> None:
    assert plan(20_000, 12_000, RunSettings()).streamed
    assert not plan(400, 300, RunSettings()).streamed
    assert not plan(400, 300, RunSettings(), "out.png").streamed
    assert plan(20_000, 12_000, RunSettings(save=SaveOptions(format="tiff")), "out").streamed
    assert not plan(15_000, 12_000, RunSettings(tile=None), "out.tif").streamed  # which says that it does not fit, if so


def test_the_limit_of_pixels_holds_what_is_held_in_memory(scan: Path, streaming: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("restore.restoration.plan.MAX_PIXELS", 100)
    with pytest.raises(InputError, match="--max-pixels 84000"):
        restore_file(Uneven(), scan, scan.with_name("out.png"), TILED)
    with pytest.raises(InputError, match="--max-pixels 84000"):
        restore_file(Uneven(), scan, scan.with_name("out.tif"), replace(TILED, max_pixels=83_999))
    restore_file(Uneven(), scan, scan.with_name("out.tif"), TILED)


def test_memory_does_not_depend_on_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("restore.restoration.plan.activation_budget", lambda *of: 10**8)
    plans = [plan_streamed(Uneven(), facts(*size), RunSettings()) for size in ((5000, 4000), (500_000, 5000), (5000, 500_000))]
    assert len({(each.side, streamed_bytes(each.tiles)) for each in plans}) == 1
    assert streamed_bytes(plans[0].tiles) <= 10**8 / 2 and "streamed in" in plans[0].describe()
    with pytest.raises(ResourceError, match="--memory"):
        monkeypatch.setattr("restore.restoration.plan.activation_budget", lambda *of: 1000)
        plan_streamed(Uneven(), facts(5000, 4000), RunSettings())


def test_what_does_not_fit_otherwise_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    def budget(limit: int | None, device: object, reserve: int) -> int:
        return 4 * 10**8 - reserve

    monkeypatch.setattr("restore.restoration.plan.activation_budget", budget)
    assert plan(30_000, 1500, RunSettings()).streamed and not plan(1500, 1500, RunSettings()).streamed


PEAK = """
import sys
sys.path.insert(0, {root!r})
import restore.restoration.plan
from pathlib import Path
from tests.restore.test_gigapixel import Uneven
from restore.restoration.run import restore_file, RunSettings
from hybrid.memory import peak_bytes
restore.restoration.plan.STREAM_FROM = 0
restore_file(Uneven(), Path({source!r}), Path({target!r}), RunSettings(tile=256))
print(peak_bytes())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of a process from /proc")
def test_the_peak_does_not_grow_with_width_or_height(tmp_path: Path) -> None:
    peaks = {}
    for width, height in ((600, 600), (5000, 600), (600, 5000)):
        source = save(tmp_path / f"{width}x{height}.tif", np.tile(noise(100, 100, 3), (height // 100, width // 100, 1)))
        program = PEAK.format(root=str(ROOT), source=str(source), target=str(tmp_path / f"{width}x{height}-out.tif"))
        environment = os.environ | {"OMP_NUM_THREADS": "1", "VIPS_CONCURRENCY": "1"}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        peaks[width, height] = int(done.stdout)
    small = peaks[600, 600]
    # The larger results are 36 MB, their inputs 9 MB, a row of tiles as floats 61 MB.
    assert all(peak - small < 25 * 10**6 for peak in peaks.values()), peaks

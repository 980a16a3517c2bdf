"""The command `restore`: what it takes, what it writes and what it says; judged by Pillow and tifffile."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from hybrid.memory import parse_size
from hybrid.records import Record
from hybrid.weights.checkpoints import read_checkpoint
from restore.images import read_picture, read_record
from restore.loading import find_weights
from tests.command import COMPACT, files, restore, smooth

SHIPPED, _ = find_weights("hat-compact", 4)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def record_of(output: Path) -> Record:
    return Record.from_json(output.with_name(output.name + ".json").read_text(encoding="utf-8"))


def save(path: Path, height: int = 24, width: int = 20) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.round(smooth(height, width) * 255).astype(np.uint8)).save(path)
    return path


# What is named and what is written ---------------------------------------------------------------------------------


def test_one_file_goes_beside_itself_and_says_where(photo: Path) -> None:
    said = restore("sr", photo, *COMPACT)
    output = photo.with_name("photo_x4.png")
    assert said.code == 0 and said.out == ""
    assert said.err.startswith(f"{output}  80 x 96, ") and said.err.count("\n") == 2
    assert said.err.endswith("may be invented by the network.\n")  # nothing else is said
    assert sorted(files(photo.parent)) == ["photo.png", "photo_x4.png", "photo_x4.png.json"]
    with Image.open(output) as judge:
        assert (judge.size, judge.mode) == ((80, 96), "RGB")


def test_one_file_goes_to_the_file_or_the_folder_that_is_named(photo: Path, tmp_path: Path) -> None:
    assert restore("sr", photo, *COMPACT, "-o", tmp_path / "other.webp").code == 0
    assert restore("sr", photo, *COMPACT, "-o", tmp_path / "folder").code == 0
    with Image.open(tmp_path / "other.webp") as judge:
        assert (judge.format, judge.size) == ("WEBP", (80, 96))
    assert sorted(files(tmp_path / "folder")) == ["photo.png", "photo.png.json"]


def test_several_files_each_get_an_output(tmp_path: Path) -> None:
    names = [save(tmp_path / name) for name in ("a.png", "b.jpg")]
    assert restore("sr", *names, *COMPACT).code == 0
    for name, form in (("a_x4.png", "PNG"), ("b_x4.jpg", "JPEG")):
        with Image.open(tmp_path / name) as judge:
            assert (judge.format, judge.size) == (form, (80, 96))


@pytest.mark.parametrize("named", [False, True])
def test_a_folder_is_mirrored_with_what_lies_deeper(tmp_path: Path, named: bool) -> None:
    for name in ("a.png", "deep/er/b.PNG", "deep/c.tif", ".hidden/d.png"):
        save(tmp_path / "album" / name)
    (tmp_path / "album/readme.txt").write_text("no picture")
    before = files(tmp_path / "album")
    output = tmp_path / ("elsewhere/big" if named else "album_x4")
    assert restore("sr", tmp_path / "album", *COMPACT, *(("-o", output) if named else ())).code == 0
    made = {name for name, content in files(output).items() if content is not None}
    pictures = {f"{name}{end}" for name in ("a.png", "deep/er/b.PNG", "deep/c.tif") for end in ("", ".json")}
    assert made == pictures | {"run.jsonl"}
    assert files(tmp_path / "album") == before


def test_a_second_run_into_a_folder_inside_takes_no_output_for_an_input(tmp_path: Path) -> None:
    save(tmp_path / "album/a.png", 8, 8)
    for _ in range(2):
        assert restore("sr", tmp_path / "album", *COMPACT, "-o", tmp_path / "album/out", "--overwrite").code == 0
    assert [name for name in files(tmp_path / "album/out") if name.endswith(".png")] == ["a.png"]


def test_a_glob_is_taken_and_the_format_changed(tmp_path: Path) -> None:
    for name in ("one.png", "two.png", "three.jpg"):
        save(tmp_path / name, 8, 8)
    said = restore("sr", tmp_path / "*.png", *COMPACT, "-o", tmp_path / "out", "--format", "tiff")
    assert said.code == 0
    assert sorted(files(tmp_path / "out")) == ["one.tif", "one.tif.json", "run.jsonl", "two.tif", "two.tif.json"]
    assert tifffile.imread(tmp_path / "out/one.tif").shape == (32, 32, 3)


def test_names_with_brackets_and_colons_are_neither_markup_nor_pattern(tmp_path: Path) -> None:
    names = ["a[red].png", "b[/x].png".replace("/", "_"), "c:smile:.png", "d [1].png"]
    paths = [save(tmp_path / "album [/bold" / "x]" / name, 8, 8) for name in names]
    said = restore("sr", *paths, *COMPACT)
    assert said.code == 0
    for path in paths:
        assert str(path.with_name(f"{path.stem}_x4.png")) in said.err


def test_an_output_that_is_there_stays_unless_told_otherwise(photo: Path) -> None:
    output = photo.with_name("photo_x4.png")
    output.write_bytes(b"precious")
    said = restore("sr", photo, *COMPACT)
    assert said.code == 6 and "--overwrite" in said.err and output.read_bytes() == b"precious"
    assert restore("sr", photo, *COMPACT, "--overwrite").code == 0
    with Image.open(output) as judge:
        assert judge.size == (80, 96)


def test_that_details_may_be_invented_is_said_once_and_recorded(photo: Path, tmp_path: Path) -> None:
    second = save(tmp_path / "second.png", 8, 8)
    said = restore("sr", photo, second, *COMPACT, "-o", tmp_path / "out")
    assert said.code == 0 and said.err.count("may be invented by the network") == 1
    assert any("may be invented" in note for note in record_of(tmp_path / "out" / "second.png").notes)
    for quiet in ("--quiet", "--plan"):
        assert "invented" not in restore("sr", photo, *COMPACT, "--overwrite", quiet).err


def test_a_file_in_the_place_of_the_record_stays_too(photo: Path) -> None:
    precious = photo.with_name("photo_x4.png.json")
    precious.write_text("labels")
    said = restore("sr", photo, *COMPACT)
    assert said.code == 6 and "--overwrite" in said.err
    assert precious.read_text() == "labels" and not photo.with_name("photo_x4.png").exists()


@pytest.mark.parametrize("option", ["plan", "run"])
def test_json_is_one_object_per_picture_on_standard_output(photo: Path, option: str) -> None:
    other = save(photo.with_name("ünïcode 2.png"), 8, 8)
    said = restore("sr", photo, other, *COMPACT, "--json", *(["--plan"] if option == "plan" else []))
    facts = [json.loads(line) for line in said.out.splitlines()]
    assert said.code == 0 and said.err == ""
    assert [each["input"] for each in facts] == [str(photo), str(other)]
    assert facts[0]["output"] == str(photo.with_name("photo_x4.png"))
    assert facts[0]["plan"]["shape"] == [24, 20] if option == "plan" else facts[0]["size"] == [80, 96]
    assert all(each["seconds"] > 0 for each in facts)


def test_quiet_says_nothing_but_why_pictures_failed(photo: Path) -> None:
    assert restore("sr", photo, *COMPACT, "--quiet") == restore("sr", photo, *COMPACT, "--quiet", "--overwrite")
    said = restore("sr", photo, *COMPACT, "--quiet", "--overwrite")
    assert (said.code, said.out, said.err) == (0, "", "")
    photo.with_name("text.png").write_text("text")
    said = restore("sr", photo.parent / "*.png", *COMPACT, "--quiet", "-o", photo.parent / "out")
    assert said.code == 1 and "text.png is not a picture of a supported format" in said.err


@pytest.mark.parametrize("tile", ["off", "auto", "32"])
def test_tiles_do_not_show(tmp_path: Path, tile: str) -> None:
    """Each against the whole picture as the network alone gives it."""
    source = save(tmp_path / "in.png", 56, 48)
    settings = ("--precision", "float32", "--device", "cpu", "--quiet")
    assert restore("sr", source, *COMPACT, "--tile", tile, *settings, "-o", tmp_path / "out.png").code == 0
    network = restore_network()
    with Image.open(source) as picture, Image.open(tmp_path / "out.png") as judge:
        unit = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None] / 255
        whole = network(unit)[0].clamp(0, 1).permute(1, 2, 0).numpy() * 255
        assert np.abs(np.asarray(judge) - whole).max() < (3 if tile == "32" else 0.51)
    assert (" tiles of 32 x 32 " in record_of(tmp_path / "out.png").tiles) == (tile == "32")


def restore_network() -> torch.nn.Module:
    from restore import load_model

    return load_model("hat-compact", scale=4, device="cpu")


def test_precision_and_device_are_recorded(photo: Path) -> None:
    assert restore("sr", photo, *COMPACT, "--device", "cpu", "--precision", "bf16").code == 0
    record = record_of(photo.with_name("photo_x4.png"))
    assert (record.device, record.precision) == ("cpu", "bf16")


# The plan -------------------------------------------------------------------------------------------------------------


def test_a_plan_tells_tiles_memory_and_time_and_writes_nothing(photo: Path) -> None:
    before = files(photo.parent)
    said = restore("sr", photo.parent, *COMPACT, "--plan", "-o", photo.parent / "not/yet/there", "--tile", "32", "--quiet")
    assert said.code == 0 and files(photo.parent) == before
    pattern = r"photo\.png: 20 x 24 in one piece, about [\d.]+ .B; result 80 x 96, 23 kB uncompressed; about [\d.]+ s\n"
    assert re.fullmatch(re.escape(f"{photo.parent}/") + pattern, said.out)


def test_a_plan_counts_the_tiles(photo: Path) -> None:
    source = save(photo.with_name("large.png"), 56, 48)
    assert re.search(
        r": \d+ tiles of 32 x 32 over 48 x 56, overlap ", restore("sr", source, *COMPACT, "--plan", "--tile", "32").out
    )


@pytest.mark.parametrize("extra", [("--plan",), ()])
def test_too_little_memory_is_refused_early_with_the_amount_that_helps(photo: Path, extra: tuple[str, ...]) -> None:
    before = files(photo.parent)
    said = restore("sr", photo, *COMPACT, "--memory", "1MB", *extra)
    assert said.code == 5 and files(photo.parent) == before
    asked = re.search(r"Raise --memory by ([\d.]+[MG]B) or more", said.err)
    assert asked is not None
    enough = parse_size("1MB") + int(1.2 * parse_size(asked[1]))  # a little more: the process itself varies
    assert restore("sr", photo, *COMPACT, "--memory", f"{enough // 1000}kB", *extra).code == 0


# Weights --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file as authors publish them: pickled, wrapped, under a name that the catalogue knows."""
    state = {name: tensor.clone() for name, tensor in read_checkpoint(SHIPPED.path).state.items()}
    folder = tmp_path_factory.mktemp("published")
    for name in ("HAT_SRx4.pth", "Real_HAT_GAN_SRx4.pth"):
        torch.save({"params_ema": state, "name": name}, folder / name)
    return folder


@pytest.fixture
def mirror(published: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A server of the published files on this machine; the list holds what was asked of it."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path.lstrip("/"))
            super().do_GET()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(published)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("RESTORE_OFFLINE", "0")
    monkeypatch.setenv("RESTORE_MIRROR", f"http://127.0.0.1:{server.server_port}")
    yield asked
    server.shutdown()
    server.server_close()


def origin(photo: Path, *arguments: str | Path) -> tuple[str, str, str, str]:
    """Run, and tell where the weights came from, what they are called, their hash, and what was said."""
    said = restore("sr", photo, "--overwrite", *arguments)
    assert said.code == 0, said.err
    record = record_of(photo.with_name("photo_x4.png"))
    return record.weights_origin, record.title, record.weights_sha256, said.err


def test_weights_come_from_the_file_then_the_cache_then_the_mirror(
    photo: Path, published: Path, cache: Path, mirror: list[str]
) -> None:
    file = published / "HAT_SRx4.pth"
    assert origin(photo, "--model", "hat")[:3] == ("download", "hat", sha256(file))
    assert mirror == ["HAT_SRx4.pth"] and sha256(cache / "HAT_SRx4.pth") == sha256(file)
    assert origin(photo, "--model", "HAT")[:3] == ("cache", "hat", sha256(file))
    given = published / "Real_HAT_GAN_SRx4.pth"
    assert origin(photo, "--model", "hat", "--weights", given)[:3] == ("file", "Real_HAT_GAN_SRx4", sha256(given))
    assert origin(photo, "--model", str(given))[0] == "file"
    assert mirror == ["HAT_SRx4.pth"]  # asked once


def test_weights_that_are_nowhere_are_stood_in_for_in_one_line_that_says_how_to_get_them(photo: Path) -> None:
    kind, title, digest, said = origin(photo, "--model", "hat")
    notice, result, _ = said.splitlines()
    stand_in, _ = find_weights("cfsr-compact", 4)
    assert (kind, title, digest) == ("shipped", "cfsr-compact", sha256(stand_in.path))
    assert "cfsr-compact" in notice and "are not in the cache" in notice
    assert "https://" in notice and "restore models import HAT_SRx4.pth" in notice
    assert result.startswith(str(photo.with_name("photo_x4.png")))
    assert any("Using cfsr-compact" in note for note in record_of(photo.with_name("photo_x4.png")).notes)


def test_weights_that_the_mirror_lacks_are_stood_in_for_too(photo: Path, mirror: list[str]) -> None:
    kind, title, _, said = origin(photo, "--model", "real-hat-gan-sharper")  # whose authors give no direct address
    assert (kind, title) == ("shipped", "cfsr-compact") and mirror == ["Real_HAT_GAN_SRx4_sharper.pth"]
    assert "restore models import Real_HAT_GAN_SRx4_sharper.pth" in said


def test_the_stand_in_is_told_in_json_too(photo: Path) -> None:
    said = restore("sr", photo, "--model", "hat", "--json")
    assert any("Using cfsr-compact" in note for note in json.loads(said.out)["notes"])


def test_auto_is_the_default_takes_the_best_that_is_here_and_says_which(photo: Path) -> None:
    kind, title, _, said = origin(photo)
    assert (kind, title) == ("shipped", "cfsr-compact") and "Model: cfsr-compact" in said
    assert origin(photo, "--model", "auto")[1] == "cfsr-compact"


def test_published_weights_come_with_their_notice(photo: Path, published: Path, cache: Path) -> None:
    (cache / "Real_HAT_GAN_SRx4.pth").write_bytes((published / "Real_HAT_GAN_SRx4.pth").read_bytes())
    assert "GAN" in origin(photo, "--model", "real-hat-gan")[3]


@pytest.mark.usefixtures("small_for_hat")
def test_models_can_be_pulled_imported_listed_and_described(published: Path, cache: Path, mirror: list[str]) -> None:
    pulled = restore("models", "pull", "real-hat-gan")
    assert pulled.code == 0 and Path(pulled.out.strip()) == cache / "Real_HAT_GAN_SRx4.pth"
    assert restore("models", "import", published / "HAT_SRx4.pth").code == 0
    listed = {line.split("│")[1].strip(): line for line in restore("models", "list").out.splitlines() if "│" in line}
    assert "cached: x4" in listed["hat"] and "not here" in listed["hat-s"] and "shipped" in listed["hat-compact"]
    told = restore("models", "info", "hat", "--scale", "4").out
    assert "params_ema" in told and sha256(cache / "HAT_SRx4.pth") in told and "x4" in told


@pytest.mark.usefixtures("small_for_hat")
def test_a_damaged_file_in_the_cache_is_named_and_hides_nothing_else(published: Path, cache: Path) -> None:
    assert restore("models", "import", published / "HAT_SRx4.pth").code == 0
    (cache / "HAT_SRx4.pth").write_bytes(b"changed")
    listed = restore("models", "list")
    assert listed.code == 0 and "damaged: x4" in listed.out and "shipped" in listed.out
    assert "hat: damaged: x4" in restore("doctor").out


# Record ---------------------------------------------------------------------------------------------------------------


def test_the_record_lies_beside_the_output_and_inside_it(photo: Path) -> None:
    assert restore("sr", photo, *COMPACT, "--precision", "float32").code == 0
    output = photo.with_name("photo_x4.png")
    record = record_of(output)
    assert (record.input, record.input_sha256) == ("photo.png", sha256(photo))
    assert (record.output, record.weights) == ("photo_x4.png", "hat-compact-x4.safetensors")
    assert (record.weights_sha256, record.weights_origin) == (sha256(SHIPPED.path), "shipped")
    assert (record.task, record.family, record.title, record.precision) == ("sr", "hat", "hat-compact", "float32")
    assert record.versions["torch"] == torch.__version__ and record.seconds > 0
    inside = json.loads(read_record(read_picture(output).metadata.xmp) or "")
    times = {"seconds": record.seconds, "started": record.started}
    assert not times.keys() & inside.keys() and inside | times == record.to_dict()
    assert str(photo.parent) not in output.with_name(output.name + ".json").read_text()


# Other commands -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["sr", "--help"], ["bench", "--help"], ["models", "list"]])
def test_help_and_the_list_of_models_load_no_torch(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from apps.commands import restore\n"
        "try:\n    restore()\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "assert 'torch' not in sys.modules and 'pyvips' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Usage: " in done.stdout or "hat-compact" in done.stdout


def test_an_unknown_option_ends_with_the_usage() -> None:
    said = restore("sr", "--frobnicate")
    assert said.code == 2 and "--frobnicate" in said.err

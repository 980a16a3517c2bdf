"""Descriptions of restoration benchmarks, and the files they find."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.io
import yaml

import data_specs
from data_specs import RestorationSpec, available, check_files, find_restoration, folder_restoration_spec, load_spec
from hybrid.errors import InputError, RequestError
from restore.evaluation.files import write_png

FOLDER = Path(data_specs.__file__).parent
PICTURES = {
    "denoising": {
        "bsd68": 68,
        "cbsd68": 68,
        "dnd": 1000,
        "kodak24": 24,
        "mcmaster": 18,
        "mini": 6,
        "sidd": 1280,
        "urban100": 100,
    },
    "deblurring": {"gopro": 1111, "hide": 2025, "kodak24-blur": 24, "mini": 6, "realblur-j": 980, "realblur-r": 980},
    "jpeg": {"classic5": 5, "kodak24": 24, "live1": 29, "mini": 6},
}
CASES = [(task, name) for task, sets in PICTURES.items() for name in sets]


def put(folder: Path, *names: str) -> None:
    for name in names:
        write_png(folder / name, np.zeros((8, 8, 3), np.uint8))


def described(tmp_path: Path, like: str, **changes: object) -> Path:
    facts = yaml.safe_load((FOLDER / f"{like}.yaml").read_text(encoding="utf-8"))
    facts |= {"name": "two", "title": "Two", "images": 2, "folders": ["Two"], "checksums": None, **changes}
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(facts), encoding="utf-8")
    return path


def test_the_sets_of_each_task_are_there_with_their_counts() -> None:
    for task, sets in PICTURES.items():
        assert {name: load_spec(name, RestorationSpec, task).images for name in available(RestorationSpec, task)} == sets


@pytest.mark.parametrize(("task", "name"), CASES)
def test_every_shipped_description_is_valid(task: str, name: str) -> None:
    spec = load_spec(name, RestorationSpec, task)
    assert spec.name == name and spec.task == task
    assert spec.licence and spec.citation and spec.source.where
    for number in spec.published:
        assert number.level in spec.levels
        assert 20 < number.psnr < 45 and (number.ssim is None or 0.6 < number.ssim < 1)
        assert number.psnr_b is None or number.psnr - 4 < number.psnr_b < number.psnr
        assert number.source


def test_one_set_serves_two_tasks() -> None:
    assert load_spec("urban100").task == "super-resolution"
    second = load_spec("urban100", RestorationSpec, "denoising")
    assert second.citation == load_spec("urban100").citation and second.levels == (15, 25, 50)
    assert load_spec("kodak24", RestorationSpec).task == "denoising"
    with pytest.raises(RequestError, match=r"Kodak24 is a data set for denoising and jpeg.*Sets that can: .*gopro"):
        load_spec("kodak24", RestorationSpec, "deblurring")
    with pytest.raises(RequestError, match="Did you mean kodak24"):
        load_spec("kodk24", RestorationSpec, "denoising")


def test_published_numbers_of_a_method() -> None:
    number = load_spec("kodak24", RestorationSpec).published_for("bm3d", 25)
    assert number is not None and number.psnr == 31.68 and "not checked" in number.source
    gopro = load_spec("gopro", RestorationSpec).published_for("nafnet-gopro-width64", None)
    assert gopro is not None and (gopro.psnr, gopro.ssim) == (33.71, 0.9668)
    assert load_spec("kodak24", RestorationSpec).published_for("bm3d", 10) is None
    assert load_spec("kodak24", RestorationSpec).published_for(None, 25) is None


@pytest.mark.parametrize(
    ("like", "changes", "text"),
    [
        ("kodak24", {"degradation": {"kind": "noise", "sigmas": []}}, "at least 1 item"),
        ("kodak24", {"degradation": {"kind": "fog"}}, "degradation"),
        ("kodak24", {"degradation": {"kind": "stored"}}, "just where the degradation is stored"),
        ("gopro", {"layouts": [{"name": "x", "clean": "{name}"}]}, "just where the degradation is stored"),
        ("gopro", {"layouts": [{"name": "x", "clean": "a/{scene}x/{name}", "degraded": "b/{name}"}]}, "alone between slashes"),
        ("gopro", {"layouts": [{"name": "x", "clean": "../{name}", "degraded": "b/{name}"}]}, "below the data set's folder"),
        ("gopro", {"protocol": {"ssim": "4-d"}}, "protocol.ssim"),
        ("gopro", {"published": [{"method": "a", "psnr": 30, "source": "s"}] * 2}, "given twice"),
        ("kodak24", {"also": 3}, "a list of further tasks"),
    ],
)
def test_faults_are_named(tmp_path: Path, like: str, changes: dict[str, object], text: str) -> None:
    with pytest.raises(InputError, match=text):
        load_spec(described(tmp_path, like, **changes), RestorationSpec)


@pytest.mark.parametrize(
    ("name", "clean", "degraded", "found"),
    [
        ("gopro", "test/{}/sharp/{}.png", "test/{}/blur/{}.png", ["s1/a", "s2/a"]),
        ("gopro", "test/target/{}-{}.png", "test/input/{}-{}.png", ["s1-a", "s2-a"]),
        ("gopro", "target/{}-{}.png", "input/{}-{}.PNG", ["s1-a", "s2-a"]),
        ("hide", "GT/{1}{0}.png", "test/{0}/{1}{0}.png", ["as1", "as2"]),
        ("realblur-j", "target/{}{}.png", "input/{}{}.jpg", None),
    ],
)
def test_layouts_of_pairs(tmp_path: Path, name: str, clean: str, degraded: str, found: list[str] | None) -> None:
    spec = load_spec(described(tmp_path, name), RestorationSpec)
    for scene in ("s1", "s2"):
        put(tmp_path / "two", clean.format(scene, "a"))
        if found is not None:
            put(tmp_path / "two", degraded.format(scene, "a"))
    if name == "hide":
        put(tmp_path / "two", "GT/of-training.png")
    if found is None:
        with pytest.raises(InputError, match=r"2 pictures of Two.*target/NAME.png with input/NAME.png: none"):
            find_restoration(spec, tmp_path)
        return
    items = find_restoration(spec, tmp_path).items
    assert [item.name for item in items] == found
    assert all(item.clean and item.degraded and item.clean.stem == item.degraded.stem for item in items)


def test_a_pair_that_lacks_one_side_is_told(tmp_path: Path) -> None:
    spec = load_spec(described(tmp_path, "gopro"), RestorationSpec)
    put(tmp_path / "Two", "target/a.png", "target/b.png", "input/a.png")
    with pytest.raises(InputError, match=r"1 of the pictures in .* have no partner, the first is b"):
        find_restoration(spec, tmp_path)


@pytest.mark.parametrize("pattern", ["{}.png", "HR/{}.png", "x4/HR/{}.png", "image_SRF_4/{}_SRF_4_HR.png"])
def test_urban100_starts_from_the_full_size_pictures(tmp_path: Path, pattern: str) -> None:
    names = [f"img_{k:03}" for k in range(1, 101)]
    put(tmp_path / "Urban100", *(pattern.format(name) for name in names))
    found = find_restoration(load_spec("urban100", RestorationSpec, "denoising"), tmp_path)
    assert [item.name for item in found.items] == names and found.items[0].degraded is None


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    spec = load_spec("kodak24", RestorationSpec)
    with pytest.raises(RequestError, match="--data"):
        find_restoration(spec, None)
    with pytest.raises(InputError, match=r"no folder named kodak24.*r0k.us"):
        find_restoration(spec, tmp_path)
    put(tmp_path / "Kodak24", "kodim01.png")
    with pytest.raises(InputError, match=r"24 pictures of Kodak24. Looked for: NAME.png: 1 pictures.*r0k.us"):
        find_restoration(spec, tmp_path)
    dnd = load_spec("dnd", RestorationSpec)
    put(tmp_path / "DND", "x.png")
    with pytest.raises(InputError, match=r"images_srgb/NAME.mat with info.mat: none"):
        find_restoration(dnd, tmp_path)


def test_blocks_that_do_not_belong_together(tmp_path: Path) -> None:
    for name, shape in (("ValidationGtBlocksSrgb", (1, 2, 8, 8, 3)), ("ValidationNoisyBlocksSrgb", (1, 3, 8, 8, 3))):
        (tmp_path / "SIDD").mkdir(exist_ok=True)
        scipy.io.savemat(tmp_path / "SIDD" / f"{name}.mat", {name: np.zeros(shape, np.uint8)})
    with pytest.raises(InputError, match="of one size"):
        find_restoration(load_spec("sidd", RestorationSpec), tmp_path)
    (tmp_path / "SIDD" / "ValidationGtBlocksSrgb.mat").write_bytes(b"half a file")
    with pytest.raises(InputError, match="Download it again"):
        find_restoration(load_spec("sidd", RestorationSpec), tmp_path)


def test_folder_of_own_pictures(tmp_path: Path) -> None:
    put(tmp_path, "b.png", "a.png", ".hidden.png", "notes.txt")
    for task in ("denoising", "deblurring", "jpeg"):
        spec = folder_restoration_spec(tmp_path, task)  # type: ignore[arg-type]
        assert [item.name for item in find_restoration(spec, None).items] == ["a", "b"] and spec.published == ()
    with pytest.raises(InputError, match="is not a folder"):
        folder_restoration_spec(tmp_path / "absent", "jpeg")


def test_known_kodak_files(shared: Path) -> None:
    spec = load_spec("kodak24", RestorationSpec)
    found = find_restoration(spec, shared / "data")
    checked = check_files(spec, [item.clean for item in found.items if item.clean])
    assert checked is not None and checked.known == 24 and checked.unknown == ()

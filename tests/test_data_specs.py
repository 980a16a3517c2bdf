"""Descriptions of data sets, and the files they find."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

import data_specs
from data_specs import SuperResolutionSpec, available, check_files, find_images, folder_spec, load_spec
from hybrid.errors import InputError, RequestError
from restore.evaluation.files import write_png

FOLDER = Path(data_specs.__file__).parent
BENCHMARKS = {"set5": 5, "set14": 14, "bsd100": 100, "urban100": 100, "manga109": 109}


def put(folder: Path, *names: str) -> None:
    for name in names:
        write_png(folder / name, np.zeros((8, 8, 3), np.uint8))


def described(tmp_path: Path, **changes: object) -> Path:
    """A valid description of a set of two pictures, with changes."""
    facts = yaml.safe_load((FOLDER / "set5.yaml").read_text(encoding="utf-8"))
    facts |= {"name": "two", "title": "Two", "images": 2, "folders": ["Two"], "checksums": None, **changes}
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(facts), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", available())
def test_every_shipped_description_is_valid(name: str) -> None:
    spec = load_spec(name)
    assert spec.name == name
    assert spec.licence and spec.citation and spec.source.where
    for number in spec.published:
        assert 20 < number.psnr < 45 and (number.ssim is None or 0.6 < number.ssim < 1)
    if spec.checksums is not None:
        assert all(len(line.split()[0]) == 64 for line in spec.checksums.read_text(encoding="utf-8").splitlines())


def test_the_benchmark_sets_are_there_with_their_counts() -> None:
    assert {name: load_spec(name).images for name in BENCHMARKS} == BENCHMARKS


def test_published_numbers_of_a_method() -> None:
    number = load_spec("set5").published_for("hat", 4)
    assert number is not None and (number.psnr, number.ssim) == (33.04, 0.9056)
    assert load_spec("urban100").published_for("swinir", 4).ssim is None  # type: ignore[union-attr]
    assert load_spec("set5").published_for("nobody", 4) is None
    assert load_spec("set5").published_for(None, 4) is None


def test_names_take_any_case_and_near_ones_are_offered() -> None:
    assert load_spec("Set5").name == "set5"
    with pytest.raises(RequestError, match="Did you mean urban100"):
        load_spec("urbn100")
    with pytest.raises(RequestError, match="Known sets: bsd100"):
        load_spec("zzz")
    with pytest.raises(RequestError, match="There is no file"):
        load_spec("absent.yaml")


def test_own_description(tmp_path: Path) -> None:
    spec = load_spec(described(tmp_path, checksums="two.sha256"))
    assert isinstance(spec, SuperResolutionSpec)
    assert spec.checksums == tmp_path / "two.sha256"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"licnce": "MIT"}, "licnce: unknown key, did you mean licence"),
        ({"images": -1}, "images: input should be greater than 0"),
        ({"task": "cooking"}, "Set task to one of"),
        ({"layouts": [{"name": "x", "hr": "HR/*.png"}]}, "needs {name} once"),
        ({"layouts": [{"name": "x", "hr": "../{name}"}]}, "below the data set's folder"),
        ({"protocol": {"channel": "luma"}}, "protocol.channel"),
        ({"published": [{"method": "a", "scale": 2, "psnr": 30, "source": "s"}] * 2}, "given twice"),
    ],
)
def test_faults_are_named(tmp_path: Path, changes: dict[str, object], text: str) -> None:
    with pytest.raises(InputError, match=text):
        load_spec(described(tmp_path, **changes))


@pytest.mark.parametrize(("content", "text"), [("name: [", "not valid YAML in line"), ("just words", "holds no 'key: value'")])
def test_files_that_are_no_descriptions(tmp_path: Path, content: str, text: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=text):
        load_spec(path)


def test_yaml_cannot_run_code(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("name: !!python/object/apply:os.getcwd []", encoding="utf-8")
    with pytest.raises(InputError, match="not valid YAML"):
        load_spec(path)


@pytest.mark.parametrize(
    ("hr", "lr"),
    [
        ("x2/HR/{}.png", "x2/LR/{}.png"),
        ("GTmod2/{}.png", "LRbicx2/{}.png"),
        ("GTmod12/{}.png", "LRbicx2/{}.png"),
        ("HR/{}.png", "LR_bicubic/X2/{}x2.png"),
        ("image_SRF_2/{}_SRF_2_HR.png", "image_SRF_2/{}_SRF_2_LR.png"),
        ("HR/{}.bmp", None),
        ("{}.PNG", None),
    ],
)
@pytest.mark.parametrize("below", [True, False])
def test_layouts(tmp_path: Path, hr: str, lr: str | None, below: bool) -> None:
    spec = load_spec(described(tmp_path))
    root = tmp_path / "two"
    for name in ("baby", "bird"):
        put(root, hr.format(name), *([lr.format(name)] if lr else []))
    found = find_images(spec, tmp_path if below else root, 2)
    assert [pair.name for pair in found.pairs] == ["baby", "bird"]
    assert [pair.hr.relative_to(root).as_posix() for pair in found.pairs] == [hr.format("baby"), hr.format("bird")]
    assert (found.pairs[1].lr.relative_to(root).as_posix() if found.pairs[1].lr else None) == (lr.format("bird") if lr else None)


def test_urban100_x2_starts_from_the_full_size_pictures(tmp_path: Path) -> None:
    root = tmp_path / "Urban100"
    names = [f"img_{k:03}" for k in range(1, 101)]
    for scale in (2, 4):
        put(root / f"image_SRF_{scale}", *(f"{name}_SRF_{scale}_{kind}.png" for name in names for kind in ("HR", "LR")))
    found = find_images(load_spec("urban100"), tmp_path, 2)
    assert found.pairs[0].hr.name == "img_001_SRF_4_HR.png" and found.pairs[0].lr is None
    assert find_images(load_spec("urban100"), tmp_path, 4).pairs[0].lr is not None


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    spec = load_spec(described(tmp_path))
    with pytest.raises(RequestError, match="--data"):
        find_images(spec, None, 2)
    with pytest.raises(InputError, match="does not exist"):
        find_images(spec, tmp_path / "absent", 2)
    with pytest.raises(InputError, match="no folder named Two"):
        find_images(spec, tmp_path, 2)
    put(tmp_path / "Two", "x2/HR/baby.png")
    with pytest.raises(InputError, match=r"2 pictures of Two at x2.*x2/HR/NAME.png: 1 pictures; GTmod2/NAME.png: none"):
        find_images(spec, tmp_path, 2)
    put(tmp_path / "Two", "x2/HR/bird.png", "x2/LR/baby.png")
    with pytest.raises(InputError, match=r"1 of 2 low-resolution pictures are missing.*x2/LR/bird.png"):
        find_images(spec, tmp_path, 2)
    put(tmp_path / "Two", "x2/HR/bird.bmp")
    with pytest.raises(InputError, match="are the same picture"):
        find_images(spec, tmp_path, 2)
    with pytest.raises(RequestError, match="Choose one of x2, x3, x4"):
        find_images(spec, tmp_path, 5)


def test_folder_of_own_pictures(tmp_path: Path) -> None:
    put(tmp_path, "b.png", "a.png", ".hidden.png", "notes.txt")
    found = find_images(folder_spec(tmp_path), None, 8)
    assert [(pair.name, pair.lr) for pair in found.pairs] == [("a", None), ("b", None)]
    with pytest.raises(InputError, match="is not a folder"):
        folder_spec(tmp_path / "absent")


def test_mini_is_whole_and_small() -> None:
    spec = load_spec("mini")
    found = find_images(spec, None, 4)
    assert len(found.pairs) == 6
    checked = check_files(spec, found)
    assert checked is not None and checked.known == 6
    assert sum(path.stat().st_size for path in (FOLDER / "mini").iterdir()) < 700_000


def test_checksums_know_content_not_names(tmp_path: Path) -> None:
    spec = load_spec("mini")
    for pair in find_images(spec, None, 4).pairs:
        (tmp_path / f"other-{pair.hr.name}").write_bytes(pair.hr.read_bytes())
    with (tmp_path / "other-otter.png").open("ab") as file:
        file.write(b"x")
    checked = check_files(spec, find_images(spec.model_copy(update={"pictures": tmp_path}), None, 4))
    assert checked is not None and checked.known == 5
    assert [path.name for path in checked.unknown] == ["other-otter.png"]


@pytest.mark.parametrize(("name", "scale"), [("set5", 2), ("set5", 3), ("set14", 4), ("bsd100", 4)])
def test_known_files(shared: Path, name: str, scale: int) -> None:
    spec = load_spec(name)
    found = find_images(spec, shared / "data" / "benchmarks", scale)
    checked = check_files(spec, found)
    assert checked is not None and checked.unknown == () and checked.known == 2 * BENCHMARKS[name]

"""`restore face`, with small networks whose answer is known: they leave faces as they are, or tint them."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms

from hybrid.batch.work import Tell
from hybrid.errors import InputError, RequestError, ResourceError
from hybrid.memory import parse_size
from restore import load_model
from restore.faces.boxes import boxes_of, read_boxes
from restore.faces.files import FaceRun, face_stages
from restore.faces.restoration import FaceSettings, restored_face
from restore.images import read_picture, read_record
from restore.models.nafnet import KEYS, NAFNet, NAFNetConfig
from tests.command import files, restore

SCENE = Path(__file__).parents[1] / "data" / "faces" / "scene.jpg"
TINT = (0.1, 0.0, -0.1)
FEW_LANDMARKS = '[{"box": [0, 0, 5, 5], "landmarks": [[1, 2]]}]'


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RESTORE_OFFLINE", "1")


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A NAFNet that adds TINT to every pixel."""
    made = NAFNet(NAFNetConfig(in_channels=3, width=8, encoder_depths=(1,), middle_depth=1, decoder_depths=(1,)))
    with torch.no_grad():
        made.ending.weight.zero_()
        made.ending.bias.copy_(torch.tensor(TINT))
    path = tmp_path / "tint.pth"
    torch.save({"params": {KEYS.to_published(key): value for key, value in made.state_dict().items()}}, path)
    return path


def pictures(folder: Path) -> dict[str, Path]:
    """The scene as 8-bit RGBA with a profile, as 16-bit gray, and a picture without a face."""
    scene = Image.open(SCENE)
    alpha = Image.linear_gradient("L").resize(scene.size)
    rgba = scene.copy()
    rgba.putalpha(alpha)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    rgba.save(folder / "rgba.png", icc_profile=profile)
    gray = np.asarray(scene.convert("L"), np.uint16) * 257
    tifffile.imwrite(folder / "gray.tif", gray, photometric="minisblack")
    Image.linear_gradient("L").convert("RGB").resize((90, 70)).save(folder / "empty.png")
    return {name: folder / name for name in ("rgba.png", "gray.tif", "empty.png")}


def test_a_face_is_restored_and_all_that_belongs_to_it_is_written(tmp_path: Path, network: Path) -> None:
    source = pictures(tmp_path)["rgba.png"]
    said = restore(
        "face", source, "--weights", network, "--scale", "2", "-o", tmp_path / "out.png",
        "--sheet", tmp_path / "sheet.png", "--save-faces", tmp_path / "faces",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert "480 x 480, 1 face" in said.err and "Details of restored faces are invented" in said.err
    before, after = Image.open(source), Image.open(tmp_path / "out.png")
    assert after.mode == "RGBA" and after.size == (480, 480) and after.info["icc_profile"] == before.info["icc_profile"]
    change = np.asarray(after, float)[..., :3] - np.asarray(before.resize((480, 480), Image.Resampling.BICUBIC), float)[..., :3]
    np.testing.assert_allclose(np.median(change[170:250, 200:270], axis=(0, 1)), np.multiply(TINT, 255), atol=2)
    assert np.abs(np.median(change[:60], axis=(0, 1))).max() <= 1
    record = json.loads((tmp_path / "out.png.json").read_text())
    assert record["task"] == "face" and record["weights"] == "tint.pth" and "invented" in " ".join(record["notes"])
    (face,) = record["figures"]["faces"]
    assert record["figures"]["faces_found"] == 1 and face["score"] > 0.9 and np.shape(face["landmarks"]) == (5, 2)
    assert face["distance"]["landmarks"] < 5 and face["distance"]["structure"] < 10 and face["distance"]["arcface"] is None
    assert "Neither recognises a person" in record["figures"]["distance_measure"]
    assert "invented" in (read_record(read_picture(tmp_path / "out.png").metadata.xmp) or "")
    assert sorted(path.name for path in (tmp_path / "faces").iterdir()) == ["rgba_face1_after.png", "rgba_face1_before.png"]
    assert Image.open(tmp_path / "sheet.png").width > 512


def test_gray_of_16_bits_stays_so_and_a_network_for_super_resolution_enlarges_the_rest(tmp_path: Path, network: Path) -> None:
    source = pictures(tmp_path)["gray.tif"]
    said = restore(
        "face", source, "--weights", network, "--scale", "2", "--background", "espcn-compact", "-o", tmp_path / "out.tif"
    )
    assert said.code == 0, said.err
    result = tifffile.imread(tmp_path / "out.tif")
    assert result.dtype == np.uint16 and result.shape == (480, 480)
    notes = " ".join(json.loads((tmp_path / "out.tif.json").read_text())["notes"])
    assert "enlarged to 480 x 480 by espcn-compact" in notes


def test_a_picture_without_a_face_is_written_and_it_is_said(tmp_path: Path, network: Path) -> None:
    source = pictures(tmp_path)["empty.png"]
    said = restore("face", source, "--weights", network, "--json")
    assert said.code == 0 and "No face was found" in json.loads(said.out)["notes"][0]
    assert json.loads(said.out)["faces"] == []
    assert np.array_equal(np.asarray(Image.open(tmp_path / "empty_restored.png")), np.asarray(Image.open(source)))


def test_a_plan_numbers_the_faces_and_writes_nothing(tmp_path: Path, network: Path) -> None:
    source = pictures(tmp_path)["gray.tif"]
    before = files(tmp_path)
    said = restore("face", source, "--weights", network, "--plan")
    assert said.code == 0 and "face 1: box" in said.out and "1 of 1 faces; result 240 x 240" in said.out
    told = json.loads(restore("face", source, "--weights", network, "--plan", "--json").out)
    assert len(told["faces"]) == 1 and told["chosen"] == [1]
    assert files(tmp_path) == before


def test_a_record_names_the_faces_of_the_next_run(tmp_path: Path, network: Path) -> None:
    """The same places, found by nobody: the picture of the second run shows no face at all."""
    source = tmp_path / "a.png"
    Image.linear_gradient("L").convert("RGB").resize((90, 70)).save(source)
    boxes = tmp_path / "boxes.json"
    points = [[30, 30], [50, 30], [40, 42], [32, 52], [48, 52]]
    boxes.write_text(json.dumps({"input": "a.png", "figures": {"faces": [{"box": [20, 15, 60, 65], "landmarks": points}]}}))
    said = restore("face", source, "--weights", network, "--boxes", boxes, "-o", tmp_path / "b.png")
    assert said.code == 0, said.err
    change = np.asarray(Image.open(tmp_path / "b.png"), float) - np.asarray(Image.open(source), float)
    np.testing.assert_allclose(change[40, 40], np.multiply(TINT, 255), atol=1.5)
    assert not change[:, 80:].any()


@pytest.mark.parametrize("text", ["[[1, 2, 3]]", "[[5, 5, 1, 9]]", '{"a": 3}', "nothing", FEW_LANDMARKS])
def test_boxes_that_are_none_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(InputError, match="Give a list of"):
        read_boxes(tmp_path / "b.json")


def test_boxes_are_told_by_file_name(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text('{"a.png": [[0, 0, 5, 5]], "b.png": []}')
    known = read_boxes(tmp_path / "b.json")
    assert [len(boxes_of(known, Path(name))) for name in ("x/a.png", "b.png", "c.png")] == [1, 0, 0]


def test_several_pictures_go_to_a_folder_and_one_that_fails_stops_none(tmp_path: Path, network: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    pictures(folder)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    said = restore("face", folder, "--weights", network, "-o", tmp_path / "out", "--sheet", tmp_path / "sheets", "--only", "1")
    assert said.code == 1 and "2 of 4 pictures failed" in said.err  # one broken, one without a face 1
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"rgba.png", "gray.tif"} <= made and "broken.png" not in made
    assert {path.name for path in (tmp_path / "sheets").iterdir()} == {"rgba_faces.png", "gray_faces.png"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--only", "a"), "--only a is not understood"),
        (("--fidelity", "2"), "--fidelity 2 is no blend"),
        (("--background", "hat-compact"), "--background enlarges"),
        (("--scale", "0.5"), "does not enlarge"),
        (("--aligned", "--scale", "2"), "no background"),
        (("--sheet", "sheet.jpg"), "not named like a PNG"),
        (("--model", "rohqd"), "rohqd"),
        (("--model", "denoise-compact"), "Type restore denoise"),
    ],
)
def test_requests_without_sense_are_refused_and_nothing_is_written(
    options: tuple[str, ...], words: str, tmp_path: Path, network: Path
) -> None:
    source = pictures(tmp_path)["empty.png"]
    before = files(tmp_path)
    given = () if "--model" in options else ("--weights", network)
    said = restore("face", source, *given, *options)
    assert said.code != 0 and words in said.err
    assert files(tmp_path) == before


def test_other_commands_send_faces_here(tmp_path: Path) -> None:
    source = pictures(tmp_path)["empty.png"]
    said = restore("denoise", source, "--model", "restoreformer++")
    assert said.code == 2 and "restore face --model restoreformer++" in said.err
    said = restore("face", source, "--model", "yunet")
    assert said.code == 2 and "finding faces" in said.err


def test_an_aligned_face(tmp_path: Path, network: Path) -> None:
    source = tmp_path / "face.png"
    Image.open(SCENE).crop((57, 30, 177, 150)).save(source)
    assert restore("face", source, "--weights", network, "--aligned", "-o", tmp_path / "out.png").code == 0
    assert Image.open(tmp_path / "out.png").size == (256, 256)


def test_a_folder_is_gone_on_with_and_only_what_changed_is_done_again(tmp_path: Path, network: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    pictures(folder)
    beside = ("--sheet", tmp_path / "sheets", "--save-faces", tmp_path / "faces")
    run = ("face", folder, "--weights", network, "-o", tmp_path / "out", *beside)
    assert restore(*run).code == 0
    first = files(tmp_path)
    assert {"faces/rgba_face1_after.png", "faces/rgba_face1_before.png", "out/run.jsonl"} <= set(first)
    said = restore(*run)
    assert said.code == 0 and said.err.count("skipped") == 3
    (tmp_path / "sheets" / "rgba_faces.png").unlink()
    said = restore(*run)
    assert said.code == 0 and said.err.count("skipped") == 2
    again = files(tmp_path)
    assert again.keys() == first.keys() and again["sheets/rgba_faces.png"] == first["sheets/rgba_faces.png"]
    said = restore(*run, "--fidelity", "0.5")  # other results: all anew
    assert said.code == 0 and "skipped" not in said.err
    assert files(tmp_path)["faces/rgba_face1_after.png"] != first["faces/rgba_face1_after.png"]


def test_a_picture_that_does_not_fit_the_memory_is_refused_with_the_bound_that_helps(tmp_path: Path, network: Path) -> None:
    source = pictures(tmp_path)["rgba.png"]
    before = files(tmp_path)
    said = restore("face", source, "--weights", network, "--memory", "1MB")
    assert said.code == 5 and files(tmp_path) == before
    asked = re.search(r"Raise --memory by ([\d.]+[kMG]B) or more", said.err)
    assert asked is not None
    enough = parse_size("1MB") + int(1.2 * parse_size(asked[1]))
    assert restore("face", source, "--weights", network, "--memory", f"{enough // 1000}kB").code == 0


def test_pictures_read_and_written_beside_the_computing_of_others_are_the_same(tmp_path: Path, network: Path) -> None:
    """With a bound on memory each picture is read, computed and written before the next."""
    (tmp_path / "in").mkdir()
    pictures(tmp_path / "in")
    (tmp_path / "in" / "broken.png").write_bytes(SCENE.read_bytes()[:3000])
    made = []
    for out, more in ((tmp_path / "beside", ()), (tmp_path / "alone", ("--memory", "16GB"))):
        extra = ("--sheet", out / "sheets", "--save-faces", out / "faces")
        said = restore("face", tmp_path / "in", "--weights", network, "-o", out, *extra, *more)
        assert said.code == 1 and "broken.png" in said.err and "1 of 4 pictures" in said.err
        made.append({name: data for name, data in files(out).items() if name.endswith((".png", ".tif"))})
        assert not [name for name in files(out) if Path(name).name.startswith(".")]
    assert made[0] == made[1] and len(made[0]) == 9
    assert sum(name.startswith("faces") for name in made[0]) == 4


def test_a_picture_given_up_at_a_pause_leaves_nothing(tmp_path: Path, network: Path) -> None:
    source, out = pictures(tmp_path)["rgba.png"], tmp_path / "out"
    out.mkdir()
    for pauses in (1, 2):
        stages = face_stages(load_model(network), source, out / "a.png", FaceRun(), sheet=out / "sheet.png")
        next(stages)
        if pauses == 2:
            stages.send(Tell())
        stages.close()
        assert not any(out.iterdir())


def test_memory_is_looked_at_when_it_is_this_picture_s_turn(
    tmp_path: Path, network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be read while another picture holds what it needs."""

    def none_left(*about: object) -> None:
        raise ResourceError("none is left", hint="wait")

    monkeypatch.setattr("restore.faces.files.check_memory", none_left)
    stages = face_stages(load_model(network), pictures(tmp_path)["rgba.png"], tmp_path / "out.png", FaceRun())
    next(stages)
    with pytest.raises(ResourceError, match="none is left"):
        stages.send(Tell())


def test_a_network_that_gives_other_channels_than_rgb_restores_no_face(network: Path) -> None:
    made = load_model(network)
    made.card = dataclasses.replace(made.card, out_channels=1)
    with pytest.raises(RequestError, match="takes 3 channels and gives 1 x 1"):
        restored_face(made, np.zeros((512, 512, 3), np.float32), FaceSettings())

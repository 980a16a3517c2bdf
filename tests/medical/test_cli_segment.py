"""`medical segment` from the command line: one scan, many, DICOM, refusals, and what is left on disk."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from pydicom import Dataset

from apps.commands import medical as entry_point
from hybrid.records import Record, sha256_file
from medical import load_model
from medical.loading import save_model
from medical.models import family
from medical.segmentation.run import segment
from medical.structures import Structure
from medical.volumes.label_maps import read_labels, write_labels
from medical.volumes.volume import read_volume
from tests.command import Said, files
from tests.medical.dicom_stubs import pixels, private, series
from tests.medical.stubs import protocol, save_untrained, smooth

KINDS = (".labels.json", ".nii.gz", ".nii.gz.json", "_preview.png", "_report.html", "_statistics.csv", "_statistics.json")


def medical(*arguments: str | Path) -> Said:
    """Run `medical` with these arguments, in this process."""
    out, err = io.StringIO(), io.StringIO()
    code: int | str | None = None
    with patch.object(sys, "argv", ["medical", *map(str, arguments)]), redirect_stdout(out), redirect_stderr(err):
        try:
            entry_point()
        except SystemExit as stop:
            code = stop.code
    assert isinstance(code, int)
    return Said(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Swin UNETR that has learnt nothing, with its protocol in the file."""
    return save_untrained(tmp_path_factory.mktemp("weights") / "tiny.safetensors", mirror=(0,))


@pytest.fixture(autouse=True)
def few_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def scan(path: Path, shape: tuple[int, ...] = (17, 19, 15), seed: int = 0, **changes: object) -> Path:
    """A NIfTI file with an oblique affine, stored as int16."""
    affine = np.array([[-1.0, 0.1, 0, 10], [0.1, 1.0, 0, -30], [0, 0, 1.5, 5], [0, 0, 0, 1]])
    values = (smooth(*shape, seed=seed) * 50 + 200).astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(changes.get("values", values), changes.get("affine", affine)), path)
    return path


def test_one_scan_gives_a_label_map_on_its_grid_and_all_that_goes_with_it(tmp_path: Path, weights: Path) -> None:
    path = scan(tmp_path / "in" / "case.01.nii.gz")
    before = path.read_bytes()
    said = medical("segment", path, "--weights", weights, "--precision", "float32", "--threads", 1)
    assert said.code == 0, said.err
    assert said.out == "" and "case.01_seg.nii.gz" in said.err and "part 1" in said.err
    assert "Research use, not a medical device" in said.err
    assert path.read_bytes() == before
    assert sorted(p.name for p in path.parent.iterdir()) == sorted(["case.01.nii.gz", *(f"case.01_seg{kind}" for kind in KINDS)])
    found, original = nib.load(path.with_name("case.01_seg.nii.gz")), nib.load(path)
    np.testing.assert_array_equal(found.affine, original.affine)
    assert found.shape == original.shape and found.get_data_dtype() == np.uint8
    expected = segment(read_volume(path), load_model(weights, device="cpu"))
    np.testing.assert_array_equal(np.asarray(found.dataobj), expected.labels)
    text = path.with_name("case.01_seg.nii.gz.json").read_text(encoding="utf-8")
    record, facts = Record.from_json(text), json.loads(text)
    assert record.input_sha256 == sha256_file(path) and record.weights_sha256 == sha256_file(weights)
    assert (record.device, record.precision, record.family) == ("cpu", "float32", "swin_unetr")
    assert facts["protocol"]["patch"] == [16, 16, 16] and facts["windows"]["count"] == 4
    assert facts["research_use"] == "Research use, not a medical device" and str(tmp_path) not in text
    table = path.with_name("case.01_seg_statistics.csv").read_text(encoding="utf-8")
    assert "part 1" in table and "Research use" in table


def test_output_names(tmp_path: Path, weights: Path) -> None:
    path = scan(tmp_path / "a" / "case.nii")
    bare = ("--weights", weights, "--no-report", "-q")
    assert medical("segment", path, "-o", tmp_path / "b", *bare).code == 0
    assert set(files(tmp_path / "b")) == {"case.nii.gz", "case.labels.json", "case.nii.gz.json"}
    assert medical("segment", path, "-o", tmp_path / "c" / "mask.nii", "--save-probabilities", *bare).code == 0
    assert set(files(tmp_path / "c")) == {"mask.nii", "mask.labels.json", "mask.nii.json", "mask_probabilities.nii.gz"}
    shares = nib.load(tmp_path / "c" / "mask_probabilities.nii.gz").get_fdata()
    labels = np.asarray(nib.load(tmp_path / "c" / "mask.nii").dataobj)
    assert shares.shape == (17, 19, 15, 3)
    clear = np.sort(shares, -1)[..., -1] - np.sort(shares, -1)[..., -2] > 1e-4
    np.testing.assert_array_equal(shares.argmax(-1)[clear], labels[clear])
    there = medical("segment", path, "-o", tmp_path / "b", *bare)
    assert there.code == 6 and "is there already" in there.err and "--overwrite" in there.err
    assert medical("segment", path, "-o", tmp_path / "b", "--overwrite", *bare).code == 0


def test_json_and_plan(tmp_path: Path, weights: Path) -> None:
    path = scan(tmp_path / "case.nii.gz")
    before = files(tmp_path)
    plan = medical("segment", path, "--weights", weights, "--plan", "--tta")
    assert plan.code == 0 and "4 windows of 16 x 16 x 16 over 17 x 19 x 15" in plan.out
    assert "turned to LPS" in plan.out and "2 mirror images" in plan.out and "case_seg.nii.gz" in plan.out
    facts = json.loads(medical("segment", path, "--weights", weights, "--plan", "--json", "--roi", "0:16,2:18,:").out)
    assert facts["windows"]["count"] == 1 and "cut to" in facts["way"] and facts["memory_bytes"] > 0
    assert files(tmp_path) == before
    said = medical("segment", path, "--weights", weights, "--json", "-q", "--fast")
    found = json.loads(said.out)
    assert said.code == 0 and found["structures"][0]["name"] == "part 1" and "overlap 0.25" in found["windows"]
    assert found["outputs"][0].endswith("case_seg.nii.gz") and found["research_use"].startswith("Research use")


def test_a_folder_goes_on_after_a_bad_scan_and_again_after_a_stop(tmp_path: Path, weights: Path) -> None:
    root = tmp_path / "scans"
    first, second = scan(root / "a.nii.gz"), scan(root / "deep" / "b.nii.gz", seed=1)
    (root / "c.nii.gz").write_bytes(first.read_bytes()[:2000])
    (root / "notes.txt").write_text("no scan")
    (root / "._a.nii.gz").write_bytes(b"litter")
    command = ("segment", root, "-o", tmp_path / "out", "--weights", weights, "--no-report", "--precision", "float32")
    said = medical(*command)
    assert said.code == 1 and "1 of 3 scans failed" in said.err and "c.nii.gz" in said.err
    assert said.err.count("\nfailed: ") == 1 and "damaged" in said.err
    expected = {f"{name}{kind}" for name in ("a", "deep/b") for kind in (".nii.gz", ".labels.json", ".nii.gz.json")}
    assert set(files(tmp_path / "out")) == expected | {"deep", "run.jsonl"}
    network = load_model(weights, device="cpu")
    for path, target in ((first, "a.nii.gz"), (second, "deep/b.nii.gz")):
        np.testing.assert_array_equal(read_labels(tmp_path / "out" / target)[0], segment(read_volume(path), network).labels)
    made = files(tmp_path / "out")
    again = medical(*command)
    assert again.code == 1 and again.err.count("skipped") == 2 and results(tmp_path / "out") == results_of(made)
    (root / "c.nii.gz").unlink()
    assert medical(*command, "-q").code == 0 and results(tmp_path / "out") == results_of(made)
    scan(first, seed=5)
    changed = medical(*command)
    assert changed.code == 0 and changed.err.count("skipped") == 1
    (tmp_path / "out" / "run.jsonl").unlink()  # then the records alone tell what is there
    adopted = medical(*command)
    assert adopted.code == 0 and adopted.err.count("skipped") == 2
    (tmp_path / "out" / "run.jsonl").unlink()
    other = medical(*command, "--tta")
    assert other.code == 1 and other.err.count("not of this scan, network and settings") == 2
    assert medical(*command, "--overwrite").code == 0
    np.testing.assert_array_equal(read_labels(tmp_path / "out" / "a.nii.gz")[0], segment(read_volume(first), network).labels)


def results_of(made: dict[str, bytes | None]) -> dict[str, bytes | None]:
    return {name: content for name, content in made.items() if name != "run.jsonl"}


def results(folder: Path) -> dict[str, bytes | None]:
    return results_of(files(folder))


def test_json_tells_of_failures_too(tmp_path: Path, weights: Path) -> None:
    good = scan(tmp_path / "a.nii.gz")
    (tmp_path / "b.nii.gz").write_bytes(good.read_bytes()[:2000])
    command = ("segment", tmp_path, "-o", tmp_path / "out", "--weights", weights, "--no-report", "--json")
    for more in (("--plan",), ()):
        said = medical(*command, *more)
        first, second = (json.loads(line) for line in said.out.splitlines())
        assert said.code == 1 and "outputs" in first and second["input"].endswith("b.nii.gz")
        assert "damaged" in second["error"] and second["exit_code"] == 3 and second["hint"]


def test_results_in_the_folder_of_scans_are_no_scans(tmp_path: Path, weights: Path) -> None:
    scan(tmp_path / "a.nii.gz")
    command = ("segment", tmp_path, "-o", tmp_path / "out", "--weights", weights, "--no-report", "-q")
    assert medical(*command).code == 0 and medical(*command).code == 0
    assert {name for name in files(tmp_path) if name.endswith(".nii.gz")} == {"a.nii.gz", "out/a.nii.gz"}


def test_dicom_folders_and_zips(tmp_path: Path, weights: Path) -> None:
    for name in ("one", "two"):
        series(tmp_path / "in" / name, pixels(12, 18, 16))
    said = medical("segment", tmp_path / "in", "-o", tmp_path / "out", "--weights", weights)
    assert said.code == 0, said.err
    made = files(tmp_path / "out")
    assert set(made) == {f"{name}{kind}" for name in ("one", "two") for kind in (*KINDS, ".dcm")} | {"run.jsonl"}
    for name, content in made.items():
        if not name.endswith(".dcm"):  # a SEG belongs to its patient
            text = gzip.decompress(content) if name.endswith(".gz") else content  # type: ignore[arg-type]
            assert private(text.decode("latin-1")) == []  # type: ignore[union-attr]
    assert private(said.err + said.out) == []
    assert medical("segment", tmp_path / "in", "-o", tmp_path / "out", "--weights", weights).err.count("skipped") == 2
    study = tmp_path / "in" / "one"
    assert medical("segment", study, "--weights", weights, "--no-report", "--format", "seg", "-q").code == 0
    assert (tmp_path / "in" / "one_seg.dcm").is_file() and not (tmp_path / "in" / "one_seg.nii.gz").exists()
    mixed = medical("segment", tmp_path / "in", "--series", "9", "--weights", weights)
    assert mixed.code == 2 and "Choose one with --series" in mixed.err and private(mixed.err) == []
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", study)
    assert medical("segment", archive, "--weights", weights, "--no-report", "-q").code == 0
    np.testing.assert_array_equal(read_labels(tmp_path / "packed_seg.nii.gz")[0], read_labels(tmp_path / "out" / "one.nii.gz")[0])


def test_a_series_that_a_seg_cannot_refer_to_gives_nifti_and_says_so(tmp_path: Path, weights: Path) -> None:
    def anonymous(k: int, one: Dataset) -> None:
        one.SeriesInstanceUID = ""

    folder = series(tmp_path / "study", pixels(12, 18, 16), change=anonymous)
    said = medical("segment", folder, "--weights", weights, "--no-report")
    assert said.code == 0 and "No DICOM SEG" in said.err
    assert set(files(tmp_path)) - {name for name in files(tmp_path) if name.startswith("study/")} == {
        "study", "study_seg.nii.gz", "study_seg.labels.json", "study_seg.nii.gz.json",
    }  # fmt: skip
    said = medical("segment", folder, "--weights", weights, "--format", "both", "--overwrite")
    assert said.code == 6 and "SeriesInstanceUID" in said.err


def test_channels_in_files_of_their_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = family("swin_unetr").create(
        in_channels=2, out_channels=3, feature_size=12, depths=(1, 1), num_heads=(2, 4), window=3
    )
    path = tmp_path / "two.safetensors"
    save_model(path, network, protocol=protocol(patch=(16, 16, 16), channels=("FLAIR", "T1w")))
    one, other = scan(tmp_path / "flair.nii.gz"), scan(tmp_path / "t1.nii.gz", seed=1)
    said = medical("segment", one, other, "--stack", "--weights", path, "--no-report", "-q")
    assert said.code == 0, said.err
    assert (tmp_path / "flair_seg.nii.gz").is_file() and not (tmp_path / "t1_seg.nii.gz").exists()
    wrong = medical("segment", one, "--weights", path, "--overwrite")
    assert wrong.code == 3 and "takes 2" in wrong.err


def test_weights_that_do_not_say_what_they_ask_for(tmp_path: Path, weights: Path) -> None:
    bare, path = tmp_path / "bare.safetensors", scan(tmp_path / "case.nii.gz")
    network = load_model(weights, device="cpu")
    known, network.protocol = network.protocol, None
    save_model(bare, network)
    said = medical("segment", path, "--weights", bare)
    assert said.code == 2 and "do not say" in said.err and "--protocol FILE" in said.err
    assert known is not None
    file = tmp_path / "protocol.yaml"
    file.write_text(yaml.safe_dump(known.model_dump(mode="json")), encoding="utf-8")
    assert medical("segment", path, "--weights", bare, "--protocol", file, "--precision", "float32", "-q").code == 0
    labels, _, structures = read_labels(tmp_path / "case_seg.nii.gz")
    assert [each.name for each in structures] == ["part 1", "part 2"]
    np.testing.assert_array_equal(labels, segment(read_volume(path), load_model(weights, device="cpu")).labels)
    for text, complaint in (("patch: [1, 2]\n", "modality: Field required"), (": :\n-", "no YAML"), ("7\n", "no protocol")):
        file.write_text(text, encoding="utf-8")
        said = medical("segment", path, "--weights", bare, "--protocol", file, "--overwrite")
        assert said.code == 3 and complaint in said.err
    assert medical("segment", path, "--weights", bare, "--protocol", tmp_path / "none.yaml").code == 3
    other = medical("segment", path, "--weights", weights, "--option", "merging=unheard", "--overwrite")
    assert other.code in (2, 4) and "merging" in other.err


def damage(kind: str, path: Path) -> None:
    values = (smooth(12, 13, 14) * 50 + 200).astype(np.float32)
    if kind == "4-D":
        values = np.stack([values, values + 1], -1)
    if kind == "2-D":
        values = values[:, :, 0]
    if kind == "constant":
        values[:] = 3
    if kind == "NaN":
        values[3, 4, 5] = np.nan
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-3000])
    if kind == "zeros":
        raw = bytearray(gzip.decompress(path.read_bytes()))
        raw[280:328] = bytes(48)
        path.write_bytes(gzip.compress(bytes(raw)))
    if kind == "text":
        path.write_text("hello")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("4-D", "--volume 0 to 1"), ("2-D", "2-D"), ("constant", "the value 3 everywhere"), ("NaN", "NaN"),
        ("truncated", "damaged"), ("zeros", "affine"), ("text", "no NIfTI file"),
    ],
)  # fmt: skip
def test_bad_scans_leave_one_line_and_no_file(tmp_path: Path, weights: Path, kind: str, text: str) -> None:
    path = tmp_path / "bad.nii.gz"
    damage(kind, path)
    before = files(tmp_path)
    said = medical("segment", path, "--weights", weights, "-o", tmp_path / "out" / "deep")
    assert said.code in (2, 3) and text in said.err and "Traceback" not in said.err
    assert said.err.startswith("error: ") and len(said.err.strip().splitlines()) == 1
    assert said.out == "" and files(tmp_path) == before


def test_bad_requests_leave_nothing(tmp_path: Path, weights: Path) -> None:
    path, empty = scan(tmp_path / "case.nii.gz"), tmp_path / "empty"
    empty.mkdir()
    other = scan(tmp_path / "other.nii.gz", shape=(5, 6, 7))
    structures = [Structure(value=1, name="a")]
    mask = write_labels(tmp_path / "mask.nii.gz", np.ones((5, 6, 7), np.uint8), read_volume(other), structures)
    before = files(tmp_path)
    asked: list[tuple[tuple[str | Path, ...], int, str]] = [
        (("missing.nii.gz",), 3, "no file or folder"),
        ((empty,), 3, "no scan: no NIfTI file, no DICOM, and no picture"),
        ((path, "-o", path, "--overwrite"), 2, "Scans are never changed"),
        ((path, other, "-o", tmp_path / "one.nii.gz"), 2, "Give --output a folder"),
        ((path, path, "-o", tmp_path / "out"), 2, "would both be written"),
        ((path, "--format", "seg"), 2, "is no DICOM"),
        ((path, "-o", tmp_path / "x.dcm"), 2, "is no DICOM"),
        ((path, "--roi", mask), 3, "another grid"),
        ((path, "--roi", "1:2"), 2, "--roi"),
        ((path, "--volume", "3"), 2, "volume"),
        ((path, "--series", "1"), 2, "has no series"),
        ((path, "--fast", "--tta"), 2, "--fast"),
        ((path, "--memory", "1MB"), 5, "Give --memory "),
        ((path, "--memory", "much"), 2, "not a size"),
        ((path, "--device", "abacus"), 2, "not a device"),
        ((path, "--threads", "0"), 2, "threads"),
        ((path, "--option", "merging"), 2, "NAME=VALUE"),
    ]
    for arguments, code, text in asked:
        said = medical("segment", *arguments, "--weights", weights)
        assert (said.code, text in said.err) == (code, True), (arguments, said)
        assert "Traceback" not in said.err and files(tmp_path) == before, arguments
    assert medical("segment", path, "--model", "nothing-such").code == 2


def test_a_failure_at_the_end_leaves_nothing(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = scan(tmp_path / "case.nii.gz")
    before = files(tmp_path)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("medical.files.segment.write_record", stop)
    assert medical("segment", path, "--weights", weights, "-o", tmp_path / "out").code != 0
    assert files(tmp_path) == before


def test_help_is_quick_to_answer() -> None:
    code = (
        "import sys\nsys.argv = ['medical', *sys.argv[1:]]\nfrom apps.commands import medical\n"
        "try:\n    medical()\nfinally:\n    assert not {'torch', 'monai', 'nibabel', 'pydicom'} & set(sys.modules)"
    )
    for arguments in (["--help"], ["segment", "--help"], ["stats", "--help"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert "Research use, not a medical device" in " ".join(done.stdout.split())

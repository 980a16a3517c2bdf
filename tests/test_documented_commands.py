"""Every command of the documents is parsed; what needs no download, no hours and no data from elsewhere is run, Python too."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import pytest

from tests import command
from tests.documented import DOCUMENTS, ROOT, commands, fences, parse
from tests.documented_inputs import write_documented
from tests.test_documentation_python import PAGES

OURS = commands("restore", "medical")
TOOLS = commands("python", "make", "pip")

EVALUATE = "medical evaluate --model hippocampus --data hippocampus/ --spec msd-hippocampus --split val"
MINE = "medical segment ct.nii.gz --weights my-network.pt --protocol protocol.yaml"
SLICES = "runs/slices/hippocampus-cross-d-slices.safetensors"

RUN: dict[str, str] = {
    # pictures
    "restore sr input.png": "input_x4.png input_x4.png.json",
    "restore sr --model hat --scale 4 input.png": "input_x4.png",  # its weights are not here: one that ships stands in
    "restore sr holiday/ -o enlarged/": "enlarged/b.png enlarged/beach/a.png",
    "restore sr 'scans/*.tif' -o out/ --format png": "out/a.png out/b.png",
    "restore sr huge.tif --memory 2GB --plan": "says: huge",
    "restore sr --weights Real_HAT_GAN_SRx4.pth photo.jpg": "photo_x4.jpg",
    "restore sr input.png --scale 2.7": "input_x2.7.png",
    "restore sr input.png --ensemble": "input_x4.png",
    "restore sr album/ -o out/ --model hat-compact": "out/a.png out/b.jpg out/run.jsonl",
    "restore compare input.png --region 40,20,64,48 -o sheet.png": "sheet.png",
    "restore denoise album/ -o out/ --deidentify": "out/a.png out/b.jpg out/run.jsonl",
    "restore denoise scan.tif": "scan_denoised.tif scan_denoised.tif.json",
    "restore deblur photo.jpg": "photo_deblurred.jpg",
    "restore deblur photo.jpg --outputs 3 --uncertainty map.png": "photo_deblurred.jpg map.png",
    "restore dejpeg old.jpg -o old.png": "old.png",
    "restore face old.jpg -o new.png": "new.png new.png.json",
    "restore face old.jpg --plan": "says: face",
    "restore bench mini --model bicubic --model cfsr-compact": "says: cfsr-compact",
    "restore train denoiser.yaml --data photographs/ -o runs/trial --steps 5": "runs/trial/denoiser.safetensors",
    "restore models list": "says: cfsr-compact",
    "restore models list --here": "says: cfsr-compact",
    "restore models verify": "says: cfsr-compact",
    # scans
    "medical segment scan.nii.gz --plan": "says: window",
    "medical segment scan.nii.gz": "scan_seg.nii.gz scan_seg_statistics.csv scan_seg_preview.png scan_seg_report.html",
    "medical segment study/ -o results/": "results/study.nii.gz results/study.dcm",
    "medical segment study/ -o both/": "both/study.nii.gz both/study.dcm",
    "medical segment study/ -o study_seg.dcm": "study_seg.dcm",
    "medical segment study/ -o nifti/ --format nifti": "nifti/study.nii.gz",
    "medical segment study/ --series 1 -o results_1/": "results_1/study.nii.gz",
    "medical segment study/ -o out/ --deidentify": "out/study.dcm",
    "medical segment study/ -o out/ --deidentify-key study.key": "out/study.dcm",
    "medical segment scans/ -o results/": "results/one.nii.gz results/clinic/two.nii.gz results/run.jsonl",
    "medical segment scans/ -o labels/": "labels/one.nii.gz labels/clinic/two.nii.gz",
    "medical segment scans/ -o labels/ --retry-failed": "",
    "medical segment scan.nii.gz --weights runs/mine/mine.safetensors -o mine_seg.nii.gz": "mine_seg.nii.gz",
    f"{MINE} -o ct_mine.nii.gz": "ct_mine.nii.gz",
    f"{MINE} --option merging=merging15 -o ct_15.nii.gz": "ct_15.nii.gz",
    "medical segment scan.nii.gz --uncertainty": "scan_seg_entropy.nii.gz scan_seg_uncertainty.csv",
    "medical segment scan.nii.gz --uncertainty --weights fold0.safetensors --ensemble fold1.safetensors --ensemble "
    "fold2.safetensors": "scan_seg_disagreement.nii.gz",
    "medical segment section.png --weights membrane.safetensors": "section_seg.png section_seg_overlay.png",
    "medical segment sections/ --weights membrane.safetensors -o results/": "results/a.png results/b.png",
    "medical segment slide.tif --weights membrane.safetensors --plan": "says: window",
    "medical stats scan_seg.nii.gz scan.nii.gz": "says: hippocampus",
    "medical stats mask.nii.gz": "says: ml",
    "medical stats mask.nii.gz ct.nii.gz -o figures/": "figures/*.csv figures/*.png figures/*.html",
    "medical evaluate results/ references/ -o scores/": "scores/*.csv",
    "medical evaluate found/ labels/": "says: Dice",
    "medical evaluate --model hippocampus --data FOLDER --spec msd-hippocampus --split val -o results/": "results/*.csv",
    f"{EVALUATE} -o scores_val/": "scores_val/*.csv",
    f"{EVALUATE} --tta --against scores_val/": "says: Dice",
    "medical compare results/ other_results/": "says: Dice",
    "medical detect-evaluate maps/ references/ -o scores/": "scores/detection.md",
    "medical models list": "says: hippocampus",
    f"medical transfer {SLICES} -o volumes.safetensors --centre --protocol volumes.yaml": "volumes.safetensors",
    # noise of scans
    "medical restore scan.nii.gz --plan": "says: slices",
    "medical restore scan.nii.gz": "scan_restored.nii.gz",
    "medical restore study/ -o clean.nii.gz": "clean.nii.gz",
    "medical restore scans/ -o clean/": "clean/one.nii.gz clean/clinic/two.nii.gz",
    "medical restore four_d.nii.gz --volume 3": "four_d_restored.nii.gz",
    "medical restore scan.nii.gz --weights runs/denoise/denoise-mr-compact.safetensors": "scan_restored.nii.gz",
    "medical restore-evaluate --data hippocampus/ --against nl-means -o scores/": "scores/*.csv",
}
"""What is run, and what is there afterwards: files, or a word on the screen."""

BEFORE: dict[str, tuple[str, ...]] = {
    "medical segment scans/ -o labels/ --retry-failed": ("medical segment scans/ -o labels/",),
    "medical stats scan_seg.nii.gz scan.nii.gz": ("medical segment scan.nii.gz --no-report",),
    "medical compare results/ other_results/": tuple(
        f"medical evaluate hippocampus/{part}/ references/ -o {place}/"
        for part, place in (("predictions", "results"), ("labelsTr", "other_results"))
    ),
    f"{EVALUATE} --tta --against scores_val/": (f"{EVALUATE} -o scores_val/",),
}
"""What the documents run earlier."""

PYTHON = {
    document.name: blocks
    for document in DOCUMENTS
    if document not in PAGES
    if (blocks := [block for language, block in fences(document.read_text(encoding="utf-8")) if language == "python"])
}
NEED_MORE = {"detection.md": "cases of the reader's own", "export.md": "an ONNX file, which takes long to make"}


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documented") / "inputs"
    write_documented(folder)
    return folder


@pytest.mark.parametrize("line", OURS)
def test_it_is_parsed(line: str) -> None:
    """By the parser of the command itself: command, options and their values, number of arguments."""
    parse(line)


def test_what_is_run_stands_in_the_documents_and_every_plan_is_run() -> None:
    assert [line for line in RUN if line not in OURS] == []
    assert [line for line in OURS if "--plan" in line and line not in RUN] == []
    assert len(OURS) > 100


@pytest.mark.parametrize("line", RUN)
def test_it_runs(line: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "work"
    shutil.copytree(inputs, place, copy_function=os.link)
    monkeypatch.chdir(place)
    monkeypatch.setenv("RESTORE_OFFLINE", "1")
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "cache"))  # nothing that somebody has pulled
    monkeypatch.setenv("COLUMNS", "200")
    for each in (*BEFORE.get(line, ()), line):
        before = command.files(place)
        name, *words = shlex.split(each)
        said = {"restore": command.restore, "medical": command.medical}[name](*words)
        assert said.code == 0, said.err
    after = command.files(place)
    assert {path for path, held in before.items() if after.get(path) != held} == set(), "an input was changed"
    expected = RUN[line]
    if expected.startswith("says: "):
        assert expected.removeprefix("says: ").lower() in said.out.lower()
        expected = ""
    for pattern in expected.split():
        assert any(str(path.relative_to(place)) not in before for path in place.glob(pattern)), pattern


@pytest.mark.parametrize("document", PYTHON)
def test_python_runs(document: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of pages that want a user's files: one block after the other; those of NEED_MORE are compiled."""
    names: dict[str, object] = {}
    shutil.copytree(inputs, tmp_path / "work", copy_function=os.link)
    monkeypatch.chdir(tmp_path / "work")
    for block in PYTHON[document]:
        code = compile(block, document, "exec")
        if document not in NEED_MORE:
            exec(code, names)


@pytest.mark.parametrize("line", TOOLS)
def test_other_tools_find_what_they_are_given(line: str) -> None:
    """A target of the Makefile, an extra of the package, a script with the options named."""
    tool, *words = shlex.split(line)
    if tool == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif tool == "pip":
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(re.findall(r"\[(\w+)\]", line)) <= set(known)
    elif words[0] != "-c":
        script = Path(words[0]) if words[0] != "-m" else Path(*words[1].split(".")).with_suffix(".py")
        source = (ROOT / script).read_text()
        assert [option for option in words if option.startswith("--") and f'"{option}"' not in source] == []

"""From a scan to files: what the app writes is what the command writes; corrections say what they are."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from apps.scans import calls as scan_calls
from apps.scans.actions import EXAMPLE, EXAMPLE_MASK, choose, compare, corrected_files, example, segmentation, take
from apps.scans.models import Model, card_html, segmentation_models
from apps.scans.session import SESSIONS_EACH, Result, Session, Sessions
from apps.scans.tables import agreement_html, figures_html, titled, uncertainty_html
from apps.serving.jobs import Cancelled
from apps.serving.workspace import Workspace, Workspaces
from hybrid.errors import HybridError, InputError, RequestError
from medical.volumes.label_maps import read_label_map
from medical.volumes.volume import stem
from tests.command import medical
from tests.medical.dicom_stubs import private, slices_of
from tests.medical.dicom_stubs import save as save_dicom


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    folder = tmp_path / "of-one"
    folder.mkdir()
    return Workspace("one", folder, "/files")


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    return {model.entry.name: model for model in segmentation_models()}


def finished(session: Session, workspace: Workspace, model: Model, *, uncertainty: bool = False) -> Result:
    return segmentation(session, workspace, model, device="cpu", uncertainty=uncertainty)(lambda done, total: None)


def names(files: tuple[Path, ...]) -> set[str]:
    return {path.name for path in files}


def dicom_of_example(folder: Path, modality: str = "MR") -> Path:
    image = nib.as_closest_canonical(nib.load(example(EXAMPLE)))
    stored = (
        np.asarray(image.dataobj).astype(np.int64)[::-1, ::-1].transpose(2, 1, 0)[10:34]
    )  # slices up, rows back, columns left
    slices = slices_of(stored, spacing=(1.0, 1.0), step=(0, 0, 1.0), modality=modality)
    return save_dicom(folder, slices, ending=".dcm")


def test_files_are_the_commands(workspace: Workspace, models: dict[str, Model], tmp_path: Path) -> None:
    session = take(Sessions(), workspace, [example(EXAMPLE)])
    result = finished(session, workspace, models["hippocampus"], uncertainty=True)
    source = shutil.copy(example(EXAMPLE), tmp_path)
    assert medical("segment", source, "--uncertainty", "--device", "cpu").code == 0
    made = {path.name: path for path in tmp_path.glob("hippocampus_141_seg*")}
    assert names(result.outputs) == set(made)
    for path in result.outputs:
        if path.suffix == ".gz" or path.name.endswith((".csv", ".labels.json", "_preview.png")):
            assert path.read_bytes() == made[path.name].read_bytes(), path.name
    assert result.entropy is not None and 0 < result.entropy.max() <= 1
    assert "coronal" in uncertainty_html(result.uncertainty)
    np.testing.assert_array_equal(result.labels, np.asarray(nib.load(made["hippocampus_141_seg.nii.gz"]).dataobj))


def test_dicom_gives_a_seg_that_names_its_slices(workspace: Workspace, models: dict[str, Model], tmp_path: Path) -> None:
    folder = dicom_of_example(tmp_path / "sent")
    archive = Path(shutil.make_archive(str(tmp_path / "study"), "zip", folder))
    session = take(Sessions(), workspace, [archive])
    result = finished(session, workspace, models["hippocampus"])
    seg = pydicom.dcmread(next(path for path in result.outputs if path.suffix == ".dcm"))
    assert seg.Modality == "SEG" and [one.SegmentLabel for one in seg.SegmentSequence] == [
        "Anterior hippocampus", "Posterior hippocampus",
    ]  # fmt: skip
    referred = {item.ReferencedSOPInstanceUID for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referred <= {str(pydicom.dcmread(file).SOPInstanceUID) for file in folder.iterdir()}
    assert int(seg.pixel_array.sum()) == np.count_nonzero(result.labels)
    assert medical("segment", archive, "-o", tmp_path / "by_command.nii.gz", "--device", "cpu", "--format", "nifti").code == 0
    assert (tmp_path / "by_command.nii.gz").read_bytes() == result.outputs[0].read_bytes()
    for path in result.outputs:
        if path.suffix != ".dcm":
            assert not private(path.read_text(encoding="utf-8", errors="ignore")), path.name


@pytest.mark.parametrize("after", [0, 1])
def test_cancel_leaves_nothing(workspace: Workspace, models: dict[str, Model], after: float) -> None:
    session = take(Sessions(), workspace, [example(EXAMPLE)])
    before = sorted(workspace.folder.rglob("*"))
    work = segmentation(session, workspace, models["hippocampus"], device="cpu", uncertainty=True)

    def cancelled(done: int, total: int) -> None:
        if done >= after * total:
            raise Cancelled

    with pytest.raises(Cancelled):
        work(cancelled)
    assert sorted(workspace.folder.rglob("*")) == before and session.result is None
    finished(session, workspace, models["hippocampus"])


def test_a_correction_is_written_and_says_what_it_is(workspace: Workspace, models: dict[str, Model]) -> None:
    session = take(Sessions(), workspace, [example(EXAMPLE)])
    result = finished(session, workspace, models["hippocampus"])
    with pytest.raises(RequestError, match="Nothing was corrected"):
        corrected_files(session)
    view = {"at": session.begin_at(), "window": [0, 100], "sizes": {"axial": [300, 300]}}
    painted = {"view": view, "plane": "axial", "points": [[0.1, 0.1], [0.2, 0.1]], "radius": 2.0, "value": 1}
    answer = scan_calls.stroke(session, painted)
    assert answer["changed"] > 5 and answer["undo"] == 1
    untouched, record = result.outputs[0].read_bytes(), result.outputs[-1].read_text()
    files = corrected_files(session)
    assert result.outputs[0].read_bytes() == untouched and result.outputs[-1].read_text() == record
    found = read_label_map(files[0])
    changed = found.labels != result.labels
    assert np.count_nonzero(changed) == answer["changed"] and (found.labels[changed] == 1).all()
    facts = json.loads(files[-1].read_text())
    assert "Corrected by hand" in facts["notes"][0] and f"{answer['changed']} voxels" in facts["notes"][0]
    assert facts["figures"]["voxels"]["Anterior hippocampus"] == {"added": answer["changed"], "removed": 0}
    assert facts["input"] == "hippocampus_141_seg.nii.gz" and EXAMPLE in facts["notes"][1]
    one = next(row for row in session.figures() if row.value == 1)
    assert one.voxels == np.count_nonzero(found.labels == 1) and "corrected by hand" in figures_html([one], corrected=True)
    assert titled(files, stem(files[0]))[0][1] == "Label map, NIfTI"
    assert scan_calls.undo(session)["undo"] == 0
    np.testing.assert_array_equal(session.corrected.labels, result.labels)


def test_corrected_dicom_has_a_seg_that_says_so(workspace: Workspace, models: dict[str, Model], tmp_path: Path) -> None:
    session = take(Sessions(), workspace, sorted(dicom_of_example(tmp_path / "sent").iterdir()))
    finished(session, workspace, models["hippocampus"])
    view = {"at": session.begin_at(), "window": [0, 100], "sizes": {}}
    scan_calls.stroke(session, {"view": view, "plane": "coronal", "points": [[0.5, 0.1]], "radius": 1.0, "value": 2})
    seg = pydicom.dcmread(next(path for path in corrected_files(session) if path.suffix == ".dcm"))
    (algorithm,) = seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence
    assert algorithm.AlgorithmName == "hippocampus, corrected by hand"
    assert seg.SegmentSequence[0].SegmentAlgorithmType == "SEMIAUTOMATIC"
    assert int(seg.pixel_array.sum()) == np.count_nonzero(session.corrected.labels)


def test_a_mask_is_compared_and_must_lie_on_the_grid(workspace: Workspace, models: dict[str, Model], tmp_path: Path) -> None:
    session = take(Sessions(), workspace, [example(EXAMPLE)])
    compare(session, example(EXAMPLE_MASK))
    assert session.agreement() == [] and scan_calls.opened(session)["overlays"] == ["labels", "difference"]
    result = finished(session, workspace, models["hippocampus"])
    rows = session.agreement()
    theirs = np.asarray(nib.load(example(EXAMPLE_MASK)).dataobj)
    for row in rows:
        a, b = result.labels == row.value, theirs == row.value
        assert row.dice == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
        assert row.dice is not None and row.dice > 0.85
    assert "Against" in agreement_html(rows, EXAMPLE_MASK)
    moved = nib.load(example(EXAMPLE_MASK))
    nib.save(nib.Nifti1Image(theirs.astype(np.uint8), moved.affine + np.eye(4, k=3)), tmp_path / "moved.nii")
    with pytest.raises(InputError, match="another grid"):
        compare(session, tmp_path / "moved.nii")
    assert session.reference is not None, "the one before it stays"


def test_models_say_what_they_are(models: dict[str, Model]) -> None:
    first = next(iter(models.values()))
    assert first.entry.name == "hippocampus" and first.at_hand
    text = card_html(first)
    assert "Posterior hippocampus" in text and "180 scans" in text and "Dice 0.8" in text
    assert not any(model.at_hand for name, model in models.items() if name.startswith("swin-unetr"))
    assert not any("denoise" in name for name in models)


@pytest.mark.parametrize(
    ("model", "words"), [("swin-unetr-btcv-base", "not on this machine"), ("swin-unetr-brats21-fold0", "not on this machine")]
)
def test_what_cannot_run_is_refused_at_once(workspace: Workspace, models: dict[str, Model], model: str, words: str) -> None:
    session = take(Sessions(), workspace, [example(EXAMPLE)])
    with pytest.raises(RequestError, match=words):
        finished(session, workspace, models[model])
    assert session.result is None


def test_another_modality_is_refused_unless_the_box_is_ticked(
    workspace: Workspace, models: dict[str, Model], tmp_path: Path
) -> None:
    folder = dicom_of_example(tmp_path / "sent", modality="CT")
    session = take(Sessions(), workspace, sorted(folder.iterdir()))
    with pytest.raises(InputError, match="says that it is CT"):
        finished(session, workspace, models["hippocampus"])
    assert session.result is None
    work = segmentation(session, workspace, models["hippocampus"], device="cpu", uncertainty=False, any_modality=True)
    assert any("says that it is CT" in note for note in work(lambda done, total: None).notes)


def test_nothing_of_a_refused_file_stays(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "page.nii").write_text("<html>")
    with pytest.raises(HybridError):
        take(Sessions(), workspace, [tmp_path / "page.nii"])
    assert list(workspace.folder.iterdir()) == []


def test_a_session_is_its_owners_and_lives_as_long_as_its_folder(workspace: Workspace) -> None:
    sessions = Sessions()
    session = take(sessions, workspace, [example(EXAMPLE)])
    assert sessions.get(session.token, "one") is session
    for token, owner in ((session.token, "two"), ("guess", "one"), ("", "")):
        with pytest.raises(InputError, match="not open any more"):
            sessions.get(token, owner)
    later = [take(sessions, workspace, [example(EXAMPLE)]) for _ in range(SESSIONS_EACH)]
    assert list(sessions.tokens_of("one")) == [each.token for each in later], "the oldest is closed"
    workspace.delete_all()
    with pytest.raises(InputError, match="not open any more"):
        sessions.get(later[-1].token, "one")


@pytest.fixture
def opened(workspace: Workspace) -> Session:
    return take(Sessions(), workspace, [example(EXAMPLE)])


def test_views_have_a_picture_each_and_follow_a_click(opened: Session) -> None:
    asked = {"at": [1, 2, 3], "window": [0, 100], "sizes": {"axial": [200, 150], "sagittal": [200, 150]}}
    answer = scan_calls.view(opened, asked)
    assert set(answer["views"]) == {"axial", "sagittal"} and answer["at"] == (1, 2, 3)
    assert answer["views"]["axial"]["src"].startswith("data:image/png;base64,iVBOR")
    moved = scan_calls.view(opened, asked | {"click": {"plane": "axial", "x": 0.999, "y": 0.001}})
    assert moved["at"] == (opened.scene.shape[0] - 1, 0, 3)
    affine = nib.load(example(EXAMPLE)).affine
    world = affine @ (0, opened.scene.shape[1] - 1, opened.scene.shape[2] - 4, 1)  # the file is RAS
    assert moved["under"].startswith(f"x {world[0]:.1f}, y {world[1]:.1f}, z {world[2]:.1f} mm; value ")


def test_a_slice_of_the_file_is_found_in_the_turned_scan(opened: Session) -> None:
    for axis, letter in enumerate("ijk"):
        at = scan_calls.goto(opened, {"at": [0, 0, 0], "axis": letter, "index": 5})["at"]
        assert at[axis] == opened.scene.shape[axis] - 6, "RAS in the file, LPI turned"
    with pytest.raises(RequestError, match="no such slice"):
        scan_calls.goto(opened, {"at": [0, 0, 0], "axis": "i", "index": 9999})


@pytest.mark.parametrize(
    ("call", "asked"),
    [
        (scan_calls.view, {}),
        (scan_calls.view, {"at": [0, 0, 0], "window": [float("nan"), 1], "sizes": {}}),
        (scan_calls.view, {"at": ["<b>", 0, 0], "window": [0, 1], "sizes": {}}),
        (scan_calls.view, {"at": [0, 0, 0], "window": [0, 1], "sizes": {"oblique": [9, 9]}}),
        (scan_calls.view, {"at": [0, 0, 0], "window": [0, 1], "sizes": {}, "zoom": 1e9}),
        (scan_calls.stroke, {"plane": "axial"}),
        (scan_calls.goto, {"at": [0, 0, 0], "axis": "x", "index": 0}),
    ],
)
def test_what_no_page_of_ours_asks_is_refused(opened: Session, call: Callable[..., object], asked: dict[str, object]) -> None:
    answer = scan_calls.answered(lambda: call(opened, asked))  # type: ignore[arg-type, return-value]
    assert answer == {"error": "The request is not understood. Load the page again."}


def test_far_away_places_and_sizes_are_brought_back(opened: Session) -> None:
    asked = {"at": [10**6, -5, 3], "window": [5, 5], "sizes": {"axial": [10**7, 1]}}
    answer = scan_calls.view(opened, asked)
    assert answer["at"] == (opened.scene.shape[0] - 1, 0, 3) and max(answer["views"]["axial"]["size"]) <= 1600


def test_without_a_segmentation_there_is_nothing_to_correct_or_turn(opened: Session) -> None:
    assert "Segment the scan first" in scan_calls.answered(lambda: scan_calls.surface(opened))["error"]
    assert "Segment the scan first" in scan_calls.answered(lambda: scan_calls.undo(opened))["error"]
    with pytest.raises(RequestError, match="Send one first"):
        choose(Session("t", "o", Path("/")), "1")


def test_a_scan_whose_files_are_deleted_is_held_no_longer(tmp_path: Path) -> None:
    workspaces, sessions = Workspaces(tmp_path), Sessions()
    workspaces.when_deleted(sessions.forget)
    ann, ben = workspaces.of("ann"), workspaces.of("ben")
    kept = take(sessions, ben, [example(EXAMPLE)])
    held = weakref.ref(take(sessions, ann, [example(EXAMPLE)]))
    workspaces.delete_all(ann)
    gc.collect()
    assert held() is None and sessions.tokens_of("ben") == [kept.token]

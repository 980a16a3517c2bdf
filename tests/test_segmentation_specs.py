"""Descriptions of sets of scans, the files they find, and their splits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import data_specs
from data_specs import SegmentationSpec, available, find_volumes, load_spec
from data_specs.segmentation_schema import Fold
from data_specs.volume_files import k_fold
from hybrid.errors import InputError, RequestError
from medical.evaluation.metrics import Conventions
from medical.structures import Structure

FOLDER = Path(data_specs.__file__).parent
STRUCTURES = {"acdc": 3, "amos": 15, "brats21": 3, "btcv": 13, "membrane": 1, "msd-hippocampus": 2, "synapse": 8}


def put(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def spec(**changes: object) -> SegmentationSpec:
    facts = yaml.safe_load((FOLDER / "msd-hippocampus.yaml").read_text(encoding="utf-8"))
    return SegmentationSpec.model_validate(facts | changes)


@pytest.mark.parametrize("name", available(SegmentationSpec))
def test_every_shipped_description_is_valid(name: str) -> None:
    described = load_spec(name, SegmentationSpec)
    assert described.name == name and len(described.structures) == STRUCTURES[name]
    assert described.licence and described.citation and described.source.where and described.layouts
    Conventions(**described.scoring.model_dump())
    for each in described.structures:  # the house's structures take them as they are
        Structure.model_validate(each.model_dump(exclude_none=True))
    assert all(30 < number.dice < 100 and number.source for number in described.published)
    assert all(split.source for split in described.splits)


def test_codes_are_those_of_the_dicom_dictionary() -> None:
    """Where pydicom knows a code, one of its names must be ours."""
    from pydicom.sr._concepts_dict import concepts

    known: dict[str, set[str]] = {}
    for word, entry in concepts["SCT"].items():
        for value, (meaning, *_) in entry.items():
            known.setdefault(value, set()).update({meaning.casefold(), word.casefold()})
    unchecked = set()
    for name in available(SegmentationSpec):
        for structure in load_spec(name, SegmentationSpec).structures:
            for code in filter(None, (structure.code, structure.category)):
                if code.value in known:
                    said = {word.replace("morphologically abnormal", "morphologically altered") for word in known[code.value]}
                    assert code.meaning.casefold() in said, code
                else:
                    unchecked.add(code.value)
    assert unchecked == {"9846003", "18639004"}  # the kidneys, each with its side


def test_kinds_are_told_apart() -> None:
    assert set(available(SegmentationSpec)) == set(STRUCTURES)
    assert not set(available()) & set(STRUCTURES)
    with pytest.raises(RequestError, match="data set for segmentation and cannot be used here"):
        load_spec("btcv")
    with pytest.raises(RequestError, match="Did you mean synapse"):
        load_spec("synaps", SegmentationSpec)


def test_what_the_protocols_say() -> None:
    synapse, btcv, brats = (load_spec(name, SegmentationSpec) for name in ("synapse", "btcv", "brats21"))
    names = {structure.value: structure.name for structure in btcv.structures}
    assert all(names[structure.value] == structure.name for structure in synapse.structures)
    train, test = (set(split.cases or ()) for split in synapse.splits)
    numbers = {f"{number:04}" for number in (*range(1, 11), *range(21, 41))}
    assert (len(train), len(test)) == (18, 12) and train | test == numbers and not train & test
    train, val = (set(split.cases or ()) for split in btcv.splits[:2])
    assert (len(train), len(val)) == (24, 6) and train | val == numbers and not train & val
    assert {region.name[-3:-1]: region.values for region in brats.scored} == {"ET": (4,), "TC": (1, 4), "WT": (1, 2, 4)}
    assert brats.scoring.empty == "monai-strict" and synapse.scoring.empty == "nan"
    assert load_spec("msd-hippocampus", SegmentationSpec).stray_labels == "clamp"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"structures": [{"value": 1, "name": "a"}, {"value": 1, "name": "b"}]}, "value is given twice"),
        ({"structures": [{"value": 1, "name": "a"}], "published": []}, None),
        ({"regions": [{"name": "all", "values": [1, 3]}], "published": []}, "unknown values"),
        ({"published": [{"method": "x", "structure": "heart", "dice": 9, "measured": "m", "source": "s"}]}, "unknown structures"),
        ({"published": [{"method": "x", "dice": 0.9, "measured": "m", "source": "s"}]}, "greater than 1"),
        ({"splits": [{"name": "all", "cases": ["a"], "source": "s"}]}, "needs no description"),
        ({"splits": [{"name": "a", "source": "s"}]}, "needs one of"),
        ({"splits": [{"name": "a", "source": "s", "words": "w", "cases": ["b"]}]}, "needs one of"),
        ({"splits": [{"name": "a", "source": "s", "file": "../b.json"}]}, "data set's folder"),
        ({"layouts": [{"name": "x", "images": ["i/*"], "labels": "l/{case}"}]}, "needs {case} once"),
        ({"layouts": [{"name": "x", "images": ["i/{case}"], "labels": "../l/{case}"}]}, "below the data set's folder"),
        ({"scoring": {"empty": "zero"}}, "scoring.empty"),
    ],
)
def test_faults_are_named(changes: dict[str, object], text: str | None) -> None:
    if text is None:
        spec(**changes)
        return
    with pytest.raises(ValueError, match=text):
        spec(**changes)


def test_scans_and_splits_are_found(tmp_path: Path) -> None:
    root = tmp_path / "Task04_Hippocampus"
    names = [f"hippocampus_{number:03}" for number in range(12)]
    put(root, *(f"{kind}/{name}" for name in names for kind in ("imagesTr", "labelsTr")), "labelsTr/._hippocampus_000")
    (root / "dataset.json").write_text(json.dumps({"splits": {"train": names[:9], "val": names[:8:-1]}}))
    for folder in (tmp_path, root):
        found = find_volumes(spec(), folder, "val")
        assert [case.name for case in found.cases] == names[9:]
        assert found.cases[0].labels == root / "labelsTr/hippocampus_009.nii.gz"
        assert found.cases[0].images == (root / "imagesTr/hippocampus_009.nii.gz",)
    assert len(find_volumes(spec(), tmp_path).cases) == 12
    folds = [[case.name for case in find_volumes(spec(), tmp_path, f"fold{fold}").cases] for fold in range(5)]
    assert sorted(name for fold in folds for name in fold) == names
    renamed = root.rename(tmp_path / "my-copy")
    assert len(find_volumes(spec(), renamed, "train").cases) == 9


def test_folds_are_scikit_learns() -> None:
    """What KFold(5, shuffle=True, random_state=12345) of scikit-learn 1.7 gives for twelve cases."""
    names = [f"{number:02}" for number in range(12)][::-1]
    assert [tuple(map(int, k_fold(names, Fold(fold=fold)))) for fold in range(5)] == [
        (0, 3, 8),
        (7, 10, 11),
        (6, 9),
        (1, 4),
        (2, 5),
    ]


def test_layouts_of_the_other_sets(tmp_path: Path) -> None:
    put(tmp_path / "acdc", *(f"training/patient00{n}/patient00{n}_frame01{end}" for n in (1, 2) for end in ("", "_gt")))
    put(tmp_path / "acdc", "training/patient001/patient001_4d")
    found = find_volumes(load_spec("acdc", SegmentationSpec), tmp_path)
    assert [case.name for case in found.cases] == ["patient001_frame01", "patient002_frame01"]
    assert found.cases[1].images[0].name == "patient002_frame01.nii.gz"

    case = "BraTS2021_00002"
    put(tmp_path / "BraTS21", *(f"{case}/{case}_{end}" for end in ("flair", "t1", "t1ce", "t2", "seg")))
    put(tmp_path / "BraTS21", "BraTS2021_00005/BraTS2021_00009_seg")  # in another case's folder
    entries = [{"fold": 1, "label": f"TrainingData/{case}/{case}_seg.nii.gz"}, {"fold": 2, "label": "x/x_seg.nii.gz"}]
    (tmp_path / "BraTS21" / "brats21_folds.json").write_text(json.dumps({"training": entries}))
    found = find_volumes(load_spec("brats21", SegmentationSpec), tmp_path, "fold1")
    assert [each.name for each in found.cases] == [case]
    assert len(find_volumes(load_spec("brats21", SegmentationSpec), tmp_path).cases) == 1
    assert [path.name[16:-7] for path in found.cases[0].images] == ["flair", "t1ce", "t1", "t2"]

    put(tmp_path / "BTCV", *(f"{kind}{number:04}" for number in range(35, 41) for kind in ("imagesTr/img", "labelsTr/label")))
    assert len(find_volumes(load_spec("btcv", SegmentationSpec), tmp_path, "val").cases) == 6

    put(
        tmp_path / "amos22",
        *(f"{kind}/amos_000{n}" for n, part in ((1, "Tr"), (2, "Va")) for kind in (f"images{part}", f"labels{part}")),
    )
    listed = {
        "training": [{"image": "./imagesTr/amos_0001.nii.gz", "label": "./labelsTr/amos_0001.nii.gz"}],
        "validation": [{"image": "./imagesVa/amos_0002.nii.gz"}],
    }
    (tmp_path / "amos22" / "dataset.json").write_text(json.dumps(listed))
    assert [case.name for case in find_volumes(load_spec("amos", SegmentationSpec), tmp_path, "val").cases] == ["amos_0002"]


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        find_volumes(spec(), tmp_path / "absent")
    with pytest.raises(InputError, match="no folder named Task04_Hippocampus"):
        find_volumes(spec(), tmp_path)
    root = tmp_path / "hippocampus"
    root.mkdir()
    with pytest.raises(InputError, match=r"does not hold the label maps of MSD Hippocampus. Looked for: labelsTr/CASE.nii.gz"):
        find_volumes(spec(), tmp_path)
    put(root, "labelsTr/a")
    with pytest.raises(InputError, match=r"no scan for the case a: imagesTr/a.nii.gz"):
        find_volumes(spec(), tmp_path)
    put(root, "imagesTr/a")
    with pytest.raises(RequestError, match=r"no split 'test'. Choose one of train, val, fold0, .*, all"):
        find_volumes(spec(), tmp_path, "test")
    with pytest.raises(InputError, match="does not list the split val under splits.val"):
        find_volumes(spec(), tmp_path, "val")
    (root / "dataset.json").write_text(json.dumps({"splits": {"val": ["a", "b"], "train": [3]}}))
    with pytest.raises(InputError, match="1 of 2 cases of the split val, the first is b"):
        find_volumes(spec(), tmp_path, "val")
    with pytest.raises(InputError, match="lists 3, which names no case"):
        find_volumes(spec(), tmp_path, "train")
    (root / "labelsTr" / "a.nii").touch()
    with pytest.raises(InputError, match="are one case"):
        find_volumes(spec(), tmp_path)
    with pytest.raises(RequestError, match="are not listed: 20 of the 100 patients"):
        find_volumes(load_spec("acdc", SegmentationSpec), tmp_path, "transunet-test")


def test_the_real_hippocampus(shared: Path) -> None:
    described = load_spec("msd-hippocampus", SegmentationSpec)
    train, val = (find_volumes(described, shared / "data", split).cases for split in ("train", "val"))
    assert (len(train), len(val)) == (180, 40) and not {case.name for case in train} & {case.name for case in val}

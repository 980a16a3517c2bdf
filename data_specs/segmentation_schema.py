"""What the YAML of a set of scans with label maps says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, field_validator, model_validator

from data_specs.schema import DataSpec, Strict

Label = Annotated[int, Field(gt=0, lt=2**16)]


class Concept(Strict):
    """A coded concept; `scheme` SCT is SNOMED CT."""

    value: str
    scheme: str = "SCT"
    meaning: str


class LabelledStructure(Strict):
    """One structure of the label maps.

    Attributes:
        value: Its number in the maps.
        name: What people call it.
        category: Coded category; None: an anatomical structure.
        code: Coded type, where one is sure.
    """

    value: Label
    name: str
    category: Concept | None = None
    code: Concept | None = None


class Region(Strict):
    """Labels that are scored as one, such as the whole tumour of BraTS."""

    name: str
    values: tuple[Label, ...] = Field(min_length=1)


class VolumeLayout(Strict):
    """One way in which the scans and label maps lie below the data set's folder.

    Patterns leave the suffix out (.nii.gz or .nii will do). ``{case}`` stands for the name of the case, ``*`` for
    anything within one folder or file name.

    Attributes:
        name: The layout in words, for reports.
        images: Pattern of the scan; several where each channel has a file of its own, in the order of the channels.
        labels: Pattern of the label map.
        pictures: Whether they are pictures (.png, .tif and so on) and no volumes.
    """

    name: str
    images: tuple[str, ...] = Field(min_length=1)
    labels: str
    pictures: bool = False

    @field_validator("images", "labels")
    @classmethod
    def _named(cls, patterns: tuple[str, ...] | str) -> tuple[str, ...] | str:
        for pattern in (patterns,) if isinstance(patterns, str) else patterns:
            if pattern.rpartition("/")[2].count("{case}") != 1:
                raise ValueError(f"{pattern!r} needs {{case}} once in its last part")
            if pattern.startswith("/") or ".." in Path(pattern).parts:
                raise ValueError(f"{pattern!r} must stay below the data set's folder")
        return patterns


class Fold(Strict):
    """A part of nnU-Net's cross-validation: names sorted, shuffled by scikit-learn's KFold, the fold is what is scored."""

    fold: NonNegativeInt
    of: PositiveInt = 5
    seed: int = 12345


class Split(Strict):
    """Which cases are scored. The rule is one of `cases`, `file` and `k_fold`, or `words` alone, which selects nothing.

    Attributes:
        name: Name to type.
        source: Who uses it, and whether it was checked.
        cases: The names.
        file: JSON file in the data set's folder that lists them: names, file names, or objects with `image` or `label`.
        keys: Where in that file.
        entries: Only the objects of the list that have these values, such as ``{fold: 0}``.
        k_fold: A computed fold over all cases that were found.
        words: The rule, where the list is not to be had.
    """

    name: str
    source: str
    cases: tuple[str, ...] | None = None
    file: str | None = None
    keys: tuple[str, ...] = ()
    entries: dict[str, int | str] = Field({})
    k_fold: Fold | None = None
    words: str | None = None

    @model_validator(mode="after")
    def _one_rule(self) -> Split:
        rules = [rule for rule in (self.cases, self.file, self.k_fold, self.words) if rule is not None]
        if len(rules) != 1:
            raise ValueError(f"split {self.name!r} needs one of cases, file, k_fold and words")
        if self.file is not None and Path(self.file).name != self.file:
            raise ValueError(f"{self.file!r} must lie in the data set's folder")
        return self


class Scoring(Strict):
    """How the set is scored, in the words of `medical.evaluation.metrics.Conventions` and `medical.evaluation.boundaries`."""

    empty: Literal["nan", "monai-ignore", "monai-strict", "transunet"] = "nan"
    hausdorff: Literal["max", "pooled"] = "max"
    surface: Literal["subvoxel", "voxel"] = "subvoxel"
    tolerance: NonNegativeFloat = 1.0
    unit: Literal["mm", "px"] = "mm"
    boundary: NonNegativeFloat | None = None
    partition: bool = False


class PublishedDice(Strict):
    """A score that a paper or its repository reports.

    Attributes:
        method: Name of the method.
        structure: The structure or region; ``mean``: the mean over the foreground.
        dice: Mean Dice over the cases in per cent.
        hd95: Mean 95 % Hausdorff distance, in the unit that the source uses.
        measured: On what.
        source: Where the number is from, and whether it was checked against the print.
    """

    method: str
    structure: str = "mean"
    dice: float = Field(gt=1, le=100)
    hd95: NonNegativeFloat | None = None
    measured: str
    source: str


class SegmentationSpec(DataSpec):
    """A set of scans with label maps.

    Attributes:
        modality: ``CT``, ``MR``, or another DICOM modality.
        channels: What each channel of a scan is.
        structures: Meaning of the label maps' values.
        regions: What is scored instead of the single structures, if anything.
        label_values: What the values of label pictures stand for, where they are not the structures' own.
        stray_labels: What happens to reference values that are no structure: ``refuse`` the case, ``clamp`` them into
            the range of values with a warning, or ``ignore`` them where the set scores but some of the structures.
        preparation: How published methods prepare the scans, one sentence each.
        layouts: Ways in which the files lie.
        splits: Named parts. ``all`` is always understood.
        scoring: How it is scored.
        published: Published numbers.
    """

    task: Literal["segmentation"]
    modality: str
    channels: tuple[str, ...] = Field(min_length=1)
    structures: tuple[LabelledStructure, ...] = Field(min_length=1)
    regions: tuple[Region, ...] = ()
    label_values: dict[NonNegativeInt, NonNegativeInt] = Field({})
    stray_labels: Literal["refuse", "clamp", "ignore"] = "refuse"
    preparation: tuple[str, ...] = ()
    layouts: tuple[VolumeLayout, ...] = Field(min_length=1)
    splits: tuple[Split, ...] = ()
    scoring: Scoring = Scoring()
    published: tuple[PublishedDice, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> SegmentationSpec:
        values = [structure.value for structure in self.structures]
        names = [each.name for each in self.scored]
        splits = [split.name for split in self.splits]
        for what, given in (("value", values), ("name", names), ("split", splits)):
            if len(set(given)) != len(given):
                raise ValueError(f"a {what} is given twice: {given}")
        if unknown := {value for region in self.regions for value in region.values} - set(values):
            raise ValueError(f"regions of unknown values {sorted(unknown)}")
        if {layout.pictures for layout in self.layouts} != {self.scoring.unit == "px"}:
            raise ValueError("pictures, and they alone, are scored in px: set `pictures` of all layouts and `scoring.unit`")
        if self.scoring.unit != "px" and (self.scoring.partition or self.scoring.boundary is not None or self.label_values):
            raise ValueError("scoring.boundary, scoring.partition and label_values are for pictures")
        if "all" in splits:
            raise ValueError("the split all needs no description")
        if unknown_names := {row.structure for row in self.published} - {*names, "mean"}:
            raise ValueError(f"published numbers of unknown structures {sorted(unknown_names)}")
        return self

    @property
    def scored(self) -> tuple[Region, ...]:
        """What is scored: the regions, or each structure by itself."""
        return self.regions or tuple(Region(name=each.name, values=(each.value,)) for each in self.structures)

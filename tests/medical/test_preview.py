"""The preview: what lies where in its pictures, in every orientation, and that odd label maps are drawn too."""

from __future__ import annotations

import io
import itertools
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from hybrid.errors import OutputError
from medical.notice import RESEARCH_USE
from medical.results.preview import (
    LISTED,
    NOTHING,
    choose_slices,
    choose_window,
    draw,
    legend_lines,
    outlines,
    preview_png,
    write_preview,
)
from medical.results.statistics import structure_statistics
from medical.structures import Structure
from medical.volumes.geometry import Grid, Reorientation

OBLIQUE = np.array([[1.9, -0.3, 0.2, -31.0], [0.4, 0.8, -0.6, 12.5], [0.1, 0.25, 2.8, 77.0], [0, 0, 0, 1]])
NAMES = (Structure(value=1, name="large"), Structure(value=2, name="small"))


def scene() -> tuple[np.ndarray, np.ndarray]:
    """A large and a small block in a scan that tells each of its voxels."""
    labels = np.zeros((20, 24, 15), np.uint8)
    labels[3:11, 4:15, 5:12] = 1
    labels[14:16, 20:23, 1:3] = 2
    return labels, np.arange(labels.size, dtype=np.float32).reshape(labels.shape)


def drawn(values: np.ndarray | None, labels: np.ndarray, grid: Grid, names: tuple[Structure, ...] = NAMES) -> Figure:
    return draw(values, labels, grid, structure_statistics(labels, grid, None, names), "title")


def pictures(figure: Figure) -> list[np.ndarray]:
    """The scan in each panel; row 0 is the top."""
    images = [axes.images[0] for axes in figure.axes if axes.images]
    assert all(image.origin == "upper" and not image.axes.xaxis_inverted() for image in images)
    return [np.asarray(image.get_array()) for image in images]


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in [*figure.texts, *(text for axes in figure.axes for text in axes.texts)])


def test_the_patients_right_front_and_head_lie_left_and_up() -> None:
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[4, 4, 4] = 1
    for mark, panel, place in (
        ((8, 4, 4), 0, (4, 0)), ((4, 8, 4), 0, (0, 4)),  # axial: right is left, anterior is up
        ((8, 4, 4), 1, (4, 0)), ((4, 4, 8), 1, (0, 4)),  # coronal: right is left, superior is up
        ((4, 8, 4), 2, (4, 0)), ((4, 4, 8), 2, (0, 4)),  # sagittal: anterior is left, superior is up
    ):  # fmt: skip
        values = np.zeros(labels.shape)
        values[mark] = 100  # on a grid that runs to right, anterior, superior
        picture = pictures(drawn(values, labels, Grid(labels.shape, np.eye(4))))[panel]
        assert np.unravel_index(picture.argmax(), picture.shape) == place
        letters = [text.get_text() for text in drawn(values, labels, Grid(labels.shape, np.eye(4))).axes[panel].texts[:4]]
        assert letters == list(("RLAP", "RLSI", "APSI")[panel])


@pytest.mark.parametrize("affine", [np.diag([1.0, 2.0, 4.0, 1.0]), OBLIQUE], ids=["anisotropic", "oblique"])
def test_a_scan_stored_in_any_orientation_gives_the_same_slices(affine: np.ndarray) -> None:
    labels, values = scene()
    grid = Grid(labels.shape, affine)
    figures = structure_statistics(labels, grid, None, NAMES)
    expected = choose_slices(figures, grid, Reorientation.between(grid, "LPI").grid)
    seen = pictures(drawn(values, labels, grid))
    for number, orientation in enumerate(
        "".join("RL"[f] if a == 0 else "AP"[f] if a == 1 else "SI"[f] for a, f in zip(axes, flips, strict=True))
        for axes in itertools.permutations(range(3))
        for flips in itertools.product((0, 1), repeat=3)
    ):
        turn = Reorientation.between(grid, orientation)
        turned = structure_statistics(turn.apply(labels), turn.grid, None, NAMES)
        found = choose_slices(turned, turn.grid, Reorientation.between(turn.grid, "LPI").grid)
        for a, b in zip(itertools.chain(*found), itertools.chain(*expected), strict=True):
            assert (a.plane, a.index) == (b.plane, b.index) and a.place == pytest.approx(b.place)
            assert a.part == (pytest.approx(b.part) if b.part else None)
        if number % 9 == 0:
            for picture, judge in zip(pictures(drawn(turn.apply(values), turn.apply(labels), turn.grid)), seen, strict=True):
                np.testing.assert_array_equal(picture, judge)


def test_slices_go_through_the_largest_structure_and_the_extent_of_all() -> None:
    labels, _ = scene()
    grid = Grid(labels.shape, np.diag([1.0, 2.0, 4.0, 1.0]))
    main, row = choose_slices(structure_statistics(labels, grid, None, NAMES), grid, Reorientation.between(grid, "LPI").grid)
    assert [(each.plane, each.place) for each in main] == [("axial", 32.0), ("coronal", 18.0), ("sagittal", 6.0)]
    assert [each.plane for each in row] == ["axial"] * 6 and all(4 <= each.place <= 44 for each in row)
    assert [each.place for each in row] == sorted((each.place for each in row), reverse=True)  # from the head down


def test_a_hollow_structure_is_met_and_few_slices_are_all_shown() -> None:
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[1:8, 1:8, 2:5] = 1
    labels[3:6, 3:6, 2:5] = 0
    grid = Grid(labels.shape, np.eye(4))
    main, row = choose_slices(structure_statistics(labels, grid, None, NAMES), grid, Reorientation.between(grid, "LPI").grid)
    assert [each.place for each in main] == [3, 4, 4]
    assert [each.place for each in row] == [4, 3, 2]


def test_panels_are_squares_of_millimetres() -> None:
    labels, values = scene()
    figure = drawn(values, labels, Grid(labels.shape, np.diag([1.0, 2.0, 4.0, 1.0])))
    edges = {"axial": (20, 48), "coronal": (20, 60), "sagittal": (48, 60)}
    for axes, (width, height) in zip(figure.axes, edges.values(), strict=False):
        assert list(axes.images[0].get_extent()) == [0, width, height, 0]
        assert axes.get_aspect() == 1
        box, across, down = axes.get_window_extent(), np.ptp(axes.get_xlim()), np.ptp(axes.get_ylim())
        assert across == down == max(width, height) and box.width == pytest.approx(box.height)


def test_outlines_are_the_edges_between_in_and_out() -> None:
    mask = np.random.default_rng(0).random((7, 9)) > 0.5
    expected = set()
    for row, column in np.ndindex(mask.shape):
        for dr, dc, ends in ((-1, 0, (0, 0, 1, 0)), (1, 0, (0, 1, 1, 1)), (0, -1, (0, 0, 0, 1)), (0, 1, (1, 0, 1, 1))):
            r, c = row + dr, column + dc
            outside = not (0 <= r < 7 and 0 <= c < 9) or not mask[r, c]
            if mask[row, column] and outside:
                expected.add((column + ends[0], row + ends[1], column + ends[2], row + ends[3]))
    found = outlines(mask).reshape(-1, 4)
    assert len(found) == len(expected) and {tuple(int(x) for x in edge) for edge in found} == expected
    assert len(outlines(np.zeros((3, 3), bool))) == 0


def test_structures_are_shaded_and_outlined_in_their_colours() -> None:
    labels, values = scene()
    axes = drawn(values, labels, Grid(labels.shape, np.diag([1.0, 2.0, 4.0, 1.0]))).axes[0]
    shade = np.asarray(axes.images[1].get_array())
    assert {tuple(colour) for colour in shade.reshape(-1, 4)} == {(0, 0, 0, 0), (*NAMES[0].rgb, 64)}
    assert (shade[..., 3] > 0).sum() == 8 * 11
    (outline,) = axes.collections
    assert tuple(np.rint(np.asarray(outline.get_edgecolor())[0][:3] * 255)) == NAMES[0].rgb
    corners = outline.get_datalim(axes.transData)  # in mm from the right and the front of a scan of 20 x 48 mm
    assert (corners.x0, corners.x1, corners.y0, corners.y1) == pytest.approx((9, 17, 18, 40))


def test_windows() -> None:
    rng = np.random.default_rng(0)
    tissue = rng.normal(40, 30, (50, 50))
    assert choose_window([np.where(rng.random((50, 50)) < 0.4, -1000, tissue)])[:2] == (-160, 240)
    magnitude = rng.gamma(2, 3e5, (50, 50))
    low, high, words = choose_window([magnitude, magnitude])
    assert (low, high) == pytest.approx(tuple(np.percentile(magnitude, (1, 99)))) and "percentiles" in words
    holes = np.array([np.nan, 1.0, 3.0])
    assert choose_window([holes])[:2] == pytest.approx((1.02, 2.98))
    assert choose_window([np.full((4, 4), 7)])[:2] == (7, 8)
    assert choose_window([np.full((2, 2), np.nan)])[:2] == choose_window([])[:2] == (0, 1)


def test_legend_names_the_largest_and_counts_the_rest() -> None:
    labels = np.zeros((60, 30, 30), np.int16)
    for value in range(1, 51):
        labels[value, : value % 25 + 1, 0] = value
    names = tuple(Structure(value=value, name=f"part {value}") for value in range(1, 61))
    rows = structure_statistics(labels, Grid(labels.shape, np.diag([10, 10, 10, 1.0])), None, names)
    lines = legend_lines(rows)
    assert len(lines) == LISTED + 2 and {name for _, name, _ in lines[:2]} == {"part 24", "part 49"}
    rest = sum(sorted(row.ml for row in rows)[: 60 - LISTED])
    assert lines[-2][1:] == ("36 more", f"{rest:.0f} ml") and lines[-1][1:] == ("10 structures", "not found")


def test_an_empty_label_map_is_drawn_and_said_to_be_empty() -> None:
    labels, values = scene()
    figure = drawn(values, np.zeros_like(labels), Grid(labels.shape, np.eye(4)))
    assert len(pictures(figure)) == 3 and not any(axes.collections for axes in figure.axes)
    assert NOTHING in texts(figure) and "small" in texts(figure) and "not found" in texts(figure)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 1), (3, 3, 3), (1, 40, 50), (64, 64, 1), (200, 1, 3)])
@pytest.mark.parametrize("filled", [True, False])
def test_tiny_and_flat_volumes_are_drawn(shape: tuple[int, int, int], filled: bool) -> None:
    labels = np.full(shape, int(filled), np.uint8)
    data = preview_png(np.ones(shape, np.int16), labels, Grid(shape, np.diag([1, 1, 5.0, 1])), NAMES)
    assert Image.open(io.BytesIO(data)).size[0] == 1560


def test_unnamed_values_hundred_structures_and_odd_names() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 120, (24, 20, 16)).astype(np.int16)
    labels[0, 0, 0] = -5
    names = tuple(Structure(value=value, name=f"$\\frac{{{value}}} " + "long " * 20) for value in range(1, 101))
    preview_png(None, labels, Grid(labels.shape, OBLIQUE), names, title="$x_{" * 40)


def test_sheet_says_what_it_is() -> None:
    labels, values = scene()
    words = texts(drawn(values, labels, Grid(labels.shape, OBLIQUE)))
    assert RESEARCH_USE in words and "patient's right is on the left" in words
    assert "not at right angles" in words and "nearest directions" in words and "20 x 24 x 15 voxels" in words
    assert "nearest directions" not in texts(drawn(values, labels, Grid(labels.shape, np.eye(4))))


def test_only_slices_are_touched() -> None:
    shape = (1200, 1200, 1200)
    labels = np.broadcast_to(np.uint8(0), shape)
    values = np.broadcast_to(np.arange(1200, dtype=np.int16), shape)
    figures = structure_statistics(np.zeros((1, 1, 1), np.uint8), Grid((1, 1, 1), np.eye(4)), None, NAMES)
    tracemalloc.start()
    try:
        preview_png(values, labels, Grid(shape, np.eye(4)), NAMES, figures=figures)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 300e6  # the labels alone would be 1.7 GB


def test_written_whole_with_its_origin_and_no_change_of_the_inputs(tmp_path: Path) -> None:
    labels, values = scene()
    labels.flags.writeable = values.flags.writeable = False
    path = write_preview(tmp_path / "new" / "a.png", values, labels, Grid(labels.shape, np.eye(4)), NAMES, title="a")
    assert [each.name for each in path.parent.iterdir()] == ["a.png"]
    with Image.open(path) as picture:
        assert json.loads(picture.text["Description"])["note"] == RESEARCH_USE  # type: ignore[attr-defined]
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_preview(tmp_path / "file" / "a.png", values, labels, Grid(labels.shape, np.eye(4)), NAMES)

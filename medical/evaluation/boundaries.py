"""Measures of boundaries in pictures: boundary F1 of a structure, and the cells that membranes divide a picture into.

Masks and segments are (rows, columns). The measures of cells are those of I. Arganda-Carreras et al., "Crowdsourcing the
creation of image segmentation algorithms for connectomics", Frontiers in Neuroanatomy 9, 2015, of one segmentation in place of
the best of many thresholds: the cells of the reference count, not its membranes, and membranes of a prediction are thinned to
nothing, so that their width is not scored. Scores are NaN where there is nothing to score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage, sparse

from medical.evaluation.metrics import Conventions

Mask = np.ndarray
Segments = np.ndarray
"""Whole numbers; 0 is no segment."""


def boundary_f1(prediction: Mask, reference: Mask, tolerance: float) -> tuple[float, float, float]:
    """F1, precision and recall of boundary pixels that lie within a tolerance of the other boundary.

    Boundary pixels of a mask are those with a neighbour outside of it across an edge; so are those at the picture's border.
    G. Csurka, D. Larlus, F. Perronnin, "What is a good evaluation measure for semantic segmentation?", BMVC 2013.

    Args:
        prediction, reference: Boolean masks of one shape.
        tolerance: Pixels, between their centres.

    Returns:
        NaN three times where both masks are empty, 0 where one is.
    """
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in (prediction, reference)]
    if not edges[0].any() and not edges[1].any():
        return np.nan, np.nan, np.nan
    if not (edges[0].any() and edges[1].any()):
        return 0.0, 0.0, 0.0
    near = [ndimage.distance_transform_edt(~edge) <= tolerance for edge in edges]
    precision, recall = float(near[1][edges[0]].mean()), float(near[0][edges[1]].mean())
    return (2 * precision * recall / (precision + recall) if precision + recall else 0.0), precision, recall


def cells(membranes: Mask, *, grown: bool = False) -> Segments:
    """The parts into which membranes divide a picture, from 1; pixels hang together across an edge.

    Args:
        membranes: Boolean mask.
        grown: Whether each pixel of a membrane becomes part of the nearest cell; else it is 0.
    """
    found: Segments
    found, count = ndimage.label(~membranes)
    if grown and count:
        places = ndimage.distance_transform_edt(found == 0, return_distances=False, return_indices=True)
        found = found[tuple(places)]
    return found


def adapted_rand_error(prediction: Segments, reference: Segments) -> float:
    """1 - F of pairs of pixels that are rightly in one segment, from 0 to 1, over the pixels that are a reference segment's."""
    table = _contingency(prediction, reference)
    pixels = float(table.sum())
    both = float((table.data.astype(np.float64) ** 2).sum()) - pixels
    ours, theirs = (float((np.asarray(table.sum(axis), np.float64) ** 2).sum()) - pixels for axis in (0, 1))
    return 1 - 2 * both / (ours + theirs) if ours + theirs else np.nan


def variation_of_information(prediction: Segments, reference: Segments) -> tuple[float, float]:
    """Conditional entropies in bits, over the pixels that are a reference segment's.

    Returns:
        (split, merge): of the prediction given the reference, which grows as cells fall into pieces; and of the reference given
        the prediction, which grows as cells run together.
    """
    table = _contingency(prediction, reference).tocoo()
    if not table.nnz:
        return np.nan, np.nan
    share = table.data / table.data.sum()
    of_reference, of_prediction = (np.bincount(index, share) for index in (table.row, table.col))
    split = -(share * np.log2(share / of_reference[table.row])).sum()
    merge = -(share * np.log2(share / of_prediction[table.col])).sum()
    return float(split) + 0.0, float(merge) + 0.0


def boundary_figures(
    prediction: np.ndarray, reference: np.ndarray, structures: Mapping[str, Sequence[int]], conventions: Conventions
) -> dict[str, float]:
    """The boundary measures of a picture that the conventions ask for, by name.

    Args:
        prediction, reference: Label maps (rows, columns).
        structures: What is scored, with its labels; together they are the membranes where cells are scored.
        conventions: `boundary` and `partition`.
    """
    figures: dict[str, float] = {}
    if conventions.boundary is not None:
        for name, values in structures.items():
            scores = boundary_f1(np.isin(prediction, values), np.isin(reference, values), conventions.boundary)
            words = ("boundary F1", "boundary precision", "boundary recall")
            figures |= {f"{word}, {name}": each for word, each in zip(words, scores, strict=True)}
    if conventions.partition:
        membranes = [value for values in structures.values() for value in values]
        ours, theirs = cells(np.isin(prediction, membranes), grown=True), cells(np.isin(reference, membranes))
        split, merge = variation_of_information(ours, theirs)
        figures |= {"adapted Rand error": adapted_rand_error(ours, theirs), "VI": split + merge}
        figures |= {"VI split": split, "VI merge": merge}
    return figures


def _contingency(prediction: Segments, reference: Segments) -> sparse.csr_array:
    """Pixels by (reference segment, predicted segment), without those that are no reference segment's."""
    counted = reference > 0
    rows, columns = reference[counted].ravel(), prediction[counted].ravel()
    ones = np.ones(len(rows), np.int64)
    shape = (int(rows.max(initial=0)) + 1, int(columns.max(initial=0)) + 1)
    return sparse.coo_array((ones, (rows, columns)), shape=shape).tocsr()

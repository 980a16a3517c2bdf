"""Whether a network's probabilities are what they say: of the voxels given 0.8, do eight in ten belong to the structure?

Probabilities are sorted into bins of equal width as they come, scan by scan, and only sums are kept. The expected calibration
error (ECE) is the mean over voxels of the difference between mean probability and frequency of their bin (Naeini et al., AAAI
2015; Guo et al., ICML 2017); the Brier score the mean squared difference between probability and truth (Brier, 1950).

Nearly all voxels of a scan are plainly background, and right: over all of them any network looks perfect. So both are given
twice, over all voxels, and over those above the lowest bin. That choice depends on the probability alone, never on the truth,
so it favours no network.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid.errors import RequestError
from medical.evaluation.aggregation import RESAMPLES, SEED
from medical.evaluation.engine import Target
from medical.notice import RESEARCH_USE
from medical.protocol import Protocol

BINS = 15
FOREGROUND = "any structure"
CONFIDENCE = "label given"

Floats = NDArray[np.float64]
Share = Callable[[np.ndarray], np.ndarray]
"""Gives the probability (...) of a target from those of all outputs (outputs, ...)."""


@dataclass(frozen=True, eq=False)
class Bins:
    """Sums over the voxels of each bin, (..., bins); leading axes are scans, if any.

    Attributes:
        counts: How many.
        shares: Their probabilities.
        hits: How many were of the structure.
        squares: Squared differences between the two.
    """

    counts: Floats
    shares: Floats
    hits: Floats
    squares: Floats

    @classmethod
    def of(cls, shares: np.ndarray, truth: np.ndarray, bins: int) -> Bins:
        """Sort probabilities (...) and truths (...) into bins; a value on an edge belongs to the bin below it."""
        p, y = shares.ravel().astype(np.float64), truth.ravel()
        place = np.searchsorted(edges(bins)[1:-1], p)

        def sums(weights: np.ndarray | None = None) -> Floats:
            return np.bincount(place, weights, bins).astype(np.float64)

        return cls(sums(), sums(p), sums(y), sums((p - y) ** 2))

    def __add__(self, other: Bins) -> Bins:
        return Bins(*(a + b for a, b in zip(self.parts, other.parts, strict=True)))

    @property
    def parts(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Its four arrays, in the order of the fields."""
        return self.counts, self.shares, self.hits, self.squares

    @property
    def probability(self) -> Floats:
        """Mean probability of each bin; NaN where there is no voxel."""
        return _ratio(self.shares, self.counts)

    @property
    def frequency(self) -> Floats:
        """Share of each bin's voxels that were of the structure; NaN where there is no voxel."""
        return _ratio(self.hits, self.counts)

    def ece(self, first: int = 0) -> Floats:
        """Expected calibration error over the bins from `first` on; NaN where there is no voxel."""
        return _ratio(np.abs(self.shares - self.hits)[..., first:].sum(-1), self.counts[..., first:].sum(-1))

    def brier(self, first: int = 0) -> Floats:
        """Brier score over the bins from `first` on; NaN where there is no voxel."""
        return _ratio(self.squares[..., first:].sum(-1), self.counts[..., first:].sum(-1))


@dataclass(frozen=True, eq=False)
class Reliability:
    """How reliable the probabilities of one target are.

    Attributes:
        name: Of the target.
        scans: Bins of each scan, (scans, bins).
    """

    name: str
    scans: Bins

    @property
    def bins(self) -> int:
        """Number of bins."""
        return int(self.scans.counts.shape[-1])

    @property
    def pooled(self) -> Bins:
        """Bins over all scans."""
        return Bins(*(part.sum(0) for part in self.scans.parts))

    def resampled(self) -> Bins:
        """Bins over scans drawn with replacement, (resamples, bins)."""
        generator = np.random.default_rng(SEED)
        scans = len(self.scans.counts)
        times = generator.multinomial(scans, np.full(scans, 1 / scans), RESAMPLES)
        return Bins(*(times @ part for part in self.scans.parts))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers; NaN where one cannot be had."""
        pooled = self.pooled
        low, high = np.nanpercentile(self.resampled().ece(1), (2.5, 97.5)) if pooled.counts[1:].any() else (np.nan, np.nan)
        return {
            "voxels": int(pooled.counts.sum()),
            "voxels_above": int(pooled.counts[1:].sum()),
            "ece": float(pooled.ece()),
            "ece_above": float(pooled.ece(1)),
            "ece_above_interval": [float(low), float(high)],
            "brier": float(pooled.brier()),
            "brier_above": float(pooled.brier(1)),
            "counts": [int(count) for count in pooled.counts],
            "probability": pooled.probability.tolist(),
            "frequency": pooled.frequency.tolist(),
        }


class Calibration:
    """Sorts the probabilities of scan after scan into bins.

    Besides the targets themselves there are, for networks with one output a class and several targets, `FOREGROUND`, the
    probability that a voxel is no background, and `CONFIDENCE`, over the voxels whose label is a structure: the probability of
    that label, and whether it is right.

    Args:
        protocol: What the outputs mean.
        targets: What is scored.
        bins: How many, of equal width from 0 to 1.

    Raises:
        RequestError: The network has no probability of a target: a region that it does not have.
    """

    def __init__(self, protocol: Protocol, targets: Sequence[Target], bins: int = BINS) -> None:
        self.protocol, self.bins = protocol, bins
        self.targets = [(target, _share_of(target, protocol)) for target in targets]
        self.scans: list[dict[str, Bins]] = []

    def add(self, probabilities: np.ndarray, reference: np.ndarray) -> None:
        """Take a scan: probabilities (outputs, i, j, k), and labels (i, j, k) of the reference; row after row."""
        found: dict[str, Bins] = {}
        for row in range(len(reference)):
            for name, shares, truth in self._rows(np.asarray(probabilities[:, row]), reference[row]):
                bins = Bins.of(shares, truth, self.bins)
                found[name] = found[name] + bins if name in found else bins
        self.scans.append(found)

    def results(self) -> tuple[Reliability, ...]:
        """One for each target and for what is added to them; none without a scan."""
        names = list(self.scans[0]) if self.scans else []
        stacked = {name: [scan[name].parts for scan in self.scans] for name in names}
        return tuple(
            Reliability(name, Bins(*(np.stack(part) for part in zip(*parts, strict=True)))) for name, parts in stacked.items()
        )

    def _rows(self, shares: np.ndarray, labels: np.ndarray) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Names, probabilities and truths of one row."""
        for target, share in self.targets:
            yield target.name, share(shares), np.isin(labels, target.values)
        if self.protocol.regions or len(self.targets) < 2:
            return
        values = [structure.value for structure in self.protocol.structures]
        yield FOREGROUND, 1 - shares[0], np.isin(labels, values)
        given = shares.argmax(0)
        structure = given > 0
        yield CONFIDENCE, shares.max(0)[structure], labels[structure] == given[structure]


def edges(bins: int) -> Floats:
    """Edges of the bins, rising from 0 to 1."""
    return np.linspace(0, 1, bins + 1)


HEADER = ("target", "voxels", "ECE", "Brier", "voxels above", "ECE above [95 %]", "Brier above")


def table_rows(results: Sequence[Reliability]) -> list[tuple[str, ...]]:
    """One row of text for each target."""
    rows: list[tuple[str, ...]] = []
    for each in results:
        facts = each.to_dict()
        low, high = facts["ece_above_interval"]
        above = f"{facts['ece_above']:.4f} [{low:.4f}, {high:.4f}]"
        counted = f"{facts['voxels']:,}", f"{facts['voxels_above']:,}"
        rows.append(
            (
                each.name,
                counted[0],
                f"{facts['ece']:.5f}",
                f"{facts['brier']:.5f}",
                counted[1],
                above,
                f"{facts['brier_above']:.4f}",
            )
        )
    return rows


def facts_of(bins: int) -> list[str]:
    """The choices behind the figures, one sentence each."""
    return [
        f"Calibration: {bins} bins of equal width from 0 to 1; voxels of all scans together; above: those given more than "
        f"{1 / bins:.3f}, the lowest bin's edge. Interval: bootstrap over the scans ({RESAMPLES} resamples, seed {SEED}).",
        f"'{FOREGROUND}': the probability of no background; '{CONFIDENCE}': of voxels whose label is a structure, the "
        "probability of that label, and how often it is right.",
    ]


def to_csv(results: Sequence[Reliability]) -> str:
    """One line for each target and bin; an empty bin has no probability and no frequency."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("target", "low", "high", "voxels", "probability", "frequency", "note"))
    for each in results:
        pooled, limits = each.pooled, edges(each.bins)
        for place in range(each.bins):
            found = [pooled.probability[place], pooled.frequency[place]]
            cells = ["" if np.isnan(value) else repr(float(value)) for value in found]
            ends = f"{limits[place]:.6g}", f"{limits[place + 1]:.6g}"
            writer.writerow((each.name, *ends, int(pooled.counts[place]), *cells, RESEARCH_USE))
    return text.getvalue()


def _share_of(target: Target, protocol: Protocol) -> Share:
    """How the probability of a target comes of those of the outputs."""
    if protocol.regions:
        regions = [each for each in protocol.regions if set(each.values or (each.value,)) == set(target.values)]
        if not regions:
            raise RequestError(
                f"The network's outputs are regions, and none of them is {target.name}.", hint="Leave --calibration out."
            )
        channel = regions[0].channel
        return lambda shares: shares[channel]
    channels = list(target.values)  # of an arg-max network values are channels
    return lambda shares: shares[channels].sum(0)


def _ratio(above: np.ndarray, below: np.ndarray) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below > 0, np.divide(above, below), np.nan)

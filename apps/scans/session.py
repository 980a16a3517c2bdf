"""What the server holds for one page: the scan that is open, its label map, corrections, and a mask to compare with.

A session is found by a token that cannot be guessed, and given to its owner alone. It lives as long as its folder.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from apps.scans.brush import Correction, Stroke
from apps.scans.compare import Agreement, Reference, agreements, difference
from apps.scans.reading import Received, Scan
from apps.scans.view import Index, Scene
from hybrid.errors import InputError, RequestError
from medical.results.preview import voxels_at
from medical.results.statistics import StructureFigures, structure_statistics
from medical.structures import Structure
from medical.uncertainty.figures import UncertaintyFigures

SESSIONS_EACH = 3
"""Scans that one user may have open; the one that was opened first is closed for a fourth."""


@dataclass(frozen=True, eq=False)
class Result:
    """A finished segmentation.

    Attributes:
        model: Name of the network.
        outputs: The files that `medical segment` writes, the label map first and the record last.
        labels: (i, j, k) as they are in the file; never changed.
        structures: What its numbers mean.
        notes: What a user should be told.
        seconds: Time of the run.
        entropy: (i, j, k) from 0 to 1, of an uncertain segmentation.
        uncertainty: Its figures.
    """

    model: str
    outputs: tuple[Path, ...]
    labels: np.ndarray
    structures: tuple[Structure, ...]
    notes: tuple[str, ...]
    seconds: float
    entropy: np.ndarray | None = None
    uncertainty: UncertaintyFigures | None = None


@dataclass(eq=False)
class Session:
    """One open scan. Whoever reads or changes more than one attribute holds `lock`.

    Attributes:
        token: Its name in a browser.
        owner: Of the workspace.
        folder: Its files; where that is gone, so is the session.
        received: What was sent.
        scan: What was read of it.
        result: The last segmentation.
        correction: Its label map under correction.
        reference: A mask to compare with.
    """

    token: str
    owner: str
    folder: Path
    received: Received | None = None
    scan: Scan | None = None
    result: Result | None = None
    correction: Correction | None = None
    reference: Reference | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)
    _scene: Scene | None = None

    def open(self, scan: Scan) -> None:
        """Take a scan in place of the one that was open."""
        with self.lock:
            self.scan = scan
            self.result = self.correction = self.reference = self._scene = None

    def take(self, result: Result) -> None:
        """Take a segmentation; corrections of the one before it are gone."""
        with self.lock:
            labels = np.ascontiguousarray(result.labels).copy()
            values = frozenset(each.value for each in result.structures)
            self.result, self._scene = result, None
            self.correction = Correction(labels, self.opened.volume.grid, values)

    def compare(self, reference: Reference | None) -> None:
        """Take a mask to compare with, or none."""
        with self.lock:
            self.reference, self._scene = reference, None

    @property
    def opened(self) -> Scan:
        """The scan.

        Raises:
            RequestError: None is open.
        """
        if self.scan is None:
            raise RequestError("No scan is open.", hint="Send one first.")
        return self.scan

    @property
    def corrected(self) -> Correction:
        """The label map under correction.

        Raises:
            RequestError: There is none.
        """
        if self.correction is None:
            raise RequestError("There is no segmentation yet.", hint="Segment the scan first.")
        return self.correction

    @property
    def structures(self) -> tuple[Structure, ...]:
        """Of the segmentation, and of the mask those that it does not name."""
        own = self.result.structures if self.result else ()
        known = {each.value for each in own}
        others = self.reference.structures if self.reference else ()
        return (*own, *(each for each in others if each.value not in known))

    @property
    def scene(self) -> Scene:
        """What there is to draw."""
        with self.lock:
            if self._scene is None:
                self._scene = self._staged()
            return self._scene

    def _staged(self) -> Scene:
        volume = self.opened.volume
        labels = self.correction.labels if self.correction else None
        between = None
        if self.reference is not None:
            ours = labels if labels is not None else np.zeros_like(self.reference.labels)
            between = difference(ours, self.reference.labels)
            labels = labels if labels is not None else self.reference.labels
        colours = {each.value: each.rgb for each in self.structures}
        return Scene(volume.values[0], volume.grid, labels, colours, self.result.entropy if self.result else None, between)

    def paint(self, stroke: Stroke) -> int:
        """Correct the label map; how many voxels that changed."""
        with self.lock:
            changed = self.corrected.paint(stroke)
            self._changed()
            return changed

    def undo(self) -> bool:
        """Take the last stroke back."""
        with self.lock:
            done = self.corrected.undo()
            self._changed()
            return done

    def _changed(self) -> None:
        """A label map is changed in place; the difference from a mask is not."""
        if self.reference is not None:
            self._scene = None

    def figures(self) -> list[StructureFigures]:
        """Of the label map as it stands; nothing where there is none."""
        with self.lock:
            if self.correction is None:
                return []
            volume = self.opened.volume
            return structure_statistics(self.correction.labels, volume.grid, volume.values[0], self.structures_found)

    @property
    def structures_found(self) -> tuple[Structure, ...]:
        """What the label map may hold."""
        return self.result.structures if self.result else ()

    def agreement(self) -> list[Agreement]:
        """Scores of the label map as it stands against the mask; nothing where either is not there."""
        with self.lock:
            if self.correction is None or self.reference is None:
                return []
            grid = self.opened.volume.grid
            return agreements(self.correction.labels, self.reference.labels, grid, self.structures)

    def begin_at(self) -> Index:
        """The voxel of the turned scan to look at first: the middle of the most voluminous structure, or of the scan."""
        shape = self.scene.shape
        found = [each for each in self.figures() if each.centroid is not None]
        if not found:
            return shape[0] // 2, shape[1] // 2, shape[2] // 2
        largest = max(found, key=lambda each: each.voxels)
        place = np.floor(voxels_at(self.scene.turn.grid, np.array(largest.centroid)) + 0.5).astype(int)
        i, j, k = (int(min(max(at, 0), edge - 1)) for at, edge in zip(place, shape, strict=True))
        return i, j, k


class Sessions:
    """All open sessions."""

    def __init__(self) -> None:
        self._open: dict[str, Session] = {}
        self._lock = threading.Lock()

    def new(self, owner: str, folder: Path) -> Session:
        """A session whose files lie in `folder`. Those without their folder are forgotten, as is a user's oldest of too many."""
        session = Session(secrets.token_urlsafe(24), owner, folder)
        with self._lock:
            self._forget()
            of_owner = [token for token, each in self._open.items() if each.owner == owner]
            for token in of_owner[: max(0, len(of_owner) - SESSIONS_EACH + 1)]:
                del self._open[token]
            self._open[session.token] = session
        return session

    def get(self, token: str, owner: str) -> Session:
        """The session of that name, if it is this owner's.

        Raises:
            InputError: There is none, or it is another's.
        """
        with self._lock:
            self._forget()
            session = self._open.get(token)
        if session is None or not secrets.compare_digest(session.owner.encode(), owner.encode()):
            raise InputError("This scan is not open any more.", hint="Send it again.")
        return session

    def tokens_of(self, owner: str) -> Sequence[str]:
        """Of a user's open scans, the oldest first."""
        with self._lock:
            return [token for token, each in self._open.items() if each.owner == owner]

    def forget(self) -> None:
        """Let go of scans whose files were deleted."""
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        """Let go of scans whose files were deleted, by their owner or on the clock."""
        self._open = {token: each for token, each in self._open.items() if each.folder.is_dir()}

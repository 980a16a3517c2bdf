"""What one call takes: processor time and resident memory of this process, as Linux tells them."""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Callable
from pathlib import Path

from hybrid.memory import release_memory

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def cost(call: Callable[[], object], runs: int = 1) -> tuple[float, float]:
    """The least processor time of `runs` calls in seconds, and the peak of the last above what was held before, in MiB.

    Processor time and not that of the clock, so that other work on the machine counts little. NaN MiB where the system does
    not tell its peaks (all but Linux).
    """
    seconds, peak = [], float("nan")
    for _ in range(runs):
        gc.collect()
        release_memory()
        before = _held("VmRSS")
        _forget_peak()
        started = time.process_time()
        result = call()
        seconds.append(time.process_time() - started)
        peak = _held("VmHWM") - before
        del result
    return min(seconds), peak


def _forget_peak() -> None:
    if _CLEAR.exists():
        _CLEAR.write_text("5")  # Linux, proc(5): sets the peak to what is held now


def _held(field: str) -> float:
    """A line of this process' status, in MiB."""
    found = re.search(rf"^{field}:\s*(\d+) kB", _STATUS.read_text(), re.M) if _STATUS.exists() else None
    return int(found[1]) / 1024 if found else float("nan")

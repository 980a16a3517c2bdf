"""How much memory there is, how much this process holds, and how much is left for a network's activations."""

from __future__ import annotations

import ctypes
import gc
import math
import re
import sys
from functools import cache
from pathlib import Path

import psutil
import torch

from hybrid.errors import RequestError

_DECIMAL = {"": 1, "B": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

KEPT_FREED = 32 * 2**20
"""Bytes of freed memory that the C library keeps for the next layer (`hybrid.devices.tune_allocator`)."""


def parse_size(size: str | int) -> int:
    """Bytes of a size as people write it: units of 1000 (kB, MB, GB, TB) or of 1024 (KiB, MiB, GiB, TiB).

    An integer is bytes; a text needs its unit, since who writes 2000 hardly means two kilobytes.

    Raises:
        RequestError: Not a size, or not above zero.

    >>> parse_size("2GB"), parse_size("1.5 GiB"), parse_size("800mb"), parse_size(4096)
    (2000000000, 1610612736, 800000000, 4096)
    """
    match = None if isinstance(size, bool) else re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kmgt]?)(i?)(b?)\s*", str(size), re.I)
    if match is None or (match[3] and not match[2]) or (isinstance(size, str) and not (match[2] or match[4])):
        raise RequestError(f"{size!r} is not a size.", hint="Write it like 2GB, 1.5GiB or 800MB.")
    unit = match[2].upper()
    value = float(match[1]) * (_BINARY[unit] if match[3] else _DECIMAL[unit])
    if value < 1:
        raise RequestError(f"A size of {size!r} is nothing.", hint="Write a size above zero, like 2GB.")
    return int(value)


def format_size(size: int, *, up: bool = False) -> str:
    """A size for people, in units of 1000, to two or three digits; `up` never rounds below the true value.

    >>> format_size(1_234_567_890), format_size(1_234_567_890, up=True), format_size(85_000_000)
    ('1.2 GB', '1.3 GB', '85 MB')
    """
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            tenths = (math.ceil if up else round)(size * 10 / factor)
            return f"{tenths / 10:.1f} {unit}" if tenths < 100 else f"{math.ceil(tenths / 10) if up else tenths // 10} {unit}"
    return f"{size} B"


def available_bytes(device: torch.device | str = "cpu") -> int:
    """Bytes that this process can still take on a device.

    CPU: what the system calls available, and no more than what the process' control groups (containers, batch
    systems) leave. CUDA: free memory of the card and what PyTorch's cache holds unused. MPS: the recommended
    maximum less what is in use.
    """
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if device.type == "mps":
        return int(max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()))
    system = int(psutil.virtual_memory().available)
    limited = cgroup_available()
    return system if limited is None else min(system, limited)


def resident_bytes() -> int:
    """Resident memory of this process now."""
    return int(psutil.Process().memory_info().rss)


def peak_bytes() -> int:
    """Highest resident memory of this process so far."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    status = Path("/proc/self/status")
    if status.exists():  # preferred on Linux: ru_maxrss there is inherited from the process that started this one
        match = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.M)
        if match:
            return int(match[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, kibibytes elsewhere


def activation_budget(limit_total: int | None, device: torch.device | str, reserve: int = 0) -> int:
    """Bytes left for a network's activations; below 0, so many are missing before it even starts.

    Args:
        limit_total: Bound on the whole process (its peak resident memory on a CPU, its allocations on a GPU), as in
            `--memory 2GB`; None is bounded by what the machine has available.
        device: Where the network runs.
        reserve: Bytes that are still to be taken beside the activations: the picture, the result, what writing needs.
    """
    device = torch.device(device)
    if device.type == "cpu":
        release_memory()  # pages of an earlier run that the C library keeps would count as held
    left = available_bytes(device)
    if limit_total is not None:
        kept = KEPT_FREED if device.type == "cpu" else 0
        left = min(left, limit_total - _held_bytes(device) - kept)
    return left - reserve


def release_memory() -> None:
    """Give memory that is free inside this process back to the system."""
    gc.collect(1)  # cycles that a run left behind are young; to look through all that is imported takes a third of a second
    libc = glibc()
    if libc is not None:
        libc.malloc_trim(0)


@cache
def glibc() -> ctypes.CDLL | None:
    """The GNU C library of this process; None where another one is in use."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None  # musl has none


def cgroup_available(root: Path = Path("/")) -> int | None:
    """Bytes that the memory limits of this process' control groups leave, or None without a limit (Linux only).

    Both versions of the interface are read; all groups from the process' own up to the root count. Page cache that
    the kernel can drop does not count as used. `root` is the file system's root.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    left: list[int] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            files = ("memory.max", "memory.current", "inactive_file")
            mounts = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif "memory" in controllers.split(","):
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            mounts = [root / "sys/fs/cgroup/memory"]
        else:
            continue
        for mount in mounts:
            own = mount / path.lstrip("/")
            groups = [group for group in (own, *own.parents) if group.is_relative_to(mount)]
            left += [free for group in groups if (free := _group_left(group, *files)) is not None]
    return min(left, default=None)


def _group_left(group: Path, limit_file: str, usage_file: str, cache_key: str) -> int | None:
    try:
        limit = int((group / limit_file).read_text())  # "max" is no number: no limit
        used = int((group / usage_file).read_text())
        droppable = re.search(rf"^{cache_key} (\d+)", (group / "memory.stat").read_text(), re.M)
    except (OSError, ValueError):
        return None
    if limit >= 2**60:  # how version 1 writes "no limit"
        return None
    return max(0, limit - used + (int(droppable[1]) if droppable else 0))


def _held_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return resident_bytes()

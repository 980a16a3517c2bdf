"""Where a network runs and in which precision, how many threads it takes, and what the machine is."""

from __future__ import annotations

import math
import os
import platform
import re
from functools import cache
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

from hybrid.errors import RequestError, ResourceError
from hybrid.memory import KEPT_FREED, available_bytes, glibc

Precision = Literal["float32", "bf16", "fp16", "auto"]
Computed = Literal["float32", "bf16", "fp16"]

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # mallopt(3)
_MAPPED_FROM = 4 * 2**20  # large enough for huge pages of 2 MiB, small enough to leave no gap that matters
_TOP_PAD = 8 * 2**20  # the heap grows by so much more than is asked for
_HEAP_UP_TO = (2**30, 32 * 2**20)  # older versions of the C library refuse more than 32 MiB


def choose_device(requested: str = "auto") -> torch.device:
    """The device of a request: "cpu", "cuda", "cuda:1", "mps", or "auto" for the first of CUDA, MPS and CPU that is there.

    Raises:
        RequestError: Not the name of a device.
        ResourceError: The device is not there; the message names those that are.
    """
    if requested == "auto":
        return torch.device(devices()[0])
    match = re.fullmatch(r"(cpu|mps|cuda(?::(\d+))?)", requested)
    if match is None:
        raise RequestError(f"{requested!r} is not a device.", hint="Use --device auto, cpu, cuda, cuda:1 or mps.")
    there = devices()
    name = "cuda:0" if requested == "cuda" else requested
    if name not in there:
        raise ResourceError(f"This machine has no {requested}; it has {', '.join(there)}.", hint=f"Use --device {there[0]}.")
    return torch.device(name)


def devices() -> list[str]:
    """The devices that PyTorch can use here, best first."""
    found = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*found, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def choose_precision(requested: Precision, device: torch.device | str, allowed: tuple[str, ...] = ("float32",)) -> Computed:
    """The precision to compute in.

    "auto" takes bf16 where the network allows it and the device computes it faster than float32 by instructions of
    its own (`has_fast_bf16`), else float32; it never takes fp16, whose range is too small for many networks.

    Args:
        requested: What was asked for.
        device: Where the network runs.
        allowed: Precisions that the network is known to work in, from its card.

    Raises:
        RequestError: Not a precision, one that the network is not known to work in, or fp16 on a CPU.
    """
    device = torch.device(device)
    if requested == "auto":
        return "bf16" if "bf16" in allowed and has_fast_bf16(device) else "float32"
    if requested not in ("float32", "bf16", "fp16"):
        raise RequestError(f"{requested!r} is not a precision.", hint="Use --precision auto, float32, bf16 or fp16.")
    if requested == "fp16" and device.type == "cpu":
        raise RequestError("fp16 is slow and inexact on a CPU.", hint="Use --precision auto, float32 or bf16.")
    if requested not in allowed:
        raise RequestError(f"This network does not work in {requested}.", hint=f"Use --precision auto or {', '.join(allowed)}.")
    return requested


def has_fast_bf16(device: torch.device | str) -> bool:
    """Whether a device has instructions for bfloat16: AVX-512-BF16 or AMX of a CPU, the tensor cores of a GPU."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and not {"avx512_bf16", "amx_bf16"}.isdisjoint(instruction_sets())


@cache
def instruction_sets() -> tuple[str, ...]:
    """Instruction sets of the CPU that matter to a network, of those that PyTorch can tell."""
    x86 = ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8")
    arm = ("neon", "sve", "bf16", "i8mm")
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return tuple(name for name in x86 + arm if capabilities.get(name))
    probes = {
        "avx2": "_is_avx2_supported",
        "avx512_f": "_is_avx512_supported",
        "avx512_bf16": "_is_avx512_bf16_supported",
        "amx_bf16": "_is_amx_tile_supported",
    }
    return tuple(name for name, probe in probes.items() if getattr(torch.cpu, probe, lambda: False)())


def usable_cores() -> int:
    """Physical cores that this process may use: of those it is bound to, and no more than its CPU quota allows.

    Two hardware threads of one core share its arithmetic units, so that a network gains nothing from the second.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len({_siblings(cpu) for cpu in os.sched_getaffinity(0)})
    else:
        cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    quota = cpu_quota()
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs' worth of time that this process' control group grants, or None without a limit (Linux only).

    `root` is the file system's root. Containers see their own group at the top of the mount, so that is read too.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        own = mount / path.lstrip("/")
        for group in (own, *own.parents):
            if group.is_relative_to(mount) and (quota := _group_quota(group)) is not None:
                quotas.append(quota)
    return min(quotas, default=None)


def set_threads(count: int | None = None) -> int:
    """Set how many threads PyTorch computes with, and return that number.

    None takes `usable_cores()`, unless OMP_NUM_THREADS already says how many. A number above the CPUs that this
    process may use is taken down to them: more threads than CPUs wait for each other.

    Raises:
        RequestError: A count below 1.
    """
    if count is not None and count < 1:
        raise RequestError(f"{count} threads are not possible.", hint="Use --threads 1 or more.")
    if count is None:
        if "OMP_NUM_THREADS" in os.environ:
            return torch.get_num_threads()
        count = usable_cores()
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(min(count, bound))
    return torch.get_num_threads()


@cache
def tune_allocator(*, keep_freed: bool = False) -> bool:
    """Make the C library handle a network's activations well; once per process, before its first tensor.

    The GNU C library maps a large block afresh and unmaps it when freed, so that the kernel clears every page of every
    activation again; and the first freed block of up to 32 MiB moves that size, and all below, to the heap, where the
    gap that an aligned block leaves often cannot take one of the same size: the peak then exceeds what is alive.

    Args:
        keep_freed: False: all blocks from 4 MiB are mapped, in huge pages where Linux gives them on request, which
            clear faster; of smaller ones the heap keeps `hybrid.memory.KEPT_FREED` bytes, else the activations of small tiles
            would be cleared by the kernel again in each layer (NAFNet on 256 x 256 takes a fifth longer). The peak is what is
            alive and so much more, so that a bound on memory holds.
            True: all blocks come from the heap and stay there. Faster still, for a peak that can be several times
            as high. `hybrid.memory.release_memory` returns what is free.

    HYBRID_KEEP_MALLOC=1 in the environment leaves the allocator alone, as do other C libraries.

    Returns:
        Whether the allocator was changed.
    """
    libc = glibc()
    if libc is None or os.environ.get("HYBRID_KEEP_MALLOC") == "1":
        return False
    if not keep_freed:
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch reads it when it makes its first tensor
        settings = ((_M_MMAP_THRESHOLD, _MAPPED_FROM), (_M_TRIM_THRESHOLD, KEPT_FREED), (_M_TOP_PAD, _TOP_PAD))
        return all(libc.mallopt(option, value) == 1 for option, value in settings)
    accepted = any(libc.mallopt(_M_MMAP_THRESHOLD, size) == 1 for size in _HEAP_UP_TO)
    return accepted and libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1) == 1


def describe_machine() -> dict[str, Any]:
    """What the machine is, as plain values for `restore doctor` and for records."""
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "logical_cpus": os.cpu_count(),
        "instruction_sets": list(instruction_sets()),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "fast_bf16": has_fast_bf16("cpu"),
        "threads": torch.get_num_threads(),
        "memory_total": int(psutil.virtual_memory().total),
        "memory_available": available_bytes("cpu"),
        "gpus": [_describe_gpu(name) for name in devices() if name != "cpu"],
    }


def cpu_name() -> str:
    """The CPU's name as its maker gives it, or the architecture where the system does not tell."""
    match = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.M)
    return match[1].strip() if match else platform.processor() or platform.machine()


def _describe_gpu(name: str) -> dict[str, Any]:
    facts: dict[str, Any] = {"device": name, "memory_available": available_bytes(name)}
    if name.startswith("cuda"):
        properties = torch.cuda.get_device_properties(name)
        facts |= {"name": properties.name, "memory_total": properties.total_memory, "fast_bf16": has_fast_bf16(name)}
    return facts


def _siblings(cpu: int) -> str:
    """A name shared by the hardware threads of one core."""
    return _read(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").strip() or str(cpu)


def _read(path: str) -> str:
    """A file of the system's, empty where there is none."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _group_quota(group: Path) -> float | None:
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else None  # version 1 writes -1, version 2 "max" for no limit
    except (OSError, ValueError):
        return None

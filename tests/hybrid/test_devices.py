"""Devices, precision, threads, the allocator, and how memory is counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from hybrid import devices, memory
from hybrid.errors import RequestError, ResourceError

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's /proc and control groups")
GLIBC = pytest.mark.skipif(memory.glibc() is None, reason="tunes the GNU C library's allocator")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def python(code: str, **environment: str) -> str:
    """What a fresh interpreter prints: for settings that hold for a whole process."""
    root = str(Path(__file__).resolve().parents[2])
    env = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True).stdout.strip()


# Devices and precision ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_gpu")
def test_a_machine_without_gpu_runs_on_its_cpu_and_says_so() -> None:
    assert devices.choose_device("auto") == torch.device("cpu") == devices.choose_device("cpu")
    for absent in ("cuda", "cuda:1", "mps"):
        with pytest.raises(ResourceError, match=f"no {absent}; it has cpu. Use --device cpu."):
            devices.choose_device(absent)


@pytest.mark.usefixtures("two_gpus")
def test_gpus_are_chosen_by_number() -> None:
    assert devices.choose_device() == devices.choose_device("cuda") == torch.device("cuda:0")
    assert devices.choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ResourceError, match="no cuda:2; it has cuda:0, cuda:1, cpu"):
        devices.choose_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:", "cuda:x", "cpu:0 ", "CUDA"])
def test_names_that_are_no_device_are_refused(name: str) -> None:
    with pytest.raises(RequestError, match="--device auto"):
        devices.choose_device(name)


@pytest.mark.parametrize(("fast", "allowed", "chosen"), [(True, ("float32", "bf16"), "bf16"), (True, ("float32",), "float32")])
def test_auto_takes_bf16_where_network_and_device_allow_it(
    fast: bool, allowed: tuple[str, ...], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "instruction_sets", lambda: ("avx512_bf16",) if fast else ("avx2",))
    assert devices.choose_precision("auto", "cpu", allowed) == chosen
    monkeypatch.setattr(devices, "instruction_sets", lambda: ("avx2", "avx512_f"))
    assert devices.choose_precision("auto", "cpu", allowed) == "float32"


def test_auto_on_cuda_follows_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = ("float32", "bf16", "fp16")
    for capability, chosen in (((7, 5), "float32"), ((8, 0), "bf16"), ((9, 0), "bf16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert devices.choose_precision("auto", "cuda:0", everything) == chosen
    assert devices.choose_precision("fp16", "cuda:0", everything) == "fp16"
    assert devices.choose_precision("auto", "mps", everything) == "float32"


def test_precisions_that_cannot_be_met_are_refused() -> None:
    with pytest.raises(RequestError, match="fp16 is slow and inexact on a CPU"):
        devices.choose_precision("fp16", "cpu", ("float32", "fp16"))
    with pytest.raises(RequestError, match="does not work in bf16"):
        devices.choose_precision("bf16", "cpu", ("float32",))
    with pytest.raises(RequestError, match="not a precision"):
        devices.choose_precision("half", "cpu")  # type: ignore[arg-type]


@LINUX
def test_instruction_sets_are_those_the_kernel_reports() -> None:
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), None)
    if flags is None:
        pytest.skip("the kernel names no flags of this CPU")
    known = {"avx2": "avx2", "avx512_f": "avx512f", "avx512_bf16": "avx512_bf16", "amx_bf16": "amx_bf16"}
    for ours, theirs in known.items():
        assert (ours in devices.instruction_sets()) == (theirs in flags.split())


# Threads and the machine ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("threads")
def test_threads_stay_within_what_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert devices.set_threads() == torch.get_num_threads() == devices.usable_cores() <= bound
    assert devices.set_threads(1) == torch.get_num_threads() == 1
    assert devices.set_threads(10**6) <= bound
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    assert devices.set_threads() == 1
    with pytest.raises(RequestError, match="--threads"):
        devices.set_threads(0)


@LINUX
def test_cores_follow_affinity_and_hardware_threads_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cpu_quota", lambda: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 4, 5})
    monkeypatch.setattr(devices, "_siblings", lambda cpu: f"{cpu % 4},{cpu % 4 + 4}")  # cpu 0 and 4 are one core
    assert devices.usable_cores() == 2
    monkeypatch.setattr(devices, "cpu_quota", lambda: 0.5)
    assert devices.usable_cores() == 1


def group_files(root: Path, groups: str, files: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/job/step\n", {"job/cpu.max": "150000 100000\n", "job/step/cpu.max": "max 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("3:cpu,cpuacct:/box\n2:memory:/\n", {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2.0),
        ("3:cpu:/box\n", {"cpu/box/cpu.cfs_quota_us": "-1", "cpu/box/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_cpu_quota_of_both_kinds_of_control_groups(groups: str, files: dict, quota: float | None, tmp_path: Path) -> None:
    assert devices.cpu_quota(group_files(tmp_path, groups, files)) == quota


def test_machine_is_described_in_plain_values() -> None:
    facts = json.loads(json.dumps(devices.describe_machine()))
    assert facts["memory_total"] == psutil.virtual_memory().total >= facts["memory_available"] > 0
    assert facts["cpu"] and facts["torch"] == torch.__version__ and facts["threads"] == torch.get_num_threads()


# Memory ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GB", 2 * 10**9),
        ("1.5GiB", 3 * 2**29),
        ("800MB", 8 * 10**8),
        (" 800 mb ", 8 * 10**8),
        ("2g", 2 * 10**9),
        ("64 KiB", 65536),
        (".5TB", 5 * 10**11),
        (4096, 4096),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str | int, size: int) -> None:
    assert memory.parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GB", "2XB", "2 G B", "-1GB", "1,5GB", "iB", "2iB", "0", "0.1", "4096", "nan", "1e9", True, 0, -5]
)
def test_what_is_no_size_is_refused(text: str | int) -> None:
    with pytest.raises(RequestError, match="like 2GB"):
        memory.parse_size(text)


@pytest.mark.parametrize("size", [1, 999, 1000, 99_999, 850_000, 9_949_999, 9_960_000, 123_456_789, 5 * 10**9, 77 * 10**9])
def test_a_size_rounded_up_can_be_typed_and_is_enough(size: int) -> None:
    assert size <= memory.parse_size(memory.format_size(size, up=True)) <= 1.11 * size
    assert memory.parse_size(memory.format_size(size)) == pytest.approx(size, rel=0.1)


@pytest.mark.parametrize(
    ("groups", "files", "left"),
    [
        (
            "0::/job/step\n",
            {
                "job/memory.max": "1000\n",
                "job/memory.current": "700\n",
                "job/memory.stat": "anon 500\ninactive_file 150\n",
                "job/step/memory.max": "max\n",
                "job/step/memory.current": "600\n",
                "job/step/memory.stat": "inactive_file 0\n",
            },
            450,
        ),
        (
            "5:cpu:/\n4:memory:/gone\n",
            {
                "memory/memory.limit_in_bytes": "5000",
                "memory/memory.usage_in_bytes": "1000",
                "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 200\n",
            },
            4200,
        ),
        (
            "4:memory:/\n",
            {
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "memory/memory.usage_in_bytes": "1000",
                "memory/memory.stat": "total_inactive_file 0\n",
            },
            None,
        ),
        ("0::/\n", {}, None),
    ],
)
def test_memory_left_by_both_kinds_of_control_groups(groups: str, files: dict, left: int | None, tmp_path: Path) -> None:
    assert memory.cgroup_available(group_files(tmp_path, groups, files)) == left


def test_systems_without_control_groups_have_no_limit(tmp_path: Path) -> None:
    assert memory.cgroup_available(tmp_path) is None
    assert devices.cpu_quota(tmp_path) is None


def test_resident_and_peak_memory_follow_what_is_touched() -> None:
    before = memory.resident_bytes()
    held = np.ones(60_000_000, np.uint8)
    with_it = memory.resident_bytes()
    assert with_it - before >= 0.9 * held.nbytes
    assert memory.peak_bytes() >= 0.99 * with_it
    del held
    assert memory.resident_bytes() < with_it - 50_000_000
    assert memory.peak_bytes() >= 0.99 * with_it


def test_budget_is_what_the_limit_leaves_the_whole_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "resident_bytes", lambda: 300)
    monkeypatch.setattr(memory, "available_bytes", lambda device: 5000)
    monkeypatch.setattr(memory, "KEPT_FREED", 10)
    assert memory.activation_budget(2000, "cpu", 100) == 1590
    assert memory.activation_budget(9000, "cpu", 100) == 4900  # more than the machine has
    assert memory.activation_budget(None, "cpu", 100) == 4900
    assert memory.activation_budget(350, "cpu", 100) == -60  # what an error must ask for besides


@GLIBC
def test_freed_memory_is_kept_for_the_next_layer_and_can_be_given_back() -> None:
    code = """
import resource, torch
from hybrid import devices, memory
tuned = devices.tune_allocator(keep_freed=True)
assert devices.tune_allocator(keep_freed=True) == tuned
start = memory.resident_bytes()
for _ in range(24):
    torch.ones(10_000_000)
kept = memory.resident_bytes() - start
memory.release_memory()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(int(tuned), faults, kept, memory.resident_bytes() - start, memory.glibc().mallopt(-3, 2**30))
"""
    off_tuned, off_faults, off_kept, _, large = map(int, python(code, HYBRID_KEEP_MALLOC="1", THP_MEM_ALLOC_ENABLE="0").split())
    assert not off_tuned and off_kept < 10_000_000
    if not large:
        pytest.skip("this version of the C library keeps no blocks as large as those of this test")
    tuned, faults, kept, after, _ = map(int, python(code).split())
    assert tuned and kept >= 39_000_000 and after < 10_000_000
    assert off_faults - faults > 12 * 10_000_000 * 4 // os.sysconf("SC_PAGE_SIZE") // 2


@GLIBC
def test_by_default_the_peak_is_what_is_alive() -> None:
    code = """
from hybrid import devices, memory
tuned = devices.tune_allocator()
import torch
start = memory.resident_bytes()
x = torch.ones(4_000_000)  # 16 MB; at most 64 MB are alive at a time
for _ in range(12):
    small = torch.ones(1000)
    wide = torch.cat([x, x])
    x = wide[:4_000_000] + 1
    del wide
print(int(tuned), memory.peak_bytes() - start)
"""
    tuned, peak = map(int, python(code).split())
    assert tuned and peak < 75_000_000 + memory.KEPT_FREED


@GLIBC
def test_by_default_small_activations_are_not_cleared_again_in_each_layer() -> None:
    code = """
import resource, torch
from hybrid import devices
devices.tune_allocator()
x = torch.ones(750_000)  # 3 MB: too small to be mapped
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        held = [x + number for number in range(8)]
        del held
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    assert int(python(code)) < 5000  # cleared each time they are 290,000 pages of 4 kB

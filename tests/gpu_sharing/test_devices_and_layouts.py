from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_sharing.devices.cpu import CpuDevice
from gpu_sharing.devices.probe import probe
from gpu_sharing.partitioning.layout import LayoutInvalid, default_layout, parse_layout


def machine(root: Path, *, limit: str | None = None) -> Path:
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text("processor : 0\nmodel name\t: Some  CPU 9\n\nmodel name : Other\n")
    (root / "proc/meminfo").write_text("MemTotal:       1024 kB\nMemFree: 1 kB\n")
    if limit is not None:
        (root / "sys/fs/cgroup").mkdir(parents=True)
        (root / "sys/fs/cgroup/memory.max").write_text(limit)
    return root


def test_a_machine_without_a_cuda_device_is_served_by_its_cores(tmp_path: Path) -> None:
    device = probe(root=machine(tmp_path))
    assert (device.backend, device.device_kind, device.reason) == ("cpu", "cpu:Some CPU 9", "no CUDA device found")
    assert device.compute_units == len(device.units()) >= 1
    assert device.memory_bytes == 1 << 20


@pytest.mark.parametrize(("limit", "expected"), [("max\n", 1 << 20), ("4096\n", 4096), (str(1 << 40), 1 << 20)])
def test_a_control_groups_limit_counts_where_it_is_less(tmp_path: Path, limit: str, expected: int) -> None:
    assert CpuDevice("", root=machine(tmp_path, limit=limit)).memory_bytes == expected


def test_a_machine_that_tells_nothing_is_still_served(tmp_path: Path) -> None:
    device = CpuDevice("", root=tmp_path)
    assert (device.device_kind, device.memory_bytes) == ("cpu:unknown", 0)


def test_a_process_cannot_be_pinned_to_cores_it_does_not_have() -> None:
    with pytest.raises(ValueError, match="cores: \\[4095\\] given"):
        CpuDevice("").occupy((4095,))


def test_probing_imports_no_framework() -> None:
    code = "import sys, gpu_sharing.devices.probe as p; p.probe(); print({'torch', 'onnxruntime'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_a_layout_names_the_cores_of_each_worker() -> None:
    assert parse_layout("1;2-3", range(4)) == ((1,), (2, 3))
    assert parse_layout(" 3, 0-1 ", range(4)) == ((0, 1, 3),)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1;1", "cores: core 1 is given twice"),
        ("0-9", "cores: core 4 is not one of 0,1,2,3"),
        ("3-2", "cores: the range 3-2 ends before it starts"),
        ("1;;2", "cores: '' is neither a core nor a range"),
        ("-1", "cores: '-1' is neither a core nor a range"),
        ("", "cores: '' is neither"),
    ],
)
def test_a_layout_that_cannot_be_used_says_what_is_wrong(text: str, problem: str) -> None:
    with pytest.raises(LayoutInvalid, match=problem):
        parse_layout(text, range(4), field="cores")


@given(st.sets(st.integers(0, 64), min_size=1))
def test_the_default_layout_leaves_a_core_to_the_services_where_it_can(cores: set[int]) -> None:
    (worker,) = default_layout(sorted(cores))
    assert set(worker) <= cores
    assert len(worker) == max(1, len(cores) - 1)

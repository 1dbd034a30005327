"""What the system grants, and that taking more is an error instead of the end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gpu_sharing.memory import limits


def system(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A system's /proc and /sys."""
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "granted"),
    [
        ("0::/a/b\n", {"sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/memory.max": "5000\n"}, 5000),
        ("0::/a/b\n", {"sys/fs/cgroup/a/b/memory.max": "700\n", "sys/fs/cgroup/a/memory.max": "5000\n"}, 700),
        ("0::/\n", {"sys/fs/cgroup/memory.max": "900\n"}, 900),
        ("0::/../../outside\n", {"sys/fs/cgroup/memory.max": "900\n"}, 900),
        ("4:memory:/x\n0::/\n", {"sys/fs/cgroup/memory/x/memory.limit_in_bytes": "800\n"}, 800),
        ("4:cpu,memory:/x\n", {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ("0::/\n", {}, None),
    ],
)
def test_the_least_limit_of_all_groups_holds(
    tmp_path: Path, groups: str, files: dict[str, str], granted: int | None
) -> None:
    assert limits.granted_bytes(root=system(tmp_path, groups, files)) == granted


def test_without_proc_there_is_no_limit_to_be_found(tmp_path: Path) -> None:
    assert limits.granted_bytes(root=tmp_path) is None


CONFINED = """
from gpu_sharing.memory import limits
limits.LIBRARIES_BYTES = 64 << 20
limit = limits.confine(64 << 20)
assert limits.granted_bytes() == limit
kept = bytearray(32 << 20)
try:
    bytearray(256 << 20)
except MemoryError:
    print("refused")
del kept
limits.trim()
assert limits.data_bytes() < limit
"""


def test_taking_more_than_was_granted_is_an_error_that_can_be_caught() -> None:
    done = subprocess.run([sys.executable, "-c", CONFINED], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("refused", 0), done.stderr

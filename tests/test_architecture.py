"""The house stands as ARCHITECTURE.md draws it."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parent.parent
PURE_ROOMS = sorted(
    path
    for pattern in (
        "gpu_sharing/arbiter/**/*.py",
        "gpu_sharing/partitioning/**/*.py",
        "gpu_sharing/memory/ledger.py",
        "gpu_sharing/memory/extents.py",
        "gpu_sharing/memory/grants.py",
        "gpu_sharing/memory/owners.py",
        "gpu_sharing/memory/residence.py",
        "gpu_sharing/memory/streaming.py",
        "gpu_sharing/runtimes/cutting.py",
        "gpu_sharing/runtimes/graphs.py",
        "gpu_sharing/devices/cuda/errors.py",
        "gpu_sharing/units.py",
        "gpu_sharing/tensors.py",
        "gpu_sharing/measurements.py",
        "gpu_sharing/worker/messages.py",
        "gpu_sharing/worker/boundary.py",
        "gpu_sharing/worker/residency.py",
        "gpu_sharing/simulation/**/*.py",
        "services/simulator/**/*.py",
        "services/*/core/**/*.py",
        "services/cli/up/core.py",
        "services/common/objectives.py",
        "services/common/exponential.py",
        "services/common/blame.py",
    )
    for path in ROOT.glob(pattern)
)
# Data and mathematics: nothing that reads a clock, draws a lot or touches the world.
ALLOWED = {
    "__future__", "abc", "base64", "binascii", "bisect", "collections", "contextlib", "copy", "dataclasses", "enum", "fractions",
    "array", "functools", "hashlib", "heapq", "itertools", "json", "math", "msgspec", "numpy", "operator", "re", "statistics",
    "string", "struct", "types", "typing",
}  # fmt: skip
# Our own modules that a pure room may use: other pure rooms, errors that know no transport, names in traces.
ALLOWED_OURS = re.compile(
    r"gpu_sharing\.(arbiter|partitioning|simulation|units|tensors|measurements|worker\.(messages|boundary|residency)|memory\.(ledger|extents|grants|owners|residence|streaming))\b|services\.\w+\.core\b|services\.simulator\b|services\.common\.(errors|attributes|objectives|blame|exponential)\b"
)


def imports(path: Path) -> set[str]:
    """Names of the modules that a file imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", PURE_ROOMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_pure_room_imports_only_data_and_mathematics(path: Path) -> None:
    strangers = {name for name in imports(path) if name.split(".")[0] not in ALLOWED and not ALLOWED_OURS.match(name)}
    assert not strangers, f"{path.relative_to(ROOT)} imports {', '.join(sorted(strangers))}"


def test_there_are_pure_rooms() -> None:
    assert len(PURE_ROOMS) > 10


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("services", "gpu_sharing", cache_dir=None)


def test_the_import_graph_has_no_circle(graph: grimp.ImportGraph) -> None:
    sys.setrecursionlimit(10_000)
    state: dict[str, int] = {}

    def visit(module: str, path: list[str]) -> None:
        state[module] = 1
        for other in sorted(graph.find_modules_directly_imported_by(module)):
            assert state.get(other) != 1, "a circle: " + " -> ".join([*path[path.index(other) :], other])
            if other not in state:
                visit(other, [*path, other])
        state[module] = 2

    for module in sorted(graph.modules):
        if module not in state:
            visit(module, [module])


def room(module: str) -> str:
    """The room of ARCHITECTURE.md's picture that a module belongs to."""
    parts = module.split(".")
    return ".".join(parts[:2]) if len(parts) > 1 else parts[0]


def drawn_arrows() -> set[tuple[str, str]]:
    picture = re.search(r"```mermaid\n(.*?)```", (ROOT / "ARCHITECTURE.md").read_text(), re.DOTALL)
    assert picture, "ARCHITECTURE.md has no picture"
    return set(re.findall(r"^\s*([\w.]+) --> ([\w.]+)\s*$", picture.group(1), re.MULTILINE))


def test_architecture_md_draws_the_arrows_that_the_code_has(graph: grimp.ImportGraph) -> None:
    real = {
        (room(importer), room(imported))
        for importer in graph.modules
        for imported in graph.find_modules_directly_imported_by(importer)
        if room(importer) != room(imported) and "_proto" not in imported and "_proto" not in importer
    }
    vocabulary = {"gpu_sharing.units", "gpu_sharing.tensors", "gpu_sharing.measurements"}
    real = {(a, b) for a, b in real if b not in vocabulary}
    drawn = drawn_arrows()
    assert not real - drawn, f"not drawn: {sorted(real - drawn)}"
    assert not drawn - real, f"drawn, but the code has no such import: {sorted(drawn - real)}"

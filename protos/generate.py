"""Generates `services/_proto` from `protos/`: `python protos/generate.py [--check]`.

protoc writes imports as if its output were a top-level package; ours lives in `services._proto`, so they are rewritten.
OpenTelemetry's contracts are here for imports alone; their code comes from the package opentelemetry-proto.
`--check` writes nothing and fails where what is checked in differs from what would be generated.
"""

from __future__ import annotations

import filecmp
import re
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

SOURCE = Path(__file__).parent
TARGET = SOURCE.parent / "services" / "_proto"
PACKAGE = "services._proto"
ROOTS = ("apportion", "inference", "jaeger")
FOREIGN = "opentelemetry"
IMPORT = re.compile(rf"^(from|import) ((?:{'|'.join(ROOTS)})[\w.]*)", re.MULTILINE)


def generate(target: Path) -> None:
    """Writes messages, their type stubs and the gRPC stubs of every contract below `target`."""
    found = sorted(path.relative_to(SOURCE) for path in SOURCE.rglob("*.proto"))
    files = [str(path) for path in found if path.parts[0] != FOREIGN]
    well_known = Path(protoc.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{SOURCE}", f"-I{well_known}"]
    arguments += [f"--python_out={target}", f"--pyi_out={target}", f"--grpc_python_out={target}", *files]
    if protoc.main(arguments) != 0:
        sys.exit("protoc failed: see above")
    for path in [*target.rglob("*.py"), *target.rglob("*.pyi")]:
        path.write_text(IMPORT.sub(rf"\1 {PACKAGE}.\2", path.read_text()))
    for folder in {target, *(path.parent for path in target.rglob("*_pb2.py"))}:
        for package in [folder, *folder.parents]:
            if package == target.parent:
                break
            (package / "__init__.py").touch()


def differences(fresh: Path, kept: Path) -> list[str]:
    """Names of files that differ between two trees, either way."""
    names = {
        str(p.relative_to(root)) for root in (fresh, kept) for p in root.rglob("*.py*") if "__pycache__" not in p.parts
    }
    same = lambda name: (
        (fresh / name).exists() and (kept / name).exists() and filecmp.cmp(fresh / name, kept / name, shallow=False)
    )
    return sorted(name for name in names if not same(name))


def main() -> None:
    if "--check" not in sys.argv[1:]:
        TARGET.mkdir(parents=True, exist_ok=True)
        generate(TARGET)
        return
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        if stale := differences(Path(folder), TARGET):
            sys.exit("generated code is stale, run `make proto`: " + ", ".join(stale))


if __name__ == "__main__":
    main()

"""What an operator's Python artefact is made of, and whether it was approved. Nothing of it is run here."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from types import CodeType
from typing import NamedTuple

from gpu_sharing.runtimes.base import ArtefactRefused
from gpu_sharing.units import Bytes, GiB, MiB

MODULE = "model.py"
"""The member of an archive that is the code."""

MOST_SOURCE_BYTES: Bytes = 4 * MiB
MOST_UNPACKED_BYTES: Bytes = 16 * GiB
_ZIP = b"PK\x03\x04"
_HASHED_AT_ONCE: Bytes = MiB


class Source(NamedTuple):
    """code: the module, compiled. files: the archive's other members, by name. size_bytes: of all that."""

    digest: str
    code: CodeType
    files: Mapping[str, bytes]
    size_bytes: Bytes


def read_approved(path: Path, approved: Collection[str]) -> Source:
    """The very bytes whose digest is approved. Raises ArtefactRefused for all others, before it looks at what they are.

    approved: digests, "sha256:" and 64 hexadecimal digits.
    """
    if not approved:
        raise _unapproved(path, "no Python code is, here")
    # A file that nobody approved may be as large as it likes: it is hashed in pieces, and read only if it was approved.
    if (digest := _digest(path)) not in approved:
        raise _unapproved(path, f"{digest} is not among the executor's python_artefacts")
    data = path.read_bytes()
    if _of(data) != digest:
        raise _unapproved(path, "it has changed while it was read")
    text, files = _unpacked(path, data) if data.startswith(_ZIP) else (data, {})
    if len(text) > MOST_SOURCE_BYTES:
        raise ArtefactRefused(f"{path.name}: {len(text)} bytes of code, more than {MOST_SOURCE_BYTES}")
    try:
        code = compile(text, f"{digest[:19]}/{MODULE}", "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as broken:
        raise ArtefactRefused(f"{path.name}: is no Python module: {broken}") from broken
    return Source(digest, code, files, len(text) + sum(map(len, files.values())))


def _unpacked(path: Path, data: bytes) -> tuple[bytes, dict[str, bytes]]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [each for each in archive.infolist() if not each.is_dir()]
            if sum(each.file_size for each in members) > MOST_UNPACKED_BYTES:
                raise ArtefactRefused(f"{path.name}: would unpack to more than {MOST_UNPACKED_BYTES} bytes")
            files = {each.filename: archive.read(each) for each in members}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as broken:
        raise ArtefactRefused(f"{path.name}: is a broken archive: {broken}") from broken
    if MODULE not in files:
        raise ArtefactRefused(f"{path.name}: an archive of Python code has a member {MODULE}; this one has none")
    return files.pop(MODULE), files


def _digest(path: Path) -> str:
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_HASHED_AT_ONCE):
            hashed.update(piece)
    return f"sha256:{hashed.hexdigest()}"


def _of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _unapproved(path: Path, why: str) -> ArtefactRefused:
    return ArtefactRefused(f"{path.name}: Python code runs only where an operator has approved it by digest: {why}")

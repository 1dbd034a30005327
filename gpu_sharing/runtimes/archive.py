"""A .pt2 file as a zip: its members are read and checked here, and nothing in them is deserialised."""

from __future__ import annotations

import re
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpu_sharing.runtimes.base import ArtefactRefused
from gpu_sharing.units import Bytes, GiB, MiB

MAX_MEMBERS = 20_000
MAX_TOTAL_BYTES: Bytes = 64 * GiB
MAX_TEXT_BYTES: Bytes = 64 * MiB
"""For members that are parsed: JSON and the sample inputs' archive."""

MAX_RATIO = 200
"""Uncompressed over compressed. torch does not compress at all; deflate ends near 1,000, where only bombs are."""

MEMBERS: tuple[str, ...] = (
    r"models/model\.json",
    r"data/weights/weight_\d{1,6}",
    r"data/weights/model_weights_config\.json",
    r"data/constants/tensor_\d{1,6}",
    r"data/constants/model_constants_config\.json",
    r"data/sample_inputs/model\.pt",
    r"archive_format",
    r"archive_version",
    r"byteorder",
    r"version",
    r"\.data/version",
    r"\.data/serialization_id",
    r"\.format_version",
    r"\.storage_alignment",
    r"extra/[A-Za-z0-9_.\-]{1,128}",
)
"""What an archive of one exported program may hold, below its root folder."""

REQUIRED = ("models/model.json", "data/weights/model_weights_config.json", "data/constants/model_constants_config.json")

_MEMBER = re.compile("|".join(f"(?:{pattern})" for pattern in MEMBERS), re.ASCII)


class Archive:
    """An open archive whose directory has been checked. Members are named below the root folder."""

    def __init__(self, zipped: zipfile.ZipFile, name: str) -> None:
        self._zip = zipped
        self._name = name
        self._members = self._checked_members()
        missing = [member for member in REQUIRED if member not in self._members]
        if missing:
            raise ArtefactRefused(f"{name}: member {missing[0]} is missing; save the program with torch.export.save")
        if self.read("archive_format") != b"pt2":
            raise ArtefactRefused(f"{name}: archive_format: must be 'pt2'")

    def __contains__(self, member: object) -> bool:
        return member in self._members

    def size(self, member: str) -> Bytes:
        """The member's bytes, uncompressed; KeyError where there is none."""
        return self._members[member].file_size

    def read(self, member: str, *, limit: Bytes = MAX_TEXT_BYTES) -> bytes:
        """A whole member, its CRC checked. Raises ArtefactRefused where it is missing, damaged or above `limit`."""
        if member not in self._members:
            raise ArtefactRefused(f"{self._name}: member {member} is missing")
        if self.size(member) > limit:
            raise ArtefactRefused(f"{self._name}: {member}: {self.size(member)} bytes; at most {limit} are allowed")
        return b"".join(self.chunks(member))

    def chunks(self, member: str) -> Iterator[bytes]:
        """A member's bytes in pieces; raises ArtefactRefused where its CRC does not match."""
        info = self._members[member]
        left = info.file_size
        try:
            with self._zip.open(info) as opened:
                while piece := opened.read(1 * MiB):
                    left -= len(piece)
                    yield piece
        except Exception as broken:  # zipfile lets through whatever a damaged header leads to
            raise ArtefactRefused(f"{self._name}: {member}: damaged: {broken}") from broken
        if left:
            raise ArtefactRefused(f"{self._name}: {member}: cut short by {left} bytes")

    def check_all(self) -> None:
        """Reads every member once, so that damage is found before anything is loaded."""
        for member in self._members:
            for _ in self.chunks(member):
                pass

    def _checked_members(self) -> dict[str, zipfile.ZipInfo]:
        infos = self._zip.infolist()
        if not infos or len(infos) > MAX_MEMBERS:
            raise ArtefactRefused(f"{self._name}: {len(infos)} members; 1 to {MAX_MEMBERS} are allowed")
        total = sum(info.file_size for info in infos)
        if total > MAX_TOTAL_BYTES:
            raise ArtefactRefused(f"{self._name}: {total} bytes unpacked; at most {MAX_TOTAL_BYTES} are allowed")
        if min(info.header_offset for info in infos) or self._zip.comment:
            # Readers differ in where they take such an archive to begin, and would see different members.
            raise ArtefactRefused(f"{self._name}: not a whole zip archive: bytes before its first member, or a comment")
        root = infos[0].filename.partition("/")[0]
        members: dict[str, zipfile.ZipInfo] = {}
        for info in infos:
            self._check_entry(info)
            below = info.filename.removeprefix(f"{root}/")
            if below == info.filename or not _MEMBER.fullmatch(below):
                raise ArtefactRefused(
                    f"{self._name}: member {info.filename[:200]!r} does not belong in an exported program{_hint(below)}"
                )
            members[below] = info
        if len({below.lower() for below in members}) != len(infos):
            # torch looks members up without regard to case, and takes another than this check would.
            raise ArtefactRefused(f"{self._name}: two members have the same name")
        return members

    def _check_entry(self, info: zipfile.ZipInfo) -> None:
        name = info.filename
        at = f"{self._name}: member {info.orig_filename[:200]!r}"
        if name.startswith("/") or "\\" in info.orig_filename or ".." in name.split("/") or ":" in name:
            raise ArtefactRefused(f"{at}: a path must stay inside the archive")
        if info.orig_filename != name or not name.isascii() or not name.isprintable():
            raise ArtefactRefused(f"{at}: an unreadable name")
        mode = info.external_attr >> 16
        if mode and not stat.S_ISREG(mode) and stat.S_IFMT(mode):
            raise ArtefactRefused(f"{at}: not a regular file")
        if info.flag_bits & 0x41 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ArtefactRefused(f"{at}: encrypted, or compressed by a method other than deflate")
        if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
            raise ArtefactRefused(f"{at}: stored, but its two sizes differ")
        if info.file_size > MAX_RATIO * max(info.compress_size, 1):
            raise ArtefactRefused(f"{at}: unpacks to more than {MAX_RATIO} times its size")


@contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """The archive of a .pt2 file, its directory checked. Raises ArtefactRefused where it is none."""
    with path.open("rb") as file:
        head = file.read(4)
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise ArtefactRefused(f"{path.name}: this is a Python pickle, not a program saved by torch.export.save")
    if head != b"PK\x03\x04":
        raise ArtefactRefused(f"{path.name}: not a zip archive, so not a program saved by torch.export.save")
    try:
        zipped = zipfile.ZipFile(path)
    except Exception as broken:  # zipfile lets through whatever a damaged directory leads to
        raise ArtefactRefused(f"{path.name}: not a whole zip archive: {broken}") from broken
    with zipped:
        yield Archive(zipped, path.name)


def _hint(member: str) -> str:
    if member.endswith(("data.pkl", ".pkl")):
        return ": a Python pickle, which may run code when it is loaded"
    if re.match(r"data/(constants/(custom|opaque)_obj_|weights/model\.pt|constants/model\.pt)|serialized_", member):
        return ": it is unpickled when it is loaded; save a program of plain tensors with torch 2.9 or later"
    if member.startswith("data/aotinductor/"):
        return ": compiled code cannot be checked; save the program itself"
    return ""

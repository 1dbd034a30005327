"""Reads a pickle's opcodes without obeying them: which globals would it import?"""

from __future__ import annotations

import io
import pickletools
import zipfile

from gpu_sharing.runtimes.base import ArtefactRefused

TENSOR_GLOBALS = frozenset(
    (
        *("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "collections OrderedDict"),
        *("torch Size", "torch device", "torch FloatStorage", "torch DoubleStorage", "torch HalfStorage"),
        *("torch BFloat16Storage", "torch LongStorage", "torch IntStorage", "torch ShortStorage", "torch CharStorage"),
        *("torch ByteStorage", "torch BoolStorage", "torch.storage UntypedStorage", "torch.storage TypedStorage"),
        *("torch float32", "torch float64", "torch float16", "torch bfloat16", "torch int64", "torch int32"),
        *("torch int16", "torch int8", "torch uint8", "torch bool", "torch.serialization _get_layout"),
    )
)
"""What a pickle of plain tensors needs; the globals that `torch.load(weights_only=True)` allows are a superset."""

FORBIDDEN_OPCODES = frozenset(("INST", "OBJ", "EXT1", "EXT2", "EXT4", "NEWOBJ", "NEWOBJ_EX", "STACK_GLOBAL"))
"""Others that import or construct. Tensors saved by torch need none: it writes protocol 2 with GLOBAL and REDUCE."""

MAX_PICKLE_OPCODES = 200_000


def check_pickle(data: bytes, where: str) -> None:
    """Raises ArtefactRefused, naming `where`, where unpickling `data` would import anything but tensors' own functions."""
    count = 0
    try:
        for opcode, argument, _ in pickletools.genops(data):
            count += 1
            if count > MAX_PICKLE_OPCODES:
                raise ArtefactRefused(f"{where}: a pickle of more than {MAX_PICKLE_OPCODES} operations")
            if opcode.name in FORBIDDEN_OPCODES:
                raise ArtefactRefused(f"{where}: a pickle with {opcode.name}, which may run code when it is loaded")
            if opcode.name == "GLOBAL" and argument not in TENSOR_GLOBALS:
                name = str(argument).replace(" ", ".")[:120]
                raise ArtefactRefused(f"{where}: a pickle that imports {name}, which may run code when it is loaded")
    except ArtefactRefused:
        raise
    except Exception as broken:  # genops raises several kinds on malformed pickles
        raise ArtefactRefused(f"{where}: not a whole pickle: {broken}") from broken


def check_tensor_archive(data: bytes, where: str, *, max_members: int, max_bytes: int) -> None:
    """Raises ArtefactRefused unless `data` is empty or what `torch.save` writes for plain tensors."""
    if not data:
        return
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        members = archive.infolist()
        if len(members) > max_members or sum(member.file_size for member in members) > max_bytes:
            raise ArtefactRefused(f"{where}: more than {max_members} members or {max_bytes} bytes")
        names = [member.filename for member in members]
        pickles = [name for name in names if name.endswith(".pkl")]
        if len(pickles) != 1 or pickles[0].count("/") != 1 or not pickles[0].endswith("/data.pkl"):
            raise ArtefactRefused(f"{where}: must hold exactly one pickle, data.pkl; it holds {pickles or 'none'}")
        if len({name.lower() for name in names}) != len(names):
            raise ArtefactRefused(f"{where}: two members have the same name")
        check_pickle(archive.read(pickles[0]), f"{where}: {pickles[0]}")
    except ArtefactRefused:
        raise
    except Exception as broken:  # zipfile lets through whatever a damaged header leads to
        raise ArtefactRefused(f"{where}: not a tensor archive: {broken}") from broken

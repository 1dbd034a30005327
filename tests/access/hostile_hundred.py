"""More than a hundred artefacts that nobody should load, by name. Run as a program, it has a worker's checks look at them.

`python hostile_hundred.py FOLDER` writes each below FOLDER/artefacts, checks it with every code path that a worker would use,
and prints a line of JSON: what was refused, what was not, what the process did meanwhile that no check should do, and how much
memory that took.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import resource
import stat
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from artefact_samples import linear_onnx, linear_pt2, onnx_bytes, rezipped, with_model_json
from onnx import TensorProto, helper

Made = tuple[str, str, bytes]
"""What it is, the format that it claims to be of, its bytes."""
X = ("x", TensorProto.FLOAT, ["batch", 4])
Y = ("y", TensorProto.FLOAT, ["batch", 4])
FORMATS = ("onnx", "torch_export")


class RunsCode:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch {self._marker}",)


def pickles(marker: Path) -> Iterator[tuple[str, bytes]]:
    """Pickles that run code, in every disguise."""
    for protocol in range(6):
        yield f"a pickle of protocol {protocol}", pickle.dumps(RunsCode(marker), protocol=protocol)
    plain = pickle.dumps(RunsCode(marker))
    command = f"touch {marker}".encode()
    yield "a pickle by INST", b"(S'" + command + b"'\nios\nsystem\n."
    yield "a pickle by OBJ", b"(cos\nsystem\nS'" + command + b"'\no."
    yield "a pickle that hides behind spaces", b"   \n" + plain
    yield "a pickle in gzip", gzip.compress(plain)
    yield "a pickle in bzip2", bz2.compress(plain)
    yield "a pickle in xz", lzma.compress(plain)
    yield "a pickle in zlib", zlib.compress(plain)
    yield "a pickle in tar", tarred(plain)
    yield "a pickle behind a program's head", linear_pt2()[:64] + plain
    yield "a pickle in front of a program", plain + linear_pt2()
    yield "an array of objects", saved_array(marker)
    yield "an archive of arrays of objects", saved_arrays(marker)
    yield "a checkpoint", saved_checkpoint(marker)


def tarred(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("../model.pkl")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def saved_array(marker: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([RunsCode(marker)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def saved_arrays(marker: Path) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.array([RunsCode(marker)], dtype=object))
    return buffer.getvalue()


def saved_checkpoint(marker: Path) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save({"model": RunsCode(marker)}, buffer)
    return buffer.getvalue()


def others(marker: Path) -> Iterator[tuple[str, bytes]]:
    """What is of no format that is served."""
    yield "nothing", b""
    yield "a shared library", b"\x7fELF" + bytes(200)
    yield "a program for another system", b"MZ" + bytes(200)
    yield "Python's source", f"import os\nos.system('touch {marker}')\n".encode()
    yield "compiled Python", b"\xa7\r\r\n" + bytes(200)
    yield "a shell script", f"#!/bin/sh\ntouch {marker}\n".encode()
    yield "an HDF5 file", b"\x89HDF\r\n\x1a\n" + bytes(200)
    yield "an onnxruntime model", struct.pack("<I", 16) + b"ORTM" + bytes(64)
    yield "a safetensors file", struct.pack("<Q", 2) + b"{}"
    yield "a picture", b"\x89PNG\r\n\x1a\n" + bytes(64)
    yield "zeros", bytes(4096)
    yield "an empty zip", b"PK\x05\x06" + bytes(18)
    yield "TorchScript", zipped({"m/data.pkl": pickle.dumps(1), "m/code/__torch__.py": b"", "m/version": b"3"})


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def appended(change: Callable[[zipfile.ZipFile, str], None], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A sound program with more in its archive."""
    buffer = io.BytesIO(linear_pt2())
    with zipfile.ZipFile(buffer, "a", compression) as archive:
        change(archive, archive.namelist()[0].split("/")[0])
    return buffer.getvalue()


PATHS = (
    *("../outside", "../../../../etc/cron.d/x", "/etc/passwd", "model/../../outside", "a\\..\\b", "c:/windows/x"),
    *(
        "//server/share",
        "model/./../x",
        "\u202egpj.x",
        "model/a\nb",
        "model/\x7f",
        "..",
        "/",
        "model/data/weights/../../x",
    ),
)


def archives() -> Iterator[tuple[str, bytes]]:
    """Archives that lead out of themselves, or to far too much."""
    for name in PATHS:
        yield f"a member {name!r}", appended(lambda archive, _, name=name: archive.writestr(name, b"x"))
    for what, mode in (
        ("link", stat.S_IFLNK),
        ("device", stat.S_IFBLK),
        ("pipe", stat.S_IFIFO),
        ("socket", stat.S_IFSOCK),
    ):
        yield f"a member that is a {what}", appended(lambda archive, root, mode=mode: special(archive, root, mode))
    bomb = lambda archive, root: archive.writestr(f"{root}/data/weights/weight_99", bytes(64 << 20))
    yield "a bomb of zeros", appended(bomb, zipfile.ZIP_DEFLATED)
    yield "a bomb in bzip2", appended(bomb, zipfile.ZIP_BZIP2)
    yield "a bomb in lzma", appended(bomb, zipfile.ZIP_LZMA)
    yield "an archive of 20,001 members", appended(many)
    yield "members that lie over one another", overlapping()
    yield "a member that says it has 80 GiB", claimed(80 << 30)
    yield "a comment behind the archive", linear_pt2()[:-2] + b"\x05\x00hello"
    yield "a member twice", appended(lambda archive, root: archive.writestr(f"{root}/models/model.json", b"{}"))
    yield "a member twice in capitals", appended(lambda archive, root: archive.writestr(f"{root}/Version", b"1"))
    yield "an archive in an archive", appended(lambda archive, root: archive.writestr(f"{root}/m.zip", linear_pt2()))
    yield (
        "compiled code",
        appended(lambda archive, root: archive.writestr(f"{root}/data/aotinductor/m/c.so", b"\x7fELF")),
    )
    yield "an archive cut short", linear_pt2()[:-100]


def special(archive: zipfile.ZipFile, root: str, mode: int) -> None:
    info = zipfile.ZipInfo(f"{root}/data/weights/weight_99")
    info.external_attr = (mode | 0o777) << 16
    archive.writestr(info, "/etc/passwd")


def many(archive: zipfile.ZipFile, root: str) -> None:
    for number in range(20_001):
        archive.writestr(f"{root}/extra/{number}", b"")


def overlapping() -> bytes:
    """Two names in the directory for the bytes of one member."""
    data = linear_pt2()
    start = data.index(b"PK\x01\x02")
    first = data[start : data.index(b"PK\x01\x02", start + 4)]
    end = data.rindex(b"PK\x05\x06")
    count, size = struct.unpack_from("<H", data, end + 10)[0] + 1, end - start + len(first)
    tail = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, count, count, size, start, 0)
    return data[:end] + first + tail


def claimed(size: int) -> bytes:
    """A member whose directory entry lies about its size."""
    data = bytearray(linear_pt2())
    start = data.index(b"PK\x01\x02")
    struct.pack_into("<II", data, start + 20, 0xFFFF_FFF0, min(size, 0xFFFF_FFF0))
    return bytes(data)


def pickled_members(marker: Path) -> Iterator[tuple[str, bytes]]:
    """Programs of which one member is a pickle."""
    hostile = pickle.dumps(RunsCode(marker), protocol=2)
    for member in (
        *("data/constants/custom_obj_0", "data/constants/opaque_obj_0", "data/weights/model.pt", "data.pkl"),
        *("data/constants/model.pt", "extra/../data.pkl", "serialized_exported_program.json", "constants.pkl"),
    ):
        yield f"a program with {member}", edited(lambda m, data: data, **{member: hostile})
    import torch

    for protocol in (2, 4, 5):
        buffer = io.BytesIO()
        torch.save(((RunsCode(marker),), {}), buffer, pickle_protocol=protocol)
        inputs = buffer.getvalue()
        change = lambda m, data, inputs=inputs: inputs if m == "data/sample_inputs/model.pt" else data
        yield f"sample inputs that run code, protocol {protocol}", edited(change)
    raw = lambda m, data: hostile if m == "data/sample_inputs/model.pt" else data
    yield "sample inputs that are a bare pickle", edited(raw)


def edited(edit: Callable[[str, bytes], bytes | None], **extra: bytes) -> bytes:
    path = WORK / "edited.pt2"
    rezipped(linear_pt2(), path, edit, **extra)
    return path.read_bytes()


TARGETS = (
    *("torch.load", "torch.hub.load", "os.system", "builtins.eval", "torch.ops.load_library", "subprocess.run"),
    *(
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.add.__class__",
        "_operator.attrgetter",
        "_operator.methodcaller",
    ),
)


def programs(marker: Path) -> Iterator[tuple[str, bytes]]:
    """Programs with code where names and sizes should be."""
    code = f"__import__('os').system('touch {marker}')"

    def sized(document: dict[str, Any], text: str) -> None:
        values = document["graph_module"]["graph"]["tensor_values"].values()
        next(size for meta in values for size in meta["sizes"] if "as_expr" in size)["as_expr"]["expr_str"] = text

    def node(document: dict[str, Any]) -> dict[str, Any]:
        return document["graph_module"]["graph"]["nodes"][0]

    texts = (
        code,
        "(lambda: 1)()",
        "[x for x in (1,)][0]",
        "().__class__.__bases__[0]",
        "Symbol('s0').__init__",
        "9**9**9**9",
    )
    for text in texts:
        yield f"the size {text[:24]!r}", changed(lambda d, text=text: sized(d, text))
    yield "a range with code", changed(lambda d: d.update(range_constraints={code: {"min_val": 0, "max_val": 9}}))
    yield "a node's name with code", changed(lambda d: node(d).update(name=code))
    yield "an argument's name with code", changed(lambda d: node(d)["inputs"][0].update(name=code))
    for target in TARGETS:
        yield f"a call of {target}", changed(lambda d, target=target: node(d).update(target=target))
    for what, content in (("no JSON", b"{"), ("a list", b"[]"), ("a depth of 100,000", b"[" * 100_000), ("NUL", b"\0")):
        change = lambda m, data, content=content: content if m == "models/model.json" else data
        yield f"a program whose text is {what}", edited(change)


def changed(change: Callable[[dict[str, Any]], object]) -> bytes:
    path = WORK / "changed.pt2"

    def apply(document: dict[str, Any]) -> None:
        change(document)

    with_model_json(linear_pt2(), path, apply)
    return path.read_bytes()


LOCATIONS = (
    "/etc/passwd",
    "../../secret",
    "weights.bin",
    "file:///etc/shadow",
    "~/.ssh/id_ed25519",
    "/dev/zero",
    "",
    "\\\\host\\x",
)


def outside(location: str, name: str = "w") -> Any:
    tensor = onnx.numpy_helper.from_array(np.ones(4, np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="length", value=str(1 << 50))
    return tensor


def models() -> Iterator[tuple[str, bytes]]:
    """ONNX models with data elsewhere, unknown code, or no end."""
    add = helper.make_node("Add", ["x", "w"], ["y"])
    for location in LOCATIONS:
        yield f"weights in {location!r}", onnx_bytes([add], [X], [Y], [outside(location)])
    hidden = helper.make_node("Constant", [], ["w"], value=outside("/etc/passwd"), name="c")
    yield "a constant elsewhere", onnx_bytes([hidden, add], [X], [Y])
    half = outside("x")
    half.ClearField("data_location")
    yield "weights elsewhere that do not say so", onnx_bytes([add], [X], [Y], [half])
    for domain, operator in (("evil", "Run"), ("ai.onnx.contrib", "PyOp"), ("com.microsoft", "EPContext")):
        node = helper.make_node(operator, ["x"], ["y"], domain=domain)
        yield f"an operator {domain}.{operator}", onnx_bytes([node], [X], [Y], opsets=[("", 17), (domain, 1)])
    for operator in ("PyOp", "PythonOp", "ATen", "ExternalStream"):
        node = helper.make_node(operator, ["x"], ["y"], domain="com.microsoft")
        yield f"com.microsoft's {operator}", onnx_bytes([node], [X], [Y], opsets=[("", 17), ("com.microsoft", 1)])
    relu = helper.make_node("Relu", ["x"], ["y"])
    yield "a model cut short", linear_onnx()[:-40]
    yield "a model with something behind it", linear_onnx() + b"\xff" * 32
    yield (
        "a graph with a circle",
        onnx_bytes([helper.make_node("Relu", ["y"], ["x2"]), helper.make_node("Relu", ["x2"], ["y"])], [X], [Y]),
    )
    yield "a graph without an output", onnx_bytes([relu], [X], [])
    yield "a tensor that claims 4 TiB", onnx_bytes([add], [X], [Y], [huge()])
    yield "graphs in graphs in graphs", nested(20)


def huge() -> Any:
    tensor = onnx.numpy_helper.from_array(np.ones(4, np.float32), "w")
    tensor.ClearField("dims")
    tensor.dims.extend([1 << 20, 1 << 20])
    return tensor


def nested(depth: int) -> bytes:
    out = helper.make_tensor_value_info("r", TensorProto.FLOAT, None)
    body = helper.make_graph([helper.make_node("Relu", ["x"], ["r"])], "leaf", [], [out])
    for _ in range(depth):
        node = helper.make_node("If", ["p"], ["r"], then_branch=body, else_branch=helper.make_graph([], "e", [], [out]))
        body = helper.make_graph([node], "g", [], [out])
    condition = helper.make_tensor_value_info("p", TensorProto.BOOL, [])
    graph = helper.make_graph(list(body.node), "g", [helper.make_tensor_value_info(*X), condition], [out])
    return helper.make_model(graph).SerializeToString()


def flipped() -> Iterator[tuple[str, bytes]]:
    """Programs with a bit wrong in the middle of their weights, which their archive's sums tell."""
    data = linear_pt2()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            if "weight" in info.filename or "model.json" in info.filename:
                head = info.header_offset
                name, extra = struct.unpack_from("<HH", data, head + 26)
                at = head + 30 + name + extra + info.compress_size // 2
                yield f"a bit of {info.filename}", data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def everything(marker: Path) -> Iterator[Made]:
    """All of them."""
    for what, data in (*pickles(marker), *others(marker)):
        for kind in FORMATS:
            yield f"{what} as {kind}", kind, data
    for what, data in (*archives(), *pickled_members(marker), *programs(marker), *flipped()):
        yield what, "torch_export", data
    for what, data in models():
        yield what, "onnx", data
    yield "a program as a model", "onnx", linear_pt2()
    yield "a model as a program", "torch_export", linear_onnx()


WATCHED = (
    "os.system",
    "subprocess.Popen",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "socket.connect",
    "pickle.find_class",
)


def main() -> None:
    from gpu_sharing.runtimes.base import ArtefactRefused
    from gpu_sharing.runtimes.registry import runtime_for

    marker, folder = WORK / "code-ran", WORK / "artefacts"
    folder.mkdir()
    made = list(everything(marker))
    runtimes = {kind: runtime_for(kind) for kind in FORMATS}
    # Once each, so that what libraries load and keep is not counted.
    for kind, data in (("onnx", linear_onnx()), ("torch_export", linear_pt2())):
        sound = folder / f"sound.{kind}"
        sound.write_bytes(data)
        runtimes[kind].check(sound)
    done: list[str] = []
    watching = [False]

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if not watching[0]:
            return
        if event in WATCHED:
            done.append(f"{event} {arguments!r:.200}")
        if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
            done.append(f"open {arguments!r:.200}")

    sys.addaudithook(watch)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused, taken = [], []
    for number, (what, kind, data) in enumerate(made):
        path = folder / f"{number}.{kind}"
        path.write_bytes(data)
        watching[0] = True
        try:
            runtimes[kind].check(path)
        except ArtefactRefused as error:
            refused.append((what, str(error)))
        except BaseException as error:
            taken.append(f"{what}: broke the check: {error!r}")
        else:
            taken.append(what)
        watching[0] = False
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    told = {"refused": refused, "taken": taken, "done": done, "grown_bytes": grown, "ran": marker.exists()}
    print(json.dumps(told))


if __name__ == "__main__":
    WORK = Path(sys.argv[1])
    main()

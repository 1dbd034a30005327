"""An exported program whose every member has been checked, and the clean archive made of it."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from dataclasses import dataclass
from typing import IO, Any

from gpu_sharing.runtimes.archive import Archive
from gpu_sharing.runtimes.base import ArtefactRefused
from gpu_sharing.runtimes.pickles import check_tensor_archive
from gpu_sharing.runtimes.program_leaves import refused
from gpu_sharing.runtimes.program_schema import Walk
from gpu_sharing.runtimes.pytrees import flat_input_spec, flat_output_spec, leaf_names
from gpu_sharing.units import Bytes, MiB

MODEL = "models/model.json"
SAMPLE_INPUTS = "data/sample_inputs/model.pt"
PAYLOADS = {
    "data/weights/": ("data/weights/model_weights_config.json", "weight_"),
    "data/constants/": ("data/constants/model_constants_config.json", "tensor_"),
}
SAMPLE_INPUTS_MAX_MEMBERS = 2_000
SAMPLE_INPUTS_MAX_BYTES: Bytes = 64 * MiB
VERIFIERS = frozenset(("ATEN", "TRAINING", "EDGE"))
ROOT = "program"

ITEM_BYTES_OF_DTYPE = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 2, 7: 4, 8: 8, 9: 4, 10: 8, 11: 16, 12: 1, 13: 2, 28: 2}
ITEM_BYTES_OF_DTYPE |= {29: 1, 30: 1, 31: 1, 32: 1, 33: 1, 34: 4, 35: 8}
"""Bytes of an element by torch's number for the type, as the archive writes it."""


@dataclass(frozen=True)
class Program:
    """A checked program: JSON documents to write anew, and what they say of its interface.

    payloads: member names of weights and constants. inputs: (name, its Argument or ConstantValue) in calling order.
    output_names: one per flat output, made unique. operators: every operator that a node calls.
    """

    model: dict[str, Any]
    configs: dict[str, dict[str, Any]]
    payloads: tuple[str, ...]
    inputs: tuple[tuple[str, dict[str, Any]], ...]
    output_names: tuple[str, ...]
    operators: frozenset[str]


def read_program(archive: Archive) -> Program:
    """Checks everything that loading would look at. Raises ArtefactRefused naming the member and the place in it."""
    _check_sample_inputs(archive)
    calls = _Calls()
    operators: set[str] = set()
    model = Walk({"calls": calls.read, "operator": _noting(operators)}).visit(
        "ExportedProgram", _json(archive, MODEL), MODEL
    )
    unknown = sorted(set(model.get("verifiers", ())) - VERIFIERS)
    if unknown:
        raise refused(f"{MODEL}.verifiers", unknown[0], f"not one of {', '.join(sorted(VERIFIERS))}")
    configs, payloads = {}, []
    for folder, (member, prefix) in PAYLOADS.items():
        configs[member] = Walk({}).visit("PayloadConfig", _json(archive, member), member)
        payloads += _check_payloads(archive, configs[member], member, folder, prefix)
    inputs = _user_inputs(_field(model, "graph_module", "signature", "input_specs"))
    outputs = len(_field(model, "graph_module", "signature", "output_specs"))
    names = calls.settle(model["graph_module"], [name for name, _ in inputs], outputs)
    return Program(model, configs, tuple(payloads), tuple(inputs), names, frozenset(operators))


def write_clean(program: Program, archive: Archive, target: IO[bytes], *, device: str) -> None:
    """Writes an archive with only what was checked, every tensor on `device`; no sample inputs, guards or extra files."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED, allowZip64=True) as clean:
        for name, text in (
            ("archive_format", "pt2"),
            ("archive_version", "0"),
            ("byteorder", "little"),
            (".data/version", "6\n"),
        ):
            clean.writestr(f"{ROOT}/{name}", text)
        for member, document in {MODEL: program.model, **program.configs}.items():
            clean.writestr(f"{ROOT}/{member}", json.dumps(_on_device(document, device)))
        clean.writestr(f"{ROOT}/{SAMPLE_INPUTS}", b"")
        for member in program.payloads:
            with clean.open(f"{ROOT}/{member}", "w", force_zip64=True) as copy:
                for piece in archive.chunks(member):
                    copy.write(piece)


class _Calls:
    """The calling convention: read for its names, then written anew, flat."""

    def __init__(self) -> None:
        self._inputs: tuple[str, ...] = ()
        self._outputs: tuple[str, ...] = ()

    def read(self, value: object, where: str) -> object:
        roots = (
            [entry for entry in value if isinstance(entry, dict) and entry.get("fqn") == ""]
            if isinstance(value, list)
            else []
        )
        signature = roots[0].get("signature") if len(roots) == 1 else None
        if not isinstance(signature, dict):
            raise refused(where, "module_call_graph", "no calling convention for the whole module")
        self._inputs = leaf_names(signature.get("in_spec"), f"{where}.in_spec")
        self._outputs = leaf_names(signature.get("out_spec"), f"{where}.out_spec")
        return []

    def settle(self, graph_module: dict[str, Any], inputs: list[str], outputs: int) -> tuple[str, ...]:
        if len(self._inputs) != len(inputs) or len(self._outputs) != outputs:
            raise ArtefactRefused(f"{MODEL}: graph_module: in_spec or out_spec does not fit the signature")
        flat = {
            "inputs": [],
            "outputs": [],
            "in_spec": flat_input_spec(len(inputs)),
            "out_spec": flat_output_spec(outputs),
            "forward_arg_names": inputs,
        }
        graph_module["module_call_graph"] = [{"fqn": "", "signature": flat}]
        named = [name or f"output_{index}" for index, name in enumerate(self._outputs)]
        counts = Counter(named)
        return tuple(name if counts[name] == 1 else f"{name}_{index}" for index, name in enumerate(named))


def _noting(operators: set[str]) -> Any:
    from gpu_sharing.runtimes.program_leaves import operator

    def note(value: object, where: str) -> object:
        operators.add(str(operator(value, where)))
        return value

    return note


def _user_inputs(specs: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    inputs = []
    for index, spec in enumerate(specs):
        if constant := spec.get("constant_input"):
            inputs.append((constant["name"], constant["value"]))
        elif user := spec.get("user_input"):
            argument = user["arg"]
            name = argument.get("as_tensor", {}).get("name") or argument.get("as_sym_int", {}).get("as_name")
            if not name:
                raise refused(
                    f"{MODEL}.input_specs[{index}]", next(iter(argument)), "inputs must be tensors or integers"
                )
            inputs.append((name, argument))
    return inputs


def _json(archive: Archive, member: str) -> Any:
    try:
        return json.loads(archive.read(member))
    except (ValueError, RecursionError) as broken:
        raise ArtefactRefused(f"{member}: not JSON: {str(broken)[:200]}") from broken


def _field(document: dict[str, Any], *names: str) -> Any:
    for name in names:
        if name not in document:
            raise ArtefactRefused(f"{MODEL}: {'.'.join(names)} is missing")
        document = document[name]
    return document


def _check_sample_inputs(archive: Archive) -> None:
    if SAMPLE_INPUTS in archive:
        data = archive.read(SAMPLE_INPUTS)
        check_tensor_archive(
            data, SAMPLE_INPUTS, max_members=SAMPLE_INPUTS_MAX_MEMBERS, max_bytes=SAMPLE_INPUTS_MAX_BYTES
        )


def _check_payloads(archive: Archive, document: dict[str, Any], member: str, folder: str, prefix: str) -> list[str]:
    """Each tensor must lie inside its record, and each record be there."""
    kinds: dict[str, int] = {}
    for name, payload in _field(document, "config").items():
        where = f"{member}: {name}"
        path, meta = payload.get("path_name", ""), payload.get("tensor_meta")
        if not path.startswith(prefix) or f"{folder}{path}" not in archive:
            raise refused(where, path, "no such member, or one that is unpickled when it is loaded")
        if meta is None or payload.get("use_pickle") is not False:
            raise refused(where, path, "no description of its tensor")
        if kinds.setdefault(path, meta["dtype"]) != meta["dtype"]:
            raise refused(where, path, "two tensors share its bytes with different types")
        _check_extent(where, meta, archive.size(f"{folder}{path}"))
    return [f"{folder}{path}" for path in kinds]


def _check_extent(where: str, meta: dict[str, Any], size: Bytes) -> None:
    item = ITEM_BYTES_OF_DTYPE.get(meta["dtype"])
    numbers = [*meta["sizes"], *meta["strides"], meta["storage_offset"]]
    values = [number.get("as_int", -1) for number in numbers]
    rank = len(meta["sizes"])
    if item is None or len(meta["strides"]) != rank or min(values) < 0:
        raise refused(where, meta, "an unknown type, or sizes and strides that are not plain numbers")
    sizes, strides, offset = values[:rank], values[rank:-1], values[-1]
    if 0 in sizes:
        return
    last = offset + sum((extent - 1) * stride for extent, stride in zip(sizes, strides, strict=True))
    if (last + 1) * item > size or size % item:
        raise ArtefactRefused(f"{where}: reaches {(last + 1) * item} bytes into a member of {size}")


def _on_device(value: Any, device: str) -> Any:
    """The document with every device replaced, so that a program exported on one kind runs on another."""
    if isinstance(value, dict):
        if set(value) == {"type", "index"} and value["type"] in ("cpu", "cuda"):
            return {"type": device, "index": None if device == "cpu" else 0}
        return {key: _on_device(item, device) for key, item in value.items()}
    if isinstance(value, list):
        return [_on_device(item, device) for item in value]
    return value

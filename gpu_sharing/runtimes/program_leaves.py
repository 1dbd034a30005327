"""The leaves of an exported program's JSON: what each may be, strictly, since torch writes many of them into source code."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable

from gpu_sharing.runtimes.base import ArtefactRefused
from gpu_sharing.runtimes.expressions import MAX_INTEGER, check_expression, check_symbol

Leaf = Callable[[object, str], object]
"""Takes a value and where it stands; returns it, or raises ArtefactRefused."""

MAX_TEXT = 4096

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}", re.ASCII)
_PATH = re.compile(r"[A-Za-z0-9_\-]+(?:\.[A-Za-z0-9_\-]+){0,63}", re.ASCII)
_DEVICE = re.compile(r"cpu|cuda|meta", re.ASCII)
_ATEN = re.compile(r"torch\.ops\.(?:aten|prims)\.([A-Za-z_][A-Za-z0-9_]*)\.([A-Za-z][A-Za-z0-9_]*)", re.ASCII)

DUNDER_OPERATORS = frozenset(("__and__", "__or__", "__xor__", "__lshift__", "__rshift__"))

FORBIDDEN_ATEN = frozenset(
    (
        *("from_file", "set_", "set_data", "save", "_print", "print", "warn", "manual_seed", "wait", "open"),
        *("_pin_memory", "pin_memory", "resize_", "resize_as_", "_resize_output_", "as_strided_", "_foobar"),
        *("_cuda_getCurrentRawStream", "_debug_has_internal_overlap", "record_stream", "data_ptr"),
    )
)
"""Of aten, those that reach outside the process, touch raw storage, or change what other models share."""

PYTHON_OPERATORS = frozenset(
    (
        *("add", "sub", "mul", "floordiv", "truediv", "mod", "pow", "neg", "pos", "abs", "getitem"),
        *("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "xor", "not_", "invert", "lshift", "rshift"),
    )
)

OTHER_OPERATORS = frozenset(
    (
        *("torch.sym_int", "torch.sym_float", "torch.sym_max", "torch.sym_min", "torch.sym_not", "torch.sym_ite"),
        *("torch.sym_sqrt", "torch.sym_sum", "torch._sym_sqrt", "math.ceil", "math.floor", "math.trunc", "math.sqrt"),
        *("math.pow", "math.log", "math.exp", "round"),
        *("torch.ops.higher_order.cond", "torch.ops.higher_order.while_loop"),
        *("torch.ops.higher_order.wrap_with_set_grad_enabled", "torch.ops.higher_order.wrap_with_autocast"),
    )
)


def refused(where: str, value: object, problem: str) -> ArtefactRefused:
    """The refusal of one value, shortened so that a hostile file cannot fill the log."""
    return ArtefactRefused(f"{where}: {str(value)[:120]!r}: {problem}")


def name(value: object, where: str) -> object:
    """A Python identifier: node names become variables of generated source."""
    if not isinstance(value, str) or not _NAME.fullmatch(value) or keyword.iskeyword(value):
        raise refused(where, value, "not an identifier")
    return value


def argument_name(value: object, where: str) -> object:
    """An operator's argument, which for positional ones of higher-order operators is empty."""
    return value if value == "" or value == "from" else name(value, where)


def path(value: object, where: str) -> object:
    """The dotted name of a parameter, buffer or constant."""
    if not isinstance(value, str) or len(value) > 1024 or not _PATH.fullmatch(value):
        raise refused(where, value, "not a dotted name of letters, digits, '_' and '-'")
    return value


def operator(value: object, where: str) -> object:
    """An operator whose effect is arithmetic on tensors: torch resolves any dotted name to whatever Python object it finds."""
    if isinstance(value, str):
        module, _, last = value.rpartition(".")
        if value in OTHER_OPERATORS or (module == "_operator" and last in PYTHON_OPERATORS):
            return value
        found = _ATEN.fullmatch(value)
        if found and found[1] not in FORBIDDEN_ATEN and (not found[1].startswith("__") or found[1] in DUNDER_OPERATORS):
            return value
    raise refused(where, value, "not an operator that may be served (torch.ops.aten.*, prims and arithmetic may)")


def text(value: object, where: str) -> object:
    """Free text, such as an einsum's equation; torch quotes it."""
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise refused(where, value, f"not text of at most {MAX_TEXT} characters")
    return value


def integer(value: object, where: str) -> object:
    """An integer of 64 bits."""
    if isinstance(value, bool) or not isinstance(value, int) or not -MAX_INTEGER <= value < 2 * MAX_INTEGER:
        raise refused(where, value, "not an integer of 64 bits")
    return value


def small(value: object, where: str) -> object:
    """A member of one of the schema's enumerations."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 255:
        raise refused(where, value, "not a small number")
    return value


def real(value: object, where: str) -> object:
    """A float, the special ones as JSON text."""
    if value in ("NaN", "Infinity", "-Infinity") or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return value
    raise refused(where, value, "not a number")


def boolean(value: object, where: str) -> object:
    """True or false."""
    if not isinstance(value, bool):
        raise refused(where, value, "not a boolean")
    return value


def nothing(value: object, where: str) -> object:
    """None, which the schema writes as a boolean."""
    if value not in (True, False, None) and value not in ([], ()):
        raise refused(where, value, "not the mark for None")
    return True


def device_type(value: object, where: str) -> object:
    """A kind of device."""
    if not isinstance(value, str) or not _DEVICE.fullmatch(value):
        raise refused(where, value, "not a device: cpu or cuda")
    return value


LEAVES: dict[str, Leaf] = {
    "name": name,
    "argument_name": argument_name,
    "path": path,
    "operator": operator,
    "text": text,
    "int": integer,
    "small": small,
    "float": real,
    "bool": boolean,
    "none": nothing,
    "device_type": device_type,
    "expression": check_expression,
    "symbol": check_symbol,
}

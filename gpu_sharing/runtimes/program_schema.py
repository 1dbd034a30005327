"""The schema of an exported program's JSON, as tables, and the walk that rebuilds a document from what they allow.

The copy holds nothing that was not checked: unknown fields are refused, and the parts that torch would evaluate or that
serving does not need (guards, stack traces, sources of nodes) are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpu_sharing.runtimes.program_leaves import LEAVES, refused

MAX_DEPTH = 64
MAX_ITEMS = 500_000

# A type is the name of a leaf, struct or union; "[T]" a list, "{K:T}" a map, "T?" may be null, "-" is left out.
STRUCTS: dict[str, dict[str, str]] = {
    "ExportedProgram": {
        "graph_module": "GraphModule",
        "opset_version": "{name:int}",
        "range_constraints": "{symbol:RangeConstraint}",
        "schema_version": "SchemaVersion",
        "verifiers": "[name]",
        "torch_version": "text",
        "guards_code": "-",
    },
    "GraphModule": {
        "graph": "Graph",
        "signature": "GraphSignature",
        "module_call_graph": "calls",
        "metadata": "-",
        "treespec_namedtuple_fields": "-",
    },
    "SchemaVersion": {"major": "int", "minor": "int"},
    "RangeConstraint": {"min_val": "int?", "max_val": "int?"},
    "Graph": {
        "inputs": "[Argument]",
        "outputs": "[Argument]",
        "nodes": "[Node]",
        "tensor_values": "{name:TensorMeta}",
        "sym_int_values": "{name:SymInt}",
        "sym_bool_values": "{name:SymBool}",
        "is_single_tensor_return": "bool",
        "custom_obj_values": "empty",
        "sym_float_values": "{name:SymFloat}",
    },
    "Node": {
        "target": "operator",
        "inputs": "[NamedArgument]",
        "outputs": "[Argument]",
        "metadata": "-",
        "is_hop_single_tensor_return": "bool?",
        "name": "name?",
    },
    "NamedArgument": {"name": "argument_name", "arg": "Argument", "kind": "small?"},
    "TensorArgument": {"name": "name"},
    "GraphArgument": {"name": "name", "graph": "Graph"},
    "ComplexValue": {"real": "float", "imag": "float"},
    "Device": {"type": "device_type", "index": "small?"},
    "SymExpr": {"expr_str": "expression", "hint": "SymExprHint?"},
    "TensorMeta": {
        "dtype": "small",
        "sizes": "[SymInt]",
        "requires_grad": "bool",
        "device": "Device",
        "strides": "[SymInt]",
        "storage_offset": "SymInt",
        "layout": "small",
    },
    "GraphSignature": {"input_specs": "[InputSpec]", "output_specs": "[OutputSpec]"},
    "UserInput": {"arg": "Argument"},
    "Parameter": {"arg": "TensorArgument", "parameter_name": "path"},
    "Buffer": {"arg": "TensorArgument", "buffer_name": "path", "persistent": "bool"},
    "TensorConstant": {"arg": "TensorArgument", "tensor_constant_name": "path"},
    "ConstantInput": {"name": "name", "value": "ConstantValue"},
    "UserOutput": {"arg": "Argument"},
    "PayloadConfig": {"config": "{path:PayloadMeta}"},
    "PayloadMeta": {"path_name": "name", "is_param": "bool", "use_pickle": "unpickled", "tensor_meta": "TensorMeta"},
}

UNIONS: dict[str, dict[str, str]] = {
    "Argument": {
        "as_none": "none",
        "as_tensor": "TensorArgument",
        "as_tensors": "[TensorArgument]",
        "as_int": "int",
        "as_ints": "[int]",
        "as_float": "float",
        "as_floats": "[float]",
        "as_string": "text",
        "as_strings": "[text]",
        "as_sym_int": "SymIntArgument",
        "as_sym_ints": "[SymIntArgument]",
        "as_scalar_type": "small",
        "as_memory_format": "small",
        "as_layout": "small",
        "as_device": "Device",
        "as_bool": "bool",
        "as_bools": "[bool]",
        "as_sym_bool": "SymBoolArgument",
        "as_sym_bools": "[SymBoolArgument]",
        "as_graph": "GraphArgument",
        "as_optional_tensors": "[OptionalTensorArgument]",
        "as_optional_tensor": "OptionalTensorArgument",
        "as_operator": "operator",
        "as_sym_float": "SymFloatArgument",
        "as_sym_floats": "[SymFloatArgument]",
        "as_complex": "ComplexValue",
        "as_nested_tensors": "[[TensorArgument]]",
        "as_int_lists": "[[int]]",
        "as_float_lists": "[[float]]",
    },
    "SymExprHint": {"as_int": "int", "as_bool": "bool", "as_float": "float"},
    "SymInt": {"as_expr": "SymExpr", "as_int": "int"},
    "SymFloat": {"as_expr": "SymExpr", "as_float": "float"},
    "SymBool": {"as_expr": "SymExpr", "as_bool": "bool"},
    "SymIntArgument": {"as_name": "name", "as_int": "int"},
    "SymFloatArgument": {"as_name": "name", "as_float": "float"},
    "SymBoolArgument": {"as_name": "name", "as_bool": "bool"},
    "OptionalTensorArgument": {"as_tensor": "TensorArgument", "as_none": "none"},
    "ConstantValue": {"as_none": "none", "as_int": "int", "as_float": "float", "as_string": "text", "as_bool": "bool"},
    "InputSpec": {
        "user_input": "UserInput",
        "parameter": "Parameter",
        "buffer": "Buffer",
        "tensor_constant": "TensorConstant",
        "constant_input": "ConstantInput",
    },
    "OutputSpec": {"user_output": "UserOutput"},
}

EMPTY: dict[str, Any] = {"guards_code": [], "metadata": {}, "treespec_namedtuple_fields": {}, "custom_obj_values": {}}
"""What stands in the copy for fields that are left out."""


class Walk:
    """Rebuilds one document. special: further leaves, by type name."""

    def __init__(self, special: dict[str, Callable[[object, str], object]]) -> None:
        self._leaves = {**LEAVES, "unpickled": _unpickled, "empty": _empty, **special}
        self._items = 0

    def visit(self, kind: str, value: Any, where: str, depth: int = 0) -> Any:
        """The checked copy of `value`. Raises ArtefactRefused naming the place that is wrong."""
        self._items += 1
        if depth > MAX_DEPTH or self._items > MAX_ITEMS * 40:
            raise refused(where, kind, f"nested deeper than {MAX_DEPTH}, or too many items")
        if kind.endswith("?"):
            return None if value is None else self.visit(kind[:-1], value, where, depth)
        if leaf := self._leaves.get(kind):
            return leaf(value, where)
        if kind.startswith("["):
            return self._list(kind[1:-1], value, where, depth)
        if kind.startswith("{"):
            key, _, item = kind[1:-1].partition(":")
            return self._map(key, item, value, where, depth)
        if kind in UNIONS:
            return self._union(UNIONS[kind], value, where, depth)
        return self._struct(STRUCTS[kind], value, where, depth)

    def _list(self, kind: str, value: Any, where: str, depth: int) -> list[Any]:
        if not isinstance(value, list) or len(value) > MAX_ITEMS:
            raise refused(where, value, f"not a list of at most {MAX_ITEMS}")
        return [self.visit(kind, item, f"{where}[{index}]", depth + 1) for index, item in enumerate(value)]

    def _map(self, key: str, kind: str, value: Any, where: str, depth: int) -> dict[Any, Any]:
        if not isinstance(value, dict) or len(value) > MAX_ITEMS:
            raise refused(where, value, f"not an object of at most {MAX_ITEMS}")
        return {
            self.visit(key, name, where, depth + 1): self.visit(kind, item, f"{where}.{name}"[:300], depth + 1)
            for name, item in value.items()
        }

    def _union(self, kinds: dict[str, str], value: Any, where: str, depth: int) -> dict[str, Any]:
        if not isinstance(value, dict) or len(value) != 1:
            raise refused(where, value, "not an object with one field")
        ((tag, item),) = value.items()
        if tag not in kinds:
            raise refused(where, tag, _UNSERVED.get(tag, f"not one of {', '.join(kinds)}"))
        return {tag: self.visit(kinds[tag], item, f"{where}.{tag}", depth + 1)}

    def _struct(self, fields: dict[str, str], value: Any, where: str, depth: int) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise refused(where, value, "not an object")
        copy: dict[str, Any] = {}
        for field, item in value.items():
            if field not in fields:
                if item:
                    raise refused(where, field, "an unknown field")
            elif fields[field] == "-":
                copy[field] = EMPTY[field]
            else:
                copy[field] = self.visit(fields[field], item, f"{where}.{field}", depth + 1)
        return copy


_MUTATION = "the model changes its own weights or inputs; export it in eval mode, without in-place updates"
_UNSERVED = {
    "as_custom_obj": "custom objects are unpickled when they are loaded",
    "custom_obj": "custom objects are unpickled when they are loaded",
    "as_string_to_argument": "custom kernels cannot be served",
    "token": "side effects cannot be served",
    "loss_output": "training programs cannot be served",
    "buffer_mutation": _MUTATION,
    "parameter_mutation": _MUTATION,
    "user_input_mutation": _MUTATION,
    "gradient_to_parameter": "training programs cannot be served",
    "gradient_to_user_input": "training programs cannot be served",
}


def _unpickled(value: object, where: str) -> object:
    if value is not False:
        raise refused(where, value, "pickled weights may run code when they are loaded; save plain tensors")
    return False


def _empty(value: object, where: str) -> object:
    if value:
        raise refused(where, value, "custom objects are unpickled when they are loaded")
    return {}

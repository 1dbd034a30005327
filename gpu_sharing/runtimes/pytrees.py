"""How a program's flat inputs and outputs were nested for its author: read for their names, then replaced by flat ones.

Loading a nested description imports the modules that its contexts name; a flat one names none.
"""

from __future__ import annotations

import json
import re
from typing import Any

from gpu_sharing.runtimes.program_leaves import refused

MAX_SPEC_CHARACTERS = 1_000_000
MAX_DEPTH = 32

_LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}


def leaf_names(spec: object, where: str) -> tuple[str, ...]:
    """The name of each leaf, in order: dictionary keys joined by "_", "" where no key is on the way.

    Raises ArtefactRefused where the description is none.
    """
    if not isinstance(spec, str) or len(spec) > MAX_SPEC_CHARACTERS:
        raise refused(where, spec, f"not text of at most {MAX_SPEC_CHARACTERS} characters")
    try:
        protocol, tree = json.loads(spec)
    except (ValueError, TypeError, RecursionError) as broken:
        raise refused(where, spec, "not a pytree description") from broken
    if protocol != 1:
        raise refused(where, protocol, "pytree protocol; only 1 is known")
    names: list[str] = []
    _collect(tree, "", where, 0, names)
    return tuple(names)


def flat_input_spec(count: int) -> str:
    """The description of `count` positional inputs."""
    positional = {"type": "builtins.tuple", "context": "null", "children_spec": [_LEAF] * count}
    keywords = {"type": "builtins.dict", "context": "[]", "children_spec": []}
    both = {"type": "builtins.tuple", "context": "null", "children_spec": [positional, keywords]}
    return json.dumps([1, both])


def flat_output_spec(count: int) -> str:
    """The description of a list of `count` outputs."""
    return json.dumps([1, {"type": "builtins.list", "context": "null", "children_spec": [_LEAF] * count}])


def _collect(tree: Any, name: str, where: str, depth: int, names: list[str]) -> None:
    if not isinstance(tree, dict) or not isinstance(tree.get("children_spec"), list) or depth > MAX_DEPTH:
        raise refused(where, tree, f"not a pytree description, or deeper than {MAX_DEPTH}")
    children = tree["children_spec"]
    if tree.get("type") is None:
        if children:
            raise refused(where, tree, "a leaf with children")
        names.append(name)
        return
    keys = _keys(tree.get("context"), len(children))
    for key, child in zip(keys, children, strict=True):
        _collect(child, f"{name}_{key}" if name and key else name or key, where, depth + 1, names)


def _keys(context: object, count: int) -> list[str]:
    """The keys of a dictionary-like node, as plain text; blanks for a sequence."""
    try:
        value = json.loads(context) if isinstance(context, str) else context
    except (ValueError, RecursionError):
        value = None
    for candidate in (value, *(value if isinstance(value, list) else ())):
        texts = (
            isinstance(candidate, list) and len(candidate) == count and all(isinstance(key, str) for key in candidate)
        )
        if texts and count:
            return [re.sub(r"[^A-Za-z0-9_.\-]", "_", key)[:128] for key in candidate]
    return [""] * count

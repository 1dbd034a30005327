"""What an object keeps alive: for tests that something does not grow."""

from __future__ import annotations

import gc
import sys
from asyncio import AbstractEventLoop, Future
from collections import Counter
from enum import Enum
from types import BuiltinFunctionType, CodeType, CoroutineType, FrameType, FunctionType, ModuleType
from typing import NamedTuple

_APART = (type, ModuleType, BuiltinFunctionType, CodeType, Enum, FrameType, CoroutineType, AbstractEventLoop, Future)
_LEAVES = (str, bytes, int, float)


class Size(NamedTuple):
    """objects: other than numbers and texts; size_bytes: with those. by_type: objects, for whoever looks for what grows."""

    objects: int
    size_bytes: int
    by_type: Counter[str]


def reachable(*roots: object) -> Size:
    """Everything that can be reached from here but by way of classes, modules, functions' globals, and the event loop with what is
    under way in it."""
    gc.collect()
    left, seen, size_bytes, by_type = list(roots), dict[int, object](), 0, Counter[str]()
    while left:
        each = left.pop()
        if id(each) in seen:
            continue
        seen[id(each)] = each
        if isinstance(each, _APART):
            continue
        size_bytes += sys.getsizeof(each)
        if isinstance(each, _LEAVES):
            continue
        by_type[type(each).__qualname__] += 1
        if isinstance(each, FunctionType):
            left += [*(each.__closure__ or ()), *(each.__defaults__ or ())]
        else:
            left += gc.get_referents(each)
    return Size(by_type.total(), size_bytes, by_type)


def grown(before: Size, after: Size) -> str:
    """What there is more of, for a failure's message."""
    return f"{after.size_bytes - before.size_bytes} bytes, objects: {dict(after.by_type - before.by_type)}"

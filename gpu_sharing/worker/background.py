"""Work that must not starve others: done on a thread of its own, which the operating system runs when nobody else wants to.

A worker that was lost is replaced beside workers that live, on cores that the services need as well: importing libraries and
opening models takes seconds of processor time, and nobody waits for it as callers wait for answers.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

NICENESS = 15
"""About a twenty-fifth of what a thread of usual priority gets beside it."""

_TASKS = "/proc/self/task"
Result = TypeVar("Result")


def in_background(work: Callable[[], Result], *, makes_threads: bool = False) -> Result:
    """Runs `work` on a thread of low priority; returns what it returns and raises what it raises.

    makes_threads: whether it may leave threads behind that serve requests later. They inherit the low priority, and are given
    the usual one afterwards; where the system does not allow that, the work is done at the usual priority.
    """
    results: list[Result] = []
    errors: list[BaseException] = []
    before = _threads() if makes_threads else set()

    def body() -> None:
        if sys.platform == "linux" and (not makes_threads or _may_return()):
            # Linux keeps a niceness for each thread.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body, name="background", daemon=True)
    thread.start()
    thread.join()
    if makes_threads:
        usual = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        for made in _threads() - before:
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, made, usual)
    if errors:
        raise errors[0]
    return results[0]


def _may_return() -> bool:
    """Whether this thread may have the usual priority again once it has given it up; tried out in the smallest step."""
    me = threading.get_native_id()
    usual = os.getpriority(os.PRIO_PROCESS, me)
    try:
        os.setpriority(os.PRIO_PROCESS, me, usual + 1)
        os.setpriority(os.PRIO_PROCESS, me, usual)
    except OSError:
        return False
    return True


def _threads() -> set[int]:
    try:
        return {int(name) for name in os.listdir(_TASKS)}
    except OSError:
        return set()

"""A thread that gives way to everybody else on its cores: loading beside serving must not be felt by those who are served."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

NICE = 10
"""So much nicer than the thread that serves: about a tenth of a core beside a busy lane, all of it beside an idle one."""
NICEST = 19

Result = TypeVar("Result")


class Background:
    """Runs calls, one after the other, on a thread of low priority. One caller at a time."""

    def __init__(self, nice: int = NICE, *, enter: Callable[[], None] = lambda: None) -> None:
        """enter: called first on the thread."""
        self._nice = nice
        self._enter = enter
        self._asked: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._told: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def call(self, work: Callable[[], Result]) -> Result:
        """What `work` returns, once it has; raises what it raises."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="background", daemon=True)
            self._thread.start()
        self._asked.put(work)
        result, error = self._told.get()
        if error is None:
            return result  # type: ignore[no-any-return]
        try:
            raise error
        finally:
            # Its traceback holds this frame, which holds it.
            del error

    def stop(self) -> None:
        """Ends the thread, if there is one."""
        if self._thread is not None:
            self._asked.put(None)
            self._thread = None

    def _run(self) -> None:
        # Linux keeps the nice value of each thread; a thread inherits that of the one that starts it.
        ours = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(NICEST, ours + self._nice))
        self._enter()
        while True:
            work = self._asked.get()
            if work is None:
                return
            answer: tuple[Any, BaseException | None]
            try:
                answer = (work(), None)
            except BaseException as error:  # an artefact may raise anything
                answer = (None, error)
            self._told.put(answer)
            del work, answer

"""Work that gives way to everybody else."""

from __future__ import annotations

import os
import threading

import pytest

from gpu_sharing.worker.background import NICE, NICEST, Background


def test_background_work_runs_at_low_priority_and_its_caller_does_not() -> None:
    niceness = lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    before = niceness()
    assert Background().call(niceness) == min(NICEST, before + NICE)
    assert niceness() == before


def test_what_background_work_raises_reaches_its_caller_and_the_next_work_runs() -> None:
    background = Background()

    def broken() -> None:
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        background.call(broken)
    assert background.call(lambda: 7) == 7

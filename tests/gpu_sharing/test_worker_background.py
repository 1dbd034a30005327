"""Loads yield to whoever serves."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from gpu_sharing.worker.background import NICENESS, in_background

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="niceness of threads is Linux's")


def niceness(thread: int = 0) -> int:
    return os.getpriority(os.PRIO_PROCESS, thread or threading.get_native_id())


def test_work_in_the_background_has_low_priority_and_its_caller_keeps_its_own():
    usual = niceness()
    assert in_background(niceness) == NICENESS
    assert niceness() == usual


def test_what_it_raises_reaches_the_caller():
    def broken() -> None:
        raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        in_background(broken)


@pytest.mark.parametrize("allowed", [True, False])
def test_threads_that_it_leaves_behind_serve_at_the_usual_priority(monkeypatch, allowed):
    usual, over = niceness(), threading.Event()
    real = os.setpriority

    def strict(which: int, who: int, wanted: int) -> None:
        if not allowed and wanted < os.getpriority(which, who):
            raise PermissionError("only the superuser goes back")
        real(which, who, wanted)

    monkeypatch.setattr(os, "setpriority", strict)
    if allowed:
        try:
            in_background(
                lambda: (
                    real(os.PRIO_PROCESS, threading.get_native_id(), usual + 1)
                    or real(os.PRIO_PROCESS, threading.get_native_id(), usual)
                )
            )
        except PermissionError:
            pytest.skip("this user may not go back to the usual priority")

    def leaves_a_thread() -> threading.Thread:
        thread = threading.Thread(target=over.wait, daemon=True)
        thread.start()
        return thread

    try:
        left = in_background(leaves_a_thread, makes_threads=True)
        assert left.native_id is not None
        # Not allowed to go back: one step was lost in finding that out, and no more.
        assert niceness(left.native_id) - usual <= (0 if allowed else 1)
    finally:
        over.set()

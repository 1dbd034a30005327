"""The terminal of `apportion top`."""

from __future__ import annotations

import os
import pty
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from services.cli.top.screen import full_screen


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "r") as keyboard, Path(os.devnull).open("w") as nowhere:
        monkeypatch.setattr(sys, "stdin", keyboard)
        monkeypatch.setattr(sys, "stdout", nowhere)
        yield
        monkeypatch.undo()
    os.close(ours)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_show_though_somebody_swallows_its_exception(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(number)
    with terminal(monkeypatch), full_screen() as screen:
        assert not screen.wait(0)
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        assert screen.wait(60)
    assert signal.getsignal(number) is before

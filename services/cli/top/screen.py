"""A terminal that is ours for a while, and its owner's again however we end."""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
HOME, REST_OF_LINE, REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"
_QUIT = frozenset("qQ\x03\x04")


class Screen:
    """The whole terminal. told_to_end: a signal said so, whatever became of the exception that it raised."""

    def __init__(self) -> None:
        self.told_to_end = False

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines, now."""
        found = shutil.get_terminal_size()
        return found.columns, found.lines

    def draw(self, lines: Sequence[str]) -> None:
        """Shows these lines from the top; those that do not fit are left out."""
        _, height = self.size
        text = "\r\n".join(line + REST_OF_LINE for line in lines[:height])
        sys.stdout.write(HOME + text + REST_OF_SCREEN)
        sys.stdout.flush()

    def wait(self, seconds: float) -> bool:
        """Waits so long, or until a key is pressed; whether it was one that ends the show, or a signal did."""
        if self.told_to_end:
            return True
        readable = select.poll()
        readable.register(sys.stdin, select.POLLIN)
        if not readable.poll(seconds * 1000):
            return False
        keys = os.read(sys.stdin.fileno(), 64).decode(errors="replace")
        # Nothing to read where there was something: the terminal is gone.
        return not keys or bool(_QUIT & set(keys))


def is_terminal() -> bool:
    """Whether somebody watches, and has keys to press."""
    return sys.stdout.isatty() and sys.stdin.isatty()


@contextmanager
def full_screen() -> Iterator[Screen]:
    """Takes the terminal. Being told to end, by a key or a signal, leaves it as it was."""
    keyboard, screen = sys.stdin.fileno(), Screen()
    before = termios.tcgetattr(keyboard)

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        # Where it comes up inside a library's callback, or a task that has just ended, the exception may be lost.
        screen.told_to_end = True
        raise KeyboardInterrupt

    handlers = {
        # With a handler of our own asyncio leaves Ctrl-C to it.
        **{number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)},
        # Whoever is suspended cannot give the terminal back.
        signal.SIGTSTP: signal.signal(signal.SIGTSTP, signal.SIG_IGN),
    }
    try:
        tty.setcbreak(keyboard)
        sys.stdout.write(ENTER)
        sys.stdout.flush()
        yield screen
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
        sys.stdout.write(LEAVE)
        sys.stdout.flush()

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
    """The whole terminal."""

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
        """Waits so long, or until a key is pressed; whether it was one that ends the show."""
        readable, _, _ = select.select([sys.stdin], [], [], seconds)
        if not readable:
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
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    handlers = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, _interrupt),
        signal.SIGHUP: signal.signal(signal.SIGHUP, _interrupt),
        # Whoever is suspended cannot give the terminal back.
        signal.SIGTSTP: signal.signal(signal.SIGTSTP, signal.SIG_IGN),
    }
    try:
        tty.setcbreak(keyboard)
        sys.stdout.write(ENTER)
        sys.stdout.flush()
        yield Screen()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
        sys.stdout.write(LEAVE)
        sys.stdout.flush()


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt

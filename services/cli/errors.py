"""What a command says when it cannot do what it was asked."""

from __future__ import annotations

FAILED = 1
"""The exit status of a command that could not do its work."""
USAGE = 2
"""The exit status of a command that was called wrongly."""


class CommandError(Exception):
    """Ends a command. message: one line that says what is wrong and what to do; status: the process's exit status."""

    def __init__(self, message: str, *, status: int = FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


def usage(message: str) -> CommandError:
    """The error of a command that was called wrongly."""
    return CommandError(message, status=USAGE)

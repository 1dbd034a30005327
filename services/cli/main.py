"""`apportion`: finds the command, runs it, and turns what goes wrong into one line.

Commands are imported when they are called, so that help is quick and the base install needs nothing that a command of
another machine needs.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from services.cli.errors import FAILED, CommandError

SERVICES: dict[str, str] = {
    "frontend": "Run a frontend: speaks the Open Inference Protocol and forwards requests.",
    "registry": "Run a registry: tenants, models, versions and artefacts.",
    "scheduler": "Run a scheduler: decides what lives where, and at what share.",
    "executor": "Run an executor: owns one device and its workers.",
    "tracestore": "Run a trace store: takes OTLP, answers Jaeger's query API.",
}

COMMANDS: dict[str, str] = {
    "up": "Run the whole mesh as local processes, in the foreground, until Ctrl-C.",
    "tenant": "Create, show and remove tenants and their API keys.",
    "quota": "What tenants may use, and what of it they use now.",
    "usage": "Who used how much, and what it costs.",
    "model": "Push, show and remove models.",
    "status": "Who runs where, and at what share.",
    "layout": "How each device is divided, and which of its layouts is in force.",
    "top": "Watch tenants, lanes, queues and objectives, live.",
    "audit": "Who changed what, and when.",
    "certs": "Make certificates: an authority for development, and what it signs.",
    "slo": "Set and export objectives, and report whether they were kept.",
    "trace": "Show one request's waterfall, or find traces.",
    "support": "Collect what a report of a defect needs, in one file.",
    **SERVICES,
}
"""Every command with its line of help, in the order in which help lists them."""


class Commands(TyperGroup):
    """Imports a command's module only when that command is called; a listing needs its line of help alone."""

    _listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        """The commands' names, in the order of help."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of this name; None where there is none."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        if self._listing:
            return TyperCommand(cmd_name, help=COMMANDS[cmd_name])
        return load(cmd_name)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Writes the help without importing any command."""
        self._listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._listing = False


def load(name: str) -> Any:
    """Imports the command of this name."""
    if name in SERVICES:
        service = import_module("services.cli.commands.service")
        return service.command(name, SERVICES[name])
    command = typer.main.get_command(import_module(f"services.cli.commands.{name}").app)
    command.name, command.help = name, COMMANDS[name]
    return command


app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def root() -> None:
    """Serves many tenants' models from few devices, keeps each inside its share and its deadline, and proves it."""


def main() -> None:
    """The entry point of `apportion`."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs one command line; returns the exit status. What goes wrong is one line on standard error.

    With APPORTION_DEBUG=1 an error is raised instead, with its traceback.
    """
    debug = os.environ.get("APPORTION_DEBUG") == "1"
    try:
        status = typer.main.get_command(app).main(args=arguments, prog_name="apportion", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except KeyboardInterrupt:
        return 130
    except typer.Abort:
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone: nothing to say, and nobody to say it to.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return FAILED
    except Exception as error:
        if debug:
            raise
        message, status = explain(error)
        print(f"error: {message}", file=sys.stderr)
        return status


def explain(error: Exception) -> tuple[str, int]:
    """One line for an error, and the exit status that goes with it."""
    if isinstance(error, CommandError):
        return error.message, error.status
    if hasattr(error, "format_message"):
        # The command line's own errors: an unknown option, a missing argument.
        return " ".join(error.format_message().split()) or "see --help", getattr(error, "exit_code", FAILED)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}", FAILED
    return f"{type(error).__name__}: {error} (APPORTION_DEBUG=1 shows where)", FAILED

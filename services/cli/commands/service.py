"""`apportion frontend|registry|scheduler|executor|tracestore`: one service, with a flag for each of its settings.

The flags are made from the settings class: the name, the default and the docstring of every field.
"""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Callable
from importlib import import_module
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from services.cli.errors import CommandError, usage
from services.common import logs
from services.common.process import run
from services.common.settings import ServiceSettings

SECRETS = ("token", "password", "secret")
"""Settings whose names hold one of these never show their default."""


def command(service: str, help_line: str) -> Any:
    """The command that runs `service`."""
    settings_class = settings_of(service)
    app = typer.Typer(add_completion=False)
    app.command(name=service, help=help_line)(_runner(service, settings_class))
    return typer.main.get_command(app)


def settings_of(service: str) -> type[ServiceSettings]:
    """The one settings class that the service's module defines."""
    module = import_module(f"services.{service}.settings")
    for value in vars(module).values():
        own = isinstance(value, type) and value.__module__ == module.__name__
        if own and issubclass(value, ServiceSettings):
            return value
    raise CommandError(f"services.{service}.settings defines no settings")


def _runner(service: str, settings_class: type[ServiceSettings]) -> Callable[..., None]:
    def start(**given: Any) -> None:
        settings = checked(settings_class, {name: value for name, value in given.items() if value not in (None, [])})
        try:
            logs.configure(service, form=settings.log_format, level=settings.log_level)
            serve = import_module(f"services.{service}.serve").serve
        except ValueError as error:
            raise usage(str(error)) from None
        except ModuleNotFoundError as error:
            raise CommandError(
                f"{service}: the package {error.name!r} is missing; install apportion[executor]"
            ) from error
        run(lambda stop: serve(settings, stop))

    options = [option(settings_class, name, field) for name, field in settings_class.model_fields.items()]
    start.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    start.__annotations__ = {parameter.name: parameter.annotation for parameter in options}
    return start


def checked(settings_class: type[ServiceSettings], given: dict[str, Any]) -> ServiceSettings:
    """The settings from flags, then variables, then defaults. Raises CommandError that names the setting that is wrong."""
    try:
        return settings_class(
            **{name: _parsed(settings_class.model_fields[name], text) for name, text in given.items()}
        )
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        flag = f"--{name.replace('_', '-')} ({variable(settings_class, name)})"
        raise CommandError(f"{flag}: {first['msg'].removeprefix('Value error, ')}", status=2) from None
    except ValueError as error:
        raise CommandError(str(error), status=2) from None


def option(settings_class: type[ServiceSettings], name: str, field: FieldInfo) -> inspect.Parameter:
    """The command line option of one setting. Values stay text here: the settings class checks them."""
    flag = "--" + name.replace("_", "-")
    text = _help(settings_class, name, field)
    if typing.get_origin(_plain(field)) in (list, tuple, set, frozenset):
        declared: Any = Annotated[
            list[str] | None, typer.Option(flag, metavar=_metavar(field), help=text, show_default=False)
        ]
    else:
        declared = Annotated[str | None, typer.Option(flag, metavar=_metavar(field), help=text, show_default=False)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=declared)


def variable(settings_class: type[ServiceSettings], name: str) -> str:
    """The environment variable of one setting."""
    return (settings_class.model_config.get("env_prefix", "") + name).upper()


def _help(settings_class: type[ServiceSettings], name: str, field: FieldInfo) -> str:
    default = "" if field.is_required() else str(field.get_default(call_default_factory=True))
    secret = any(word in name for word in SECRETS)
    shown = "none" if default == "None" else ("set" if secret else default)
    text = " ".join((field.description or "").split())
    # Square brackets are markup to the help's renderer: braces say the same.
    return f"{text} (env {variable(settings_class, name)}; default {shown or 'empty'})".replace("[", "\\[")


def _plain(field: FieldInfo) -> Any:
    """The field's type without `| None`."""
    annotation = field.annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        kept = [part for part in typing.get_args(annotation) if part is not type(None)]
        annotation = kept[0] if len(kept) == 1 else annotation
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is Annotated else annotation


_WIDEST_CHOICES = 10


def _metavar(field: FieldInfo) -> str:
    plain = _plain(field)
    if typing.get_origin(plain) is typing.Literal:
        choices = "|".join(map(str, typing.get_args(plain)))
        # A wide column leaves none for the flags' names; long choices are told in the text.
        return choices if len(choices) <= _WIDEST_CHOICES else "NAME"
    if field.description and field.description.startswith("HOST:PORT"):
        return "HOST:PORT"
    return {bool: "true|false", int: "INTEGER", float: "NUMBER", str: "TEXT"}.get(plain, "VALUE")


def _parsed(field: FieldInfo, text: Any) -> Any:
    """What the settings class takes: mappings are written as JSON, everything else as it stands."""
    if typing.get_origin(_plain(field)) is dict and isinstance(text, str):
        return json.loads(text)
    return text

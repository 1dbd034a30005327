"""Reading config.pbtxt into its own message. The file may come from anybody."""

from __future__ import annotations

from pathlib import Path

from google.protobuf import text_format

from services._proto.inference import model_config_pb2
from services.cli.errors import CommandError

FILE_NAME = "config.pbtxt"
MOST_BYTES = 1 << 20
"""A configuration larger than this is refused unread."""
MOST_NESTED = 100
"""Blocks that may stand inside one another; the schema needs seven."""


def read_config(path: Path) -> model_config_pb2.ModelConfig:
    """The configuration; an empty one where the file is missing. Raises CommandError with the line that is wrong."""
    if not path.exists():
        return model_config_pb2.ModelConfig()
    try:
        size_bytes = path.stat().st_size
        if size_bytes > MOST_BYTES:
            raise CommandError(f"{path}: has {size_bytes} bytes, more than the {MOST_BYTES} that are read")
        text = path.read_bytes().decode()
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise CommandError(f"{path}: is not UTF-8 near byte {error.start}") from None
    return parse_config(text, str(path))


def parse_config(text: str, name: str) -> model_config_pb2.ModelConfig:
    """The configuration that a text holds. Raises CommandError."""
    _check_nesting(text, name)
    try:
        return text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        line = error.GetLine()
        told = str(error).partition(" : ")[2] or str(error)
        where = name if line is None else f"{name}, line {line}"
        plain = "".join(each if each.isprintable() else "\ufffd" for each in told.strip())
        raise CommandError(f"{where}: {plain}".replace('"inference.', '"')) from None


def _check_nesting(text: str, name: str) -> None:
    """The parser goes down one call for each block, also through blocks that it does not know."""
    depth = 0
    for number, line in enumerate(text.splitlines(), start=1):
        depth += sum(line.count(opening) for opening in "{<[") - sum(line.count(closing) for closing in "}>]")
        if depth > MOST_NESTED:
            raise CommandError(f"{name}, line {number}: more than {MOST_NESTED} blocks inside one another")

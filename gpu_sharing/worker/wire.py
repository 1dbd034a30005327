"""Frames between an executor and its worker: a 4-byte little-endian length, then msgpack of a list of messages.

Decoding is typed: whatever is not a list of the messages expected is refused, whoever sent it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import msgspec

from gpu_sharing.units import Bytes, MiB
from gpu_sharing.worker.messages import Command, Event

MAX_FRAME_BYTES: Bytes = 64 * MiB
"""No frame may be longer: tensors travel by reference."""

_LENGTH = struct.Struct("<I")
_encoder = msgspec.msgpack.Encoder()

Message = TypeVar("Message")


class WireError(Exception):
    """The other side sent something that is not a frame of messages."""


def encode(messages: Sequence[Command | Event]) -> bytes:
    """One frame with these messages, in order."""
    body = bytearray(_LENGTH.size)
    _encoder.encode_into(messages, body, _LENGTH.size)
    _LENGTH.pack_into(body, 0, len(body) - _LENGTH.size)
    return bytes(body)


class FrameDecoder(Generic[Message]):
    """Turns a stream's bytes, in whatever pieces they come, into lists of messages."""

    def __init__(self, types: Any) -> None:
        """types: the union of messages that may come, `Command` or `Event`."""
        self._decoder: msgspec.msgpack.Decoder[list[Message]] = msgspec.msgpack.Decoder(list[types])
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[list[Message]]:
        """The messages of each frame that `data` completes. WireError for anything else than frames of messages."""
        self._buffer += data
        lists: list[list[Message]] = []
        start = 0
        while len(self._buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if length > MAX_FRAME_BYTES:
                raise WireError(f"a frame of {length} bytes; at most {MAX_FRAME_BYTES} are allowed")
            end = start + _LENGTH.size + length
            if end > len(self._buffer):
                break
            lists.append(self._decode(bytes(self._buffer[start + _LENGTH.size : end])))
            start = end
        del self._buffer[:start]
        return lists

    def _decode(self, body: bytes) -> list[Message]:
        try:
            return self._decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise WireError(f"a frame that is not messages: {error}") from error


def commands() -> FrameDecoder[Command]:
    """What a worker reads."""
    return FrameDecoder(Command)


def events() -> FrameDecoder[Event]:
    """What an executor reads."""
    return FrameDecoder(Event)

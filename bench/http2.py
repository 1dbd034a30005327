"""HTTP/2 as little as it takes to be a bad client of gRPC: frames by hand over a plain socket, so that nothing is read, sent or
acknowledged that the script does not ask for, and so that a bad client takes next to no time of the processor itself."""

from __future__ import annotations

import socket
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
INITIAL_WINDOW = 4
HEAD_BYTES = 9
WINDOW_BYTES = 65_535
"""What a connection, and a stream, may be sent before its first WINDOW_UPDATE or SETTINGS."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame: 24 bits of length, type, flags, stream (RFC 9113, 4.1)."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def settings(window_bytes: int | None = None) -> bytes:
    """Our settings. window_bytes: what the other side may send on a stream before we say that we have read."""
    payload = b"" if window_bytes is None else struct.pack(">HI", INITIAL_WINDOW, window_bytes)
    return frame(SETTINGS, 0, 0, payload)


def window(more_bytes: int) -> bytes:
    """Lets the other side send so much more on the connection."""
    return frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", more_bytes))


def call(stream: int, method: str, authority: str, key: str = "") -> bytes:
    """The headers that begin a gRPC call, without compression (RFC 7541, 6.2.2).

    method: of the protocol, or a whole path. key: empty: none is shown."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": method if method.startswith("/") else f"/inference.GRPCInferenceService/{method}",
        ":authority": authority,
        "te": "trailers",
        "content-type": "application/grpc",
        **({"authorization": f"Bearer {key}"} if key else {}),
    }
    block = b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())
    return frame(HEADERS, END_HEADERS, stream, block)


def message(payload: bytes) -> bytes:
    """A message as gRPC puts it into DATA frames: not compressed, its length, its bytes."""
    return b"\0" + struct.pack(">I", len(payload)) + payload


class Connection:
    """One connection. It reads only when it is asked to."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.authority, self.ended = address, set[int]()
        self.socket = socket.create_connection((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.alive = True
        self._unread, self._unsent, self._window_bytes = b"", b"", WINDOW_BYTES

    def send(self, content: bytes) -> bool:
        """Sends; False, and nothing is, where the connection is over, or still has to take what came before."""
        self._push()
        if self._unsent or not self.alive:
            return False
        self._unsent = content
        self._push()
        return True

    def send_data(self, stream: int, payload: bytes, flags: int = 0, *, after: bytes = b"") -> bool:
        """Sends a DATA frame, where the other side has granted room for it on the connection; its streams have room enough
        for what is sent here. after: frames that go before it, in the same packet."""
        if len(payload) > self._window_bytes or not self.send(after + frame(DATA, flags, stream, payload)):
            return False
        self._window_bytes -= len(payload)
        return True

    def _push(self) -> None:
        try:
            while self.alive and self._unsent:
                self._unsent = self._unsent[self.socket.send(self._unsent, socket.MSG_DONTWAIT) :]
        except BlockingIOError:
            return
        except OSError:
            self.alive = False

    def read(self) -> None:
        """Takes what has come: notes the streams that are over, answers pings and settings, drops the rest."""
        try:
            while content := self.socket.recv(1 << 16, socket.MSG_DONTWAIT):
                self._take(content)
            self.alive = False
        except BlockingIOError:
            return
        except OSError:
            self.alive = False

    def close(self) -> None:
        self.socket.close()

    def _take(self, content: bytes) -> None:
        self._unread += content
        while len(self._unread) >= HEAD_BYTES:
            length = int.from_bytes(self._unread[:3], "big")
            if len(self._unread) < HEAD_BYTES + length:
                return
            kind, flags, stream = struct.unpack(">BBI", self._unread[3:HEAD_BYTES])
            payload, self._unread = self._unread[HEAD_BYTES : HEAD_BYTES + length], self._unread[HEAD_BYTES + length :]
            if kind == RST_STREAM or (kind == HEADERS and flags & END_STREAM):
                self.ended.add(stream)
            elif kind == WINDOW_UPDATE and not stream:
                self._window_bytes += int.from_bytes(payload, "big")
            elif kind in (PING, SETTINGS) and not flags & ACK:
                self.send(frame(kind, ACK, 0, payload if kind == PING else b""))


def _text(text: str) -> bytes:
    content = text.encode()
    assert len(content) < 127, "longer strings need more than one byte for their length"
    return bytes([len(content)]) + content

"""The way out of a worker: events of any thread, a frame for each group."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence

from gpu_sharing.worker import wire
from gpu_sharing.worker.messages import Event


class Outbox:
    """Writes frames to the executor, whole, in the order of the calls. Any thread.

    It may block: the executor always reads, and if it is gone the worker ends.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._lock = threading.Lock()

    def send(self, events: Sequence[Event]) -> None:
        """Sends a group of events in one frame; nothing where there is none. OSError where the executor is gone."""
        if not events:
            return
        frame = wire.encode(events)
        with self._lock:
            self._socket.sendall(frame)

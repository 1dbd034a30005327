"""What an executor and a process that hosts several lanes of one device say to each other, beside each lane's own socket.

A green context's SMs are apart from another's only within one process: so all lanes of a GPU live in one, each with a reader, a
lane and a loader of its own, and with a socket, arenas and a meter of its own, as if it were a worker by itself. Messages are
JSON, one a packet.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from gpu_sharing.units import Bytes, GiB, Nanoseconds
from gpu_sharing.worker.config import WorkerConfig

PACKET_BYTES: Bytes = 1 << 18


class HostConfig(msgspec.Struct, frozen=True):
    """What the process is started with. No secrets: it travels on its command line.

    backend: that the executor's probe has chosen; the host's own must choose the same. layouts: that are prepared, as text.
    graph_bytes: what one lane's graphs may hold. ahead: segments launched and not ended, at most.
    """

    backend: str
    layouts: str
    ordinal: int = 0
    graph_bytes: Bytes = GiB
    ahead: int = 2


class PreparedLayout(msgspec.Struct, frozen=True):
    """What preparing a layout has cost beyond the ones before it."""

    name: str
    took_ns: Nanoseconds
    memory_bytes: Bytes


class HostReady(msgspec.Struct, tag=True, frozen=True):
    """The device has been divided. notes: what was not as asked for, for people."""

    pid: int
    layouts: tuple[PreparedLayout, ...]
    notes: tuple[str, ...] = ()


class LaneClosed(msgspec.Struct, tag=True, frozen=True):
    """The lane's loop has ended as it was told to; the others go on, and the lane may be opened anew."""

    lane: int


Told: TypeAlias = HostReady | LaneClosed


class OpenLane(msgspec.Struct, tag=True, frozen=True):
    """Run a loop on this lane. With it come four descriptors: socket, inputs, outputs, meter."""

    config: WorkerConfig

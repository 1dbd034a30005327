"""`python -m gpu_sharing.worker.host CONTROL_FD PARENT_PID CONFIG`: all lanes of one GPU. Started by an executor, never by hand."""

from __future__ import annotations

import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Protocol

import msgspec

from gpu_sharing.devices.base import Device
from gpu_sharing.devices.cuda.device import CudaDevice
from gpu_sharing.devices.cuda.lanes import Prepared
from gpu_sharing.devices.probe import probe
from gpu_sharing.memory.arena import Arena, ArenaView
from gpu_sharing.partitioning.partitions import Partitions, parse_layouts
from gpu_sharing.worker.__main__ import SWITCH_INTERVAL_S, confine, fall
from gpu_sharing.worker.cuda_seats import CudaSeats
from gpu_sharing.worker.hosting import (
    PACKET_BYTES,
    HostConfig,
    HostReady,
    LaneClosed,
    OpenLane,
    PreparedLayout,
    Told,
)
from gpu_sharing.worker.loop import WorkerLoop
from gpu_sharing.worker.meter import Meter
from gpu_sharing.worker.seat import Seat

_DESCRIPTORS = 4


class Seats(Protocol):
    """What a host has to open lanes on."""

    def seat(self, number: int) -> Seat: ...
    def close(self) -> None: ...


class Host:
    """Opens lanes as it is told to. One thread: `run`."""

    def __init__(
        self,
        control: socket.socket,
        device: Device,
        seats: Seats,
        *,
        end: Callable[[int], None] = os._exit,
    ) -> None:
        """end: ends the process, and with it every lane: they share their fate as they share their device."""
        self._control, self._device, self._seats, self._end = control, device, seats, end
        self._lock = threading.Lock()
        self._open: dict[int, threading.Thread] = {}

    def ready(self, prepared: tuple[Prepared, ...] | list[Prepared] = (), notes: list[str] | None = None) -> None:
        """Tells the executor that lanes may be opened."""
        layouts = tuple(PreparedLayout(each.name, each.took_ns, each.memory_bytes) for each in prepared)
        self._tell(HostReady(os.getpid(), layouts, tuple(notes or ())))

    def run(self) -> None:
        """Until the executor has closed its end; lanes that are open then end with their sockets."""
        while True:
            data, fds, _, _ = socket.recv_fds(self._control, PACKET_BYTES, _DESCRIPTORS)
            if not data:
                break
            self._obey(msgspec.json.decode(data, type=OpenLane), fds)
        for thread in list(self._open.values()):
            thread.join(timeout=1.0)

    def _obey(self, asked: OpenLane, fds: list[int]) -> None:
        lane = asked.config.lane
        before = self._open.get(lane)
        if before is not None:
            before.join()
        thread = threading.Thread(target=self._serve, args=(asked, fds), name=f"lane {lane} reader", daemon=True)
        self._open[lane] = thread
        thread.start()

    def _serve(self, asked: OpenLane, fds: list[int]) -> None:
        config = asked.config
        sock, inputs, outputs, meter = _mapped(config.input_arena_bytes, config.output_arena_bytes, fds)
        seat = self._seats.seat(config.lane)
        try:
            WorkerLoop(config, self._device, sock, inputs, outputs, meter=meter, seat=seat).run(os.getpid())
        except (BrokenPipeError, ConnectionResetError):
            # Its executor has let go of it; the process ends when that closes the control socket.
            pass
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            self._end(1)
        finally:
            sock.close()
        self._tell(LaneClosed(config.lane))

    def _tell(self, told: Told) -> None:
        with self._lock:
            try:
                self._control.send(msgspec.json.encode(told))
            except OSError:
                # Nobody listens any more: `run` ends.
                return


def _mapped(input_bytes: int, output_bytes: int, fds: list[int]) -> tuple[socket.socket, ArenaView, Arena, Meter]:
    if len(fds) != _DESCRIPTORS:
        raise ValueError(f"{len(fds)} descriptors came, {_DESCRIPTORS} are needed")
    for fd in fds:
        os.set_inheritable(fd, False)
    socket_fd, inputs_fd, outputs_fd, meter_fd = fds
    return (
        socket.socket(fileno=socket_fd),
        ArenaView(inputs_fd, input_bytes),
        Arena(outputs_fd, output_bytes),
        Meter.of(meter_fd),
    )


def opened(config: HostConfig) -> tuple[CudaDevice, Partitions]:
    """The device, and the layouts on it. ValueError where this process finds another one than its executor."""
    device = probe(wanted=config.backend)
    if not isinstance(device, CudaDevice):
        raise ValueError(
            f"the executor has found {config.backend}; this process finds {device.backend}: {device.reason}"
        )
    return device, device.fitted(parse_layouts(config.layouts, device.units()))


def main(arguments: list[str]) -> None:
    """Runs a host until its executor is gone."""
    control_fd, parent_pid = map(int, arguments[:2])
    confine(parent_pid)
    threading.excepthook = fall
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    os.set_inheritable(control_fd, False)
    config = msgspec.json.decode(arguments[2], type=HostConfig)
    device, partitions = opened(config)
    seats = CudaSeats(device, partitions, graph_bytes=config.graph_bytes, ahead=config.ahead)
    host = Host(socket.socket(fileno=control_fd), device, seats)
    host.ready(seats.lanes.prepared, seats.lanes.notes)
    host.run()


if __name__ == "__main__":
    status = 1
    try:
        main(sys.argv[1:])
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        # The driver takes back what a process had; its own clean-up may wait for ever for a broken device.
        os._exit(status)

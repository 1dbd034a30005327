"""`python -m gpu_sharing.worker SOCKET_FD INPUTS_FD OUTPUTS_FD METER_FD PARENT_PID CONFIG`: started by an executor, never by hand."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import sys
import threading
import traceback

import msgspec
from msgspec.structs import replace

from gpu_sharing.devices.base import Device
from gpu_sharing.devices.cuda.device import CudaDevice
from gpu_sharing.devices.probe import probe
from gpu_sharing.memory.arena import Arena, ArenaView
from gpu_sharing.memory.limits import confine as confine_memory
from gpu_sharing.memory.limits import granted_bytes
from gpu_sharing.partitioning.partitions import prepared
from gpu_sharing.worker.config import WorkerConfig
from gpu_sharing.worker.loop import WorkerLoop
from gpu_sharing.worker.meter import Meter
from gpu_sharing.worker.seat import Seat

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
SWITCH_INTERVAL_S = 0.0001
"""A lane asks for the interpreter again after each operator. Beside a load, a model of hundreds of operators took 1.4 times as
long at 0.5 ms, and 1.2 times as long at this.
"""


def confine(parent_pid: int) -> None:
    """The process dies with its executor, gains no privileges, and leaves no core file with tenants' data."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The executor decides when to stop: Ctrl-C in a terminal reaches the whole group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.getppid() != parent_pid:
        # It died before the signal was armed.
        os._exit(1)


def within_limits(config: WorkerConfig, device: Device) -> WorkerConfig:
    """The same with the memory that the system really grants, which from here on cannot be exceeded."""
    if device.backend != "cpu":
        # Its memory is not this process's.
        return config
    wanted_bytes = device.memory_bytes if config.memory_bytes is None else config.memory_bytes
    limit_bytes = granted_bytes()
    memory_bytes = wanted_bytes if limit_bytes is None else min(wanted_bytes, limit_bytes)
    confine_memory(memory_bytes)
    return replace(config, memory_bytes=memory_bytes)


def seat_on(device: Device, config: WorkerConfig) -> Seat | None:
    """Where the lane sits on a GPU that this process has to itself, or shares by MPS; None: on the processor."""
    if not isinstance(device, CudaDevice):
        return None
    from gpu_sharing.worker.cuda_seats import CudaSeats

    lane = tuple(config.cores) or tuple(device.units())
    return CudaSeats(device, device.fitted(prepared([(lane,)]))).seat(0)


def fall(failure: threading.ExceptHookArgs) -> None:
    """A thread of ours has broken: a worker without its lane or loader is of no use, and its executor starts another."""
    if not isinstance(failure.exc_value, BrokenPipeError | ConnectionResetError):
        threading.__excepthook__(failure)
    sys.stderr.flush()
    os._exit(1)


def main(arguments: list[str]) -> None:
    """Runs a worker until it is stopped or its executor is gone."""
    *fds, parent_pid = map(int, arguments[:5])
    confine(parent_pid)
    threading.excepthook = fall
    for fd in fds:
        os.set_inheritable(fd, False)
    socket_fd, inputs_fd, outputs_fd, meter_fd = fds
    config = msgspec.json.decode(arguments[5], type=WorkerConfig)
    device = probe()
    if config.cores:
        device.occupy(config.cores)
    seat = seat_on(device, config)
    # The reader must not wait long for a lane that computes in Python.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    config = within_limits(config, device)
    inputs = ArenaView(inputs_fd, config.input_arena_bytes)
    outputs = Arena(outputs_fd, config.output_arena_bytes)
    sock, meter = socket.socket(fileno=socket_fd), Meter.of(meter_fd)
    WorkerLoop(config, device, sock, inputs, outputs, meter=meter, seat=seat).run(os.getpid())


if __name__ == "__main__":
    status = 1
    try:
        main(sys.argv[1:])
        status = 0
    except (BrokenPipeError, ConnectionResetError):
        # The executor is gone, and so is whoever would read more.
        status = 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        # Libraries' threads and a lane in the middle of a segment must not hold up the end.
        os._exit(status)

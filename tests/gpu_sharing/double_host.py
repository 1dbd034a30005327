"""A host of lanes whose device is the driver's double: `python double_host.py CONTROL_FD [FAULT]`."""

from __future__ import annotations

import os
import socket
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from cuda_double import CudaDouble

from gpu_sharing.devices.cuda.device import CudaDevice
from gpu_sharing.devices.cuda.stream import CudaStream
from gpu_sharing.devices.cuda.survey import choose, survey
from gpu_sharing.partitioning.partitions import parse_layouts
from gpu_sharing.worker.__main__ import fall
from gpu_sharing.worker.host import Host
from gpu_sharing.worker.seat import Seat


class Seats:
    def __init__(self, driver: CudaDouble) -> None:
        self.driver = driver
        facts = survey(driver)
        self.device = CudaDevice(facts, choose(facts))
        layouts = self.device.fitted(parse_layouts("0-63;64-131|0-131", self.device.units()))
        self.lanes = self.device.lanes(driver, layouts)

    def seat(self, number: int) -> Seat:
        stream = CudaStream(self.driver, self.lanes.lanes[number].compute, self.lanes.primary)
        return Seat(stream, close=stream.close)

    def close(self) -> None:
        self.lanes.close()


if __name__ == "__main__":
    if sys.argv[2:] == ["refuses"]:
        sys.exit("cuGreenCtxCreate: CUDA_ERROR_OUT_OF_MEMORY (2): out of memory")
    threading.excepthook = fall
    seats = Seats(CudaDouble())
    host = Host(socket.socket(fileno=int(sys.argv[1])), seats.device, seats)
    host.ready(seats.lanes.prepared, ["a note"])
    host.run()
    os._exit(0)

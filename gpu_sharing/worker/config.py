"""What a worker is started with."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from gpu_sharing.arbiter.policies import PolicyName as PolicyName
from gpu_sharing.units import SECOND, Bytes, GiB, Millidevices, Nanoseconds

RegionsOf: TypeAlias = Literal["off", "on", "host"]


class WorkerConfig(msgspec.Struct, frozen=True):
    """Frozen; it travels to the worker on its command line, so it holds no secrets.

    cores: the processor cores the worker is pinned to; its compute units. On a GPU: the places of its SMs.
    spare_cores: those that no lane has. The worker's reader may run there, too, so that it does not stop the lane's slices.
    input_arena_bytes, output_arena_bytes: capacity of each arena, whole pages; sparse, so only what is used takes memory.
    lane: the lane's number, for traces.
    prewarm: runtimes ("onnx", "torch_export") whose libraries are imported at start, so that the first load is quick.
    threads: of the processor, for libraries' pools; None: one for each of `cores`.
    environment: variables that its process is started with, beside those that every worker has.
    queue_limit: requests that one replica may have waiting; one more is refused as OVERLOADED.
    memory_bytes: what loaded models may take together; None: what the device has.
    policy: who gets the lane: "reservations", or "arrival_order" where nobody is promised anything, for comparison.
    capacity: the lane's part of its device, of which its tenants' bandwidths are parts.
    hang_after_ns: a slice that has not returned by then, nor within ten times what its batch was expected to take, is
        stopped; where that does not help, the worker ends, to be replaced.
    load_limit_ns: a load that has not ended by then is given up likewise.
    python_artefacts: digests of the Python artefacts that an operator has approved: no others run.
    slow_copies: for tests: how much longer the inputs of each batch of a tenant's model take to be put together.
    host_bytes: what weights may take on the host, from where they come to the device and go back when others need the room; whole
        pages; 0: they stay on the device, and what does not fit there is refused.
    device_regions: what requests' tensors may lie in beside the arenas: "on", memory of the GPU that other processes share; "host",
        files in its place, for tests; "off", nothing.
    quantum_ns: batches are kept so small that their longest slice fits it; None: they are not.
    """

    cores: tuple[int, ...]
    input_arena_bytes: Bytes = GiB
    output_arena_bytes: Bytes = GiB
    lane: int = 0
    prewarm: tuple[str, ...] = ()
    queue_limit: int = 4096
    memory_bytes: Bytes | None = None
    policy: PolicyName = "reservations"
    capacity: Millidevices = 1000
    quantum_ns: Nanoseconds | None = None
    hang_after_ns: Nanoseconds = 10 * SECOND
    load_limit_ns: Nanoseconds = 900 * SECOND
    spare_cores: tuple[int, ...] = ()
    threads: int | None = None
    environment: dict[str, str] = {}
    slow_copies: tuple[tuple[str, str, Nanoseconds], ...] = ()
    python_artefacts: tuple[str, ...] = ()
    host_bytes: Bytes = 0
    device_regions: RegionsOf = "off"

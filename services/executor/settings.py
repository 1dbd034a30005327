"""Settings of the executor."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from gpu_sharing.worker.config import PolicyName, RegionsOf
from services.common.settings import Address, ServiceSettings

_MIB = 1 << 20
_GIB = 1 << 30


class ExecutorSettings(ServiceSettings):
    """What an executor can be told."""

    model_config = SettingsConfigDict(
        env_prefix="APPORTION_EXECUTOR_", frozen=True, extra="ignore", use_attribute_docstrings=True
    )

    listen: Address = "127.0.0.1:8110"
    """HOST:PORT where frontends reach this executor; port 0 takes a free one."""
    advertise: Address | None = None
    """HOST:PORT that frontends are told to connect to; none: the one that was bound."""
    scheduler: Address = "127.0.0.1:8102"
    """The scheduler."""
    registry: Address = "127.0.0.1:8101"
    """The registry, where artefacts come from."""
    executor_id: str = Field(default_factory=lambda: f"executor-{socket.gethostname()}", min_length=1, max_length=128)
    """What the fleet calls this executor: unique in it, and the same after a restart. Two on one host need a name each."""
    cores: str = "auto"
    """Which processor cores its workers get: "auto", or sets of them, one worker each: "1;2-3"."""
    layouts: str = ""
    """Ways to divide the cores that this executor is prepared for, in place of `cores`: written like it, with bars between them:
    "0-3|0-1;2-3". The first is in force at the start; the scheduler changes them with demand. At most eight."""
    device: Literal["auto", "cpu", "cuda_mig", "cuda_green", "cuda_mps", "cuda_streams"] = "auto"
    """How lanes are kept apart: "auto" takes the first that this machine has of a part of a GPU that MIG made, green contexts,
    MPS, plain streams, processor cores."""
    isolation: Literal["lanes", "process"] = "lanes"
    """On a GPU: "lanes", threads of one process over disjoint SMs; or "process", a process a lane under an MPS daemon of this
    executor's own, with stronger walls around memory and a weaker promise about time."""
    launch_ahead: int = Field(default=2, ge=1, le=4)
    """On a GPU: segments that a lane launches before the first of them has ended. 1 leaves the device waiting for the host between
    segments; each more adds a longest slice to what an urgent request may have to wait."""
    graph_bytes: int = Field(default=_GIB, ge=0)
    """On a GPU: what the CUDA graphs of one lane may hold, of all tenants together. Each replica has its part reserved with its
    memory as long as there is some left; a tenant's graphs that go unused for longest give way to its others."""
    cuda_shared_memory: RegionsOf = "off"
    """Whether callers on this machine may have tensors in memory of their own on this executor's GPU (CudaSharedMemoryRegister).
    "on" lets them: what a worker has open of it is at their mercy (SECURITY.md). "host", for tests alone, opens files below
    /dev/shm in its place, also where there is no GPU."""
    cache: Path = Path("~/.cache/apportion/artefacts")
    """Folder for artefacts that were fetched. Executors of one host may share it."""
    books: Path | None = None
    """Folder for the books of device time, which outlive executors; none: `books` beside the cache."""
    cache_bytes: int = Field(default=20 * _GIB, ge=0)
    """What the cache may hold of artefacts that no replica uses any more."""
    input_arena_bytes: int = Field(default=_GIB, ge=_MIB, multiple_of=4096)
    """Memory, shared with each worker, for tensors of requests; only what is used takes memory."""
    output_arena_bytes: int = Field(default=_GIB, ge=_MIB, multiple_of=4096)
    """Memory, shared with each worker, for tensors of answers; only what is used takes memory."""
    memory_bytes: int | None = Field(default=None, ge=_MIB)
    """What loaded models may take, over all workers; none: what the device has, less a part for everything else."""
    host_bytes: int = Field(default=0, ge=0)
    """What weights of loaded models may take beside the device, over all workers: from there they come when they are asked for, and
    the least needed go back when others need the room, so that more models are loaded than fit the device at once. On a GPU it is
    pinned at the start. 0: weights stay on the device, and a model that does not fit is refused."""
    inline_bytes: int = Field(default=256 << 10, ge=1024, le=16 * _MIB)
    """Payloads up to this size travel inside their message, larger ones in chunks on the bulk stream."""
    chunk_bytes: int = Field(default=256 << 10, ge=1024, le=16 * _MIB)
    """Size of one chunk of a large answer."""
    tenant_credit_bytes: int = Field(default=256 * _MIB, ge=_MIB)
    """Bytes of large requests that one tenant may have here from one frontend; the largest request there can be."""
    load_interval_ms: int = Field(default=50, ge=1)
    """Frontends are told of changed load at most this often."""
    prewarm: tuple[str, ...] = ("onnx",)
    """Runtimes ("onnx", "torch_export") whose libraries workers import at start, so that the first load is quick."""
    python_artefacts: tuple[Annotated[str, Field(pattern="^sha256:[0-9a-f]{64}$")], ...] = ()
    """Python code that an operator has approved, by digest, as a JSON list: it runs in workers as it is, with all that they may do
    (SECURITY.md, docs/python.md). None unless set; the registry has to have approved it, too."""
    max_rows: int = Field(default=4096, ge=1)
    """Rows that one request may hold, whatever its model would take; one more is refused as FIELD_INVALID."""
    max_string_bytes: int = Field(default=16 * _MIB, ge=1)
    """Longest element of a tensor of BYTES; a longer one is refused as FIELD_INVALID."""
    queue_limit: int = Field(default=4096, ge=1)
    """Requests that one replica may have waiting; one more is refused as OVERLOADED."""
    policy: PolicyName = "reservations"
    """Who gets a lane: "reservations"; or "arrival_order", where nobody is promised anything, for comparison."""
    quantum_ms: float | None = Field(default=5.0, gt=0)
    """Batches are kept so small that their longest slice fits this, since that is what others may have to wait; none: they are
    not. A model whose slices are longer with a single row runs one request at a time."""
    hang_after_s: float = Field(default=10.0, gt=0)
    """A slice that runs for longer than this, and than ten times what its batch should take, is stopped; where that does not
    help, its worker is replaced."""
    load_limit_s: float = Field(default=900.0, gt=0)
    """A load that takes longer than this is given up."""
    watchdog_s: float = Field(default=15.0, gt=0)
    """A worker that has requests and ends no slice for longer than this, and than ten times its longest expected batch, is
    killed and replaced; its requests get WORKER_LOST."""
    load_patience_s: float = Field(default=600.0, gt=0)
    """A worker that loads a model and says nothing for longer than this is killed and replaced."""
    trace_hold_s: float = Field(default=10.0, gt=0)
    """How long what is known of a request is kept for its trace while no verdict comes."""
    trace_hold_requests: int = Field(default=20_000, ge=1)
    """Requests held so at most; the oldest go first."""

    slow_copies_ms: dict[Annotated[str, Field(pattern="^[^/]+/[^/]+$")], Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict
    )
    """For tests of traces alone: how many milliseconds longer the inputs of each batch take to be put together, by TENANT/MODEL, as
    a JSON object. No tenant can set it."""

    @property
    def books_folder(self) -> Path:
        """Where the books are."""
        return self.cache.expanduser().parent / "books" if self.books is None else self.books

"""The executor itself: performs what the core decides, and keeps a worker on every lane."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any

import grpc
import structlog
from msgspec.structs import asdict

from gpu_sharing.worker.client import WorkerClient
from gpu_sharing.worker.config import WorkerConfig
from gpu_sharing.worker.messages import (
    Done,
    Event,
    Failed,
    Load,
    Loaded,
    LoadFailed,
    Moved,
    RegionFailed,
    RegionOpened,
    Stage,
    Statistics,
    Unloaded,
)
from services.common.channel import backoff
from services.common.machine import boot_id
from services.common.status import from_rpc_error
from services.executor.books import Books
from services.executor.cache import ArtefactCache, FetchFailed, format_of
from services.executor.calls import Calls
from services.executor.core.accounts import Accounts
from services.executor.core.heads import Limits
from services.executor.core.replica import Phase
from services.executor.core.replica_events import (
    Action,
    Fetch,
    Fetched,
    Fetching,
    Happened,
    LayoutSet,
    LetGo,
    NotFetched,
    Send,
    Serve,
    StartWorker,
    StopWorker,
    Tell,
    Wanted,
    Withdraw,
    WorkerDown,
    WorkerUp,
)
from services.executor.core.replicas import Replicas
from services.executor.core.statistics import MOST_VERSIONS
from services.executor.core.watchdog import Patience
from services.executor.decode import Decoder
from services.executor.encode import Encoder
from services.executor.ends import lost_or_left
from services.executor.forgetting import Forgetting
from services.executor.inflight import Lane, Serving
from services.executor.loads import Loads
from services.executor.meters import Meters
from services.executor.regions import DeviceRegions
from services.executor.session import Session
from services.executor.signed import Signatures
from services.executor.watching import Watching

log = structlog.get_logger()

Download = Callable[[str, str], AsyncIterator[bytes]]
"""The bytes of an artefact, by tenant and digest."""
StartsWorker = Callable[..., Awaitable[WorkerClient]]
_NS_PER_S = 1_000_000_000
TEXT_FORMATS = frozenset({"onnx"})
"""Formats whose runtime takes elements of BYTES as text."""
MOST_GONE = 256
"""Replicas that are gone and whose tenant is remembered: what was asked of them may still be on its way."""


class Executor:
    """Holds replicas on lanes. workers: each lane's configuration, by number.

    changed: set whenever what the scheduler knows is out of date. tenants: by replica, of all that were ever here.
    patience: how long a worker may be silent. limits: of every request, whatever its model allows. books: where device time is
    written down; None: nowhere. opens_regions: whether callers' device memory may be opened.
    """

    def __init__(
        self,
        workers: dict[int, WorkerConfig],
        cache: ArtefactCache,
        download: Download,
        *,
        load_interval_s: float = 0.05,
        start_worker: StartsWorker = WorkerClient.start,
        patience: Patience | None = None,
        limits: Limits | None = None,
        layouts: Sequence[tuple[int, ...]] = (),
        books: Books | None = None,
        opens_regions: bool = False,
    ) -> None:
        self.layouts = tuple(layouts) or (tuple(workers),)
        self.layout, self.layout_pinned = 0, False
        self.lanes = {number: Lane(number) for number in workers}
        self.regions = DeviceRegions(self.lanes, opens=opens_regions, machine=boot_id())
        self.replicas = Replicas(workers)
        self._watching = Watching(self.lanes, self.replicas, patience or Patience())
        self.books = Books(None, "", "") if books is None else books
        self._meters = Meters({number: len(config.cores) for number, config in workers.items()}, self.books)
        self.usage = self._meters.usage
        self.accounts = Accounts()
        self.forgetting = Forgetting(self.usage, self.books, self._meters.pages, self.lanes, self.replicas)
        self.changed = asyncio.Event()
        self.tenants: dict[int, str] = {}
        self.sessions: Callable[[], Sequence[Session]] = lambda: ()
        self.calls: Calls
        self.loads = Loads(lambda: self.calls.serving, lambda: self.sessions(), load_interval_s)
        self._workers, self._cache, self._download = workers, cache, download
        self._start_worker, self._limits = start_worker, limits or Limits()
        self._signatures = Signatures()
        self._fetches: dict[int, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving = {number: asyncio.Event() for number in workers}
        self._stopping = False

    def start(self) -> None:
        """Starts the worker of every lane in force, in the background."""
        self.handle(LayoutSet(self.layouts[self.layout]))
        self._spawn(self._watching.run())

    def running(self) -> dict[int, WorkerClient]:
        """The workers that run, by lane."""
        return {number: lane.client for number, lane in self.lanes.items() if lane.client is not None}

    def set_layout(self, layout: int, pinned: bool) -> None:
        """Brings a layout into force. ValueError where there is no such layout."""
        if layout >= len(self.layouts):
            raise ValueError(f"layout: must be below {len(self.layouts)}, is {layout}")
        self.layout, self.layout_pinned = layout, pinned
        self.handle(LayoutSet(self.layouts[layout]))

    async def stop(self, grace_s: float) -> None:
        """Stops workers, giving each what it has in hand that long to finish."""
        self._stopping = True
        tasks = [*self._fetches.values(), *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        clients = [lane.client for lane in self.lanes.values() if lane.client is not None]
        await asyncio.gather(*(client.stop(grace_s) for client in clients), return_exceptions=True)
        self._meters.close_all()

    def handle(self, event: Happened, lane: int | None = None) -> None:
        """Takes an event in and performs what follows. lane: whose worker said it."""
        for action in self.replicas.handle(event, time.monotonic_ns(), lane):
            self._perform(action)
        if isinstance(event, LoadFailed | NotFetched):
            replica = self.replicas.get(event.replica)
            if replica is not None and replica.message:
                log.warning("replica cannot serve", replica=event.replica, reason=replica.message)

    def read_meters(self) -> None:
        """Counts every slice that has ended by now, and lets go of what is of no use any more."""
        now = time.monotonic_ns()
        self._meters.read(now)
        self.forgetting.run(now)

    @property
    def phases(self) -> dict[str, int]:
        """How many replicas stand where."""
        counted = dict.fromkeys((phase.value for phase in Phase), 0)
        for replica in self.replicas.all():
            counted[replica.phase.value] += 1
        return counted

    def _perform(self, action: Action) -> None:
        match action:
            case Send():
                self._send(action)
            case Fetch():
                self._fetch(action.wanted)
            case LetGo():
                self._let_go(action.replica)
            case Serve():
                self._serve(action.replica)
            case Withdraw():
                self.calls.serving.pop(action.replica, None)
                self.loads.forget(action.replica)
            case StartWorker():
                self._spawn(self._run_worker(action.lane, action.after_ns))
            case StopWorker():
                self._leaving[action.lane].set()
            case Tell():
                self.changed.set()

    def _send(self, action: Send) -> None:
        client = self.lanes[action.lane].client
        if client is None:
            return
        if isinstance(action.command, Load):
            self._watching.loads(action.lane)
        client.send(action.command)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        if self._stopping:
            work.close()
            return
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the executor failed", exc_info=error)

    async def _run_worker(self, number: int, after_ns: int) -> None:
        """One life of a lane's worker, from start to loss."""
        await asyncio.sleep(after_ns / _NS_PER_S)
        lane = self.lanes[number]
        try:
            page = self._meters.open(number)
            client = await self._start_worker(
                self._workers[number], on_events=lambda events: self._on_events(lane, events), meter_fd=page.fd
            )
        except Exception as error:
            log.error("worker could not be started", lane=number, error=str(error))
            self._meters.close(number)
            self.handle(WorkerDown(number, str(error)[:500]))
            return
        lane.client = client
        self._watching.started(number)
        log.info("worker started", lane=number, pid=client.pid)
        self._leaving[number].clear()
        self.handle(WorkerUp(number))
        self.regions.worker_up(number)
        is_read = lambda: any(session.sends_from(client) for session in self.sessions())
        reason = await lost_or_left(lane, client, self._leaving[number], is_read)
        if self._stopping:
            return
        lane.client = None
        self.regions.worker_lost(number, reason)
        self.calls.lost(lane, reason)
        self._meters.close(number)
        self.accounts.ended(number)
        self.handle(WorkerDown(number, reason))
        await client.stop(0.0)

    def _on_events(self, lane: Lane, events: Sequence[Event]) -> None:
        """What a worker said. It may be hostile, so nothing it says may raise."""
        for event in events:
            try:
                self._watching.heard(lane.number, event)
                match event:
                    case Done():
                        self.calls.done(lane, event)
                    case Failed():
                        self.calls.failed(lane, event)
                    case Statistics():
                        self.usage.take(lane.number, event, time.monotonic_ns())
                        tenants = {each.wanted.tenant for each in self.replicas.all()}
                        self.accounts.take(lane.number, event.accounts, tenants)
                    case Stage() | Loaded() | LoadFailed() | Unloaded():
                        self.handle(event, lane.number)
                    case RegionOpened() | RegionFailed():
                        self.regions.take(lane.number, event)
                    case Moved():
                        log.debug("weights moved", lane=lane.number, **asdict(event))
            except Exception as error:
                log.error("a worker's event was not understood", lane=lane.number, exc_info=error)

    def _serve(self, number: int) -> None:
        replica = self.replicas.get(number)
        assert replica is not None
        assert replica.signature is not None
        wanted, signature = replica.wanted, replica.signature
        self.calls.serving[number] = Serving(
            number,
            wanted.tenant,
            wanted.model,
            wanted.version,
            self.lanes[wanted.lane],
            wanted.bandwidth,
            Decoder(signature, self._limits._replace(utf8=replica.format in TEXT_FORMATS)),
            Encoder(signature, wanted.version, wanted.labels),
            self.calls.statistics.of(wanted.tenant, wanted.model, wanted.version),
            wanted.queueing,
        )
        if len(self.calls.statistics.counts) > MOST_VERSIONS:
            self.calls.statistics.trim(
                {(each.tenant, each.model, each.version) for each in self.calls.serving.values()}
            )
        log.info("replica ready", replica=number, tenant=wanted.tenant, model=wanted.model, version=wanted.version)

    def _fetch(self, wanted: Wanted) -> None:
        number = wanted.replica
        self.tenants[number] = wanted.tenant
        gone = [each for each in self.tenants if self.replicas.get(each) is None]
        for each in gone[:-MOST_GONE]:
            del self.tenants[each]
        if self.usage.owns(number, (wanted.tenant, wanted.model)):
            self.books.write()
        task = asyncio.create_task(self._fetch_until_had(wanted))
        self._fetches[number] = task
        task.add_done_callback(lambda done: self._fetches.pop(number) if self._fetches.get(number) is done else None)

    async def _fetch_until_had(self, wanted: Wanted) -> None:
        """Gets an artefact, however long the registry is away."""
        for delay_s in backoff():
            try:
                path = await self._cache.fetch(
                    wanted.replica,
                    wanted.digest,
                    wanted.size_bytes,
                    lambda: self._download(wanted.tenant, wanted.digest),
                )
                await self._signatures.check(wanted.digest, wanted.artefact_signature, wanted.signers)
                kind = wanted.format
                if kind is None:
                    kind = await asyncio.to_thread(format_of, path)
                self.handle(Fetched(wanted.replica, str(path), kind))
                return
            except FetchFailed as error:
                self.handle(NotFetched(wanted.replica, str(error)))
                return
            except grpc.RpcError as error:
                refusal = from_rpc_error(error)
                if refusal is not None:
                    self.handle(
                        NotFetched(wanted.replica, f"the registry does not give the artefact: {refusal.message}")
                    )
                    return
                self.handle(Fetching(wanted.replica, "waiting for the registry"))
                await asyncio.sleep(delay_s)

    def _let_go(self, number: int) -> None:
        fetch = self._fetches.pop(number, None)
        if fetch is not None and fetch is not asyncio.current_task():
            fetch.cancel()
        self._cache.let_go(number)

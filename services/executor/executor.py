"""The executor itself: performs what the core decides, and keeps a worker on every lane."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from itertools import islice
from typing import Any, NamedTuple

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
    Stage,
    Statistics,
    Unloaded,
)
from services.common.channel import backoff
from services.common.status import from_rpc_error
from services.executor.books import Books, MeterPage
from services.executor.cache import ArtefactCache, FetchFailed, format_of
from services.executor.calls import Calls
from services.executor.core.accounts import Accounts
from services.executor.core.load import expected_wait_ns
from services.executor.core.replica_events import (
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
from services.executor.core.replicas import Phase, Replicas
from services.executor.core.requests import Limits
from services.executor.core.statistics import MOST_VERSIONS
from services.executor.core.usage import UsageLedger
from services.executor.core.watchdog import Patience
from services.executor.decode import Decoder
from services.executor.encode import Encoder
from services.executor.forgetting import Forgetting
from services.executor.inflight import Lane, Serving
from services.executor.session import Session
from services.executor.watching import Watching

log = structlog.get_logger()

Download = Callable[[str, str], AsyncIterator[bytes]]
"""The bytes of an artefact, by tenant and digest."""
StartsWorker = Callable[..., Awaitable[WorkerClient]]
_NS_PER_S = 1_000_000_000
LEAVE_POLL_S, LEAVE_LOOKS, LEAVE_GRACE_S = 0.05, 600, 1.0
"""A worker that is needed no more goes once nobody reads its memory: looked at this often, at most so many times; then it has so long."""
TEXT_FORMATS = frozenset({"onnx"})
"""Formats whose runtime takes elements of BYTES as text."""
MOST_NAMED = 8
"""Traces that the log names where a worker took requests with it."""
MOST_GONE = 256
"""Replicas that are gone and whose tenant is remembered: what was asked of them may still be on its way."""


class Expected(NamedTuple):
    """How busy a replica is."""

    waiting: int
    wait_us: int


class Executor:
    """Holds replicas on lanes. workers: each lane's configuration, by number.

    changed: set whenever what the scheduler knows is out of date. tenants: by replica, of all that were ever here.
    patience: how long a worker may be silent. limits: of every request, whatever its model allows. books: where device time is
    written down; None: nowhere.
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
    ) -> None:
        self.layouts = tuple(layouts) or (tuple(workers),)
        self.layout, self.layout_pinned = 0, False
        self.lanes = {number: Lane(number) for number in workers}
        self.replicas = Replicas(workers)
        self._watching = Watching(self.lanes, self.replicas, patience or Patience())
        self.books = Books(None, "", "") if books is None else books
        units = {number: len(config.cores) for number, config in workers.items()}
        self.usage = UsageLedger(units, self.books.settled, self.books.owners, self.books.lives)
        self.books.settled = self.usage.settled
        self._pages: dict[int, MeterPage] = {}
        self.accounts = Accounts()
        self.forgetting = Forgetting(self.usage, self.books, self._pages, self.lanes, self.replicas)
        self.changed = asyncio.Event()
        self.tenants: dict[int, str] = {}
        self.sessions: Callable[[], Sequence[Session]] = lambda: ()
        self.calls: Calls
        self._workers, self._cache, self._download = workers, cache, download
        self._start_worker, self._load_interval_s, self._limits = start_worker, load_interval_s, limits or Limits()
        self._fetches: dict[int, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._told: dict[int, Expected] = {}
        self._leaving = {number: asyncio.Event() for number in workers}
        self._dirty: set[int] = set()
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
        for number in list(self._pages):
            self._close_page(number)

    def handle(self, event: Happened, lane: int | None = None) -> None:
        """Takes an event in and performs what follows. lane: whose worker said it."""
        for action in self.replicas.handle(event, time.monotonic_ns(), lane):
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
                    self._told.pop(action.replica, None)
                case StartWorker():
                    self._spawn(self._run_worker(action.lane, action.after_ns))
                case StopWorker():
                    self._leaving[action.lane].set()
                case Tell():
                    self.changed.set()
        if isinstance(event, LoadFailed | NotFetched):
            replica = self.replicas.get(event.replica)
            if replica is not None and replica.message:
                log.warning("replica cannot serve", replica=event.replica, reason=replica.message)

    def _send(self, action: Send) -> None:
        client = self.lanes[action.lane].client
        if client is None:
            return
        if isinstance(action.command, Load):
            self._watching.loads(action.lane)
        client.send(action.command)

    def load_changed(self, serving: Serving) -> None:
        """A replica has one call more or less; frontends are told in a moment."""
        if not self._dirty:
            asyncio.get_running_loop().call_later(self._load_interval_s, self._tell_loads)
        self._dirty.add(serving.lane.number)

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
            page = self._open_page(number)
            client = await self._start_worker(
                self._workers[number], on_events=lambda events: self._on_events(lane, events), meter_fd=page.fd
            )
        except Exception as error:
            log.error("worker could not be started", lane=number, error=str(error))
            self._close_page(number)
            self.handle(WorkerDown(number, str(error)[:500]))
            return
        lane.client = client
        self._watching.started(number)
        log.info("worker started", lane=number, pid=client.pid)
        self._leaving[number].clear()
        self.handle(WorkerUp(number))
        reason = await self._lost_or_left(lane, client)
        if self._stopping:
            return
        lane.client = None
        self.calls.lost(lane, reason)
        self._close_page(number)
        self.accounts.ended(number)
        self.handle(WorkerDown(number, reason))
        await client.stop(0.0)

    async def _lost_or_left(self, lane: Lane, client: WorkerClient) -> str:
        """Waits until the worker is lost, or has been stopped since its lane needs none; why."""
        left = asyncio.create_task(self._leaving[lane.number].wait())
        try:
            ends: list[asyncio.Future[Any]] = [client.lost, left]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not client.lost.done():
                await self._until_nothing_is_sent(lane, client)
        finally:
            left.cancel()
        if client.lost.done():
            log.error(
                "worker lost",
                lane=lane.number,
                pid=client.pid,
                reason=client.lost.result(),
                calls=len(lane.calls),
                traces=[
                    call.span[0].hex() for call in islice(lane.calls.values(), MOST_NAMED) if call.span is not None
                ],
            )
            return client.lost.result()
        log.info("worker leaves", lane=lane.number, pid=client.pid, reason="its lane is in no layout in force")
        await client.stop(LEAVE_GRACE_S)
        return "its lane is in no layout in force"

    async def _until_nothing_is_sent(self, lane: Lane, client: WorkerClient) -> None:
        """Large answers are read from the worker's memory while they are sent."""
        for _ in range(LEAVE_LOOKS):
            sending = lane.calls or any(session.sends_from(client) for session in self.sessions())
            if client.lost.done() or not sending:
                return
            await asyncio.sleep(LEAVE_POLL_S)

    def _open_page(self, number: int) -> MeterPage:
        page = self._pages[number] = self.books.page(number, len(self._workers[number].cores))
        self.usage.started(number, time.monotonic_ns())
        return page

    def _close_page(self, number: int) -> None:
        """A worker is gone: its last counts, up to now, are settled."""
        page = self._pages.pop(number, None)
        self.usage.ended(number, page.read() if page is not None else None, time.monotonic_ns())
        if page is not None:
            self.books.settle(page)

    def read_meters(self) -> None:
        """Counts every slice that has ended by now, and lets go of what is of no use any more."""
        now = time.monotonic_ns()
        for number, page in self._pages.items():
            reading = page.read()
            if reading is not None:
                self.usage.read(number, reading, now)
        self.forgetting.run(now)

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

    def expected(self, serving: Serving) -> Expected:
        """How busy a replica is now."""
        lane_ns = sum(
            other.outstanding * other.service_ns for other in self.calls.serving.values() if other.lane is serving.lane
        )
        wait = expected_wait_ns(serving.outstanding * serving.service_ns, lane_ns, serving.bandwidth)
        return Expected(serving.outstanding, wait // 1_000)

    def _tell_loads(self) -> None:
        dirty, self._dirty = self._dirty, set()
        sessions = self.sessions()
        for serving in self.calls.serving.values():
            if serving.lane.number in dirty:
                expected = self.expected(serving)
                if self._told.get(serving.replica) != expected:
                    self._told[serving.replica] = expected
                    for session in sessions:
                        session.load(serving.replica, expected.waiting, expected.wait_us)

    @property
    def phases(self) -> dict[str, int]:
        """How many replicas stand where."""
        counted = dict.fromkeys((phase.value for phase in Phase), 0)
        for replica in self.replicas.all():
            counted[replica.phase.value] += 1
        return counted

"""Links to executors: kept up for ever, their calls failed at once when they break."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from time import monotonic

import grpc
import structlog

from services._proto.apportion.v1 import executor_pb2 as pb
from services.common.channel import Credentials, backoff
from services.frontend.calls import CONNECT, Call, lost
from services.frontend.core.routes import Link
from services.frontend.session import Session

log = structlog.get_logger()
Reports = Callable[[int, int, int], None]

SETTLED_S = 1.0
"""A connection that stood that long is made anew at once; one that did not might break again."""
MOST_BACKLOG = 4096
"""Calls that wait for one connection; a further one is tried elsewhere, or fails."""
RETIRE_S = 60.0
"""How long a link that no route mentions any more may finish what it has."""
RETIRE_POLL_S = 0.5
LAST_WORD_S, LAST_WORD_LOOKS = 0.01, 20
"""How often, and how many times, it is looked whether verdicts have been told before the connections are closed."""


class ExecutorLink:
    """The way to one executor, by its address.

    hello: what both streams say first, but for their session and kind. reports: see Session.
    """

    def __init__(self, address: str, hello: pb.ExecuteHello, credentials: Credentials, reports: Reports) -> None:
        self.address, self.state = address, Link.CONNECTING
        self._hello, self._credentials, self._reports = hello, credentials, reports
        self._session: Session | None = None
        self._backlog: deque[Call] = deque()
        self._task = asyncio.ensure_future(self._run())

    def submit(self, call: Call) -> None:
        """Sends a call now, or when the connection that is being made stands; answers EXECUTOR_LOST where neither."""
        if self._session is not None:
            self._session.submit(call)
        elif self.state is Link.CONNECTING and len(self._backlog) < MOST_BACKLOG:
            call.stage = CONNECT
            self._backlog.append(call)
        else:
            call.finish(lost(self.address, "cannot be reached"))

    def statistics(self, request: pb.GetStatisticsRequest, timeout_s: float) -> Awaitable[pb.GetStatisticsResponse]:
        """Asks the executor for its counts. Raises grpc.RpcError; to be called where the link is up."""
        if self._session is None:
            raise lost(self.address, "cannot be reached")
        return self._session.statistics(request, timeout_s)

    @property
    def session(self) -> Session | None:
        """The connection that stands, if one does."""
        return self._session

    @property
    def idle(self) -> bool:
        """Whether nothing waits for this executor."""
        return not self._backlog and (self._session is None or self._session.outstanding == 0)

    @property
    def has_verdicts(self) -> bool:
        """Whether the executor is still to be told how calls ended."""
        return self._session is not None and self._session.has_verdicts

    async def close(self) -> None:
        """Lets go of the executor; calls that are still with it fail."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        delays = backoff(first_s=0.1, most_s=2.0)
        while True:
            began = monotonic()
            if await self._connected() and monotonic() - began > SETTLED_S:
                delays = backoff(first_s=0.1, most_s=2.0)
                continue
            await asyncio.sleep(next(delays))

    async def _connected(self) -> bool:
        """Makes a connection and serves it to its end; False where it could not be made."""
        session = Session(self.address, self._hello, self._credentials)
        opened, why = False, "is being let go"
        try:
            await session.open()
            opened = True
            log.info("executor connected", address=self.address, executor=session.welcome.executor_id)
            self._stand(session)
            await session.run(self._reports)
        except Exception as error:
            # Whatever it was, this link must live: it is the only way to its executor.
            why = "was lost" if opened else "cannot be reached"
            tell = log.debug if self.state is Link.DOWN else log.info
            tell("executor unreachable", address=self.address, connected=opened, error=_told(error))
        finally:
            self._session = None
            self.state = Link.CONNECTING if opened else Link.DOWN
            await session.close(why)
            if not opened:
                self._fail_backlog(why)
        return opened

    def _stand(self, session: Session) -> None:
        self._session, self.state = session, Link.UP
        while self._backlog:
            call = self._backlog.popleft()
            if not call.future.done():
                session.submit(call)

    def _fail_backlog(self, why: str) -> None:
        while self._backlog:
            self._backlog.popleft().finish(lost(self.address, why))


class Links:
    """One link for each executor that the routes mention."""

    def __init__(self, frontend_id: str, tenant_credit_bytes: int, credentials: Credentials) -> None:
        self._hello = pb.ExecuteHello(frontend_id=frontend_id, tenant_credit_bytes=tenant_credit_bytes)
        self._credentials = credentials
        self._links: dict[str, ExecutorLink] = {}
        self._retiring: dict[str, asyncio.Task[None]] = {}
        self.reports: Reports = lambda _replica, _waiting, _wait: None

    def state(self, address: str) -> Link:
        """How an executor can be reached now."""
        link = self._links.get(address)
        return link.state if link is not None else Link.DOWN

    def link(self, address: str) -> ExecutorLink:
        """The link to an address that some route mentions. KeyError for others."""
        return self._links[address]

    def up(self) -> list[ExecutorLink]:
        """The links whose executors can be reached, by address."""
        return [self._links[address] for address in sorted(self._links) if self._links[address].state is Link.UP]

    def follow(self, addresses: Iterable[str]) -> None:
        """Makes links to these addresses, and retires those to others once they are idle."""
        wanted = set(addresses)
        for address in wanted - self._links.keys():
            self._links[address] = ExecutorLink(address, self._hello, self._credentials, self._report)
        for address in wanted & self._retiring.keys():
            self._retiring.pop(address).cancel()
        for address in self._links.keys() - wanted - self._retiring.keys():
            self._retiring[address] = asyncio.ensure_future(self._retire(address))

    async def close(self) -> None:
        """Lets go of every executor, once each has been told how its calls ended: it holds their spans until then."""
        for _ in range(LAST_WORD_LOOKS):
            if not any(link.has_verdicts for link in self._links.values()):
                break
            await asyncio.sleep(LAST_WORD_S)
        for task in self._retiring.values():
            task.cancel()
        await asyncio.gather(*(link.close() for link in self._links.values()))

    async def _retire(self, address: str) -> None:
        link, left_s = self._links[address], RETIRE_S
        while left_s > 0 and not link.idle:
            await asyncio.sleep(RETIRE_POLL_S)
            left_s -= RETIRE_POLL_S
        del self._links[address], self._retiring[address]
        await link.close()

    def _report(self, replica_id: int, waiting_requests: int, expected_wait_us: int) -> None:
        self.reports(replica_id, waiting_requests, expected_wait_us)


def _told(error: BaseException) -> str:
    if isinstance(error, grpc.RpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error) or type(error).__name__

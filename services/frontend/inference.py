"""ModelInfer: bytes in, bytes out. Decide where it goes, forward it, judge it by our clock."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Container
from time import monotonic_ns
from typing import Any, NamedTuple

import structlog

from services.common.access.callers import Caller, calling
from services.common.errors import Reason, Refusal
from services.common.logs import about
from services.common.spans import format_traceparent
from services.common.status import refuse
from services.frontend.accounting import Accounts
from services.frontend.calls import Call, expired
from services.frontend.core.deadlines import Deadlines
from services.frontend.core.gate import Gate
from services.frontend.core.held import Held
from services.frontend.core.retries import Retries
from services.frontend.core.routes import Replica, Route, Version
from services.frontend.core.routing import RoutingTable
from services.frontend.core.verdict import RETRYABLE, Judgement, judge
from services.frontend.core.wire import Limits, scan
from services.frontend.forward import Links
from services.frontend.quotas import Quotas
from services.frontend.request import Request
from services.frontend.shared import SharedMemory

log = structlog.get_logger()

TRACE_KEY = "apportion-trace-id"
RESPONSE_KEY = "traceresponse"
"""As W3C's Trace Context, level 2, has it: the server span, and whether its trace is kept."""
TIMING_KEY = "apportion-timing"
"""A caller who sends this is told what its request took here, and the verdict: TOOK_KEY, OUTCOME_KEY, VIOLATED_KEY."""
TOOK_KEY, OUTCOME_KEY, VIOLATED_KEY = "apportion-took-us", "apportion-outcome", "apportion-violated"
ADMIT = "admit"
UNEXPECTED = Refusal(Reason.INTERNAL, "an unexpected error; the service's log has it")
SECOND_NS = 1_000_000_000
MOST_HELD_BYTES = 1 << 30
WAITING = ("of requests that wait for their answer", "APPORTION_FRONTEND_TENANT_REQUEST_BYTES")
UNREAD = ("of answers that its callers have not read", "APPORTION_FRONTEND_TENANT_UNREAD_BYTES")
WORD_NS = 10_000_000
"""How long past a call's deadline its executor may still say what the call was waiting for: it finds the time up when we do,
knows the stage better, and has been told to drop the work anyway."""


class Answered(NamedTuple):
    """A request that is over. content: the answer's bytes; empty where it was refused. traced: its trace is kept."""

    content: bytes
    request: Request
    traced: bool
    judgement: Judgement
    took_ns: int

    def trailing(self) -> tuple[tuple[str, str], ...]:
        """What the caller is told beside the answer."""
        request, judgement = self.request, self.judgement
        told: tuple[tuple[str, str], ...] = ()
        if self.traced or request.refusal is not None:
            context = format_traceparent(request.trace_id, request.span_id, sampled=self.traced)
            told = ((TRACE_KEY, request.trace_id.hex()), (RESPONSE_KEY, context))
        if request.timed:
            told += (
                (TOOK_KEY, str(self.took_ns // 1000)),
                (OUTCOME_KEY, judgement.outcome),
                (VIOLATED_KEY, "true" if judgement.violated else "false"),
            )
        return told


class Inference:
    """The path of every request.

    limits: of a request's form. most_bytes: of a request, and of an answer. default_deadline_s: of callers that give none.
    retries: how many failed attempts may be tried elsewhere. waiting, unread: bytes of each tenant's requests until they are
    answered, and of its answers until they are sent; large answers, which draw on its credit, apart. quotas: of tenants.
    """

    def __init__(
        self,
        table: RoutingTable,
        links: Links,
        accounts: Accounts,
        shared: SharedMemory,
        *,
        limits: Limits,
        most_bytes: int,
        default_deadline_s: float,
        retries: Retries | None = None,
        waiting: Held | None = None,
        unread: Held | None = None,
        quotas: Quotas | None = None,
    ) -> None:
        self._table, self._links, self._accounts = table, links, accounts
        self._shared = shared
        self._retries = retries or Retries()
        self._waiting, self._unread = waiting or Held(MOST_HELD_BYTES), unread or Held(MOST_HELD_BYTES)
        self._limits, self._most_bytes = limits, most_bytes
        self._quotas = quotas or Quotas()
        self._gate = self._quotas.gates.get
        self._default_ns = int(default_deadline_s * SECOND_NS)
        self._loop = asyncio.get_running_loop()
        self._deadlines: Deadlines[Call] = Deadlines()
        self._timer: asyncio.TimerHandle | None = None

    async def infer(self, payload: bytes, context: Any) -> bytes:
        """inference.ModelInferRequest in, inference.ModelInferResponse out, both as bytes; of a refusal, a typed status."""
        answered = await self.answer(payload, context, calling())
        refusal = answered.request.refusal
        if refusal is None:
            if answered.traced or answered.request.timed:
                context.set_trailing_metadata(answered.trailing())
            # gRPC's task for the call ends once it has sent the answer, or cannot: until then the answer is held. Its own
            # callbacks would leave a circle behind each call, with the answer in it.
            task = asyncio.current_task()
            assert task is not None
            task.add_done_callback(lambda _: self.gone(answered))
            return answered.content
        return await refuse(context, refusal, *answered.trailing())

    async def answer(
        self, payload: bytes, context: Any, caller: Caller | Refusal, method: str = "ModelInfer"
    ) -> Answered:
        """Serves a request to its end, and accounts for it. context, method: of the call that it came with. caller: whose
        it is.

        A refusal is in the request. Whoever gets an answer calls `gone` once it has left this process.
        """
        request = Request(monotonic_ns(), method)
        content, reason = b"", None
        try:
            content = await self._answer(request, payload, context, caller)
        except Refusal as refusal:
            # Without its traceback, whose frames hold the request: a circle that would keep the payload.
            request.refusal, reason = refusal.with_traceback(None), refusal.reason
        except asyncio.CancelledError:
            self._broken_off(request)
            raise
        except Exception as error:
            with about(trace_id=request.trace_id, tenant=request.tenant):
                log.error("unexpected error", method=method, model=request.model, exc_info=error)
            request.refusal, reason = UNEXPECTED, UNEXPECTED.reason
        finally:
            if request.gate is not None:
                request.gate.leave()
        ended_ns = monotonic_ns()
        took_ns = ended_ns - request.arrived_ns
        judgement = judge(reason, took_ns, request.objective_ns, request.deadline_ns)
        return Answered(content, request, self._accounts.close(request, judgement, ended_ns), judgement, took_ns)

    def gone(self, answered: Answered) -> None:
        """An answer has left this process, or never will: nothing is held for it any more."""
        call = answered.request.attempts[-1]
        if call.bulk_bytes:
            call.release()
        else:
            self._unread.give(answered.request.tenant, len(answered.content))

    def close(self) -> None:
        """Stops the clock."""
        if self._timer is not None:
            self._timer.cancel()

    async def _answer(self, request: Request, payload: bytes, context: Any, caller: Caller | Refusal) -> bytes:
        route, version, shared = self._admit(request, payload, context, caller)
        counts = self._accounts.counts(request.tenant, request.model)
        if not self._unread.fits(request.tenant, counts.answer_bytes):
            raise full(self._unread, request.tenant, *UNREAD)
        held_bytes = self._hold(request.tenant, len(payload))
        counts.in_flight += 1
        try:
            gathered = None
            if shared:
                gathered = await self._shared.gather(request.tenant, payload)
                payload = gathered.payload
                held_bytes += self._hold(request.tenant, max(0, len(payload) - held_bytes))
            if gathered is None or gathered.at is None:
                replica = self._table.replica(route, version)
            else:
                replica = self._beside(route, version, gathered.at)
            self._retries.requested(request.tenant)
            answer = await self._forwarded(request, payload, route.tenant, replica)
            if isinstance(answer, Refusal) and answer.reason in RETRYABLE and (gathered is None or gathered.at is None):
                other = self._other(request, route, version, replica)
                if other is not None:
                    answer = await self._forwarded(request, payload, route.tenant, other)
            if isinstance(answer, Refusal):
                raise answer
            if gathered is not None and gathered.outputs:
                answer = await self._released(request, self._shared.scatter(request.tenant, answer, gathered))
        finally:
            counts.in_flight -= 1
            self._waiting.give(request.tenant, held_bytes)
        if len(answer) > self._most_bytes:
            request.attempts[-1].release()
            raise too_large("answer", len(answer), self._most_bytes)
        counts.moved(request.executor_id, held_bytes, len(answer))
        if not request.attempts[-1].bulk_bytes:
            counts.answer_bytes = len(answer)
            if not self._unread.take(request.tenant, len(answer)):
                raise full(self._unread, request.tenant, *UNREAD)
        return answer

    def _beside(self, route: Route, version: Version, at: Container[str]) -> Replica:
        """A replica of an executor at one of these addresses: what it is to read lies there. Raises Refusal."""
        elsewhere = [each.replica_id for each in version.replicas if each.address not in at]
        if len(elsewhere) == len(version.replicas):
            raise Refusal(
                Reason.MODEL_NOT_READY,
                f'model "{route.model}": no replica is on the device that has the regions of this request; '
                "send tensors in the request",
                retry_after_s=1,
            )
        return self._table.replica(route, version, excluded=elsewhere)

    def _hold(self, tenant: str, size_bytes: int) -> int:
        """Counts what is held for a tenant, and returns it. Raises Refusal (QUOTA_EXCEEDED)."""
        if self._waiting.take(tenant, size_bytes):
            return size_bytes
        raise full(self._waiting, tenant, *WAITING)

    async def _released(self, request: Request, work: Awaitable[bytes]) -> bytes:
        """Lets go of the credit that an answer drew, however the work on it ends."""
        try:
            return await work
        finally:
            request.attempts[-1].release()

    def _admit(
        self, request: Request, payload: bytes, context: Any, caller: Caller | Refusal
    ) -> tuple[Route, Version, bool]:
        """What is asked for, by when, and whether shared memory is named; raises Refusal where it cannot be served."""
        traceparent = tracestate = None
        for name, value in context.invocation_metadata():
            if name == "traceparent":
                traceparent = value
            elif name == "tracestate":
                tracestate = value
            elif name == TIMING_KEY:
                request.timed = True
        request.join_trace(traceparent, tracestate)
        if isinstance(caller, Refusal):
            raise caller
        request.tenant = caller.tenant
        gate = self._gate(request.tenant)
        if gate is not None:
            self._enter(gate, request)
        if len(payload) > self._most_bytes:
            raise too_large("request", len(payload), self._most_bytes)
        head = scan(payload, self._limits)
        request.request_id, request.priority = head.request_id, head.priority
        route = self._table.route(request.tenant, head.model_name)
        # Another tenant's model goes by both names.
        request.model = route.model if route.tenant == request.tenant else head.model_name
        request.objective_ns = head.objective_ns if head.objective_ns is not None else route.objective_ns
        remaining_s = context.time_remaining()
        deadline_ns = self._default_ns if remaining_s is None else min(int(remaining_s * SECOND_NS), 1 << 56)
        if head.timeout_ns is not None:
            deadline_ns = head.timeout_ns if remaining_s is None else min(head.timeout_ns, deadline_ns)
        request.deadline_ns = deadline_ns
        if request.arrived_ns + deadline_ns <= monotonic_ns():
            raise expired(ADMIT)
        version = self._table.version(route, head.model_version)
        request.version = version.version
        return route, version, head.shared

    def _enter(self, gate: Gate, request: Request) -> None:
        """Passes a tenant's gate. Raises Refusal (QUOTA_EXCEEDED)."""
        exceeded = gate.enter(request.arrived_ns)
        if exceeded is not None:
            raise self._quotas.refusal(request.tenant, exceeded, gate, request.arrived_ns)
        request.gate = gate

    async def _forwarded(self, request: Request, payload: bytes, owner: str, replica: Replica) -> bytes | Refusal:
        assert request.deadline_ns is not None
        deadline_ns = request.arrived_ns + request.deadline_ns
        objective_ns = None if request.objective_ns is None else request.arrived_ns + request.objective_ns
        call = Call(
            owner,
            replica.replica_id,
            payload,
            self._loop.create_future(),
            deadline_ns=deadline_ns,
            objective_ns=objective_ns,
            priority=request.priority,
            trace_id=request.trace_id,
            span_id=request.span_id,
        )
        call.submitted_ns = monotonic_ns()
        request.attempts.append(call)
        request.executor_id = replica.executor_id
        replica.outstanding += 1
        self._links.link(replica.address).submit(call)
        gives_up_ns = deadline_ns + WORD_NS
        if self._deadlines.add(call, gives_up_ns):
            self._watch_time()
        try:
            return await call.future
        except asyncio.CancelledError:
            call.abandon()
            raise
        finally:
            replica.outstanding -= 1
            self._deadlines.remove(call, gives_up_ns)

    def _other(self, request: Request, route: Route, version: Version, failed: Replica) -> Replica | None:
        """Another replica to try, where there is one, time is left, and the tenant's budget allows."""
        assert request.deadline_ns is not None
        if monotonic_ns() >= request.arrived_ns + request.deadline_ns:
            return None
        try:
            # The route may have changed meanwhile: what it says now counts.
            route = self._table.route(request.tenant, request.model)
            version = route.versions.get(version.version, version)
            other = self._table.replica(route, version, excluded=(failed.replica_id,))
        except Refusal:
            return None
        return other if self._retries.take(request.tenant) else None

    def _broken_off(self, request: Request) -> None:
        """The caller has gone, or gRPC has found its deadline passed."""
        ended_ns = monotonic_ns()
        elapsed_ns = ended_ns - request.arrived_ns
        if request.deadline_ns is not None and elapsed_ns >= request.deadline_ns:
            stage = request.attempts[-1].stage if request.attempts else ADMIT
            request.refusal = expired(stage)
        else:
            request.refusal = Refusal(Reason.CANCELLED, "the caller has cancelled the request")
        judgement = judge(request.refusal.reason, elapsed_ns, request.objective_ns, request.deadline_ns)
        self._accounts.close(request, judgement, ended_ns)

    def _watch_time(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at_ns = self._deadlines.next_ns()
        if at_ns is not None:
            self._timer = self._loop.call_later(max(0.0, (at_ns - monotonic_ns()) / SECOND_NS), self._tell_time)

    def _tell_time(self) -> None:
        self._timer = None
        for call in self._deadlines.expired(monotonic_ns()):
            call.expire()
        self._watch_time()


def too_large(what: str, size_bytes: int, most_bytes: int) -> Refusal:
    """The refusal of a message that is larger than this frontend passes on."""
    return Refusal(
        Reason.MESSAGE_TOO_LARGE,
        f"the {what} has {size_bytes} bytes, more than the {most_bytes} that this frontend passes on",
        facts={"size_bytes": size_bytes, "limit_bytes": most_bytes},
    )


def full(held: Held, tenant: str, what: str, setting: str) -> Refusal:
    """The refusal of what would have this frontend hold more for a tenant than it may."""
    held_bytes, limit_bytes = held.of(tenant), held.limit
    return Refusal(
        Reason.QUOTA_EXCEEDED,
        f"this frontend holds {held_bytes} bytes of tenant {tenant!r} {what}; it may hold {limit_bytes} ({setting})",
        facts={"held_bytes": held_bytes, "limit_bytes": limit_bytes},
    )

"""Taking in what executors tell: hellos, reports, silence."""

from __future__ import annotations

from collections.abc import Iterator

from services.scheduler.core import layouts
from services.scheduler.core.catalogue import Ref
from services.scheduler.core.events import Noted
from services.scheduler.core.fleet import Counted, Executor
from services.scheduler.core.placement import memory_estimate
from services.scheduler.core.replicas import Effect, Phase, Replica
from services.scheduler.core.reports import Hello, ReplicaReport, Report, Seen
from services.scheduler.core.state import Failures, Learnt, State


def attach(state: State, hello: Hello, now: float) -> Iterator[Noted]:
    """An executor said hello: what it holds is adopted, what it was thought to hold and does not is forgotten."""
    known = state.fleet.executors.get(hello.executor_id)
    executor = Executor(hello, hello.report)
    if known is not None:
        executor.replicas, executor.grants, executor.gone = known.replicas, known.grants, known.gone
    layouts.attach(executor, known)
    state.fleet.executors[hello.executor_id] = executor
    held = {each.replica_id for each in hello.report.replicas}
    for replica in executor.replicas.values():
        if replica.replica_id not in held:
            replica.phase = Phase.GONE
        elif not replica.live:
            replica.sent_at = None
        else:
            replica.told = None
    lost = sum(replica.phase is Phase.GONE for replica in executor.replicas.values())
    state.fleet.forget_gone()
    again = "again" if known is not None else "for the first time"
    yield Noted(
        f"executor {hello.executor_id} attached",
        f"{again}, incarnation {hello.incarnation}: holds {len(held)} replicas, lost {lost}",
    )
    yield from take_report(state, executor, hello.report, now)


def take_report(state: State, executor: Executor, report: Report, now: float) -> Iterator[Noted]:
    """A whole report: every replica takes its step, and unknown ones are taken in."""
    if report.draining and not executor.report.draining:
        yield Noted(f"executor {executor.executor_id} drains", "it is about to stop: what it holds is placed elsewhere")
    executor.report = report
    executor.division.rates.take(report.usage, now)
    state.usage.report(executor.executor_id, report.usage, report.tenants)
    _take_counts_of_the_gone(state, executor, now)
    state.rates.report(executor.executor_id, executor.hello.incarnation, report.measured_us, report.usage, now)
    told = {each.replica_id: each for each in report.replicas}
    for replica in list(executor.replicas.values()):
        yield from _step(state, replica, told.get(replica.replica_id), now)
    for each in report.replicas:
        if each.replica_id not in executor.replicas:
            yield from _adopt(state, executor, each, now)
    state.fleet.forget_gone()


def _take_counts_of_the_gone(state: State, executor: Executor, now: float) -> None:
    """Which counts of models that are no more the executor still tells; one that tells no tenants' cannot fold any."""
    if not state.catalogue_known:
        return
    folds = {each.incarnation for each in executor.report.tenants}
    told = (Counted(each.incarnation, each.key, each.life) for each in executor.report.usage)
    gone = [each for each in told if each.incarnation in folds and each.key not in state.models]
    before, executor.gone = executor.gone, {each: executor.gone.get(each, now) for each in gone}
    if before.keys() - executor.gone.keys():
        state.usage.keep(state.models, state.fleet.executors)


def expire(state: State, now: float) -> Iterator[Noted]:
    """Executors whose stream has been gone for longer than the grace are lost, and after a while no longer listed."""
    for executor_id, executor in list(state.fleet.executors.items()):
        if executor.detached_at is None:
            continue
        gone_s = now - executor.detached_at
        if gone_s >= state.policy.grace_s and not executor.lost:
            executor.lost = True
            count = len(executor.replicas)
            executor.replicas, executor.grants = {}, {}
            yield Noted(
                f"executor {executor_id} is lost",
                f"no stream for {gone_s:.0f} s: its {count} replicas are placed elsewhere",
            )
        if gone_s >= state.policy.forget_s:
            del state.fleet.executors[executor_id]
            state.rates.forget(executor_id)
            if state.catalogue_known:
                state.usage.keep(state.models, state.fleet.executors)


def _adopt(state: State, executor: Executor, told: ReplicaReport, now: float) -> Iterator[Noted]:
    version = state.version(told.ref)
    estimate = memory_estimate(version, executor.hello.device.kind) if version else 0
    memory_bytes = told.memory_bytes or estimate
    replica = Replica(told.replica_id, told.ref, executor.executor_id, told.lane, memory_bytes, sent_at=now)
    executor.adopt(replica, told.bandwidth)
    yield Noted(f"replica {told.replica_id} adopted", f"{executor.executor_id} holds {told.ref}, {told.state.value}")
    yield from _step(state, replica, told, now)


def _step(state: State, replica: Replica, told: ReplicaReport | None, now: float) -> Iterator[Noted]:
    seen = told.state if told else Seen.ABSENT
    served_s = now - replica.ready_at if replica.phase is Phase.READY else 0.0
    before, effect = replica.phase, replica.observe(seen, now)
    if told is not None:
        replica.memory_bytes = told.memory_bytes or replica.memory_bytes
        _learn(state, replica, told)
    message = (told.message if told else "") or "its executor gave no reason"
    if effect is Effect.REFUSED:
        state.refused[replica.ref] = message
    elif effect is Effect.FAILED:
        _fail(state, replica, message, served_s, now)
    elif effect is Effect.VANISHED:
        _fail(state, replica, "it vanished from its executor's reports", served_s, now)
    if replica.phase is not before:
        reason = (
            message if effect in (Effect.REFUSED, Effect.FAILED) else f"{replica.executor_id} reports it {seen.value}"
        )
        yield Noted(f"replica {replica.replica_id} of {replica.ref} is {replica.phase.value}", reason)


def _learn(state: State, replica: Replica, told: ReplicaReport) -> None:
    if told.state is not Seen.READY or told.signature is None:
        return
    learnt = state.learnt.setdefault(replica.ref, Learnt(told.signature))
    if told.profile is not None:
        learnt.take(told.profile)


def _fail(state: State, replica: Replica, message: str, served_s: float, now: float) -> None:
    ref: Ref = replica.ref
    earlier = state.failures.get(ref)
    count = 1 if earlier is None or served_s >= state.policy.steady_s else earlier.count + 1
    delay_s = min(state.policy.retry_most_s, state.policy.retry_first_s * 2 ** min(count - 1, 30))
    state.failures[ref] = Failures(count, now + delay_s, message, replica.executor_id)

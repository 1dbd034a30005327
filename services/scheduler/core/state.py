"""Everything the scheduler knows, and the questions that its parts ask of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from services.scheduler.core.catalogue import MILLION, Inspection, Key, Model, Profile, Ref, Split, Tenant, Version
from services.scheduler.core.events import Terms
from services.scheduler.core.fleet import Counted, Executor, Fleet, LaneId
from services.scheduler.core.limiting import Limiter
from services.scheduler.core.placement import NoPlace, allows, demand
from services.scheduler.core.replicas import Phase, Replica
from services.scheduler.core.requests import RequestHistory
from services.scheduler.core.routes import scaled
from services.scheduler.core.telling import Telling
from services.scheduler.core.usage import UsageLedger, UsageRates

LONE = 5
"""A scheduler that no executor has come back to waits this many times as long for the first one."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What an operator may set. Times in seconds.

    grace_s: how long the replicas of an executor whose stream ended are counted on.
    settle_s: how long after its start the scheduler waits for executors to come back before it places anything.
    drain_s: how long an unloaded replica may take to finish what it has.
    retry_first_s, retry_most_s: the delay after a first failure, doubling up to the most.
    steady_s: a replica that served for so long has shown that its version works: earlier failures are forgotten.
    resend_s: a command without visible effect is sent again after so long.
    forget_s: an executor that has been gone for so long is no longer listed.
    handover_s: for so long a replica on a lane that is being left serves beside the one that takes its place.
    layout_steady_s: a layout must have been the better one for so long before it is brought into force.
    layout_dwell_s: a layout is in force for so long before another is; the first change need not wait.
    layout_limit_s: a change that has not come to its end by then is taken back.
    fold_s: what a model that was removed used is told apart for so long, and from then on is its tenant's alone.
    """

    grace_s: float = 10.0
    settle_s: float = 2.0
    drain_s: float = 10.0
    retry_first_s: float = 1.0
    retry_most_s: float = 60.0
    steady_s: float = 60.0
    resend_s: float = 10.0
    forget_s: float = 600.0
    handover_s: float = 1.0
    layout_steady_s: float = 5.0
    layout_dwell_s: float = 60.0
    layout_limit_s: float = 300.0
    fold_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Failures:
    """How often in a row a version failed to serve, when it is tried again, and where it failed last."""

    count: int
    retry_at: float
    message: str
    executor_id: str


@dataclass(slots=True)
class Learnt:
    """What workers found of a version: its signature, and profiles, none of which says what another one says already."""

    signature: bytes
    profiles: tuple[Profile, ...] = ()

    def take(self, profile: Profile) -> None:
        """Another one, in place of those that it covers; nothing where one of those covers it and more."""
        if any(held.covers(profile) and not profile.covers(held) for held in self.profiles):
            return
        self.profiles = (*(held for held in self.profiles if not profile.covers(held)), profile)


@dataclass(slots=True)
class State:
    """The scheduler's memory. None of it is kept over a restart: the catalogue and the executors tell it again."""

    policy: Policy
    started_at: float
    catalogue_known: bool = False
    tenants: dict[str, Tenant] = field(default_factory=dict)
    models: dict[Key, Model] = field(default_factory=dict)
    walled: set[Key] = field(default_factory=set)
    fleet: Fleet = field(default_factory=Fleet)
    usage: UsageLedger = field(default_factory=UsageLedger)
    rates: UsageRates = field(default_factory=UsageRates)
    requests: RequestHistory = field(default_factory=RequestHistory)
    limiter: Limiter = field(default_factory=lambda: Limiter(0.0))
    telling: Telling = field(default_factory=Telling)
    refused: dict[Ref, str] = field(default_factory=dict)
    failures: dict[Ref, Failures] = field(default_factory=dict)
    learnt: dict[Ref, Learnt] = field(default_factory=dict)
    unplaced: dict[Ref, NoPlace] = field(default_factory=dict)
    short: dict[tuple[LaneId, str], tuple[int, int]] = field(default_factory=dict)
    recorded: set[tuple[Ref, str]] = field(default_factory=set)

    def settled(self, now: float) -> bool:
        """Whether it is time to decide: the catalogue is known and executors have had the time to come back.

        While none has, little can be decided and much be unlearnt: they get some times as long.
        """
        settle_s = self.policy.settle_s * (1 if self.fleet.executors else LONE)
        return self.catalogue_known and now >= self.started_at + settle_s

    def version(self, ref: Ref) -> Version | None:
        """The catalogue's version behind a ref; None where it is gone or has other content by now."""
        model = self.models.get(ref.key)
        version = model.version(ref.version) if model else None
        return version if version is not None and version.digest == ref.digest else None

    def refs(self) -> Iterator[tuple[Model, Version, Ref]]:
        """Every version of the catalogue, by key."""
        for _, model in sorted(self.models.items()):
            for version in model.versions:
                yield model, version, model.ref(version)

    def refusal(self, model: Model, version: Version) -> str | None:
        """Why a version's artefact was refused; None where it was not."""
        if version.inspection is Inspection.REFUSED:
            return version.inspection_message or "the artefact was refused"
        return self.refused.get(model.ref(version))

    def wanted(self, model: Model) -> tuple[Split, ...]:
        """The versions that are to be loaded, with the parts they are to get; empty where none is, or none can be."""
        return () if model.unloaded else self.chosen(model)

    def chosen(self, model: Model) -> tuple[Split, ...]:
        """The versions that are to be loaded while the model is not unloaded by request.

        Those that the traffic names and that are not refused, also those it names with no part, for callers that ask for
        them; where that leaves none with a part, the highest that is not refused.
        """
        usable = {each.number for each in model.versions if self.refusal(model, each) is None}
        named = [each for each in model.traffic if each.version in usable]
        if any(each.ppm > 0 for each in named):
            return (*scaled(named), *(each for each in named if each.ppm == 0))
        return (Split(max(usable), MILLION),) if usable else ()

    def wanted_versions(self, model: Model) -> list[Version]:
        """The versions of `wanted`."""
        numbers = {split.version for split in self.wanted(model)}
        return [version for version in model.versions if version.number in numbers]

    def tenant(self, name: str) -> Tenant:
        """A tenant; one that the catalogue does not have yet is promised nothing."""
        return self.tenants.get(name) or Tenant(name)

    def demand(self, replica: Replica) -> int | None:
        """Millidevices that a replica's tenant needs on its lane; None where its model is gone."""
        model = self.models.get(replica.ref.key)
        return None if model is None else self.model_demand(model)

    def model_demand(self, model: Model) -> int:
        """Millidevices that a model's tenant needs on each lane where the model lives."""
        return demand(self.tenant(model.key.tenant), model, len(self.fleet.usable()))

    def isolated(self, key: Key) -> bool:
        """Whether a model wants a worker process of its tenant's own."""
        return key in self.walled

    def misplaced(self, replica: Replica) -> bool:
        """Whether its lane cannot give what its tenant was promised, or a wall that was asked for does not stand."""
        executor = self.fleet.executors[replica.executor_id]
        if not executor.in_force(replica.lane):
            return True
        short = executor.grant(replica.lane, replica.ref.key.tenant) < (self.demand(replica) or 0)
        lane = executor.hello.device.lane(replica.lane)
        if short or lane is None:
            return True
        return bool(self.walled) and not allows(executor, lane, replica.ref.key, self.isolated)

    def memory_of(self, tenant: str) -> int:
        """Bytes of device memory that a tenant's replicas hold or are about to."""
        return sum(each.memory_bytes for each in self.fleet.replicas() if each.ref.key.tenant == tenant)

    def terms(self, replica: Replica) -> Terms:
        """The terms on which a replica of a known model is to be served."""
        model = self.models[replica.ref.key]
        grant = self.fleet.executors[replica.executor_id].grant(replica.lane, replica.ref.key.tenant)
        weight = self.tenant(replica.ref.key.tenant).weight or 1
        return Terms(grant, weight, model.slo.objective_us, model.traffic_class)

    def with_learnt(self, ref: Ref, version: Version) -> Version:
        """The version with what workers found since, which the catalogue may not have yet."""
        learnt = self.learnt.get(ref)
        if learnt is None:
            return version
        kept = (held for held in version.profiles if not any(new.covers(held) for new in learnt.profiles))
        return Version(
            version.number,
            version.digest,
            version.size_bytes,
            version.config,
            version.inspection,
            version.inspection_message,
            version.signature or learnt.signature,
            (*kept, *learnt.profiles),
            version.artefact_signature,
        )

    def due(self, since: float, now: float) -> bool:
        """Whether anything has become due after `since`: settling, a retry, a command that had no effect."""
        if self.settled(now) != self.settled(since):
            return True
        if any(len(executor.hello.device.layouts) > 1 for executor in self.fleet.executors.values()):
            return True
        if any(since < failures.retry_at <= now for failures in self.failures.values()):
            return True
        if any(self.foldable(executor, now) for executor in self.fleet.executors.values() if executor.attached):
            return True
        waiting = (each for each in self.fleet.replicas() if each.phase in (Phase.ORDERED, Phase.LEAVING))
        return any(each.overdue(now, self.policy.resend_s) for each in waiting)

    def foldable(self, executor: Executor, now: float) -> list[Counted]:
        """Counts of models that have been gone for so long that their executor need not tell them any more."""
        return [counted for counted, since in executor.gone.items() if now >= since + self.policy.fold_s]

    def forget_removed(self) -> None:
        """Drops what was remembered of versions that the catalogue no longer has, and failures of what is unloaded."""
        self.walled = {key for key, model in self.models.items() if model.isolated}
        known = {ref for _, _, ref in self.refs()}
        for memory in (self.refused, self.failures, self.learnt, self.unplaced):
            for ref in memory.keys() - known:
                del memory[ref]
        # Whoever loads it again wants it tried at once.
        for ref in [ref for ref in self.failures if self.models[ref.key].unloaded]:
            del self.failures[ref]
        self.requests.keep(self.models)
        self.usage.keep(self.models, self.fleet.executors)
        self.recorded = {entry for entry in self.recorded if entry[0] in known}

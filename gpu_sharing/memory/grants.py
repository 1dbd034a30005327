"""How much each tenant's pool on a lane may draw: what the ledger has reserved for it, and never more. PURE.

A replica's reservation on the ledger is its weights, and a *grant*: what its tenant's pool may draw for it. A grant is

- activations: what the largest batch that was measured holds, for as many batches as may be in flight, a quarter more for what lies
  unused between tensors, in the pieces that torch draws; at least what running it drew when it was measured;
- graphs: of what the lane has for graphs, `GRAPH_BATCHES` such batches, or what is left of it; for models that can be captured;
- inside: what the model itself holds in the pool, as models of Python code do.

While a replica is tried nobody knows yet what it takes: its grant is a *trial* then, reserved like any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from gpu_sharing.memory.ledger import Ledger
from gpu_sharing.units import Bytes, MiB

SMALL_PIECE: Bytes = 2 * MiB
"""Tensors of up to a MiB lie together in pieces of so much."""
LARGE_PIECE: Bytes = 20 * MiB
"""Larger ones, up to half of it, in pieces of so much; those beyond have one each."""
GRAPH_BATCHES = 4
"""A chain for each of 1, 2, 4 … rows takes twice the largest together, and as much again for what crosses boundaries."""
LEAST_TRIAL: Bytes = 256 * MiB
TRIAL_PART = 4
"""A trial takes no more than this part of a lane's memory, were it free or not."""


class Grant(NamedTuple):
    """See the module."""

    activations: Bytes = 0
    graphs: Bytes = 0
    inside: Bytes = 0

    @property
    def total(self) -> Bytes:
        """What the tenant's pool may draw for the replica."""
        return self.activations + self.graphs + self.inside


def pieces(tensors_bytes: Bytes) -> Bytes:
    """What torch draws for tensors of so many bytes together, a quarter more included; 0 for none."""
    if tensors_bytes <= 0:
        return 0
    wanted = tensors_bytes + -(-tensors_bytes // 4)
    if wanted <= MiB:
        return SMALL_PIECE
    return SMALL_PIECE + -(-wanted // LARGE_PIECE) * LARGE_PIECE


def activations(batch_bytes: Bytes, in_flight: int, drawn_bytes: Bytes = 0) -> Bytes:
    """For so many batches at once. drawn_bytes: the most that was drawn while one at a time was measured."""
    return max(pieces(in_flight * batch_bytes), drawn_bytes)


def trial(free_bytes: Bytes, capacity_bytes: Bytes, known_bytes: Bytes = 0) -> Bytes:
    """For a replica that is tried: what is free, up to a part of the lane; at least LEAST_TRIAL, and what is known of it.

    Where that cannot be had, it is tried with what is free."""
    return max(
        min(free_bytes, capacity_bytes // TRIAL_PART), min(LEAST_TRIAL, capacity_bytes // TRIAL_PART), known_bytes
    )


def outside(weight_bytes: Bytes, capacity_bytes: Bytes) -> Bytes:
    """For a model whose library keeps its own memory, and tells nobody how much a batch takes: as much as its weights, at least
    LEAST_TRIAL."""
    return max(weight_bytes, min(LEAST_TRIAL, capacity_bytes // TRIAL_PART))


@dataclass(slots=True)
class _Granted:
    tenant: str
    grant: Grant
    trial: Bytes = 0


class Grants:
    """Of one lane. graph_bytes: what graphs of all tenants may hold together."""

    def __init__(self, graph_bytes: Bytes = 0) -> None:
        """Raises ValueError for a negative number."""
        if graph_bytes < 0:
            raise ValueError(f"graph_bytes: must not be negative, is {graph_bytes}")
        self.graph_bytes = graph_bytes
        self._granted: dict[int, _Granted] = {}

    def graphs_for(self, batch_bytes: Bytes) -> Bytes:
        """What a new replica's graphs are given."""
        left = self.graph_bytes - sum(each.grant.graphs for each in self._granted.values())
        return max(0, min(left, GRAPH_BATCHES * pieces(batch_bytes)))

    def try_out(self, replica: int, tenant: str, trial_bytes: Bytes) -> None:
        """The replica is tried: so much is reserved for that. ValueError for one that is here already."""
        if replica in self._granted or trial_bytes < 0:
            raise ValueError(f"replica {replica} is here already, or {trial_bytes} bytes are negative")
        self._granted[replica] = _Granted(tenant, Grant(), trial_bytes)

    def settle(self, replica: int, grant: Grant) -> None:
        """What was tried takes this. ValueError where its graphs have more than the lane does, or a part is negative."""
        found = self._granted[replica]
        others = sum(each.grant.graphs for each in self._granted.values() if each is not found)
        if min(grant) < 0 or others + grant.graphs > self.graph_bytes:
            raise ValueError(f"replica {replica}: {grant} beside {others} bytes of {self.graph_bytes} for graphs")
        found.grant, found.trial = grant, 0

    def drop(self, replica: int) -> str | None:
        """The replica is gone: whose it was; None where it had nothing."""
        found = self._granted.pop(replica, None)
        return None if found is None else found.tenant

    def granted(self, replica: int) -> Bytes:
        """What the tenant's pool may draw for it."""
        found = self._granted.get(replica)
        return 0 if found is None else found.grant.total + found.trial

    def trial_of(self, replica: int) -> Bytes:
        """What it may draw while it is tried; 0 once it is settled."""
        return self._granted[replica].trial

    def tenant_of(self, replica: int) -> str:
        """Whose it is. KeyError where it has nothing."""
        return self._granted[replica].tenant

    def limit(self, tenant: str) -> Bytes:
        """What all pools of the tenant may draw together."""
        return sum(each.grant.total + each.trial for each in self._granted.values() if each.tenant == tenant)

    def graph_limit(self, tenant: str) -> Bytes:
        """What of that its graphs may hold."""
        return sum(each.grant.graphs for each in self._granted.values() if each.tenant == tenant)

    def has(self, tenant: str) -> bool:
        """Whether it has any replica here."""
        return any(each.tenant == tenant for each in self._granted.values())

    def check_invariants(self, ledger: Ledger) -> None:
        """Raises AssertionError where pools may draw more than the ledger has reserved, for any replica or for all."""
        over = {
            number: self.granted(number) for number in self._granted if self.granted(number) > ledger.reserved(number)
        }
        if over:
            raise AssertionError(f"granted {over}, more than is reserved")
        limits = sum(self.limit(tenant) for tenant in {each.tenant for each in self._granted.values()})
        if limits > ledger.used_bytes or ledger.used_bytes > ledger.capacity_bytes:
            raise AssertionError(f"pools {limits}, ledger {ledger.used_bytes} of {ledger.capacity_bytes} bytes")
        if sum(each.grant.graphs for each in self._granted.values()) > self.graph_bytes:
            raise AssertionError("graphs are granted more than the lane has for them")

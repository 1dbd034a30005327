"""What loads are charged on a lane's ledger, and, where tenants have pools on its device, what of that each may draw."""

from __future__ import annotations

from gpu_sharing.arbiter.switching import IN_FLIGHT_PER_REPLICA
from gpu_sharing.memory import grants
from gpu_sharing.memory.accounts import Accounts
from gpu_sharing.memory.grants import Grant
from gpu_sharing.memory.ledger import Ledger, LedgerFull
from gpu_sharing.runtimes.base import LoadedModel
from gpu_sharing.units import Bytes
from gpu_sharing.worker.messages import Load
from gpu_sharing.worker.mover import Mover
from gpu_sharing.worker.shelf import Shelved

POOLED = ("torch_export", "python")
"""Formats whose runtimes draw on their tenants' pools; the others have a limit of their own from the start."""


class Charges:
    """Of one lane; for the loader's thread. A replica's reservation covers what its tenant's pools may draw for it at any time."""

    def __init__(self, ledger: Ledger, mover: Mover | None = None, accounts: Accounts | None = None) -> None:
        """mover: what has weights moved away where there is not enough room. accounts: None: there are no pools."""
        self._ledger, self._mover, self._accounts = ledger, mover, accounts
        self._outside: dict[int, Bytes] = {}
        self._trying: set[int] = set()

    def expect(self, load: Load, weight_bytes: Bytes) -> Bytes | None:
        """Before a load, by what is known of it: reserves what it may take until it is settled. LedgerFull.

        Returns what all of the model may take where it draws on no pool; None: no limit is kept.
        """
        replica, accounts = load.replica, self._accounts
        if accounts is None:
            self.reserve(replica, weight_bytes)
            return None
        # What does not fit by its weights alone is refused by them.
        self.reserve(replica, weight_bytes)
        points = load.profile.points if load.profile is not None else ()
        known = grants.pieces(IN_FLIGHT_PER_REPLICA * max((point.activation_bytes for point in points), default=0))
        if load.format not in POOLED:
            outside = max(grants.outside(weight_bytes, self._ledger.capacity_bytes), known)
            self.reserve(replica, weight_bytes + outside)
            self._outside[replica] = outside
            return weight_bytes + outside
        free_bytes = self._free_bytes
        trial_bytes = grants.trial(free_bytes, self._ledger.capacity_bytes, known)
        try:
            self.reserve(replica, weight_bytes + trial_bytes)
        except LedgerFull:
            # It may take less than a trial is given where there is enough.
            trial_bytes = free_bytes
            self.reserve(replica, weight_bytes + trial_bytes)
        accounts.try_out(replica, load.tenant, trial_bytes)
        self._trying.add(replica)
        return None

    def trial_bytes(self, replica: int) -> Bytes:
        """What of its reservation is for trying it."""
        return self._accounts.grants.trial_of(replica) if self._accounts is not None and replica in self._trying else 0

    def settle(self, load: Load, shelved: Shelved, batch_bytes: Bytes) -> Bytes:
        """After it was measured: reserves what it takes, and says how much that is. LedgerFull.

        batch_bytes: what its largest measured batch holds. Weights that may leave are counted elsewhere. Replicas of one artefact
        are charged alike, whichever of them was measured.
        """
        replica, weight_bytes = load.replica, shelved.charged_bytes
        stays = 0 if shelved.moves else weight_bytes
        if self._accounts is None or replica not in self._trying:
            # Batches of a replica may be suspended while another of it runs: each keeps its activations.
            beside = self._outside.get(replica, IN_FLIGHT_PER_REPLICA * batch_bytes)
            self.reserve(replica, stays + beside)
            return weight_bytes + beside
        drawn = shelved.drawn_bytes = max(shelved.drawn_bytes, self._accounts.tried(replica))
        self._trying.discard(replica)
        if load.format == "python":
            # Its weights lie in the pool: the reservation for them is part of the grant.
            needs = grants.activations(batch_bytes, IN_FLIGHT_PER_REPLICA, drawn - weight_bytes)
            return self._granted(replica, 0, Grant(needs, 0, weight_bytes))
        needs = grants.activations(batch_bytes, IN_FLIGHT_PER_REPLICA, drawn)
        graphs = self._accounts.grants.graphs_for(batch_bytes)
        try:
            return weight_bytes - stays + self._granted(replica, stays, Grant(needs, graphs))
        except LedgerFull:
            if not graphs:
                raise
            # Graphs make it faster; it runs without.
            return weight_bytes - stays + self._granted(replica, stays, Grant(needs))

    def _granted(self, replica: int, stays: Bytes, grant: Grant) -> Bytes:
        """What pools may draw never exceeds what is reserved, in between either."""
        assert self._accounts is not None
        asked = stays + grant.total
        if asked >= self._ledger.reserved(replica):
            self.reserve(replica, asked)
            self._accounts.settle(replica, grant)
        else:
            self._accounts.settle(replica, grant)
            self.reserve(replica, asked)
        return asked

    def reserve(self, replica: int, asked_bytes: Bytes) -> None:
        """Sets the replica's reservation. LedgerFull."""
        if self._mover is None:
            self._ledger.reserve(replica, asked_bytes)
        else:
            self._mover.reserve(replica, asked_bytes)

    def release(self, replica: int) -> None:
        """The replica's model has been closed: its pool's part goes, and then its reservation."""
        if self._accounts is not None:
            self._accounts.drop(replica)
        self._trying.discard(replica)
        self._outside.pop(replica, None)
        if self._mover is None:
            self._ledger.release(replica)
        else:
            self._mover.release(replica)

    def adopt(self, load: Load, model: LoadedModel) -> bool:
        """Whether its weights may leave the device from now on."""
        return self._mover is not None and self._mover.adopt(load, model, self.trial_bytes(load.replica))

    @property
    def _free_bytes(self) -> Bytes:
        """Of the ledger, without moving any weights away."""
        moving = self._mover.residency.residence.used_bytes if self._mover is not None else 0
        return max(0, self._ledger.free_bytes - moving)

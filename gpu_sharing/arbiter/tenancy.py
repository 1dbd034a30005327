"""Which tenants and replicas are on a lane, and who has been granted what. PURE."""

from __future__ import annotations

from collections.abc import Iterator

from gpu_sharing.arbiter.events import ReplicaAdded, TenantStatistics
from gpu_sharing.arbiter.grants import Grants, Oversold
from gpu_sharing.arbiter.replicas import Replica
from gpu_sharing.arbiter.servers import Meter, Server
from gpu_sharing.units import Millidevices, Nanoseconds


class Tenancy:
    """Of one lane. Raises ValueError for a capacity below 1 millidevice."""

    def __init__(self, capacity: Millidevices) -> None:
        self.capacity = capacity
        self.servers: dict[str, Server] = {}
        self.replicas: dict[int, Replica] = {}
        self.draining: dict[int, Replica] = {}
        self._grants = Grants(capacity)
        self._meters: dict[str, Meter] = {}
        self._numbers = 0

    def add(self, added: ReplicaAdded, now: Nanoseconds) -> Server:
        """The replica serves. Its tenant's server; ValueError where something is wrong, and nothing has changed."""
        if added.replica in self.replicas:
            raise ValueError(f"replica {added.replica} has been added already")
        if added.weight < 1 or added.bandwidth < 0:
            raise ValueError(
                f"replica {added.replica}: weight {added.weight}, bandwidth {added.bandwidth}: not below 1 and 0"
            )
        replica = Replica(added)
        server = self.servers.get(replica.tenant)
        held = 0 if server is None else server.granted
        if added.bandwidth > held and added.bandwidth > self._grants.free_for(server.number if server else 0):
            raise Oversold(
                f"replica {added.replica}: bandwidth: {added.bandwidth} millidevices do not fit for tenant {replica.tenant!r}: "
                f"of {self.capacity} on this lane, others hold {self._grants.granted - held}"
            )
        if server is None:
            self._numbers += 1
            meter = self._meters.setdefault(replica.tenant, Meter())
            server = self.servers[replica.tenant] = Server(replica.tenant, self._numbers, self.capacity, meter)
        server.replicas[replica.replica] = self.replicas[replica.replica] = replica
        self.revise(server, now)
        return server

    def revise(self, server: Server, now: Nanoseconds) -> list[Server]:
        """What the server's replicas were told has changed, or which of them serve. Those whose share has changed by it."""
        serving = server.serving
        server.wanted = max((replica.bandwidth for replica in serving), default=0)
        server.weight = max((replica.weight for replica in serving), default=server.weight)
        self._grant(server, now)
        # What one gives up may be what others still miss.
        missing = [other for other in self.servers.values() if other.granted < other.wanted and other is not server]
        for other in missing:
            self._grant(other, now)
        return [server, *missing]

    def _grant(self, server: Server, now: Nanoseconds) -> None:
        bandwidth = min(server.wanted, self._grants.free_for(server.number))
        if bandwidth != server.granted:
            start = self._grants.grant(server.number, bandwidth, finish=server.budget.finish, now=now)
            server.granted = bandwidth
            server.budget.set_bandwidth(bandwidth, start, now)

    def drain(self, replica: Replica, until: Nanoseconds) -> None:
        """The replica takes no more requests. To be followed by `revise`."""
        replica.drain_until = until
        self.draining[replica.replica] = replica

    def remove(self, replica: Replica) -> Server:
        """The replica is gone, and its tenant with it where it was the last. Its tenant's server."""
        del self.replicas[replica.replica]
        self.draining.pop(replica.replica, None)
        server = self.servers[replica.tenant]
        del server.replicas[replica.replica]
        if not server.replicas:
            del self.servers[server.tenant]
        return server

    def statistics(self) -> Iterator[TenantStatistics]:
        """Of everybody who has ever been here."""
        for tenant, meter in self._meters.items():
            server = self.servers.get(tenant)
            yield meter.statistics(tenant, 0, 1, 0) if server is None else server.statistics()

    def check_invariants(self) -> None:
        """Raises AssertionError unless replicas are with their tenants, and no more is granted than there is."""
        theirs = {number: replica for server in self.servers.values() for number, replica in server.replicas.items()}
        if theirs != self.replicas:
            raise AssertionError(f"replicas {sorted(self.replicas)}, with tenants {sorted(theirs)}")
        granted = sum(server.granted for server in self.servers.values())
        if granted != self._grants.granted or granted > self.capacity:
            raise AssertionError(
                f"{granted} millidevices granted of {self.capacity}, {self._grants.granted} in the books"
            )

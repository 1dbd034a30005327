"""Who has been promised how many bytes of a device. PURE."""

from __future__ import annotations

from gpu_sharing.units import Bytes


class LedgerFull(Exception):
    """A reservation did not fit. asked_bytes, free_bytes and capacity_bytes are the numbers that led here."""

    def __init__(self, asked_bytes: Bytes, free_bytes: Bytes, capacity_bytes: Bytes) -> None:
        super().__init__(f"needs {asked_bytes} bytes; {free_bytes} of {capacity_bytes} are free")
        self.asked_bytes = asked_bytes
        self.free_bytes = free_bytes
        self.capacity_bytes = capacity_bytes


class Ledger:
    """Bytes reserved per replica against one capacity: weights, and the activations of every batch it may have in flight."""

    def __init__(self, capacity_bytes: Bytes) -> None:
        """Raises ValueError for a negative capacity."""
        if capacity_bytes < 0:
            raise ValueError(f"capacity_bytes: must not be negative, is {capacity_bytes}")
        self.capacity_bytes = capacity_bytes
        self._reserved: dict[int, Bytes] = {}
        self._used_bytes: Bytes = 0

    @property
    def used_bytes(self) -> Bytes:
        """What is reserved, over all replicas."""
        return self._used_bytes

    @property
    def free_bytes(self) -> Bytes:
        """What could still be reserved."""
        return self.capacity_bytes - self.used_bytes

    def reserve(self, replica: int, asked_bytes: Bytes) -> None:
        """Sets the replica's reservation, in place of one it has. LedgerFull, changing nothing, where it does not fit."""
        if asked_bytes < 0:
            raise ValueError(f"asked_bytes: must not be negative, is {asked_bytes}")
        free_bytes = self.free_bytes + self._reserved.get(replica, 0)
        if asked_bytes > free_bytes:
            raise LedgerFull(asked_bytes, free_bytes, self.capacity_bytes)
        self._used_bytes += asked_bytes - self._reserved.get(replica, 0)
        self._reserved[replica] = asked_bytes

    def reserved(self, replica: int) -> Bytes:
        """What the replica has."""
        return self._reserved.get(replica, 0)

    def release(self, replica: int) -> Bytes:
        """Gives back what the replica has, and says how much that was; 0 where it has nothing."""
        released_bytes = self._reserved.pop(replica, 0)
        self._used_bytes -= released_bytes
        return released_bytes

    def check_invariants(self) -> None:
        """Raises AssertionError where more is promised than there is."""
        if self._used_bytes != sum(self._reserved.values()):
            raise AssertionError(f"{self._used_bytes} bytes counted, {self._reserved} reserved")
        if any(reserved < 0 for reserved in self._reserved.values()) or self.used_bytes > self.capacity_bytes:
            raise AssertionError(f"{self._reserved} of {self.capacity_bytes} bytes")

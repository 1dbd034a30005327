"""What a reservation pays for, and by when: a constant-bandwidth server's budget. PURE.

Work of cost C that comes to a server with the fraction U of the lane is given the deadline d = max(now, d of the work before)
+ C / U (the total bandwidth server of Spuri and Buttazzo, RTSS 1994; the rule of the constant-bandwidth server, Abeni and
Buttazzo, RTSS 1998). Of what all servers together are owed in any interval, this leaves no more than the lane has as long as
their fractions add up to one at most: so that earliest deadline first meets every d, late by one slice that could not be
interrupted. Three rules keep that true, whatever is executed in which order:

- A piece of budget keeps its deadline, or gets a later one; never an earlier one while it waits.
- Work is paid from the earliest pieces first. Work that has to be paid from several joins them under the latest deadline.
- Time that was paid and not needed is taken back from the latest pieces. Time that an estimate did not foresee comes behind what
  has been used, and moves the pieces behind it to later deadlines: an overrun postpones its own server and nobody else.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass

from gpu_sharing.units import Millidevices, Nanoseconds


@dataclass(slots=True)
class Piece:
    """Device time `left` to be had between `start` and `deadline`, bought at `rate`.

    rest: the deadline is later by rest / rate of a nanosecond, so that many small pieces do not add up to an error.
    """

    start: Nanoseconds
    left: Nanoseconds
    deadline: Nanoseconds
    rate: Millidevices
    rest: int


class Budget:
    """One server's. capacity: the lane's, in millidevices.

    finish: the deadline of all that has been bought. left: device time bought and not used yet.
    """

    def __init__(self, capacity: Millidevices) -> None:
        self.capacity = capacity
        self.bandwidth: Millidevices = 0
        self.finish: Nanoseconds = 0
        self.left: Nanoseconds = 0
        self._rate: Millidevices = capacity
        self._rest = 0
        self._pieces: deque[Piece] = deque()
        self._becomes: tuple[Nanoseconds, Millidevices] | None = None

    def set_bandwidth(self, bandwidth: Millidevices, at: Nanoseconds, now: Nanoseconds) -> None:
        """From `at` on, budget is bought at this bandwidth; what has been bought keeps its deadlines."""
        self._becomes = (at, bandwidth)
        self._keep_time(now)

    def finish_after(self, cost: Nanoseconds, now: Nanoseconds) -> Nanoseconds | None:
        """The deadline that work of this cost would get; None where there is no reservation."""
        self._keep_time(now)
        if self.bandwidth <= 0:
            return None
        finish, rest = (now, 0) if now > self.finish else (self.finish, self._rest)
        return finish + -(-(cost * self.capacity + rest) // self.bandwidth)

    def buy(self, cost: Nanoseconds, now: Nanoseconds) -> None:
        """For work that comes now."""
        if now > self.finish:
            self.finish, self._rest = now, 0
        self._append(cost)

    def beyond(self, cost: Nanoseconds) -> tuple[Nanoseconds, Nanoseconds] | None:
        """Start and deadline of time that an estimate did not foresee; None where there is no reservation any more.

        It comes behind what has been used and before all else; behind all else where that was bought at another rate, since
        others may have been promised what this reservation has lost.
        """
        if self.bandwidth <= 0:
            return None
        use = self.next_use
        start = self.finish if use is None or self._pieces[0].rate != self._rate else use[0]
        return start, start + -(-cost * self.capacity // self._rate)

    def postpone(self, cost: Nanoseconds) -> bool:
        """Buys time that an estimate did not foresee, and postpones by it what comes behind. False: no reservation any more."""
        place = self.beyond(cost)
        if place is None:
            return False
        start, edge = place
        if start == self.finish:
            self._append(cost)
            return True
        self._pieces[0].start = start
        self._pieces.appendleft(Piece(start, cost, edge, self._rate, 0))
        self.left += cost
        for piece in itertools.islice(self._pieces, 1, None):
            if piece.start >= edge:
                return True
            piece.deadline += edge - piece.start
            piece.start, edge = edge, piece.deadline
        self.finish = edge
        return True

    @property
    def next_use(self) -> tuple[Nanoseconds, Nanoseconds] | None:
        """From when on, at the reservation's pace, what is used first is to be had, and by when; None where nothing is left."""
        if not self._pieces:
            return None
        first = self._pieces[0]
        return first.deadline - first.left * self.capacity // first.rate, first.deadline

    def deadline_of(self, cost: Nanoseconds) -> Nanoseconds:
        """By when the next `cost` of device time is to be had; of less, where less is left. IndexError where nothing is."""
        for piece in self._pieces:
            cost -= piece.left
            if cost <= 0:
                return piece.deadline
        return self._pieces[-1].deadline

    def cover(self, cost: Nanoseconds) -> Nanoseconds:
        """Joins pieces until the front holds `cost` (or everything): its deadline. IndexError where nothing is left."""
        pieces = self._pieces
        while pieces[0].left < cost and len(pieces) > 1:
            first = pieces.popleft()
            pieces[0].left += first.left
            pieces[0].start = first.start
        return pieces[0].deadline

    def use(self, took: Nanoseconds) -> None:
        """Device time has been used. ValueError for more than is left."""
        if took > self.left:
            raise ValueError(f"{took} ns used of a budget of {self.left} ns")
        self.left -= took
        while took:
            first = self._pieces[0]
            part = min(took, first.left)
            took -= part
            first.left -= part
            if not first.left:
                self._pieces.popleft()

    def refund(self, cost: Nanoseconds) -> None:
        """Device time was bought and is not needed. ValueError for more than is left."""
        if cost > self.left:
            raise ValueError(f"{cost} ns given back to a budget of {self.left} ns")
        self.left -= cost
        while cost:
            last = self._pieces[-1]
            part = min(cost, last.left)
            cost -= part
            last.left -= part
            later, last.rest = divmod(last.rest - part * self.capacity, last.rate)
            last.deadline += later
            self._take_finish(last)
            if not last.left:
                self._pieces.pop()
                if self._pieces:
                    self._take_finish(self._pieces[-1])

    def check_invariants(self) -> None:
        """Raises AssertionError unless pieces are in order and add up."""
        pieces = list(self._pieces)
        if sum(piece.left for piece in pieces) != self.left or any(piece.left <= 0 for piece in pieces):
            raise AssertionError(f"a budget of {self.left} ns in pieces of {[piece.left for piece in pieces]}")
        deadlines = [piece.deadline for piece in pieces]
        if deadlines != sorted(deadlines) or (deadlines and not 0 <= self.finish - deadlines[-1] <= 1):
            raise AssertionError(f"deadlines {deadlines} up to {self.finish}")

    def _take_finish(self, piece: Piece) -> None:
        self.finish = piece.deadline
        self._rest = piece.rest
        if piece.rate != self._rate and piece.rest:
            self.finish, self._rest = piece.deadline + 1, 0

    def _append(self, cost: Nanoseconds) -> None:
        if cost <= 0:
            return
        start = self.finish
        longer, self._rest = divmod(cost * self.capacity + self._rest, self._rate)
        self.finish = start + longer
        self._pieces.append(Piece(start, cost, self.finish, self._rate, self._rest))
        self.left += cost

    def _keep_time(self, now: Nanoseconds) -> None:
        if self._becomes is None or self._becomes[0] > now:
            return
        self.bandwidth = self._becomes[1]
        self._becomes = None
        rate = self.bandwidth or self._rate
        if rate != self._rate and self._rest:
            self.finish, self._rest = self.finish + 1, 0
        self._rate = rate

"""Service level objectives: whether one was kept, what is left of its budget, and how fast that goes.

Burn rates over several windows: a rate counts only while a short window, a twelfth of the long one, shows it too, so that it is
over soon after its cause is. Source: Google's Site Reliability Workbook, chapter 5, "Multiwindow, Multi-Burn-Rate Alerts".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from services.tracestore.core.rollups import Counts, Slot

WHOLE_PPM = 1_000_000
PROMISE = "promise"
"""What a model that has no SLO objects is judged by: its own objective, as each request was promised it."""


@dataclass(frozen=True, slots=True)
class Objective:
    """`ratio_ppm` of a model's requests within `objective_us` over `window_s`. objective_us None: what each was promised."""

    tenant: str
    model: str
    name: str
    ratio_ppm: int
    objective_us: int | None
    window_s: int

    @property
    def target(self) -> float:
        """The part of requests that must meet it."""
        return self.ratio_ppm / WHOLE_PPM

    def judged(self, counts: Counts) -> Judged:
        """Requests that met it, and those that did not."""
        if self.objective_us is None:
            return Judged(counts.met, counts.missed)
        return Judged(*counts.within.get(self.objective_us, (0, 0)))


@dataclass(frozen=True, slots=True)
class Judged:
    """Requests judged by one objective."""

    met: int = 0
    missed: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.met + self.missed

    @property
    def attainment(self) -> float | None:
        """The part that met it; None: there were none."""
        return self.met / self.total if self.total else None


@dataclass(frozen=True, slots=True)
class Window:
    """A pair of windows, in seconds, and the burn rate above which both are too much. severity: "page" or "ticket"."""

    long_s: int
    short_s: int
    factor: float
    severity: str


# Of a window of 30 days: an hour (2 % of the budget), six hours (5 %), three days (10 %).
_PARTS = ((720, 0.02, "page"), (120, 0.05, "page"), (10, 0.10, "ticket"))
LEAST_LONG_S, LEAST_SHORT_S = 300, 60


def windows(window_s: int) -> list[Window]:
    """For an objective over `window_s`: 1 h and 5 min at 14.4, 6 h and 30 min at 6, 3 d and 6 h at 1 where that is 30 days, and the
    same parts of any other, down to minutes. Of those that come to the same, the one that fires first stays."""
    found: dict[tuple[int, int, str], Window] = {}
    for part, budget, severity in _PARTS:
        long_s, short_s = max(LEAST_LONG_S, window_s // part), max(LEAST_SHORT_S, window_s // part // 12)
        found[long_s, short_s, severity] = Window(long_s, short_s, part * budget, severity)
    return list(found.values())


@dataclass(frozen=True, slots=True)
class Burn:
    """How fast the budget goes: 1 is as fast as it may. None: there were no requests."""

    window: Window
    long: float | None
    short: float | None

    @property
    def fires(self) -> bool:
        """Both windows show more than they may."""
        return all(rate is not None and rate > self.window.factor for rate in (self.long, self.short))


@dataclass(frozen=True, slots=True)
class Standing:
    """An objective against what was counted up to one moment.

    covered_s: of its window, from the first slot there is. budget: requests that might miss it, of those there were. spent: the
    part of the budget that is gone; above 1 the objective is broken, None: there is nothing to spend.
    """

    objective: Objective
    judged: Judged
    covered_s: int
    budget: float
    spent: float | None
    burns: tuple[Burn, ...]

    @property
    def broken(self) -> bool:
        """Too many requests missed it. Where there were none it is kept."""
        return self.judged.total > 0 and self.judged.missed > self.budget + 1e-9

    @property
    def left_s(self) -> float | None:
        """Seconds until the budget is gone, at the rate of the longest of the short windows; None: never."""
        rate = self.burns[-1].short if self.burns else None
        if self.spent is None or not rate:
            return None
        return max(0.0, (1 - self.spent) * self.objective.window_s / rate)


def standing(objective: Objective, slots: Sequence[Slot], now_s: int) -> Standing:
    """slots: the model's, by time. Those that began within the window count."""
    judged = _within(objective, slots, now_s - objective.window_s, now_s)
    first_s = min((slot.start_s for slot in slots if objective.judged(slot.counts).total), default=now_s)
    budget = judged.total * (WHOLE_PPM - objective.ratio_ppm) / WHOLE_PPM
    return Standing(
        objective=objective,
        judged=judged,
        covered_s=max(0, min(objective.window_s, now_s - first_s)),
        budget=budget,
        spent=_part(judged.missed, budget) if judged.total else None,
        burns=tuple(_burn(objective, slots, window, now_s) for window in windows(objective.window_s)),
    )


def _burn(objective: Objective, slots: Sequence[Slot], window: Window, now_s: int) -> Burn:
    rates = []
    for length_s in (window.long_s, window.short_s):
        judged = _within(objective, slots, now_s - length_s, now_s)
        allowed = judged.total * (WHOLE_PPM - objective.ratio_ppm) / WHOLE_PPM
        rates.append(_part(judged.missed, allowed) if judged.total else None)
    return Burn(window, rates[0], rates[1])


def _within(objective: Objective, slots: Sequence[Slot], start_s: int, end_s: int) -> Judged:
    met = missed = 0
    for slot in slots:
        # A slot that lies across the beginning counts with the window that most of it is in.
        if start_s <= slot.start_s + slot.width_s // 2 < end_s:
            judged = objective.judged(slot.counts)
            met, missed = met + judged.met, missed + judged.missed
    return Judged(met, missed)


def _part(missed: int, allowed: float) -> float:
    if allowed:
        return missed / allowed
    return math.inf if missed else 0.0

"""When a better layout is worth a change: never so soon that layouts come and go. PURE."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Patience:
    """A change is made once the same layout has been the better one for `steady_s`, and the last is `dwell_s` ago.

    changed_at: of the last change; None: there was none, so that the first need not wait.
    """

    changed_at: float | None = None
    better: int | None = None
    better_since: float = 0.0

    def is_time(self, best: int, current: int, now: float, *, steady_s: float, dwell_s: float) -> bool:
        """Whether to change now. best: the layout that would serve best. To be asked again and again; now: never goes back."""
        if best == current:
            self.better = None
            return False
        if best != self.better:
            self.better, self.better_since = best, now
        dwelt = self.changed_at is None or now - self.changed_at >= dwell_s
        return dwelt and now - self.better_since >= steady_s

    def changed(self, now: float) -> None:
        """A change was made."""
        self.changed_at, self.better = now, None

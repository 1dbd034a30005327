"""Dividing a whole among those who ask for parts of it."""

from __future__ import annotations

from collections.abc import Mapping

MILLION = 1_000_000
FLOOR_PPM = 20_000
"""Of a whole, this part is set aside in equal parts, so that nobody has to begin at nothing."""
HEADROOM = (6, 5)
"""What is asked for grows: so many times that, as a fraction, is given where there is enough."""


def divide(whole: int, asked: Mapping[str, int]) -> dict[str, int]:
    """Whole numbers that add up to `whole`, by name.

    Everybody gets a small equal part; then those who ask for less than an equal part of the rest get what they ask for, and
    the others share what is left evenly (max-min fairness); what nobody has asked for is shared evenly, too.
    """
    if not asked:
        return {}
    floor = whole * FLOOR_PPM // MILLION // len(asked)
    parts = dict.fromkeys(asked, floor)
    left = whole - floor * len(asked)
    wanted = {name: max(0, want * HEADROOM[0] // HEADROOM[1] - floor) for name, want in asked.items()}
    order = sorted(wanted, key=lambda name: (wanted[name], name))
    for place, name in enumerate(order):
        given = min(wanted[name], left // (len(order) - place))
        parts[name] += given
        left -= given
    each, over = divmod(left, len(order))
    # What cannot be divided goes to those who ask for the most.
    for place, name in enumerate(reversed(order)):
        parts[name] += each + (place < over)
    return parts


def divide_slots(slots: int, asked: Mapping[str, int], turn: int = 0) -> dict[str, int]:
    """Whole slots, max-min fair like `divide`, but nothing is set aside for those who ask for none.

    turn: who is first to get what cannot be divided among those who ask for the same moves on with it.
    """
    names = sorted(asked)
    wanted = {name: min(slots, asked[name]) for name in names}
    later = {name: (place + turn) % len(names) for place, name in enumerate(names)}
    parts = dict.fromkeys(names, 0)
    order = sorted(names, key=lambda name: (wanted[name], later[name]))
    left = slots
    for place, name in enumerate(order):
        parts[name] = min(wanted[name], left // (len(order) - place))
        left -= parts[name]
    each, over = divmod(left, len(order) or 1)
    for place, name in enumerate(reversed(order)):
        parts[name] += each + (place < over)
    return parts

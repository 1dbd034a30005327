"""Objectives as people say them: "99 % within 50 ms over 30 days"."""

from __future__ import annotations

import re
from decimal import Decimal

from services._proto.apportion.v1 import common_pb2
from services.cli.errors import usage

TIMES_US = {"us": 1, "µs": 1, "ms": 1_000, "s": 1_000_000}
SPANS_S = {"m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_FORM = re.compile(
    r"\s*(?P<ratio>\d+(?:\.\d+)?)\s*%"
    r"(?:\s+within\s+(?P<time>\d+(?:\.\d+)?)\s*(?P<unit>us|µs|ms|s))?"
    r"(?:\s+over\s+(?P<span>\d+)\s*(?P<of>m|min|minutes?|h|hours?|d|days?|w|weeks?))?\s*"
)
FORM = '"99.9 % within 50 ms over 30 days"; without "within", what each request was promised; without "over", 30 days'


def parsed(text: str) -> common_pb2.Slo:
    """What a sentence says. Raises CommandError where it says nothing of the kind; the registry checks the values."""
    found = _FORM.fullmatch(text)
    if found is None:
        raise usage(f"{text!r} is not an objective like {FORM}")
    ppm = Decimal(found["ratio"]) * 10_000
    if ppm != int(ppm) or not 0 < ppm <= 1_000_000:
        raise usage(f"{found['ratio']} %: above 0 and at most 100, with at most four decimals")
    slo = common_pb2.Slo(ratio_ppm=int(ppm), window_s=int(found["span"] or 30) * SPANS_S[(found["of"] or "d")[0]])
    if found["time"] is not None:
        objective_us = Decimal(found["time"]) * TIMES_US[found["unit"]]
        if objective_us != int(objective_us) or not objective_us:
            raise usage(f"{found['time']} {found['unit']}: whole microseconds, above 0")
        slo.objective_us = int(objective_us)
    return slo


def said(ratio_ppm: int, objective_us: int | None, window_s: int) -> str:
    """The sentence for an objective; `parsed` reads it."""
    within = "" if objective_us is None else f" within {time_text(objective_us)}"
    return f"{percent(ratio_ppm)}{within} over {span_text(window_s)}"


def percent(ratio_ppm: int) -> str:
    """ "99.9 %" """
    return f"{(Decimal(ratio_ppm) / 10_000).normalize():f} %"


def time_text(microseconds: int) -> str:
    """The largest unit in which it is a whole number: "50 ms"."""
    for unit in ("s", "ms"):
        if microseconds % TIMES_US[unit] == 0:
            return f"{microseconds // TIMES_US[unit]} {unit}"
    return f"{microseconds} us"


def span_text(seconds: int) -> str:
    """The largest unit in which it is a whole number: "30 days", "6 hours"."""
    for unit, word in (("d", "day"), ("h", "hour"), ("m", "minute")):
        if seconds % SPANS_S[unit] == 0:
            count = seconds // SPANS_S[unit]
            return f"{count} {word}{'' if count == 1 else 's'}"
    return f"{seconds} seconds"


def short_span(seconds: int) -> str:
    """As Prometheus writes it: "30d", "6h", "5h36m"."""
    said, rest = "", seconds
    for unit in ("d", "h", "m"):
        count, rest = divmod(rest, SPANS_S[unit])
        said += f"{count}{unit}" if count else ""
    return said + (f"{rest}s" if rest or not said else "")

"""What identity and permission cost a request: the guard's part of every call, by itself, with its parts.

`python -m bench.access [--calls 200000]`; the last line is JSON, nanoseconds a call, the best of five rounds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable
from types import SimpleNamespace

from services.common.access.callers import calling
from services.common.access.guard import Guard
from services.common.access.keys import Held, Keys

ROUNDS = 5
METHOD = "/inference.GRPCInferenceService/ModelInfer"


def best_ns(work: Callable[[], object], calls: int) -> float:
    """The least time a call of `work`, the loop's own share taken off."""

    def round_of(what: Callable[[], object]) -> float:
        began = time.perf_counter_ns()
        for _ in range(calls):
            what()
        return (time.perf_counter_ns() - began) / calls

    nothing = lambda: None
    return min(round_of(work) for _ in range(ROUNDS)) - min(round_of(nothing) for _ in range(ROUNDS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=200_000)
    calls = parser.parse_args().calls
    keys = Keys()
    texts = [f"ap_{number:032d}" for number in range(1000)]
    keys.replace({f"t{n}": [Held(hashlib.sha256(text.encode()).digest(), f"k_{n}")] for n, text in enumerate(texts)})
    guard = Guard(keys, without=None, public=True)
    shown = (("user-agent", "grpc-python/1.85"), ("accept-encoding", "gzip"), ("authorization", f"Bearer {texts[500]}"))
    good = SimpleNamespace(method=METHOD, invocation_metadata=shown)
    bad = SimpleNamespace(method=METHOD, invocation_metadata=(*shown[:2], ("authorization", "Bearer ap_" + "x" * 32)))
    assert guard.check(good) is None
    assert guard.check(bad) is not None
    found = {
        "good_key_ns": best_ns(lambda: guard.check(good), calls),
        "whose_call_ns": best_ns(calling, calls),
        "first_lookup_ns": best_ns(lambda: keys.look_up(texts[7], texts[7]), calls),
        "bad_key_ns": best_ns(lambda: guard.check(bad), calls // 10),
    }
    for name, value in found.items():
        print(f"{name:16} {value:8.0f}")
    print(json.dumps({"bench": "access", **{name: round(value) for name, value in found.items()}}))


if __name__ == "__main__":
    main()

"""Checks one signature in a process of its own, for services that must not stand still while the library is loaded.

In: one line of JSON, {"bundle": base64, "digest": …, "signers": [PEM, …]}. Out: one line, {"signer": id} or {"problem": …}.
"""

from __future__ import annotations

import base64
import json
import sys

from services.common.errors import Refusal
from services.common.signing import check, signer_of


def answer(question: str) -> dict[str, str]:
    """What is to be said of one signature. Raises ValueError where the question is none."""
    asked = json.loads(question)
    signers = [signer_of(pem) for pem in asked["signers"]]
    try:
        return {"signer": check(base64.b64decode(asked["bundle"]), asked["digest"], signers)}
    except Refusal as refusal:
        return {"problem": refusal.message}


if __name__ == "__main__":
    print(json.dumps(answer(sys.stdin.readline())))

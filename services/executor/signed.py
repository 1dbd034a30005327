"""Whether an artefact that is about to be loaded has the signature that its tenant's artefacts need.

The registry has asked the same when the version was pushed. It is asked again because signers are withdrawn, and because the
executor believes nobody's word on what it loads: the digest that has just been verified is the one that must be signed.
The library takes most of a second to load, in which an executor must not stand still, and what it parses is a stranger's: it
runs in a process of its own, without credentials.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from collections.abc import Sequence

from gpu_sharing.worker.config import WorkerConfig
from gpu_sharing.worker.process import environment
from services.executor.cache import FetchFailed

MODULE = "services.common.signing"
PATIENCE_S = 60.0
MOST_REMEMBERED = 1024
Question = tuple[str, bytes, tuple[str, ...]]


class Signatures:
    """Asks, and remembers what was good: what is asked again in the same words has the same answer."""

    def __init__(self, command: Sequence[str] = (sys.executable, "-m", MODULE)) -> None:
        self._command = tuple(command)
        self._good: dict[Question, None] = {}

    async def check(self, digest: str, bundle: bytes, signers: tuple[str, ...]) -> None:
        """Raises FetchFailed where none of the signers has signed the artefact, or nobody can say."""
        question = (digest, bundle, signers)
        if not signers or question in self._good:
            return
        said = await self._ask(json.dumps(_asked(question)))
        if "signer" not in said:
            raise FetchFailed(said.get("problem") or "artefact_signature: nobody can say whether it is good")
        if len(self._good) >= MOST_REMEMBERED:
            del self._good[next(iter(self._good))]
        self._good[question] = None

    async def _ask(self, question: str) -> dict[str, str]:
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment(WorkerConfig(cores=())),
        )
        try:
            said, problems = await asyncio.wait_for(process.communicate(question.encode() + b"\n"), PATIENCE_S)
        except TimeoutError:
            raise FetchFailed(f"artefact_signature: it was not checked within {PATIENCE_S:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        try:
            return dict(json.loads(said))
        except ValueError:
            last = problems.decode("utf-8", "replace").strip().splitlines()[-1:] or ["nothing was said"]
            raise FetchFailed(f"artefact_signature: it was not checked: {last[0]}") from None


def _asked(question: Question) -> dict[str, object]:
    digest, bundle, signers = question
    return {"bundle": base64.b64encode(bundle).decode("ascii"), "digest": digest, "signers": signers}

"""Before a load an executor asks whether the artefact has the signature that its tenant's artefacts need."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from harness import house

from gpu_sharing.worker.messages import Load
from services._proto.apportion.v1 import scheduler_pb2
from services.executor.cache import ArtefactCache, FetchFailed
from services.executor.convert import wanted_from
from services.executor.core.replica import Phase
from services.executor.core.replica_events import Wanted
from services.executor.signed import Signatures
from tests.access.signing_samples import DATA, OTHER, digest_of, keys

SAYS_WHAT_IT_HAS = (
    "import json, os, sys; json.loads(sys.stdin.readline()); print(json.dumps({'problem': str(dict(os.environ))}))"
)


async def test_a_good_signature_is_asked_once_and_a_bad_one_every_time(tmp_path: Path) -> None:
    good, signatures = keys(tmp_path), Signatures()
    question = (digest_of(DATA), good.sign(), (good.signer.pem,))
    await signatures.check(*question)
    broken = Signatures(command=(sys.executable, "-c", "raise SystemExit(3)"))
    broken._good = signatures._good
    await broken.check(*question)
    for _ in range(2):
        with pytest.raises(FetchFailed, match="it was not checked"):
            await broken.check(digest_of(OTHER), *question[1:])


async def test_what_needs_no_signature_asks_nobody() -> None:
    await Signatures(command=("/nowhere",)).check(digest_of(DATA), b"", ())


async def test_a_signature_of_another_artefact_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    good, signatures = keys(tmp_path), Signatures()
    with pytest.raises(FetchFailed, match=f"is of {digest_of(OTHER)}; it must be signed by {good.signer.id}"):
        await signatures.check(digest_of(DATA), good.sign(OTHER), (good.signer.pem,))


async def test_whoever_checks_has_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPORTION_MESH_TOKEN", "hunter2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter3")
    asks = Signatures(command=(sys.executable, "-c", SAYS_WHAT_IT_HAS))
    with pytest.raises(FetchFailed, match="PATH") as caught:
        await asks.check(digest_of(DATA), b"{}", ("pem",))
    assert "hunter" not in str(caught.value)


def test_a_load_brings_its_signers_and_its_signature() -> None:
    load = scheduler_pb2.LoadReplica(replica_id=1, signers=["a", "b"], artefact_signature=b"{}")
    wanted = wanted_from(load)
    assert (wanted.signers, wanted.artefact_signature) == (("a", "b"), b"{}")


@pytest.mark.parametrize("signs", [True, False])
async def test_only_what_is_signed_comes_to_a_worker(tmp_path: Path, signs: bool) -> None:
    """What is not fails, rather than being refused for good: the scheduler tries again, and a signature may have come."""
    good = keys(tmp_path)

    async def download(tenant: str, digest: str) -> AsyncIterator[bytes]:
        yield DATA

    async with house() as built:
        cache = ArtefactCache(tmp_path / "cache", 1 << 20)
        cache.open()
        built.executor._cache, built.executor._download = cache, download
        bundle = good.sign() if signs else b""
        what: dict[str, Any] = {"signers": (good.signer.pem,), "artefact_signature": bundle}
        built.executor.handle(Wanted(1, "acme", "m", 1, digest_of(DATA), len(DATA), 0, 1000, 1, "onnx", **what))
        await built.until(lambda: built.executor.replicas.get(1).phase not in (Phase.FETCHING, Phase.LOADING))
        replica = built.executor.replicas.get(1)
        assert replica.phase is (Phase.READY if signs else Phase.FAILED)
        assert ("has no signature" in replica.message) is not signs
        assert any(isinstance(each, Load) for each in built.worker.commands) is signs

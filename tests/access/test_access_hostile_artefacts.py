"""A hundred hostile artefacts and more: all are refused by a worker's checks, none of them runs, writes or grows."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.common.errors import Reason, Refusal
from services.common.signing import check
from services.executor.cache import ArtefactCache, FetchFailed
from tests.access.signing_samples import DATA, Authority, digest_of, keys, wrong

ROOT = Path(__file__).resolve().parents[2]
MOST_GROWN_BYTES = 256 << 20
FEWEST = 100


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of all of them, in a process of their own."""
    folder = tmp_path_factory.mktemp("hostile")
    paths = [str(ROOT), str(ROOT / "tests" / "gpu_sharing"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("hostile_hundred.py")), str(folder)],
        capture_output=True,
        text=True,
        timeout=110,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    outside = [path.name for path in folder.iterdir() if path.name not in ("artefacts", "edited.pt2", "changed.pt2")]
    return {**json.loads(done.stdout.splitlines()[-1]), "outside": outside}


def test_each_of_a_hundred_and_more_is_refused(found: dict[str, Any]) -> None:
    assert found["taken"] == []
    assert len(found["refused"]) >= FEWEST
    assert len({what for what, _ in found["refused"]}) == len(found["refused"]), "each is another one"


def test_each_is_told_why_in_one_line(found: dict[str, Any]) -> None:
    for what, message in found["refused"]:
        assert message, what
        assert "Traceback" not in message
        assert len(message) < 1000, what


def test_no_code_ran_and_nothing_was_written_and_nobody_was_called(found: dict[str, Any]) -> None:
    assert not found["ran"]
    assert found["done"] == []
    assert found["outside"] == []


def test_memory_is_bounded_whatever_they_claim_to_hold(found: dict[str, Any]) -> None:
    assert found["grown_bytes"] < MOST_GROWN_BYTES


@pytest.mark.parametrize("at", [0, 1, 500, -1])
async def test_a_flipped_bit_anywhere_is_found_when_an_artefact_is_fetched_and_when_it_is_loaded_again(
    tmp_path: Path, at: int
) -> None:
    data = bytes(range(256)) * 8
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    flipped = bytearray(data)
    flipped[at] ^= 4

    def sends(content: bytes) -> Any:
        async def download() -> AsyncIterator[bytes]:
            yield content

        return download

    cache = ArtefactCache(tmp_path / "cache", 1 << 20)
    cache.open()
    with pytest.raises(FetchFailed, match="sha256"):
        await cache.fetch(1, digest, len(data), sends(bytes(flipped)))
    assert list((tmp_path / "cache").iterdir()) == []
    path = await cache.fetch(1, digest, len(data), sends(data))
    await asyncio.to_thread(path.write_bytes, bytes(flipped))
    with pytest.raises(FetchFailed, match="sha256"):
        await cache.fetch(2, digest, len(data), sends(bytes(flipped)))
    assert (await cache.fetch(3, digest, len(data), sends(data))).read_bytes() == data


def test_an_artefact_with_a_wrong_signature_is_refused_where_its_tenants_are_signed_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checks of signatures parse what strangers send, too: none of it runs, stays on the disk or is taken."""
    good, authority = keys(tmp_path, "good"), Authority()
    bundles = dict(wrong(tmp_path, good, authority))
    left = tmp_path / "left"
    left.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(left))
    ran: list[str] = []
    monkeypatch.setattr(os, "system", ran.append)
    for what, bundle in bundles.items():
        with pytest.raises(Refusal) as caught:
            check(bundle, digest_of(DATA), [good.signer, authority.signer])
        assert caught.value.reason in (Reason.SIGNATURE_MISSING, Reason.SIGNATURE_REFUSED), what
        assert len(caught.value.message) < 1000, what
    assert len(bundles) >= 30
    assert not ran
    assert list(left.iterdir()) == []
    assert check(good.sign(), digest_of(DATA), [good.signer]) == good.signer.id

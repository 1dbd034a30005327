"""Signing at a push: what is said on the command line, and what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.cli import signing
from services.cli.commands import model as model_commands
from services.cli.errors import CommandError
from services.cli.push import artefact
from services.common.signing import MOST_BUNDLE_BYTES, check
from tests.access.signing_samples import DATA, Authority, digest_of, keys


@pytest.fixture
def pushed(tmp_path: Path) -> artefact.Artefact:
    path = tmp_path / "m.onnx"
    path.write_bytes(DATA)
    return artefact.inspect(path)


def test_nothing_said_signs_nothing(pushed: artefact.Artefact) -> None:
    assert signing.signs(None, None, None, folder=False)(pushed) == b""


def test_a_key_signs_each_file_and_a_certificate_goes_with_it(pushed: artefact.Artefact, tmp_path: Path) -> None:
    good, authority = keys(tmp_path, "good"), Authority()
    bundle = signing.signs(good.private, None, None, folder=True)(pushed)
    assert check(bundle, digest_of(DATA), [good.signer]) == good.signer.id
    key, certificate = authority.issue(tmp_path, "alice")
    bundle = signing.signs(key, certificate, None, folder=False)(pushed)
    assert check(bundle, digest_of(DATA), [authority.signer]) == authority.signer.id


def test_a_signature_from_elsewhere_is_sent_as_it_is(pushed: artefact.Artefact, tmp_path: Path) -> None:
    bundle = keys(tmp_path).sign()
    file = tmp_path / "m.sig"
    file.write_bytes(bundle)
    assert signing.signs(None, None, file, folder=False)(pushed) == bundle
    file.write_bytes(b" " * (MOST_BUNDLE_BYTES + 1))
    with pytest.raises(CommandError, match="more than 16384"):
        signing.signs(None, None, file, folder=False)(pushed)


def test_what_does_not_go_together_is_said(tmp_path: Path) -> None:
    file = tmp_path / "x"
    for said, says in (
        ((file, None, file), "give one of them"),
        ((None, file, None), "needs --sign-key"),
    ):
        with pytest.raises(CommandError, match=says):
            signing.signs(*said, folder=False)
    with pytest.raises(CommandError, match="is of one file"):
        signing.signs(None, None, file, folder=True)


def test_a_key_that_cannot_sign_is_told_without_its_content(
    pushed: artefact.Artefact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked, other = keys(tmp_path, "locked", password=b"hunter2"), keys(tmp_path, "other")
    stranger = Authority().issue(tmp_path, "alice")[1]
    public = other.public
    for key, certificate in (
        (locked.private, None),
        (public, None),
        (other.private, stranger),
        (other.private, public),
    ):
        with pytest.raises(CommandError, match=f"m.onnx cannot be signed with {key}") as caught:
            signing.signed(pushed, key, certificate)
        assert not {line for line in key.read_text().splitlines() if len(line) > 40 and line in str(caught.value)}
    monkeypatch.setenv(signing.PASSWORD, "hunter2")
    bundle = signing.signed(pushed, locked.private, None)
    assert json.loads(bundle)["verificationMaterial"]["publicKey"]["hint"] == locked.signer.hint


def test_every_push_may_be_signed() -> None:
    said = model_commands.push.__annotations__
    assert {"sign_key", "sign_certificate", "signature"} <= set(said)

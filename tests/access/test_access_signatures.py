"""Signatures of artefacts: what the library makes is taken, and of what else there is nothing is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from services.common.errors import Reason, Refusal
from services.common.signing import MOST_BUNDLE_BYTES, Signer, check, sign, signer_of
from services.common.signing.__main__ import answer
from services.common.status import to_status
from tests.access.signing_samples import DATA, OTHER, Authority, changed, digest_of, keys, wrong

DIGEST = digest_of(DATA)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_an_artefact_signed_with_a_tenants_key_is_taken(tmp_path: Path, curve: ec.EllipticCurve) -> None:
    good, other = keys(tmp_path, "good", curve), keys(tmp_path, "other")
    assert check(good.sign(), DIGEST, [other.signer, good.signer]) == good.signer.id


def test_a_key_with_a_password_signs(tmp_path: Path) -> None:
    good = keys(tmp_path, password=b"hunter2")
    assert check(sign(DIGEST, good.private, password="hunter2"), DIGEST, [good.signer]) == good.signer.id
    with pytest.raises((ValueError, TypeError)):
        sign(DIGEST, good.private, password="hunter3")


def test_whoever_has_a_certificate_of_the_authority_signs(tmp_path: Path) -> None:
    authority, other = Authority(), Authority()
    key, certificate = authority.issue(tmp_path, "alice")
    bundle = sign(DIGEST, key, certificates=certificate)
    assert check(bundle, DIGEST, [other.signer, authority.signer]) == authority.signer.id


def test_what_the_librarys_own_command_signs_is_taken(tmp_path: Path) -> None:
    good, model, bundle = keys(tmp_path), tmp_path / "m.onnx", tmp_path / "m.sig"
    model.write_bytes(DATA)
    command = [sys.executable, "-m", "model_signing", "sign", "key", "--private_key", str(good.private)]
    done = subprocess.run(
        [*command, "--signature", str(bundle), str(model)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert check(bundle.read_bytes(), DIGEST, [good.signer]) == good.signer.id


def test_every_wrong_signature_is_refused_with_what_is_missing(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    good, authority = keys(tmp_path, "good"), Authority()
    signers = [good.signer, authority.signer]
    seen = set()
    for what, bundle in wrong(tmp_path, good, authority):
        with pytest.raises(Refusal) as caught:
            check(bundle, DIGEST, signers)
        refusal = caught.value
        assert refusal.reason is (Reason.SIGNATURE_REFUSED if bundle else Reason.SIGNATURE_MISSING), what
        assert refusal.field == "artefact_signature"
        assert refusal.facts == {"digest": DIGEST, "signers": f"{good.signer.id},{authority.signer.id}"}
        assert DIGEST in refusal.message
        assert good.signer.id in refusal.message
        assert len(to_status(refusal).SerializeToString()) < 8192, what
        seen.add(what)
    assert len(seen) >= 30
    assert capfd.readouterr() == ("", ""), "a bundle has something printed"


def test_a_refusal_says_by_whom_and_of_what_a_signature_is(tmp_path: Path) -> None:
    good, other = keys(tmp_path, "good"), keys(tmp_path, "other")
    with pytest.raises(Refusal, match=f"is by {other.signer.id}, which does not sign"):
        check(other.sign(), DIGEST, [good.signer])
    with pytest.raises(Refusal, match=f"is of {digest_of(OTHER)}"):
        check(good.sign(OTHER), DIGEST, [good.signer])
    with pytest.raises(Refusal, match="does not hold"):
        check(changed(good.sign(), "mediaType", to="x"), DIGEST, [good.signer])


def test_what_is_no_signer_is_refused_with_what_it_must_be(tmp_path: Path) -> None:
    good, authority = keys(tmp_path), Authority()
    weak = rsa.generate_private_key(65537, 2048).public_key()
    small = ec.generate_private_key(ec.SECP192R1()).public_key()
    _, leaf = authority.issue(tmp_path, "leaf")
    refused = {
        "": "one public key or one certificate",
        good.private.read_text(): "keep private keys where they are",
        good.public.read_text() * 2: "one public key or one certificate",
        good.public.read_text().replace("M", "!"): "no public key that can be read",
        weak.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(): "is not on one of the curves",
        small.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(): "is not on one of the curves",
        leaf.read_text(): "is a certificate of one signer",
        authority.pem.replace("MII", "AAA"): "no certificate that can be read",
        "x" * (16 << 10) + "x": "more than 16384",
    }
    for pem, says in refused.items():
        with pytest.raises(ValueError, match=says):
            signer_of(pem)


def test_a_signer_has_one_id_however_its_file_is_written(tmp_path: Path) -> None:
    good = keys(tmp_path)
    text = good.public.read_text()
    assert signer_of("a note\n" + text.replace("\n", "\r\n")) == good.signer == signer_of(text)
    assert good.signer.hint == json.loads(good.sign())["verificationMaterial"]["publicKey"]["hint"]


def test_without_the_library_the_caller_is_told_which_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = keys(tmp_path)
    bundle = good.sign()
    for name in [each for each in sys.modules if each.partition(".")[0] == "model_signing"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "model_signing", None)
    for asked in (lambda: check(bundle, DIGEST, [good.signer]), lambda: sign(DIGEST, good.private)):
        with pytest.raises(Refusal, match=r"apportion\[signing\]") as caught:
            asked()
        assert caught.value.reason is Reason.NOT_SERVING


def test_a_bundle_of_many_certificates_still_fits(tmp_path: Path) -> None:
    authority = Authority()
    key, certificate = authority.issue(tmp_path, "alice")
    certificate.write_text(certificate.read_text() + authority.pem)
    bundle = sign(DIGEST, key, certificates=certificate)
    assert len(bundle) < MOST_BUNDLE_BYTES // 2
    assert check(bundle, DIGEST, [authority.signer]) == authority.signer.id


def test_the_program_that_executors_ask_says_what_the_function_says(tmp_path: Path) -> None:
    import base64

    good = keys(tmp_path)

    def asked(bundle: bytes, signer: Signer) -> dict[str, str]:
        question = {"bundle": base64.b64encode(bundle).decode(), "digest": DIGEST, "signers": [signer.pem]}
        return answer(json.dumps(question))

    assert asked(good.sign(), good.signer) == {"signer": good.signer.id}
    assert "has no signature" in asked(b"", good.signer)["problem"]

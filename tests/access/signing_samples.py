"""Keys, certificates and signatures for tests: good ones, and every kind of wrong one that we could think of."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID

from services.common.signing import MOST_BUNDLE_BYTES, Signer, sign, signer_of

DATA = b"\x08\x07" + b"weights" * 100
OTHER = DATA + b"!"


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass(frozen=True)
class Keys:
    """A key pair on a disk. signer: what an operator would be given of it."""

    private: Path
    public: Path

    @property
    def signer(self) -> Signer:
        return signer_of(self.public.read_text())

    def sign(self, data: bytes = DATA) -> bytes:
        return sign(digest_of(data), self.private)


def keys(folder: Path, name: str = "k", curve: ec.EllipticCurve | None = None, password: bytes | None = None) -> Keys:
    made = ec.generate_private_key(curve or ec.SECP256R1())
    found = Keys(folder / f"{name}.key.pem", folder / f"{name}.pem")
    how: KeySerializationEncryption = BestAvailableEncryption(password) if password else NoEncryption()
    found.private.write_bytes(made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how))
    found.public.write_bytes(made.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return found


class Authority:
    """Gives certificates to signers."""

    def __init__(self, name: str = "signers") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = _certificate(name, self.key.public_key(), name, self.key, authority=True)

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()

    @property
    def signer(self) -> Signer:
        return signer_of(self.pem)

    def issue(self, folder: Path, name: str, *, signs: bool = True) -> tuple[Path, Path]:
        """(private key, certificate) of a signer. signs: whether the certificate says that it may."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = _certificate(name, key.public_key(), "signers", self.key, authority=False, signs=signs)
        private, certificate = folder / f"{name}.key.pem", folder / f"{name}.crt.pem"
        private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        certificate.write_bytes(made.public_bytes(Encoding.PEM))
        return private, certificate


def _certificate(
    subject: str,
    key: ec.EllipticCurvePublicKey,
    issuer: str,
    by: ec.EllipticCurvePrivateKey,
    *,
    authority: bool,
    signs: bool = True,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    usage = {"key_cert_sign": authority, "crl_sign": authority, "digital_signature": signs}
    others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(**usage, **dict.fromkeys(others, False), encipher_only=False, decipher_only=False),
            critical=True,
        )
        .sign(by, hashes.SHA256())
    )


def changed(bundle: bytes, *path: str, to: Any) -> bytes:
    """A bundle with one thing in it another. to: the thing, or a function of what it was."""
    said = json.loads(bundle)
    place = said
    for step in path[:-1]:
        place = place[int(step)] if isinstance(place, list) else place[step]
    last: Any = int(path[-1]) if isinstance(place, list) else path[-1]
    place[last] = to(place[last]) if callable(to) else to
    return json.dumps(said).encode()


def payload_changed(bundle: bytes, edit: Any) -> bytes:
    """A bundle that says something else than what was signed."""

    def edited(payload: str) -> str:
        statement = json.loads(base64.b64decode(payload))
        edit(statement)
        return base64.b64encode(json.dumps(statement).encode()).decode()

    return changed(bundle, "dsseEnvelope", "payload", to=edited)


def wrong(folder: Path, good: Keys, authority: Authority) -> Iterator[tuple[str, bytes]]:
    """Signatures of DATA that are not one by `good` or whoever `authority` vouches for, by name."""
    other, foreign = keys(folder, "other"), Authority()
    mine = good.sign()
    resource = ("predicate", "resources")
    yield "nothing", b""
    yield "a key that does not sign for the tenant", other.sign()
    yield (
        "another key that says it is the right one",
        changed(other.sign(), "verificationMaterial", "publicKey", "hint", to=good.signer.hint),
    )
    yield "a signature of other bytes", good.sign(OTHER)
    yield (
        "a signature of other bytes that says it is of these",
        payload_changed(
            good.sign(OTHER), lambda said: said[resource[0]][resource[1]][0].update(digest=digest_of(DATA)[7:])
        ),
    )
    yield "a signature of other bytes that says so consistently", payload_changed(good.sign(OTHER), _consistent)
    yield "a bit flipped in the signature", changed(mine, "dsseEnvelope", "signatures", "0", "sig", to=_flipped)
    yield "no signature in the bundle", changed(mine, "dsseEnvelope", "signatures", to=[])
    yield "an empty signature", changed(mine, "dsseEnvelope", "signatures", "0", "sig", to="")
    yield (
        "a signature of zeros",
        changed(
            mine,
            "dsseEnvelope",
            "signatures",
            "0",
            "sig",
            to=base64.b64encode(bytes.fromhex("3006020100020100")).decode(),
        ),
    )
    yield "another type of payload", changed(mine, "dsseEnvelope", "payloadType", to="text/plain")
    yield "another type of bundle", changed(mine, "mediaType", to="application/json")
    yield "a key without a name", changed(mine, "verificationMaterial", "publicKey", to={})
    yield "no key at all", changed(mine, "verificationMaterial", to={"tlogEntries": []})
    yield "a keyless signature", changed(mine, "verificationMaterial", to={"certificate": {"rawBytes": "AAAA"}})
    yield "several files", payload_changed(mine, lambda said: said[resource[0]][resource[1]].append({"name": "x"}))
    yield "no file", payload_changed(mine, lambda said: said[resource[0]].update(resources=[]))
    yield (
        "another hash",
        payload_changed(mine, lambda said: said[resource[0]][resource[1]][0].update(algorithm="blake3")),
    )
    yield "a payload that is no JSON", changed(mine, "dsseEnvelope", "payload", to="AAAA")
    yield "a payload that is not base64", changed(mine, "dsseEnvelope", "payload", to="\u0000")
    yield "a payload that is a number", changed(mine, "dsseEnvelope", "payload", to=7)
    key, certificate = foreign.issue(folder, "stranger")
    yield "a certificate of another authority", sign(digest_of(DATA), key, certificates=certificate)
    key, certificate = authority.issue(folder, "server", signs=False)
    yield "a certificate that may not sign", sign(digest_of(DATA), key, certificates=certificate)
    key, certificate = authority.issue(folder, "signer")
    theirs = sign(digest_of(DATA), key, certificates=certificate)
    yield "a chain that is empty", changed(theirs, "verificationMaterial", "x509CertificateChain", to={})
    yield (
        "a chain of rubbish",
        changed(theirs, "verificationMaterial", "x509CertificateChain", "certificates", "0", "rawBytes", to="AAAA"),
    )
    yield (
        "somebody's certificate over another's signature",
        changed(
            theirs,
            "dsseEnvelope",
            "signatures",
            "0",
            "sig",
            to=json.loads(mine)["dsseEnvelope"]["signatures"][0]["sig"],
        ),
    )
    yield "cut off", mine[: len(mine) // 2]
    yield "a list", b"[]"
    yield "nothing but brackets", b"[" * 10_000
    yield "a pickle", b"\x80\x04\x95\x0e\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94."
    yield "more than there may be", mine + b" " * MOST_BUNDLE_BYTES
    yield "not Unicode", b"\xff\xfe" + mine


def _flipped(signature: str) -> str:
    raw = bytearray(base64.b64decode(signature))
    raw[-1] ^= 1
    return base64.b64encode(bytes(raw)).decode()


def _consistent(said: dict[str, Any]) -> None:
    digits = digest_of(DATA).removeprefix("sha256:")
    said["predicate"]["resources"][0]["digest"] = digits
    said["subject"][0]["digest"]["sha256"] = hashlib.sha256(bytes.fromhex(digits)).hexdigest()

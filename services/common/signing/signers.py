"""Who signs: a public key, or an authority that gives certificates to those who do."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

MOST_SIGNERS = 16
MOST_PEM_BYTES = 16 << 10
KEY, AUTHORITY = "key:", "cert:"
CURVES = frozenset({"secp256r1", "secp384r1", "secp521r1"})


@dataclass(frozen=True, slots=True, order=True)
class Signer:
    """id: see registry.proto. pem: as it was given, without what stood around it."""

    id: str
    pem: str

    @property
    def hint(self) -> str | None:
        """What a signature says that is made with this key; None: this is an authority."""
        return self.id.removeprefix(KEY) if self.id.startswith(KEY) else None


def signer_of(pem: str) -> Signer:
    """A signer from a public key or a certificate. Raises ValueError, which says what it must be."""
    if len(pem) > MOST_PEM_BYTES:
        raise ValueError(f"has {len(pem)} characters, more than {MOST_PEM_BYTES}")
    if pem.count("-----BEGIN ") != 1:
        raise ValueError("must be one public key or one certificate, as PEM")
    if "-----BEGIN CERTIFICATE-----" in pem:
        return _authority(pem)
    if "-----BEGIN PUBLIC KEY-----" in pem:
        return _key(pem)
    raise ValueError("must be a public key or an authority's certificate, as PEM; keep private keys where they are")


def _key(pem: str) -> Signer:
    try:
        key = serialization.load_pem_public_key(pem.encode())
    except Exception as error:
        raise ValueError(f"is no public key that can be read ({type(error).__name__})") from None
    _check_curve(key)
    raw = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return Signer(KEY + hashlib.sha256(raw).hexdigest(), raw.decode())


def _authority(pem: str) -> Signer:
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
        key = certificate.public_key()
        authority = _is_authority(certificate)
    except Exception as error:
        raise ValueError(f"is no certificate that can be read ({type(error).__name__})") from None
    _check_curve(key)
    if not authority:
        raise ValueError("is a certificate of one signer; give its authority's, or the signer's public key")
    raw = certificate.public_bytes(serialization.Encoding.DER)
    kept = certificate.public_bytes(serialization.Encoding.PEM)
    return Signer(AUTHORITY + hashlib.sha256(raw).hexdigest(), kept.decode())


def _is_authority(certificate: x509.Certificate) -> bool:
    """Whether it may stand at the end of a chain: it has signed itself and says that it is an authority."""
    try:
        certificate.verify_directly_issued_by(certificate)
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, InvalidSignature, x509.ExtensionNotFound):
        return False


def _check_curve(key: object) -> None:
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in CURVES:
        raise ValueError(f"is not on one of the curves {', '.join(sorted(CURVES))}")

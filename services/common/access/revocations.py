"""Certificates that are taken back before they end: an authority's list of them (a CRL, RFC 5280), asked at every call.

gRPC's Python API has no place for a list in a handshake, so a connection by a revoked certificate opens, and every call on it is
refused. Streams that are open ask again once the list has changed, before what they send next. The list is a file, which
is read again within LOOK_S of a change; one that cannot be read, or that the authority has not signed, leaves what was known
as it was, and the log says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from services.common.errors import Reason, Refusal

log = structlog.get_logger()
LOOK_S = 1.0
PEM = "x509_pem_cert"
MOST_REMEMBERED = 4096


class Revocations:
    """What one authority has taken back. authorities: PEM file of those whose list it may be.

    generation: counts the lists that were read. Raises OSError or ValueError where the first cannot be.
    """

    def __init__(self, path: Path, authorities: Path, *, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._path, self._authorities, self._clock_s = path, authorities, clock_s
        self._serials: dict[bytes, int] = {}
        self._gone: frozenset[int] = frozenset()
        self._seen: tuple[int, int] | None = None
        self.generation = 0
        self._read()
        self._looked_s = clock_s()

    def check(self, context: Mapping[str, Iterable[bytes]]) -> None:
        """Refuses (KEY_UNKNOWN) a call whose certificate, in its authentication context, has been revoked."""
        self.look()
        for pem in context.get(PEM, ()):
            if self._serial(pem) in self._gone:
                raise Refusal(Reason.KEY_UNKNOWN, "the client's certificate: it has been revoked")

    def look(self) -> int:
        """Reads the list again where it has changed; the generation."""
        now_s = self._clock_s()
        if now_s - self._looked_s >= LOOK_S:
            self._looked_s = now_s
            try:
                if self._stamp() != self._seen:
                    self._read()
            except (OSError, ValueError) as error:
                log.warning("list of revoked certificates is not read", path=str(self._path), error=str(error))
        return self.generation

    def _read(self) -> None:
        stamp = self._stamp()
        listed = x509.load_pem_x509_crl(self._path.read_bytes())
        if not any(_signed(listed, each) for each in x509.load_pem_x509_certificates(self._authorities.read_bytes())):
            raise ValueError(f"{self._path} is not signed by an authority of {self._authorities}")
        self._gone = frozenset(each.serial_number for each in listed)
        self._seen, self.generation = stamp, self.generation + 1

    def _stamp(self) -> tuple[int, int]:
        found = self._path.stat()
        return found.st_mtime_ns, found.st_ino

    def _serial(self, pem: bytes) -> int | None:
        """The number of a certificate that the handshake has already checked."""
        known = self._serials.get(pem)
        if known is None:
            if len(self._serials) >= MOST_REMEMBERED:
                self._serials.clear()
            known = self._serials[pem] = x509.load_pem_x509_certificate(pem).serial_number
        return known


def _signed(listed: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    key = authority.public_key()
    if listed.issuer != authority.subject:
        return False
    return isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey) and (
        listed.is_signature_valid(key)
    )

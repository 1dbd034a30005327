"""A certificate authority in a folder, for development and small meshes. Everything it makes is bound to names in the SAN."""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from services.cli.errors import CommandError
from services.common.access.callers import Role
from services.common.access.certificates import server_name, uri

DAY = datetime.timedelta(days=1)
SKEW = datetime.timedelta(minutes=5)
"""Certificates are good from a little before they are made: clocks differ."""
SERVICES = ("frontend", "registry", "scheduler", "executor", "tracestore")
LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Authority:
    """The authority in a folder: ca.pem and ca.key."""

    folder: Path
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def issue(self, role: Role, name: str, *, hosts: Sequence[str] = (), days: int) -> Path:
        """Signs a certificate for NAME in this role and writes NAME.pem and NAME.key; the certificate's path.

        hosts: names and addresses that clients may reach it by, beside the mesh's own name, where it is a service.
        """
        key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
        serves = role is Role.SERVICE
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri(role, name))]
        if serves:
            names += [x509.DNSName(server_name(name)), *(_host(host) for host in hosts)]
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if serves else [])]
        signed = (
            x509.CertificateBuilder()
            .subject_name(_subject(f"{role.value} {name}"))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - SKEW)
            .not_valid_after(min(now + days * DAY, self.certificate.not_valid_after_utc))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        file = name if serves else f"{role.value}-{name}"
        _write(self.folder / f"{file}.key", _private(key), secret=True)
        path = self.folder / f"{file}.pem"
        _write(path, signed.public_bytes(serialization.Encoding.PEM))
        return path

    def revoke(self, certificate: Path) -> Path:
        """Puts a certificate of this authority on its list, crl.pem in its folder; the list's path. Raises CommandError."""
        try:
            gone = x509.load_pem_x509_certificate(certificate.read_bytes())
            gone.verify_directly_issued_by(self.certificate)
        except (OSError, ValueError, TypeError, InvalidSignature) as error:
            problem = str(error) or type(error).__name__
            raise CommandError(
                f"{certificate} is no certificate of the authority in {self.folder}: {problem}"
            ) from None
        path, now = self.folder / "crl.pem", datetime.datetime.now(datetime.UTC)
        held = list(x509.load_pem_x509_crl(path.read_bytes())) if path.exists() else []
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.certificate.subject).last_update(now)
        for each in held:
            builder = builder.add_revoked_certificate(each)
        if gone.serial_number not in {each.serial_number for each in held}:
            more = x509.RevokedCertificateBuilder().serial_number(gone.serial_number).revocation_date(now)
            builder = builder.add_revoked_certificate(more.build())
        listed = builder.next_update(self.certificate.not_valid_after_utc).sign(self.key, hashes.SHA256())
        _write(path, listed.public_bytes(serialization.Encoding.PEM))
        return path


def begin(folder: Path, *, days: int) -> Authority:
    """Makes an authority in a folder. Raises CommandError where there is one."""
    if (folder / "ca.key").exists():
        raise CommandError(f"{folder} has an authority already; issue certificates with `apportion certs issue`")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    subject = _subject("Apportion development authority")
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + days * DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(folder / "ca.key", _private(key), secret=True)
    _write(folder / "ca.pem", signed.public_bytes(serialization.Encoding.PEM))
    return Authority(folder, signed, key)


def opened(folder: Path) -> Authority:
    """The authority in a folder. Raises CommandError where there is none."""
    try:
        certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
    except (OSError, ValueError) as error:
        raise CommandError(f"{folder} holds no authority ({error}); make one with `apportion certs init`") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CommandError(f"{folder}/ca.key is no key of this command's making")
    return Authority(folder, certificate, key)


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, content: bytes, *, secret: bool = False) -> None:
    """Whole or not at all, and never readable by others for a moment where it is secret."""
    partial = path.with_suffix(f"{path.suffix}.partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if secret else 0o644), "wb") as file:
        file.write(content)
    partial.replace(path)

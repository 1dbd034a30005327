"""Making and checking signatures of one file, whose sha256 is known.

The library hashes a model that lies on a disk. Here the hash has been checked already, when the bytes came in or were read
for a load, so the library is given it and reads no file: a check takes about a millisecond, whatever the artefact's size.

A bundle is whatever its sender wanted it to be. It is bounded before it is parsed, and nothing that the library raises over
it is anything but "this is no signature". The library keeps a print for old bundles, which are not taken: they name no key.
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from services.common.errors import Reason, Refusal
from services.common.signing.signers import Signer

MOST_BUNDLE_BYTES = 16 << 10
FIELD = "artefact_signature"
MISSING_EXTRA = "signatures cannot be checked here: model-signing is not installed (pip install 'apportion[signing]')"


def check(bundle: bytes, digest: str, signers: Sequence[Signer]) -> str:
    """The id of the signer whose signature of an artefact this is.

    Raises Refusal: SIGNATURE_MISSING where there is none, SIGNATURE_REFUSED where it is not good, NOT_SERVING where the
    library is not installed. Each names the digest and the signers that would do.
    """
    if not bundle:
        raise _refusal(Reason.SIGNATURE_MISSING, f"{digest} has no signature", digest, signers)
    try:
        said = _read(bundle)
        named = _named(said)
        chosen = [one for one in signers if one.hint == named]
        if not chosen:
            what = f"key:{named}" if named else "a certificate"
            raise ValueError(f"is by {what}, which does not sign for this tenant")
        signed = _signed_digest(said)
        if signed != digest:
            raise ValueError(f"is of {signed}")
    except ValueError as error:
        raise _refusal(Reason.SIGNATURE_REFUSED, f"the signature of {digest} {error}", digest, signers) from None
    for one in chosen:
        if _verifies(bundle, digest, one):
            return one.id
    by = " or ".join(one.id for one in chosen)
    problem = f"the signature of {digest} does not hold: it was not made by {by} over these bytes"
    raise _refusal(Reason.SIGNATURE_REFUSED, problem, digest, signers)


def sign(digest: str, key: Path, *, certificates: Path | None = None, password: str | None = None) -> bytes:
    """A bundle over an artefact.

    key: a private key on one of the curves, as PEM. certificates: the signer's, then those between it and its authority, as
    PEM. Raises ValueError where they cannot be used, OSError where they cannot be read, Refusal (NOT_SERVING) without the
    library.
    """
    library = _library()
    with tempfile.TemporaryDirectory(prefix="apportion-sign-") as folder:
        config = library.signing.Config().set_hashing_config(_known(library, digest))
        if certificates is None:
            # The library hands the password on as it is, and what it hands it to takes bytes.
            config.use_elliptic_key_signer(private_key=key, password=password.encode() if password else None)
        else:
            chain = Path(folder, "chain.pem")
            first, rest = _split(certificates.read_text(encoding="utf-8"))
            # An empty chain cannot be read: the signer's own certificate is one that adds nothing.
            chain.write_text(rest or first, encoding="utf-8")
            config.use_certificate_signer(private_key=key, signing_certificate=certificates, certificate_chain=[chain])
        target = Path(folder, "bundle.json")
        config.sign(PurePosixPath("artefact"), target)
        return target.read_bytes()


def _refusal(reason: Reason, problem: str, digest: str, signers: Sequence[Signer]) -> Refusal:
    ids = [one.id for one in signers]
    message = f"{FIELD}: {problem}; it must be signed by {' or '.join(ids)}"
    return Refusal(reason, message, field=FIELD, facts={"digest": digest, "signers": ",".join(ids)})


def _read(bundle: bytes) -> dict[str, Any]:
    if len(bundle) > MOST_BUNDLE_BYTES:
        raise ValueError(f"has {len(bundle)} bytes, more than {MOST_BUNDLE_BYTES}")
    try:
        said = json.loads(bundle)
    except (ValueError, RecursionError):
        raise ValueError("is no bundle of Sigstore's (JSON)") from None
    if not isinstance(said, dict) or not isinstance(said.get("verificationMaterial"), dict):
        raise ValueError("is no bundle of Sigstore's: it has no verificationMaterial")
    return said


def _named(said: dict[str, Any]) -> str | None:
    """The key that a bundle says it is by; None: a chain of certificates says it."""
    material = said["verificationMaterial"]
    if isinstance(material.get("publicKey"), dict) and isinstance(material["publicKey"].get("hint"), str):
        return str(material["publicKey"]["hint"])[:128]
    if isinstance(material.get("x509CertificateChain"), dict):
        return None
    raise ValueError("names no key and no chain of certificates; Sigstore's keyless signatures are not taken here")


def _signed_digest(said: dict[str, Any]) -> str:
    """What a bundle says it is of. Nothing rests on it but words: the library checks what was signed."""
    try:
        statement = json.loads(base64.b64decode(said["dsseEnvelope"]["payload"]))
        (resource,) = statement["predicate"]["resources"]
        return f"{resource['algorithm']}:{resource['digest']}"[:128]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError("is not of one file") from None


def _verifies(bundle: bytes, digest: str, signer: Signer) -> bool:
    library = _library()
    with tempfile.TemporaryDirectory(prefix="apportion-check-") as folder:
        signature, trusted = Path(folder, "bundle.json"), Path(folder, "signer.pem")
        signature.write_bytes(bundle)
        trusted.write_text(signer.pem, encoding="ascii")
        config = library.verifying.Config().set_hashing_config(_known(library, digest))
        try:
            if signer.hint is not None:
                config.use_elliptic_key_verifier(public_key=trusted)
            else:
                config.use_certificate_verifier(certificate_chain=[trusted])
            config.verify(PurePosixPath("artefact"), signature)
        except Exception:
            # Of whatever kind: the bytes are somebody else's, and what they broke was looking for a signature in them.
            return False
        return True


def _known(library: Any, digest: str) -> Any:
    """How to hash a file whose hash is known."""
    digits = digest.removeprefix("sha256:")

    class Known(library.hashing.Config):
        def hash(self, model_path: Any, *, files_to_hash: Any = None) -> Any:  # noqa: ARG002
            manifest = library.manifest
            value = manifest.hashing.Digest("sha256", bytes.fromhex(digits))
            # A file alone is "." of itself, as the library's own command names it.
            item = manifest.FileManifestItem(path=PurePosixPath("."), digest=value)
            layout = {"method": "files", "hash_type": "sha256", "allow_symlinks": False}
            return manifest.Manifest("artefact", [item], manifest.SerializationType.from_args(layout))

    return Known()


def _split(pems: str) -> tuple[str, str]:
    """(the first certificate, the others)."""
    mark = "-----END CERTIFICATE-----"
    first, found, rest = pems.partition(mark)
    if not found:
        raise ValueError("holds no certificate")
    return first + found + "\n", rest.strip() and rest


def _library() -> Any:
    try:
        import model_signing
        import model_signing.hashing
        import model_signing.manifest
        import model_signing.signing
        import model_signing.verifying
    except ImportError as error:
        raise Refusal(Reason.NOT_SERVING, f"{MISSING_EXTRA}: {error}") from error
    return model_signing

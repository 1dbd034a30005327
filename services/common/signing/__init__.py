"""Signatures of artefacts: who may make them, making one, checking one. The bundles are those of `model-signing`.

What parses keys is here and always there; what makes and checks bundles needs the extra `signing`, and imports it when it is
first asked, since it takes most of a second.
"""

from __future__ import annotations

from services.common.signing.bundles import MOST_BUNDLE_BYTES, check, sign
from services.common.signing.signers import MOST_SIGNERS, Signer, signer_of

__all__ = ["MOST_BUNDLE_BYTES", "MOST_SIGNERS", "Signer", "check", "sign", "signer_of"]

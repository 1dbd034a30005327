"""An issuer of JSON Web Tokens, good and bad ones."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

ISSUER, AUDIENCE = "https://issuer.test", "apportion"


class Issuer:
    """Signs with ES256. kid: the name of its key."""

    def __init__(self, kid: str = "one") -> None:
        self.kid, self.key = kid, ec.generate_private_key(ec.SECP256R1())

    def jwk(self) -> dict[str, Any]:
        """Its public key."""
        made = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self.key.public_key()))
        return {**made, "kid": self.kid, "use": "sig", "alg": "ES256"}

    def token(self, **claims: Any) -> str:
        """A token that is good for an hour, longer than a run of tests takes; None for a claim leaves it out."""
        now = int(time.time())
        given = {"iss": ISSUER, "aud": AUDIENCE, "sub": "someone", "exp": now + 3600, "iat": now, **claims}
        kept = {name: value for name, value in given.items() if value is not None}
        return jwt.encode(kept, self.key, algorithm="ES256", headers={"kid": self.kid})


def written(path: Path, *issuers: Issuer) -> Path:
    """A JWKS file with these issuers' keys."""
    path.write_text(json.dumps({"keys": [issuer.jwk() for issuer in issuers]}))
    return path


def settings(jwks: Path) -> dict[str, str]:
    """What makes a service take their tokens."""
    return {"jwt_jwks": str(jwks), "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, "jwt_algorithm": "ES256"}

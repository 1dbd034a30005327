"""What a JSON Web Token must be; apart from what checks it, since few processes take any and the libraries take time to load."""

from __future__ import annotations

from dataclasses import dataclass

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What a token must be. jwks: a path or an https URL. algorithm: one of ALGORITHMS. Raises ValueError where it is not."""

    jwks: str
    issuer: str
    audience: str
    algorithm: str = "RS256"
    tenant_claim: str = "tenant"
    role_claim: str = "role"
    leeway_s: float = 30.0

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"jwt_algorithm: {self.algorithm!r} is none of {', '.join(ALGORITHMS)}")
        for name, value in (("jwt_issuer", self.issuer), ("jwt_audience", self.audience)):
            if not value:
                raise ValueError(f"{name}: must be set where jwt_jwks is")
        if self.jwks.startswith("http://"):
            raise ValueError("jwt_jwks: must be a file or an https URL: whoever can change the keys makes tokens")


def is_token(text: str) -> bool:
    """Whether this is written like a token: three parts with points between them. No API key has one."""
    return text.count(".") == 2

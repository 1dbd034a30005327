"""Page tokens: where the next page begins, opaque to the caller; and grouping into messages of bounded size."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

from services.common.errors import invalid
from services.registry.core.names import NAME

MOST_PAGE = 1000
# Below the 4 MiB that a gRPC client receives by default.
MOST_PAGE_BYTES = 2 << 20


def page_size(asked: int) -> int:
    """Items a page: 1000 where 0, and never more."""
    return min(asked or MOST_PAGE, MOST_PAGE)


def token(scope: str, last: Sequence[str]) -> str:
    """The token of the page after the item with the key `last`, in the listing `scope`."""
    return base64.urlsafe_b64encode("/".join((scope, *last)).encode()).decode().rstrip("=")


def after(scope: str, text: str, parts: int) -> tuple[str, ...] | None:
    """The key, of `parts` names, that a page begins after; None for an empty token (the first page).

    Raises a Refusal for a token that this listing did not give.
    """
    if not text:
        return None
    try:
        plain = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        plain = ""
    given, *last = plain.split("/")
    if given != scope or len(last) != parts or any(NAME.fullmatch(name) is None for name in last):
        raise invalid("page_token", "is not one that this listing gave")
    return tuple(last)

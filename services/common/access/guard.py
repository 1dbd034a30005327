"""Who may call what: asked of every call on every server, and denied unless something says otherwise.

Which permission a method needs is known when the server starts; whose credential it is, from the second call on, is a look
into a dict. Both together are well below a microsecond (bench/access.py).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import grpc
import structlog
from prometheus_client import Counter

from services._proto.apportion.v1 import common_pb2
from services.common.access import permissions
from services.common.access.callers import CALLED, CALLING, PUBLIC, Caller, missing
from services.common.access.certificates import caller_at
from services.common.access.keys import Keys, bearer
from services.common.access.revocations import Revocations
from services.common.access.token_rules import is_token
from services.common.errors import Reason, Refusal
from services.common.status import CODES, DETAILS_KEY, to_status

log = structlog.get_logger()
REFUSED = Counter("apportion_access_refused", "Calls that were refused before their method saw them.", ["reason"])
TELL_S = 10.0
"""A flood of bad keys is told of this often, not each time."""
MOST_ANSWERS = 256


class TokenLooker(Protocol):
    """Knows whose a JSON Web Token is: tokens.Tokens."""

    def caller(self, token: str) -> Caller:
        """Raises Refusal."""


class Guard:
    """Decides on every call of one server.

    without: who callers are that show no credential at all; None: nobody.
    certificates: whether callers show certificates, which speak for those who show nothing else. revoked: those that do no more.
    more: permissions of methods that no contract names.
    """

    def __init__(
        self,
        keys: Keys,
        *,
        without: Caller | None,
        public: bool = False,
        tokens: TokenLooker | None = None,
        certificates: bool = False,
        revoked: Revocations | None = None,
        more: Mapping[str, int] | None = None,
    ) -> None:
        self._keys, self._tokens, self._public, self.certificates = keys, tokens, public, certificates
        self.revoked = revoked
        self._without: Caller | Refusal | None = without
        if without is None and not certificates:
            self._without = missing(public)
        self._needed = {method: 1 << needed for method, needed in {**permissions.named(), **(more or {})}.items()}
        self._answers: dict[tuple[str, str], Any] = {}
        self._untold, self._told_s = 0, float("-inf")

    def check(self, details: Any) -> Any:
        """None: the call may go on to its method, and `calling()` says whose it is; else the handler that turns it away."""
        needed = self._needed.get(details.method)
        caller = self.identify(details.invocation_metadata)
        # None: its certificate will tell, once there is a context to ask.
        CALLING.set(missing(self._public) if caller is None else caller)
        if not self._public:
            CALLED.set(details.method)
        if needed is None or needed == PUBLIC or caller is None:
            return None
        if isinstance(caller, Refusal):
            return self.turned_away(caller)
        return None if caller.rights & needed else self.turned_away(self._denied(details.method, caller))

    def identify(self, metadata: Iterable[tuple[str, Any]]) -> Caller | Refusal | None:
        """Whose call it is by its metadata: `authorization: Bearer CREDENTIAL`, else `apportion-key: KEY`."""
        given = key = None
        for name, value in metadata:
            if name == "authorization":
                given = value
            elif name == "apportion-key":
                key = value
        shown = given if given is not None else key
        if shown is None:
            return self._without
        found = self._keys.cached(shown)
        if found is not None:
            return found
        try:
            return self._looked_up(given, key)
        except Refusal as refusal:
            return refusal.with_traceback(None)

    def shows(self, metadata: Iterable[tuple[str, Any]]) -> bool:
        """Whether a call shows a credential in its metadata."""
        return any(name in ("authorization", "apportion-key") for name, _ in metadata)

    def has(self, method: str) -> bool:
        """Whether somebody may call this method."""
        return method in self._needed

    def confirm(self, context: Any, method: str) -> None:
        """Takes the caller's certificate into account. Raises Refusal where it is needed and missing, or disagrees."""
        shown = context.auth_context()
        if self.revoked is not None:
            self.revoked.check(shown)
        certified, found = caller_at(shown), CALLING.get()
        if certified is None:
            return self._public_only(found, method)
        if isinstance(found, Caller):
            if certified.tenant not in ("", found.tenant):
                raise Refusal(Reason.KEY_UNKNOWN, "authorization: the key is not of the certificate's tenant")
            return None
        if found.reason is not Reason.KEY_MISSING:
            return self._public_only(found, method)
        if certified.tenant and not self._keys.has(certified.tenant):
            raise self._keys.unknown()
        CALLING.set(certified)
        if not certified.rights & self._needed.get(method, 0):
            raise self._denied(method, certified)
        return None

    def turned_away(self, refusal: Refusal) -> Any:
        """A handler that answers any call with the refusal, without reading what it carries."""
        REFUSED.labels(str(refusal.reason)).inc()
        self._tell(refusal)
        place = (str(refusal.reason), refusal.message)
        handler = self._answers.get(place)
        if handler is None:
            if len(self._answers) >= MOST_ANSWERS:
                self._answers.clear()
            handler = self._answers[place] = answering(refusal)
        return handler

    def denied_to_all(self, method: str) -> Refusal:
        """The refusal of a method that no contract gives to anybody."""
        return Refusal(Reason.PERMISSION_DENIED, f"{method}: no contract says who may call it")

    def _looked_up(self, authorization: Any, key: Any) -> Caller:
        given = authorization if authorization is not None else key
        if not isinstance(given, str):
            raise Refusal(Reason.KEY_UNKNOWN, "authorization: is no text")
        text = bearer(given) if authorization is not None else given
        if self._tokens is not None and authorization is not None and is_token(text):
            return self._tokens.caller(text)
        return self._keys.look_up(given, text)

    def _public_only(self, found: Caller | Refusal, method: str) -> None:
        if isinstance(found, Refusal) and self._needed.get(method) != PUBLIC:
            raise Refusal(found.reason, found.message, retry_after_s=found.retry_after_s)

    def _denied(self, method: str, caller: Caller) -> Refusal:
        needed = common_pb2.Permission.Name(self._needed.get(method, 1).bit_length() - 1)
        return Refusal(
            Reason.PERMISSION_DENIED,
            f"{method.rpartition('/')[2]}: needs {needed}, which the role {caller.role} has not",
            facts={"permission": needed, "role": caller.role},
        )

    def _tell(self, refusal: Refusal) -> None:
        self._untold += 1
        now_s = time.monotonic()
        if now_s - self._told_s >= TELL_S:
            log.info("calls refused", last_reason=str(refusal.reason), calls=self._untold)
            self._untold, self._told_s = 0, now_s


def answering(refusal: Refusal) -> Any:
    """A handler that answers with a refusal whatever the call's kind."""
    code, message = CODES[refusal.reason], refusal.message
    trailing = ((DETAILS_KEY, to_status(refusal).SerializeToString()),)

    async def turn_away(_requests: Any, context: Any) -> None:
        # Not gRPC's `abort`: see `status.refuse`.
        context.set_code(code)
        context.set_details(message)
        context.set_trailing_metadata(trailing)

    # Of the kind that reads nothing by itself, and sends nothing but the status: nobody waits for the payload of a call that is
    # refused.
    return grpc.stream_stream_rpc_method_handler(turn_away)

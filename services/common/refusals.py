"""What every call of a server passes: the guard before its method, and statuses for what the method raises."""

from __future__ import annotations

import inspect
from contextlib import aclosing
from typing import Any

import grpc
import structlog

from services.common.access.guard import Guard, answering
from services.common.errors import Reason, Refusal
from services.common.status import refuse

log = structlog.get_logger()


class Refusals(grpc.aio.ServerInterceptor):
    """Lets a call reach its method where the guard does, then turns a Refusal that the method raises into its gRPC status, and
    anything else into INTERNAL, logged with its traceback. One interceptor for both: each is a step of every request."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._wrapped: dict[str, tuple[Any, Any]] = {}

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        turned_away = self._guard.check(details)
        if turned_away is not None:
            return turned_away
        handler = await continuation(details)
        if handler is None:
            return None
        # A service's handlers live as long as it does, and only methods that exist get here: wrapped once, not every call.
        known = self._wrapped.get(details.method)
        if known is None or known[0] is not handler:
            known = self._wrapped[details.method] = (handler, self._wrap(handler, details.method))
        return known[1]

    def _wrap(self, handler: Any, method: str) -> Any:
        if not self._guard.has(method):
            return answering(self._guard.denied_to_all(method))
        return self._streaming(handler, method) if handler.response_streaming else self._single(handler, method)

    def _single(self, handler: Any, method: str) -> Any:
        guard, inner = self._guard, handler.stream_unary if handler.request_streaming else handler.unary_unary

        async def single(request: Any, context: Any) -> Any:
            try:
                if guard.certificates:
                    guard.confirm(context, method)
                return await inner(request, context)
            except Exception as error:
                refused = _alone(error)
            # A method's own abort stays with gRPC as long as the call, in a circle with these frames: without the request.
            del request
            return await _refuse(context, refused, method)

        make = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )
        return make(single, handler.request_deserializer, handler.response_serializer)

    def _streaming(self, handler: Any, method: str) -> Any:
        guard, inner = self._guard, handler.stream_stream if handler.request_streaming else handler.unary_stream

        async def streaming(request: Any, context: Any) -> Any:
            try:
                if guard.certificates:
                    guard.confirm(context, method)
                responses = inner(request, context)
                if inspect.isawaitable(responses):
                    # A method that writes by itself, as health's Watch does.
                    await responses
                    return
                # Closed at once when the caller goes, so that the method's own clean-up never waits for collection.
                async with aclosing(responses):
                    if guard.revoked is None:
                        async for response in responses:
                            yield response
                        return
                    seen = guard.revoked.generation
                    async for response in responses:
                        if guard.revoked.look() != seen:
                            # Whoever has lost its certificate since gets nothing more.
                            seen = guard.revoked.generation
                            guard.revoked.check(context.auth_context())
                        yield response
                return
            except Exception as error:
                refused = _alone(error)
            await _refuse(context, refused, method)

        make = (
            grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        )
        return make(streaming, handler.request_deserializer, handler.response_serializer)


def _alone(error: Exception) -> Exception:
    """An error that is expected, without the frames that it came through, and what they hold."""
    expected = isinstance(error, Refusal | grpc.aio.AbortError | grpc.aio.InternalError)
    return error.with_traceback(None) if expected else error


async def _refuse(context: Any, error: Exception, method: str) -> bytes:
    # gRPC's own error: the call was over while it was to be ended, since its caller has left.
    if isinstance(error, grpc.aio.AbortError | grpc.aio.InternalError):
        raise error
    if not isinstance(error, Refusal):
        log.error("unexpected error", method=method, exc_info=error)
        error = Refusal(Reason.INTERNAL, f"{method}: an unexpected error; the service's log has it")
    return await refuse(context, error)

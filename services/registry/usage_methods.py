"""RegistryService's methods about use and prices: decode, ask, encode."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from services._proto.apportion.v1 import common_pb2
from services._proto.apportion.v1 import registry_pb2 as pb
from services.common.access.callers import calling
from services.common.errors import invalid
from services.registry.core import names, pages
from services.registry.core.prices import MOST_PRICE_NANOS, Price
from services.registry.core.rules import within
from services.registry.core.usage import Counts, Part
from services.registry.store import found
from services.registry.usage import HOUR_US, Row, Told, Usage
from services.registry.wire import MOST_KIND_CHARACTERS, timestamp

MOST_BOOKS = 1000
MOST_NAME_CHARACTERS = 255
MOST_UNITS = 1 << 20
MOST_COUNT = (1 << 63) - 1
HOUR_S = 3600
_PLACE = (str, str, int, str, int)


class UsageMethods:
    """Use and prices."""

    usage: Usage

    async def RecordUsage(self, request: pb.RecordUsageRequest, context: Any) -> pb.RecordUsageResponse:  # noqa: ARG002
        """See registry.proto."""
        within("books", len(request.books), 0, MOST_BOOKS)
        await self.usage.record([told_of(each) for each in request.books])
        return pb.RecordUsageResponse()

    async def GetUsage(self, request: pb.GetUsageRequest, context: Any) -> pb.GetUsageResponse:  # noqa: ARG002
        """See registry.proto."""
        tenant = whose(request.tenant)
        model = names.name("model", request.model) if request.model else None
        hours = (_hour(request, "since"), _hour(request, "until"))
        most = pages.page_size(request.page_size)
        rows = await self.usage.rows(tenant, model, hours, after(request.page_token), most + 1)
        token = page_token(rows[most - 1]) if len(rows) > most else ""
        return pb.GetUsageResponse(rows=[row_message(each) for each in rows[:most]], next_page_token=token)

    async def SetPrice(self, request: pb.SetPriceRequest, context: Any) -> pb.SetPriceResponse:  # noqa: ARG002
        """See registry.proto."""
        kind = _text("device_kind", request.device_kind, MOST_KIND_CHARACTERS)
        nanos = within("price_nanos", request.price_nanos, 0, MOST_PRICE_NANOS)
        return pb.SetPriceResponse(price=price_message(await self.usage.set_price(kind, nanos)))

    async def ListPrices(self, request: pb.ListPricesRequest, context: Any) -> pb.ListPricesResponse:  # noqa: ARG002
        """See registry.proto."""
        return pb.ListPricesResponse(prices=[price_message(each) for each in await self.usage.prices()])


def whose(tenant: str) -> str | None:
    """Whose rows are asked for; None: everybody's. Raises Refusal: TENANT_NOT_FOUND for every tenant but the caller's own."""
    if not tenant:
        return calling().tenant or None
    names.name("tenant", tenant)
    return tenant if calling().sees(tenant) else found(None, tenant).name


def told_of(book: pb.UsageBook) -> Told:
    """What was told of one book, checked."""
    parts: dict[Part, Counts] = {}
    for each in book.models:
        # A worker's time that nobody is known to have used has no tenant and no model.
        name = names.name("books.models.name", each.name) if each.name else ""
        parts[Part(name, within("books.models.life", each.life, 0, MOST_COUNT))] = counts_of(each.counts)
    return Told(
        _text("books.executor_id", book.executor_id, MOST_NAME_CHARACTERS),
        _text("books.book", book.book, MOST_NAME_CHARACTERS),
        names.name("books.tenant", book.tenant) if book.tenant else "",
        _text("books.device_kind", book.device_kind, MOST_KIND_CHARACTERS),
        within("books.device_compute_units", book.device_compute_units or 1, 1, MOST_UNITS),
        counts_of(book.total) if book.HasField("total") else None,
        parts,
    )


def counts_of(message: pb.UsageCounts) -> Counts:
    """Counts, as far as a signed 64-bit column holds them."""
    return Counts(*(within(f"books.{name}", getattr(message, name), 0, MOST_COUNT) for name in Counts._fields))


def row_message(row: Row) -> pb.UsageRow:
    """A row with what it costs."""
    return pb.UsageRow(
        key=common_pb2.ModelKey(tenant=row.tenant, name=row.model),
        hour=timestamp(row.hour * HOUR_US),
        device_kind=row.device_kind,
        device_compute_units=row.device_units,
        counts=pb.UsageCounts(**row.counts._asdict()),
        whole_device_ns=row.whole_device_ns,
        price_nanos=row.price,
        cost_nanos=row.cost_nanos,
    )


def price_message(price: Price) -> pb.Price:
    """A price."""
    since = timestamp(price.hour * HOUR_US)
    return pb.Price(device_kind=price.device_kind, since=since, price_nanos=price.price_nanos)


def page_token(row: Row) -> str:
    """The token of the page after a row."""
    return base64.urlsafe_b64encode(json.dumps(row.place).encode()).decode().rstrip("=")


def after(token: str) -> Sequence[Any] | None:
    """Where a page begins; None: at the beginning. A Refusal for a token that this listing did not give."""
    if not token:
        return None
    try:
        place = json.loads(base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, UnicodeDecodeError, ValueError):
        place = None
    known = isinstance(place, list) and len(place) == len(_PLACE)
    if not known or any(type(each) is not kind for each, kind in zip(place, _PLACE, strict=True)):
        raise invalid("page_token", "is not one that this listing gave")
    within("page_token", place[2], 0, 1 << 31)
    within("page_token", place[4], 0, 1 << 31)
    return list(place)


def _hour(request: pb.GetUsageRequest, field: str) -> int | None:
    """The first hour that begins at or after a moment."""
    if not request.HasField(field):  # type: ignore[arg-type]
        return None
    moment: Timestamp = getattr(request, field)
    return within(field, -(-moment.seconds // HOUR_S), -(1 << 31), (1 << 31) - 1)


def _text(field: str, text: str, most: int) -> str:
    if len(text) > most or "\0" in text:
        raise invalid(field, f"must be at most {most} characters")
    return text

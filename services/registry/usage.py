"""Who used how much, by the hour, and what it costs: the transactions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Table, delete, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.core.prices import Price, Prices
from services.registry.core.usage import NOTHING, Book, Counts, Part, taken
from services.registry.store import Store, Writing
from services.registry.tables import prices, usage_books, usage_hours, usage_models

HOUR_US = 3_600_000_000
COUNTS = Counts._fields
DAY_US = 24 * HOUR_US


@dataclass(frozen=True, slots=True)
class Told:
    """What was counted under one name at one executor for one tenant. total None: the models are all there is."""

    executor_id: str
    book: str
    tenant: str
    device_kind: str
    device_units: int
    total: Counts | None
    parts: Mapping[Part, Counts]

    @property
    def place(self) -> tuple[str, str, str]:
        """The key of its book."""
        return self.executor_id, self.book, self.tenant


@dataclass(frozen=True, slots=True)
class Row:
    """What a model used in an hour on one kind of device. price: billionths a second of a whole device; None: there was none."""

    tenant: str
    model: str
    hour: int
    device_kind: str
    device_units: int
    counts: Counts
    price: int | None

    @property
    def whole_device_ns(self) -> int:
        """Time of whole devices."""
        return self.counts.compute_unit_ns // self.device_units

    @property
    def cost_nanos(self) -> int | None:
        """What it costs, in billionths, rounded down."""
        return None if self.price is None else self.whole_device_ns * self.price // 1_000_000_000

    @property
    def place(self) -> tuple[str, str, int, str, int]:
        """What rows are in the order of."""
        return self.tenant, self.model, self.hour, self.device_kind, self.device_units


class Usage:
    """Usage and prices in the registry's database."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def record(self, told: Sequence[Told]) -> None:
        """Takes in what was told, all of it or nothing. Telling it again changes nothing."""
        if told:
            await self._store.write(lambda writing: self._record(writing, told))

    async def rows(
        self,
        tenant: str | None,
        model: str | None,
        hours: tuple[int | None, int | None],
        after: Sequence[Any] | None,
        most: int,
    ) -> list[Row]:
        """Rows in order, at most so many, those beyond `after`. hours: from the first to before the second."""
        columns = usage_hours.c
        key = (columns.tenant, columns.model, columns.hour, columns.device_kind, columns.device_units)
        query = select(usage_hours).order_by(*key).limit(most)
        for column, value in ((columns.tenant, tenant), (columns.model, model)):
            if value is not None:
                query = query.where(column == value)
        if hours[0] is not None:
            query = query.where(columns.hour >= hours[0])
        if hours[1] is not None:
            query = query.where(columns.hour < hours[1])
        if after is not None:
            query = query.where(tuple_(*key) > tuple_(*after))

        async def operation(connection: AsyncConnection) -> list[Row]:
            known = Prices(await _prices(connection))
            found = (await connection.execute(query)).all()
            return [_row(each, known.of(each.device_kind, each.hour)) for each in found]

        return await self._store.read(operation)

    async def set_price(self, device_kind: str, price_nanos: int) -> Price:
        """What a device-second costs from the current hour on."""

        async def operation(writing: Writing) -> Price:
            price = Price(device_kind, writing.now_us // HOUR_US, price_nanos)
            await self._put(writing.connection, prices, [price._asdict()], ("price_nanos",))
            writing.tell("", f"price of {device_kind or 'any other kind'}: {price_nanos}")
            return price

        return await self._store.write(operation)

    async def prices(self) -> list[Price]:
        """Every price that was ever set, by kind and hour."""
        return await self._store.read(_prices)

    async def forget(self, older_us: int) -> None:
        """Lets go of the names of counts under which nothing was told for so long. What was counted under them stays; whoever
        tells of one again is counted anew."""

        async def operation(writing: Writing) -> None:
            stale = select(usage_books.c.executor_id, usage_books.c.book, usage_books.c.tenant).where(
                usage_books.c.told_at_us < writing.now_us - older_us
            )
            key = tuple_(usage_models.c.executor_id, usage_models.c.book, usage_models.c.tenant)
            await writing.connection.execute(delete(usage_models).where(key.in_(stale)))
            await writing.connection.execute(
                delete(usage_books).where(usage_books.c.told_at_us < writing.now_us - older_us)
            )

        await self._store.write(operation)

    async def _record(self, writing: Writing, told: Sequence[Told]) -> None:
        connection = writing.connection
        books = await _books(connection, told)
        hours: dict[tuple[str, str, int, str, int], Counts] = {}
        changed: dict[tuple[str, str, str], Book] = {}
        gone: list[tuple[str, str, str, str, int]] = []
        for each in told:
            before = books.get(each.place, Book(NOTHING, {}))
            after, news = taken(before, each.total, each.parts)
            gone += [(*each.place, *part) for part in before.parts.keys() - after.parts.keys()]
            if after != before:
                books[each.place] = changed[each.place] = after
            for model, more in news.items():
                place = (each.tenant, model, writing.now_us // HOUR_US, each.device_kind, each.device_units)
                hours[place] = hours.get(place, NOTHING).plus(more)
        if gone:
            table = usage_models.c
            key = tuple_(table.executor_id, table.book, table.tenant, table.model, table.life)
            await connection.execute(delete(usage_models).where(key.in_(gone)))
        await self._put(connection, usage_books, _book_rows(changed, writing.now_us), (*COUNTS, "told_at_us"))
        await self._put(connection, usage_models, _part_rows(changed), COUNTS)
        names = ("tenant", "model", "hour", "device_kind", "device_units")
        rows = [{**dict(zip(names, place, strict=True)), **more._asdict()} for place, more in hours.items()]
        await self._put(connection, usage_hours, rows, COUNTS, add=True)

    async def _put(
        self,
        connection: AsyncConnection,
        table: Table,
        rows: Sequence[Mapping[str, Any]],
        columns: Iterable[str],
        *,
        add: bool = False,
    ) -> None:
        """Inserts rows; where a key is there, its columns are replaced, or added to."""
        if not rows:
            return
        insert = sqlite.insert(table) if self._store.database.is_sqlite else postgresql.insert(table)
        there = {name: (table.c[name] + insert.excluded[name] if add else insert.excluded[name]) for name in columns}
        await connection.execute(
            insert.on_conflict_do_update(index_elements=list(table.primary_key.columns), set_=there), list(rows)
        )


async def _books(connection: AsyncConnection, told: Sequence[Told]) -> dict[tuple[str, str, str], Book]:
    """What is known of the books that were told of."""
    places = sorted({each.place for each in told})
    found: dict[tuple[str, str, str], tuple[Counts, dict[Part, Counts]]] = {}
    for row in await connection.execute(select(usage_books).where(_at(usage_books, places))):
        found[row.executor_id, row.book, row.tenant] = (_counts(row), {})
    for row in await connection.execute(select(usage_models).where(_at(usage_models, places))):
        held = found.get((row.executor_id, row.book, row.tenant))
        if held is not None:
            held[1][Part(row.model, row.life)] = _counts(row)
    return {place: Book(total, parts) for place, (total, parts) in found.items()}


def _at(table: Table, places: Sequence[tuple[str, str, str]]) -> Any:
    return tuple_(table.c.executor_id, table.c.book, table.c.tenant).in_(places)


def _book_rows(books: Mapping[tuple[str, str, str], Book], now_us: int) -> list[dict[str, Any]]:
    return [
        {"executor_id": place[0], "book": place[1], "tenant": place[2], **book.total._asdict(), "told_at_us": now_us}
        for place, book in books.items()
    ]


def _part_rows(books: Mapping[tuple[str, str, str], Book]) -> list[dict[str, Any]]:
    return [
        {"executor_id": place[0], "book": place[1], "tenant": place[2], **part._asdict(), **counts._asdict()}
        for place, book in books.items()
        for part, counts in book.parts.items()
    ]


def _counts(row: Any) -> Counts:
    return Counts(*(getattr(row, name) for name in COUNTS))


def _row(row: Any, price: int | None) -> Row:
    return Row(row.tenant, row.model, row.hour, row.device_kind, row.device_units, _counts(row), price)


async def _prices(connection: AsyncConnection) -> list[Price]:
    query = select(prices).order_by(prices.c.device_kind, prices.c.hour)
    return [Price(row.device_kind, row.hour, row.price_nanos) for row in await connection.execute(query)]

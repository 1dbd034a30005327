"""The report's page: sane with ten tenants, one and none; names are text, whatever they are; nothing comes from elsewhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.cli.slo import figures, plots, text
from services.cli.slo.markup import Markup, tag
from services.cli.slo.page import page
from services.common.exponential import index_of
from services.tracestore.core.budgets import Objective
from services.tracestore.core.report import Report, report
from services.tracestore.core.rollups import Counts, Slot, Worst

NOW_S, HOUR_S, DAY_S = 1_790_000_000 // 60 * 60, 3_600, 86_400
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style><script>alert(1)</script>",
    "</title></svg><script>alert(1)</script>",
    "javascript:alert(1)",
    "\u202eevil\x1b[2J\x00'&amp;",
    "{}{0}%s${x}",
]
VOID = {"meta", "br", "line", "rect", "polyline"}


def world(
    tenants: list[str], *, model: str = "m", slo: str = "fast", cause: str = "queue"
) -> tuple[Report, list[Slot]]:
    """A report on an hour, with four weeks of counts before it."""
    slots, objectives = [], []
    for place, tenant in enumerate(tenants):
        objectives.append(Objective(tenant, model, slo, 990_000, None, 28 * DAY_S))
        objectives.append(Objective(tenant, model, f"{slo}-2", 900_000, 20_000, 7 * DAY_S))
        widths = [(NOW_S - day * DAY_S, HOUR_S, 500) for day in range(27, 0, -1)]
        widths += [(NOW_S - minute * 60, 60, 100 + 7 * (minute % 9)) for minute in range(60, 0, -1)]
        for start_s, width_s, requests in widths:
            missed = requests * (place % 3) // 100
            counts = Counts(
                outcomes={"ok": requests - missed, "late": missed},
                met=requests - missed,
                missed=missed,
                violated=missed,
                within={20_000: (requests - missed, missed)},
                latencies={index_of(4_000_000): requests - missed, index_of(90_000_000): missed},
                kept=missed,
                kept_violated=missed,
                causes={cause: missed} if missed else {},
                worst=[Worst(90_000, f"{place:032x}", cause)] if missed else [],
            )
            slots.append(Slot(tenant, model, start_s, width_s, counts))
    return report(slots, objectives, None, NOW_S - HOUR_S, NOW_S), slots


def written(made: tuple[Report, list[Slot]], trace_url: str | None = None) -> str:
    windows: dict[tuple[str, str], list[Slot]] = {}
    for slot in made[1]:
        windows.setdefault((slot.tenant, slot.model), []).append(slot)
    return page(made[0], dict(windows), trace_url)


class Reader(HTMLParser):
    """Reads a page as strictly as it can: what is opened is closed, in order."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.feed(source)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._take(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._take(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> without a beginning"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def _take(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]


ALLOWED = {
    *(
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "h1",
        "h2",
        "h3",
        "p",
        "strong",
        "span",
        "a",
        "div",
        "table",
        "tr",
    ),
    *("th", "td", "section", "figure", "figcaption", "svg", "text", "rect", "line", "polyline", "code", "br"),
}


def sane(read: Reader) -> None:
    """Nothing runs, nothing is fetched, every number in a plot is one."""
    assert set(read.tags) <= ALLOWED
    for element, key, value in read.attributes:
        assert not key.startswith("on")
        assert key not in ("src", "style", "srcset", "action")
        if key == "href":
            assert element == "a"
            assert value.startswith(("#model-", "http://", "https://"))
        if key in ("x", "y", "width", "height", "x1", "x2", "y1", "y2") and element != "svg":
            assert -1 <= float(value) <= 1000, f"{element} {key}={value}"


@pytest.mark.parametrize("count", [0, 1, 10])
def test_the_page_is_sane_with_ten_tenants_with_one_and_with_none(count: int) -> None:
    tenants = [f"tenant-{n}" for n in range(count)]
    read = Reader(written(world(tenants)))
    sane(read)
    assert read.tags.count("section") == count
    assert read.tags.count("svg") == count * 4 + sum(n % 3 > 0 for n in range(count))
    said = " ".join(read.text)
    assert all(tenant in said for tenant in tenants)
    assert ("nothing to judge" in said) == (count == 0)
    assert not re.search(r"\b(nan|inf|None)\b", said)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_text_wherever_it_stands(name: str) -> None:
    made = world([name, "b", "c"], model=name, slo=name, cause=name)
    page_text = written(made)
    read = Reader(page_text)
    sane(read)
    assert "\x1b" not in page_text
    assert "\u202e" not in page_text
    assert "alert" not in name or "alert" in "".join(read.text)
    assert not any("\x1b" in line or "\u202e" in line for line in text.lines(made[0]))
    json.loads(json.dumps(figures.plain(made[0])))


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_whatever_text_is_put_into_markup_comes_out_as_text(content: str, value: str) -> None:
    made = tag("p", content, tag("b", content), title=value)
    assert isinstance(made, Markup)
    assert re.findall(r"<(\w+)", made) == ["p", "b"]
    assert made.count("<") == 4
    assert made.count('"') == 2


def test_links_go_to_the_trace_and_only_for_ids_that_are_ids() -> None:
    made = world(["a", "b", "c"])
    linked = written(made, "https://jaeger.example/trace/{}")
    assert f'href="https://jaeger.example/trace/{1:032x}"' in linked
    odd = report([Slot("a", "m", NOW_S - 60, 60, Counts(worst=[Worst(1, '"><script>', "queue")]))], [], None, 0, NOW_S)
    read = Reader(page(odd, {}, "https://jaeger.example/trace/{}"))
    sane(read)
    assert not [value for _, key, value in read.attributes if key == "href" and "jaeger" in value]


def test_the_page_forbids_itself_everything_but_its_own_style() -> None:
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', written(world(["a"])))
    assert policy is not None
    assert "default-src &#x27;none&#x27;" in policy[1]
    assert "script" not in policy[1]


def test_a_plot_of_nothing_is_none_and_one_of_a_single_request_is_drawn() -> None:
    assert plots.over_time([], 0, 60) is None
    assert plots.latencies({}, {0.5: None}, []) is None
    assert plots.causes({}) is None
    objective = Objective("a", "m", "o", 1_000_000, None, 60)
    assert plots.budget(objective, [], 60) is None
    alone = Slot("a", "m", 0, 60, Counts(outcomes={"late": 1}, missed=1, latencies={-480: 1}))
    for plot in (
        plots.over_time([alone], 0, 60),
        plots.latencies(alone.counts.latencies, {0.5: 1e-9}, [1e-6]),
        plots.budget(objective, [alone], 60),
    ):
        assert plot is not None
        sane(Reader(plot))


def test_bars_hold_every_request_of_the_range() -> None:
    made, _ = world(["a", "b", "c"])
    (_, model, _) = made.models
    bars = plots.binned(model.slots, made.start_s, made.end_s)
    assert sum(met for met, _, _ in bars) == model.counts.met
    assert sum(missed for _, missed, _ in bars) == model.counts.missed


BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("count", [0, 1, 10])
def test_a_browser_draws_the_page_without_a_word_of_complaint(count: int, tmp_path: Path) -> None:
    source, picture = tmp_path / "page.html", tmp_path / "page.png"
    source.write_text(written(world([f"tenant-{n}" for n in range(count)])), encoding="utf-8")
    done = subprocess.run(
        [
            *(
                str(BROWSER),
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--enable-logging=stderr",
                "--hide-scrollbars",
            ),
            *(f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={picture}", "--window-size=1200,4000"),
            source.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert picture.exists(), done.stderr
    assert "CONSOLE" not in done.stderr
    if kept := os.environ.get("APPORTION_TEST_PICTURES"):
        shutil.copy(picture, Path(kept) / f"slo-page-{count}.png")


if __name__ == "__main__":
    # Writes the three pages into a folder, to be looked at.
    for number in (0, 1, 10):
        (Path(sys.argv[1]) / f"{number}.html").write_text(written(world([f"tenant-{n}" for n in range(number)])))

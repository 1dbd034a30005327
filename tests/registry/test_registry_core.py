"""What the registry decides, without a database."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import Reason, Refusal
from services.registry.core import keys, names, pages, rules, versions
from services.registry.core.records import Inspection, Isolation, Model, Slo, TrafficClass, Version
from services.registry.core.versions import Outcome, Push, Wish

DIGEST = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64


def model(*numbers: int, **fields: object) -> Model:
    held = tuple(Version(number, DIGEST, 7, b"", 0) for number in numbers)
    return replace(Model("acme", "m", versions=held, last_version=max(numbers, default=0)), **fields)


def push(number: int | None = None, digest: str = DIGEST, config: bytes = b"") -> Push:
    return Push("acme", "m", number, digest, config)


def refused(reason: Reason, field: str | None = None) -> pytest.RaisesExc[Refusal]:
    return pytest.RaisesExc(Refusal, check=lambda error: error.reason is reason and field in (None, error.field))


@pytest.mark.parametrize("text", ["a", "0", "a-b", "a.b_c", "a" * 63, "1.0"])
def test_a_name_of_the_allowed_form_is_taken(text: str) -> None:
    assert names.name("name", text) == text


@pytest.mark.parametrize("text", ["", "A", "-a", "a-", ".a", "a" * 64, "a/b", "a b", "ä", "a\n", "a\0"])
def test_a_name_of_another_form_is_refused_by_field(text: str) -> None:
    with refused(Reason.FIELD_INVALID, "name"):
        names.name("name", text)


@pytest.mark.parametrize("text", ["", "sha256:", "sha256:" + "A" * 64, "md5:" + "a" * 32, DIGEST + "\n", DIGEST + "0"])
def test_a_digest_is_sha256_in_lower_case_or_refused(text: str) -> None:
    with refused(Reason.FIELD_INVALID, "digest"):
        names.digest("digest", text)


@given(st.binary(min_size=keys.CHANCE_BYTES, max_size=keys.CHANCE_BYTES))
def test_a_key_has_its_form_whatever_chance_gives(chance: bytes) -> None:
    text, key_id = keys.text_and_id(chance)
    assert re.fullmatch(r"ap_[0-9A-Za-z]{32}", text)
    assert re.fullmatch(r"k_[0-9A-Za-z]{12}", key_id)


def test_a_key_carries_at_least_160_random_bits() -> None:
    assert len(keys.ALPHABET) ** keys.TEXT_CHARACTERS >= 1 << 160
    with pytest.raises(ValueError, match="random bytes"):
        keys.text_and_id(b"short")


@given(st.integers(min_value=0, max_value=62**12 - 1))
def test_base62_keeps_every_digit(number: int) -> None:
    value = 0
    for character in keys.base62(number, 12):
        value = value * 62 + keys.ALPHABET.index(character)
    assert value == number


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        (rules.reservation, [0, 1, 64_000], [64_001, 1 << 31]),
        (rules.weight, [1, 10_000], [10_001]),
        (rules.replicas, [1, 64], [65]),
    ],
)
def test_numbers_are_held_to_their_limits(rule, good, bad) -> None:
    assert [rule(value) for value in good] == good
    for value in bad:
        with refused(Reason.FIELD_INVALID):
            rule(value)


def test_zero_stands_for_the_documented_default() -> None:
    assert (rules.weight(0), rules.replicas(0)) == (1, 1)
    assert rules.slo(None, 0, 0) == Slo(None, 990_000, 30 * 86_400)


@pytest.mark.parametrize("slo", [(0, 0, 0), (rules.MOST_OBJECTIVE_US + 1, 0, 0), (1, 1_000_001, 0), (1, 0, 1 << 40)])
def test_an_objective_outside_its_limits_is_refused(slo) -> None:
    with refused(Reason.FIELD_INVALID):
        rules.slo(*slo)


def test_an_unknown_enumeration_value_is_refused_with_the_known_ones() -> None:
    assert rules.choice("isolation", Isolation, 0) is None
    with pytest.raises(Refusal, match="SHARED \\(1\\), PROCESS \\(2\\)"):
        rules.choice("isolation", Isolation, 3)


@given(st.lists(st.integers(1, 1_000_000), min_size=1, max_size=5))
def test_a_split_is_taken_only_where_its_parts_make_a_whole(ppm: list[int]) -> None:
    splits = list(enumerate(ppm, start=1))
    if sum(ppm) == 1_000_000:
        assert rules.traffic(splits, range(1, 6)) == tuple(splits)
    else:
        with refused(Reason.FIELD_INVALID, "traffic.ppm"):
            rules.traffic(splits, range(1, 6))


def test_a_split_comes_back_by_version() -> None:
    assert rules.traffic([(2, 400_000), (1, 600_000)], [1, 2]) == ((1, 600_000), (2, 400_000))


@pytest.mark.parametrize("splits", [[(3, 1_000_000)], [(1, 500_000), (1, 500_000)]])
def test_a_split_names_existing_versions_once(splits) -> None:
    with refused(Reason.FIELD_INVALID, "traffic.version"):
        rules.traffic(splits, [1, 2])


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ((4097, {}, []), "config.max_batch_size"),
        ((None, {"x": -2}, []), "config.batch_axes[x]"),
        ((None, {}, [("", [1], 0)]), "config.warmup.name"),
        ((None, {}, [("x", [1], 0)] * (rules.MOST_WARMUP_REQUESTS + 1)), "config.warmup.name"),
        ((None, {}, [("x", [-1], 0)]), "config.warmup.shape"),
        ((None, {}, [("x", [1], rules.MOST_WARMUP_BYTES + 1)]), "config.warmup.data"),
    ],
)
def test_a_configuration_outside_its_limits_is_refused(arguments, field: str) -> None:
    with refused(Reason.FIELD_INVALID, field):
        rules.config(*arguments)


def test_the_same_content_under_a_number_is_that_version() -> None:
    held = versions.existing(model(1, 2), push(2))
    assert held is not None
    assert held.version == 2
    assert versions.existing(model(1, 2), push(3)) is None
    assert versions.existing(model(1, 2), push()) is None
    assert versions.existing(None, push(1)) is None


def test_other_content_under_a_taken_number_names_both_digests() -> None:
    with pytest.raises(Refusal) as caught:
        versions.existing(model(1), push(1, OTHER))
    assert caught.value.reason is Reason.VERSION_EXISTS
    assert caught.value.facts == {"existing_digest": DIGEST, "pushed_digest": OTHER, "version": "1"}
    assert DIGEST in caught.value.message
    assert OTHER in caught.value.message


def test_another_configuration_is_other_content() -> None:
    with pytest.raises(Refusal, match="another configuration"):
        versions.existing(model(1), push(1, config=b"\x10\x04"))


def test_a_version_without_a_number_gets_one_that_was_never_used() -> None:
    once = versions.pushed(None, push(), size_bytes=7, now_us=5)
    assert once == (model(1, versions=(Version(1, DIGEST, 7, b"", 5),)), 1)
    removed = versions.without(model(1, 2, 7), 7)
    assert versions.pushed(removed, push(), size_bytes=7, now_us=0)[1] == 8


def test_versions_stand_in_order_whatever_order_they_came_in() -> None:
    after, number = versions.pushed(model(1, 5), push(3), size_bytes=7, now_us=0)
    assert [version.version for version in after.versions] == [1, 3, 5]
    assert (number, after.last_version) == (3, 5)


def test_a_push_changes_only_what_it_wishes() -> None:
    held = model(1, slo=Slo(5_000), isolation=Isolation.PROCESS, replicas=3)
    wish = Wish(traffic_class=TrafficClass.BATCH)
    after, _ = versions.pushed(held, replace(push(), wish=wish), size_bytes=7, now_us=0)
    assert (after.slo, after.isolation, after.replicas) == (held.slo, held.isolation, held.replicas)
    assert after.traffic_class is TrafficClass.BATCH


def test_an_update_that_was_meant_for_another_revision_is_a_conflict() -> None:
    assert versions.updated(model(1, revision=4), Wish(replicas=2), [], 4).replicas == 2
    with refused(Reason.REVISION_CONFLICT, "expected_revision"):
        versions.updated(model(1, revision=5), Wish(replicas=2), [], 4)


def test_a_version_with_traffic_cannot_be_removed() -> None:
    split = model(1, 2, traffic=((1, 1_000_000), (2, 0)))
    with refused(Reason.FIELD_INVALID, "version"):
        versions.without(split, 1)
    assert versions.without(split, 2).traffic == ((1, 1_000_000),)
    with refused(Reason.VERSION_NOT_FOUND):
        versions.without(split, 3)


PASS = Outcome(signature=b"s", profile=("cpu", b"p"))
REFUSE = Outcome(message="no")


@given(st.lists(st.sampled_from([PASS, REFUSE, Outcome(signature=b"s", profile=("cuda", b"q"))]), min_size=1))
def test_inspections_told_twice_in_a_row_change_nothing_and_a_pass_stands(outcomes: list[Outcome]) -> None:
    once = model(1)
    for outcome in outcomes:
        once = versions.inspected(once, 1, outcome)
        assert versions.inspected(once, 1, outcome) == once
    passed = any(outcome.signature is not None for outcome in outcomes)
    assert once.versions[0].inspection is (Inspection.PASSED if passed else Inspection.REFUSED)


def test_a_profile_is_kept_for_each_kind_of_device() -> None:
    once = versions.inspected(model(1), 1, PASS)
    twice = versions.inspected(once, 1, Outcome(signature=b"s", profile=("cuda", b"q")))
    again = versions.inspected(twice, 1, Outcome(signature=b"s", profile=("cpu", b"r")))
    assert again.versions[0].profiles == (("cpu", b"r"), ("cuda", b"q"))


@given(st.tuples(st.from_regex(names.NAME, fullmatch=True), st.from_regex(names.NAME, fullmatch=True)))
def test_a_page_token_leads_back_to_the_item_it_was_made_from(last) -> None:
    assert pages.after("models.", pages.token("models.", last), 2) == last


@given(st.text(min_size=1))
def test_a_page_token_that_nobody_gave_is_refused(text: str) -> None:
    with refused(Reason.FIELD_INVALID, "page_token"):
        pages.after("models.", text, 2)


def test_a_page_token_of_another_listing_is_refused() -> None:
    for other in (pages.token("models.acme", ["a", "b"]), pages.token("tenants", ["a"])):
        with refused(Reason.FIELD_INVALID, "page_token"):
            pages.after("models.", other, 2)
    assert pages.after("models.", "", 2) is None
    assert (pages.page_size(0), pages.page_size(7), pages.page_size(5000)) == (1000, 7, 1000)

"""Customers: what the shop makes, that both branches are needed to value them, and users' files, good and bad."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimize.data import customers, learn_subwords, reviews, shop
from optimize.data.clickstream import EVENT_TYPES, EVENTS, UNKNOWN_EVENT, Clicks, FutureEvent, moment
from optimize.data.reviews import SENTIMENTS, Meaning
from optimize.data.shop import TIERS, Customer
from optimize.data.subwords import END, PADDING, UNKNOWN, Subwords, normalise
from optimize.errors import UserError

NOON = datetime(2024, 6, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def subwords() -> Subwords:
    return Subwords.load(customers.VOCABULARY_FILE)


@pytest.fixture(scope="module")
def people() -> list[Customer]:
    return shop.customers(300, seed=8)


def test_a_seed_gives_the_same_customers_however_many(people: list[Customer]) -> None:
    assert shop.customers(20, seed=8) == people[:20]
    assert shop.customers(20, seed=9) != people[:20]


def test_the_shops_events_are_known_past_and_in_order(people: list[Customer]) -> None:
    assert {event for one in people for event in one.events} <= set(EVENT_TYPES[UNKNOWN_EVENT + 1 :])
    for one in people:
        assert list(one.times) == sorted(one.times)
        assert len(one.times) == len(one.events) <= EVENTS
        assert not one.times or one.times[-1] <= one.asked
        assert one.events or normalise(one.review)


def test_tiers_are_about_equally_many_and_something_is_missing_now_and_then(people: list[Customer]) -> None:
    shares = [sum(one.tier == tier for one in people) / len(people) for tier in TIERS]
    assert 0.17 < min(shares) <= max(shares) < 0.33
    assert 0.03 < sum(not one.review for one in people) / len(people) < 0.15
    assert 0.08 < sum(not one.events for one in people) / len(people) < 0.28


def test_neither_opinion_nor_custom_alone_tells_the_tier() -> None:
    """The best answer to each alone, learned from all that is hidden, against the answer to both."""
    random = np.random.default_rng(1)
    pairs = random.integers((5, 3), size=(9000, 2)).tolist()
    opinions = [Meaning(satisfied - 2, loyal - 1, "books") for satisfied, loyal in pairs]
    custom, favourite = random.normal(size=9000), random.random(9000) < 0.6
    values = np.array([shop.value_of(*each) for each in zip(opinions, custom, favourite.tolist(), strict=True)])
    tiers = np.searchsorted(shop.QUARTERS, values + shop.NOISE * random.normal(size=9000))
    said = np.array([5 * one.satisfaction + one.loyalty for one in opinions])
    bought = np.digitize(custom, np.linspace(-2, 2, 30))
    both = np.mean(np.searchsorted(shop.QUARTERS, values) == tiers)
    for alone in (said, bought):
        right = sum(np.bincount(tiers[alone == each]).max() for each in np.unique(alone)) / len(tiers)
        assert right < both - 0.15


def test_a_review_says_what_it_means() -> None:
    random = np.random.default_rng(5)
    for satisfaction in range(-2, 3):
        assert Meaning(satisfaction, 0, "books").sentiment == SENTIMENTS[1 + np.sign(satisfaction)]
    texts = {reviews.write(Meaning(2, 1, "garden"), random) for _ in range(200)}
    assert len(texts) > 195
    stays = sum(any(words in text.lower() for words in map(str.lower, reviews._STAYS)) for text in texts)
    assert stays > 180, "a slip of typing may hide one"
    assert not any(words in text for text in texts for words in reviews._LEAVES)


def test_the_committed_vocabulary_is_what_the_shop_teaches() -> None:
    """Of the whole shop it takes 20 s to learn again; the pieces of a part of it must be known words already."""
    subwords = Subwords.load(customers.VOCABULARY_FILE)
    assert subwords.size == customers.VOCABULARY
    for one in shop.customers(100, customers.SEED):
        tokens = subwords.encode(one.review)
        assert UNKNOWN not in tokens
        assert subwords.decode(tokens) == normalise(one.review)
        assert len(tokens) < 0.5 * len(one.review) + 8


def test_a_vocabulary_is_learned_from_the_training_reviews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(customers, "COUNT", 400)
    path = tmp_path / "made.model"
    learn_subwords.main(["--reviews", "--size", "400", "--output", str(path)])
    taught = {one.review for one in shop.customers(400, customers.SEED) if customers.part_of(one.name) == "train"}
    assert set(customers.training_reviews()) == {normalise(review) for review in taught} - {""}
    assert Subwords.load(path).size == 400


def clicks(*events: tuple[float, str]) -> Clicks:
    """Of (hours before noon, type)."""
    return Clicks.before(NOON, [NOON - timedelta(hours=age) for age, _ in events], [e for _, e in events], EVENT_TYPES)


def test_clicks_become_ages_oldest_first_in_any_order() -> None:
    found = clicks((1.5, "login"), (300, "view_books"), (0, "search"))
    assert [EVENT_TYPES[event] for event in found.events] == ["view_books", "login", "search"]
    np.testing.assert_array_equal(found.ages, np.array([300, 1.5, 0], np.float32))


@given(st.permutations(range(6)))
def test_the_order_of_a_log_means_nothing(order: list[int]) -> None:
    events = [(5.0, "login"), (5.0, "login"), (4.0, "search"), (3.0, "odd"), (3.5, "support"), (1.0, "login")]
    found, expected = clicks(*(events[place] for place in order)), clicks(*events)
    np.testing.assert_array_equal(found.ages, expected.ages)
    np.testing.assert_array_equal(found.events, expected.events)


def test_repetitions_unknown_types_and_too_many_events_are_told() -> None:
    found = clicks((5, "login"), (5, "login"), (5, "search"), (2, "telepathy"))
    assert (found.repeated, found.unknown, len(found.events)) == (1, ("telepathy",), 3)
    assert found.events[-1] == UNKNOWN_EVENT
    assert clicks((1, ""), (1, "unknown")).events.tolist() == [UNKNOWN_EVENT] * 2
    many = clicks(*((float(age), "login") for age in range(200)))
    assert (many.left_out, len(many.events), many.ages[0], many.ages[-1]) == (72, EVENTS, EVENTS - 1, 0)


def test_the_future_is_refused() -> None:
    with pytest.raises(FutureEvent, match="lies after the moment of asking") as caught:
        clicks((1, "login"), (-0.1, "search"))
    assert caught.value.row == 1


def test_times_are_utc_unless_they_say_otherwise() -> None:
    assert moment("2024-06-01T12:00") == moment("2024-06-01T14:00+02:00") == moment(" 2024-06-01T12:00Z ") == NOON
    assert moment("yesterday") is moment("") is moment("NaT") is None


def test_texts_become_subwords(subwords: Subwords) -> None:
    tokens, left_out = customers.tokens_of("Great tent!", subwords)
    assert (tokens[-1], left_out) == (END, 0)
    assert customers.tokens_of(" \x00\u200b\n", subwords) == ([], 0), "nothing but control characters is no review"
    assert customers.tokens_of("Great\x07 tent!", subwords)[0] == tokens
    long, left_out = customers.tokens_of("word " * 1000, subwords)
    assert (len(long), long[-1]) == (customers.TEXT_TOKENS, END)
    assert left_out > 900
    assert UNKNOWN not in customers.tokens_of("漢字 ☃", subwords)[0]


def test_what_is_missing_has_length_nothing(people: list[Customer], subwords: Subwords) -> None:
    made = customers.split(people, subwords)
    for row, one in enumerate(people):
        assert bool(made.inputs["text_lengths"][row, 0]) == bool(one.review)
        assert made.inputs["event_lengths"][row, 0] == len(one.events)
    meant = np.arange(customers.TEXT_TOKENS) < made.inputs["text_lengths"].astype(np.int64)
    assert np.all((made.inputs["text"] != PADDING) == meant)
    assert np.all(np.diff(made.inputs["ages"][:, :2]) <= 0)


def test_splits_share_no_customer_and_stay(people: list[Customer], subwords: Subwords) -> None:
    made, fewer = (customers.dataset(each, subwords, "a shop") for each in (people, people[:150]))
    assert len(made.train) + len(made.validation) + len(made.test) == len(people)
    np.testing.assert_array_equal(made.test.inputs["text"][: len(fewer.test)], fewer.test.inputs["text"])
    assert made.sha256 != fewer.sha256
    with pytest.raises(UserError, match="2 customers leave nothing to"):
        customers.dataset(people[:2], subwords, "a shop")


def test_a_folder_reads_back_as_written(
    people: list[Customer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subwords: Subwords
) -> None:
    customers.write_folder(people, tmp_path / "customers")
    assert customers.read_folder(tmp_path / "customers") == people
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    made = customers.load()
    assert made.source == "customers: found"
    assert made.sha256 == customers.dataset(people, subwords, "").sha256
    assert customers.load(tmp_path / "customers").source == "customers: the folder given"


REVIEWS = (
    "customer_id,asked_utc,review,tier,sentiment\na,2024-06-01T12:00Z,Good.,top,positive\nb,2024-06-01,,low,neutral\n"
)
CLICKS = "customer_id,time_utc,event\na,2024-05-01T08:00Z,login\nb,2024-05-02,view_books\nb,2024-05-01,telepathy\n"


def folder_of(folder: Path, reviews_csv: str | bytes = REVIEWS, clicks_csv: str | bytes = CLICKS) -> Path:
    for name, content in ((customers.REVIEWS, reviews_csv), (customers.CLICKS, clicks_csv)):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_unknown_types_are_counted_in_the_source(people: list[Customer], tmp_path: Path, subwords: Subwords) -> None:
    a, b = customers.read_folder(folder_of(tmp_path))
    assert (b.events, b.review) == (("telepathy", "view_books"), "")
    made = customers.dataset([*people, a, b], subwords, "shop")
    assert made.source == "shop; 1 events of 1 unknown types (telepathy) are read as unknown"


@pytest.mark.parametrize(
    ("reviews_csv", "message"),
    [
        ("", "is empty; expected CSV in UTF-8 with the columns customer_id, asked_utc"),
        (REVIEWS.splitlines()[0], "a header but no rows"),
        (REVIEWS.replace("sentiment", "mood"), "lacks the columns sentiment"),
        (REVIEWS.replace("top", "best"), r"row 2: tier 'best' is unknown; use one of low"),
        (REVIEWS.replace("neutral", "meh"), r"row 3: sentiment 'meh' is unknown"),
        (REVIEWS.replace("\nb,", "\na,"), r"row 3: customer_id 'a' is there twice"),
        (REVIEWS.replace("\nb,", "\n,"), r"row 3: customer_id '' is empty"),
        (REVIEWS.replace("2024-06-01,", "someday,"), r"row 3: asked_utc 'someday' is no ISO 8601 time"),
        (REVIEWS + "c,2024-06-01,\x07 ,low,neutral\n", r"row 4: customer 'c' has neither review nor events"),
        (REVIEWS.encode().replace(b"Good", b"caf\xe9"), "is not UTF-8"),
        ('a,"b\n' + REVIEWS, "cannot be read"),
        (
            REVIEWS.replace("positive\n", "positive,\n").replace("neutral\n", "neutral,\n"),
            "remove the commas at their end",
        ),
    ],
)
def test_bad_reviews_are_refused_by_row(reviews_csv: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        customers.load(folder_of(tmp_path, reviews_csv))
    assert "reviews.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("clicks_csv", "message"),
    [
        ("", "is empty"),
        (CLICKS.replace("event", "what"), "lacks the columns event"),
        (CLICKS.replace("a,", "z,"), r"row 2: customer_id 'z' has no row in reviews.csv"),
        (
            CLICKS.replace("2024-05-02", "2024-07-02"),
            r"row 3: 2024-07-02T00:00:00\+0000 lies after the moment of asking",
        ),
        (CLICKS.replace("2024-05-02", "Tuesday"), r"row 3: time_utc 'Tuesday' is no ISO 8601 time"),
        (CLICKS.replace("telepathy", " "), r"row 4: event is empty; name its type, such as login"),
        (
            CLICKS.replace("login", "in").replace("view_books", "seen"),
            r"no event is of a type that the model knows \(in",
        ),
        (CLICKS.encode().replace(b"login", b"log\xff"), "is not UTF-8"),
    ],
)
def test_bad_events_are_refused_by_row(clicks_csv: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        customers.load(folder_of(tmp_path, clicks_csv=clicks_csv))
    assert "events.csv" in str(caught.value)


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no folder; give one with reviews\.csv and events\.csv"):
        customers.load(tmp_path / "none")
    with pytest.raises(UserError, match=r"'.*reviews\.csv' does not exist"):
        customers.load(tmp_path)


def test_the_command_writes_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    customers.main(["--count", "12", "--seed", "3", "--output", str(tmp_path / "made")])
    assert customers.read_folder(tmp_path / "made") == shop.customers(12, 3)
    assert capsys.readouterr().out.startswith("12 customers: ")

"""``python -m clients value`` against a real Triton, and with every kind of bad input.

The network is tiny and untrained: what it says means nothing, but torch says the same.
"""

from __future__ import annotations

import io
import json
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import clients
from clients.__main__ import main
from clients.value import Reading, Value, clicks_of
from optimize import onnx_export
from optimize.data.clickstream import EVENT_TYPES
from optimize.data.reviews import SENTIMENTS
from optimize.data.shop import TIERS
from optimize.models.customer import CustomerModel
from optimize.models.transformer import LayerConfig
from optimize.recipes.customer_value import SPEC, STUDENT
from optimize.specs import ServingSpec
from optimize.triton_config import to_config, to_text
from serving.config import ServerConfig
from serving.launcher import Server
from tests import tiny_models

TEXT = "Great tent, will order again!"
AT = "2024-06-01T12:00Z"
CLICKS = "time_utc,event\n2024-05-31T12:00:00Z,purchase_sport\n2024-05-30T12:00:00+02:00,view_sport\n2024-06-01,login\n"


def network() -> CustomerModel:
    torch.manual_seed(2)
    module = CustomerModel(replace(STUDENT, layer=LayerConfig(32, 2, 32))).eval()
    with torch.no_grad():
        module.tier.weight.mul_(5)
    return module


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("repository")
    graph = onnx_export.export(network(), SPEC)
    unlabelled = tuple(replace(tensor, labels=()) for tensor in SPEC.inputs)
    for spec in (
        SPEC,
        replace(SPEC, name="wordless", vocabulary=b""),
        replace(SPEC, name="unlabelled", inputs=unlabelled),
    ):
        onnx_export.save(graph, repository / spec.name / "1" / "model.onnx")
        (repository / spec.name / "config.pbtxt").write_text(to_text(to_config(spec, ServingSpec())))
    tiny_models.double().write(repository)
    with Server(ServerConfig(repository, http_port=0, grpc_port=0, metrics_port=0, drain_timeout_s=2)) as running:
        yield running


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    path = tmp_path / "events.csv"
    path.write_text(CLICKS)
    return path


Command = Callable[..., str]


@pytest.fixture
def ask(server: Server, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command against the server; what it printed, notes included."""

    def run(*arguments: str) -> str:
        assert main(["value", "--address", server.grpc, "--at", AT, *arguments]) == 0, capsys.readouterr().err
        printed = capsys.readouterr()
        return printed.out + printed.err

    return run


@pytest.fixture
def refused(server: Server, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command that must fail with one line on standard error; that line."""

    def run(*arguments: str) -> str:
        assert main(["value", "--address", server.grpc, *arguments]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1
        return printed.err

    return run


def by_torch(server: Server, text: str, events: list[tuple[float, str]]) -> dict[str, float]:
    """What torch says to (hours before, type)."""
    with clients.connect(server.grpc) as client:
        subwords = Reading.of(client.signature(SPEC.name)).vocabulary
    tokens = subwords.encode(text) if text else []
    inputs = (
        torch.tensor([tokens or [0]]), torch.tensor([[len(tokens)]], dtype=torch.int32),
        torch.tensor([[EVENT_TYPES.index(event) for _, event in events] or [0]]),
        torch.tensor([[age for age, _ in events] or [0.0]]), torch.tensor([[len(events)]], dtype=torch.int32),
    )  # fmt: skip
    with torch.inference_mode():
        return dict(zip(TIERS, network()(*inputs)[0][0].tolist(), strict=True))


def test_review_and_clicks(server: Server, ask: Command, csv: Path) -> None:
    found = json.loads(ask("--text", TEXT, "--events", str(csv), "--json"))
    expected = by_torch(server, TEXT, [(50, "view_sport"), (24, "purchase_sport"), (12, "login")])
    assert found["tier_probabilities"] == pytest.approx(expected, abs=1e-5)
    assert found["tier"] == max(expected, key=lambda tier: expected[tier])
    assert (found["model"], found["version"], found["sentiment"] in SENTIMENTS) == ("customer_value", "1", True)


def test_either_may_be_missing(server: Server, ask: Command, csv: Path) -> None:
    for arguments, text, events in (
        (["--text", TEXT], TEXT, []),
        (["--events", str(csv)], "", [(50.0, "view_sport"), (24.0, "purchase_sport"), (12.0, "login")]),
    ):
        found = json.loads(ask(*arguments, "--json"))
        assert found["tier_probabilities"] == pytest.approx(by_torch(server, text, events), abs=1e-5)


def test_a_table(ask: Command) -> None:
    lines = ask("--text", TEXT).splitlines()
    assert lines[0] == "customer_value version 1"
    assert sum("<--" in line for line in lines) == 2
    assert [line.split()[0] for line in lines if "%" in line] == [*TIERS, *SENTIMENTS]


def test_plain_http_without_the_client(server: Server, ask: Command, csv: Path) -> None:
    body = ask("--text", TEXT, "--events", str(csv), "--print-request")
    shapes = {entry["name"]: entry["shape"] for entry in json.loads(body)["inputs"]}
    assert (shapes["text"], shapes["events"], shapes["ages"]) == ([1, 16], [1, 16], [1, 16])
    url = f"http://{server.http}/v2/models/customer_value/infer"
    with urllib.request.urlopen(urllib.request.Request(url, body.encode())) as reply:
        (tier,) = (each["data"] for each in json.load(reply)["outputs"] if each["name"] == "tier")
    found = json.loads(ask("--text", TEXT, "--events", str(csv), "--json"))
    np.testing.assert_allclose(tier, list(found["tier_probabilities"].values()), atol=1e-6)


def test_customers_of_a_file_are_told_apart(ask: Command, refused: Command, tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    rows = CLICKS.splitlines()
    path.write_text("\n".join([f"customer_id,{rows[0]}", *(f"a,{row}" for row in rows[1:]), "b,2024-05-01,support"]))
    alone = tmp_path / "alone.csv"
    alone.write_text(CLICKS)
    arguments = ("--json", "--events", str(path))
    assert ask(*arguments, "--customer", "a") == ask("--json", "--events", str(alone))
    assert "has 2 customers; say which by --customer, such as a" in refused(*arguments)
    assert "has no customer 'c'; it has a, b" in refused(*arguments, "--customer", "c")


def test_what_is_read_otherwise_is_told(ask: Command, csv: Path) -> None:
    rows = CLICKS.splitlines()
    csv.write_text("\n".join([*rows, rows[1], "2024-05-01,telepathy"]))
    printed = ask("--text", "word " * 1000, "--events", str(csv))
    assert "note: the review is too long for the model: its last " in printed
    assert "note: 1 repeated events count once" in printed
    assert "note: types of events that the model does not know, read as unknown: telepathy" in printed
    csv.write_text(
        "\n".join([rows[0], *(f"2024-05-{day:02}T{hour:02}:00Z,login" for day in range(1, 21) for hour in range(24))])
    )
    assert "note: the oldest 352 events are left out: the model takes 128" in ask("--events", str(csv))


def test_only_unknown_words_and_control_characters(ask: Command) -> None:
    assert ask("--text", "漢字 ☃") == ask("--text", "漢字\x07\x1b☃")


def test_a_customer_that_cannot_be_asked_about(refused: Command, csv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = "there is neither a review nor an event; give --text with words in it, or --events"
    assert nothing in refused()
    assert nothing in refused("--text", " \x00\u200b")
    assert "--text is not UTF-8 (character 3)" in refused("--text", "ab\udcff")
    assert "--at noon: expected an ISO 8601 time" in refused("--text", TEXT, "--at", "noon")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9")))
    assert "standard input is not UTF-8 (byte 4)" in refused("--text", "-")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("time_utc,event\n", "a header but no rows"),
        ("when,event\n2024-01-01,login\n", "lacks the columns time_utc"),
        ("time_utc,event\nyesterday,login\n", "row 2: time_utc 'yesterday' is no ISO 8601 time"),
        (
            CLICKS.replace("2024-06-01,", "2024-06-02,"),
            "row 4: 2024-06-02T00:00:00+0000 lies after the moment of asking",
        ),
        ("time_utc,event\n2024-01-01,\n", "row 2: event is empty"),
        ("time_utc,event\n2024-01-01,hop\n", "no event is of a type that the model knows (hop); it knows login"),
        (b"time_utc,event\n2024-01-01,log\xff\n", "is not UTF-8"),
    ],
)
def test_bad_files(refused: Command, csv: Path, content: str | bytes, message: str) -> None:
    csv.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message in refused("--events", str(csv), "--at", AT)


def test_no_file_at_all(refused: Command, tmp_path: Path) -> None:
    assert "does not exist" in refused("--events", str(tmp_path / "none.csv"))
    assert "cannot be read" in refused("--events", str(tmp_path))


def test_models_that_value_nobody(refused: Command) -> None:
    assert "model 'double' values no customers: expected the inputs" in refused("--text", TEXT, "--model", "double")
    assert "model 'wordless' has no vocabulary" in refused("--text", TEXT, "--model", "wordless")
    assert "model 'unlabelled' has 0 labels of 'events'" in refused("--text", TEXT, "--model", "unlabelled")
    assert "'nobody' is not found" in refused("--text", TEXT, "--model", "nobody")


def test_an_answer_of_another_version_is_none(server: Server) -> None:
    with clients.connect(server.grpc) as client:
        reading = Reading.of(client.signature(SPEC.name))
    outputs: dict[str, Any] = {"tier": np.zeros((1, 4)), "sentiment": np.zeros((1, 3))}
    with pytest.raises(clients.ServerError, match="version 2 of model 'customer_value' answered, but"):
        Value.of(outputs, reading, "2")
    with pytest.raises(clients.ServerError, match=r"answers tier \(1, 5\) for 4 labels"):
        Value.of(outputs | {"tier": np.zeros((1, 5))}, reading, "1")


def test_requests_are_padded_to_the_buckets(server: Server) -> None:
    with clients.connect(server.grpc) as client:
        reading = Reading.of(client.signature(SPEC.name))
    now = datetime(2024, 6, 1, tzinfo=UTC)
    for words, events, shape in ((0, 0, (16, 16)), (40, 17, (64, 64)), (9, 200, (16, 128))):
        rows = [(datetime(2024, 5, 1, event % 24, event // 24, tzinfo=UTC), "login") for event in range(events)]
        made = reading.request("no " * words, clicks_of(rows, now, reading, None))
        assert (made["text"].shape[1], made["events"].shape[1]) == shape

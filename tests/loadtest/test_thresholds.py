from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import configargparse  # type: ignore[import-untyped]
import pytest

from loadtest.results import ALL, Row
from loadtest.thresholds import LIMITS, Verdict, add_arguments, exit_code, held, judge, to_json

GOOD = Row("grpc", 1000, 1, 0, 100.0, 99.0, 2.0, 4.0, 8.0, 20.0, 1.5, 0.5)
SLOW = replace(GOOD, name="http", p99_ms=80.0)
TOTAL = replace(GOOD, name=ALL, requests=2000, answered_per_s=198.0, p99_ms=9.0)


def parse(*arguments: str) -> dict[str, object]:
    parser = configargparse.ArgumentParser(default_config_files=[])
    add_arguments(parser)
    return dict(vars(parser.parse_args(list(arguments))))


def test_without_limits_a_failed_request_fails_the_run() -> None:
    assert judge([GOOD], parse()) == []
    assert exit_code([GOOD], []) == 1
    assert exit_code([replace(GOOD, failed=0)], []) == 0


def test_a_run_that_sent_nothing_fails() -> None:
    assert exit_code([], []) == 1


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--max-p50-ms", "2"], 0),
        (["--max-p50-ms", "1.9"], 1),
        (["--max-p95-ms", "3.9"], 1),
        (["--max-p99-ms", "8"], 0),
        (["--max-failure-rate", "0.001"], 0),
        (["--max-failure-rate", "0"], 1),
        (["--min-throughput", "99"], 0),
        (["--min-throughput", "99.5"], 1),
        (["--max-late-ms", "0.4"], 1),
        (["--max-p50-ms", "9", "--max-p99-ms", "1"], 1),
    ],
)
def test_limits(arguments: list[str], code: int) -> None:
    assert exit_code([GOOD], judge([GOOD], parse(*arguments))) == code


def test_a_good_kind_cannot_hide_a_bad_one() -> None:
    verdicts = judge([GOOD, SLOW, TOTAL], parse("--max-p99-ms", "10", "--min-throughput", "150"))
    assert [(verdict.name, verdict.passed) for verdict in verdicts] == [("grpc", True), ("http", False), (ALL, True)]
    assert str(verdicts[1]) == "FAILED  http: p99 latency 80, at most 10 ms"


def test_no_answers_meet_no_limit() -> None:
    silent = replace(GOOD, p99_ms=math.nan, answered_per_s=math.nan)
    verdicts = judge([silent], parse("--max-p99-ms", "10", "--min-throughput", "0"))
    assert [verdict.passed for verdict in verdicts] == [False, False]


def test_limits_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOADTEST_MAX_P99_MS", "7.5")
    assert parse()["max_p99_ms"] == 7.5
    assert len({limit.variable for limit in LIMITS}) == len(LIMITS)


@pytest.mark.parametrize("text", ["fast", "-1", "nan"])
def test_limits_that_are_none(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--max-p50-ms", text)
    assert f"'{text}': expected a number of at least 0" in capsys.readouterr().err


def test_json_has_no_nan_and_no_infinity() -> None:
    limits = held([Verdict("m", "w", "", 2, 1, False)])
    content = {"a": [math.nan, (1.5, {"b": math.inf})], "file": Path("x"), "limits": limits}
    read = json.loads(to_json(content), parse_constant=pytest.fail)
    assert (read["a"], read["file"]) == ([None, [1.5, {"b": None}]], "x")
    assert (read["limits"][0]["name"], read["limits"][0]["passed"]) == ("m", False)

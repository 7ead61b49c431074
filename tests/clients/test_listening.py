"""What is sent when, what is made of the answers: on a clock that only the tests move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients import Answer, ClientError, ServerError, Signature, Tensor
from clients.listening import Heard, NotSpeech, chunk_samples, ended_on_failure, hear, labels_of, summary
from clients.recording import SAMPLE_RATE_HZ, Sound
from clients.signature import Array
from optimize.data.vocabulary import VOCABULARY
from optimize.errors import UserError

QUICK = settings(max_examples=30, deadline=None, derandomize=True)
CHUNK = 1600  # samples: 0.1 s

SPEECH = Signature(
    "speech",
    "3",
    inputs=(Tensor("pcm", "INT16", (-1, CHUNK)), Tensor("lengths", "INT32", (-1, 1))),
    outputs=(
        Tensor("log_probs", "FP32", (-1, 4, len(VOCABULARY))),
        Tensor("tokens", "INT64", (-1, 4)),
        Tensor("output_lengths", "INT64", (-1, 1)),
    ),
    max_batch=8,
    idle_limit_s=10.0,
    labels={"tokens": VOCABULARY},
)


@dataclass
class HandClock:
    """Moves when somebody sleeps or works."""

    time_s: float = 100.0
    slept_s: list[float] = field(default_factory=list)

    def now(self) -> float:
        return self.time_s

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept_s.append(seconds)
        self.time_s += seconds


@dataclass
class ScriptedSession:
    """Takes ``work_s`` seconds for each chunk and answers it with its number as the one token, or with ``tokens``."""

    clock: HandClock = field(default_factory=HandClock)
    work_s: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    output_length: int = 4
    signature: Signature = SPEECH
    answered: int = 0
    owed: bool = False
    sent: list[tuple[float, Array, int, str]] = field(default_factory=list)

    def send(self, inputs: Mapping[str, Array]) -> Answer:
        return self._answer(inputs, "send")

    def finish(self, inputs: Mapping[str, Array], *, deadline_s: float | None = None) -> Answer:
        return self._answer(inputs, "finish")

    def receive(self, *, deadline_s: float | None = None) -> Answer:
        if not self.owed:
            raise ClientError("nothing is owed")
        self.owed = False
        self.answered += 1
        return Answer({}, "speech", "3")

    def _answer(self, inputs: Mapping[str, Array], how: str) -> Answer:
        if self.owed:
            raise ClientError("an answer is owed")
        self.sent.append((self.clock.time_s, inputs["pcm"], int(inputs["lengths"][0, 0]), how))
        self.clock.time_s += self.work_s.pop(0) if self.work_s else 0.0
        self.answered += 1
        tokens = np.zeros((1, 4), np.int64)
        tokens[0, : len(self.tokens) or 1] = self.tokens or self.answered
        outputs = {"tokens": tokens, "output_lengths": np.array([[self.output_length]])}
        return Answer(outputs, "speech", "3")


def sound(samples: int, live: bool = False) -> Sound:
    pcm = np.arange(samples).astype(np.int16)
    return Sound("it", "it", SAMPLE_RATE_HZ, iter([pcm.astype(np.float32) / 32_768]), live)


def test_what_is_sent() -> None:
    session = ScriptedSession()
    heard = list(hear(session, sound(2 * CHUNK + 5), clock=session.clock))
    assert [(length, how) for _, _, length, how in session.sent] == [(CHUNK, "send"), (CHUNK, "send"), (5, "finish")]
    assert session.sent[2][1][0].tolist() == [2 * CHUNK + step for step in range(5)] + [0] * (CHUNK - 5)
    assert [each.words for each in heard] == [("zero",), ("one",), ("two",)]
    assert [each.end_s for each in heard] == pytest.approx([0.1, 0.2, 0.2 + 5 / SAMPLE_RATE_HZ])
    assert {(pcm.dtype.name, pcm.shape) for _, pcm, _, _ in session.sent} == {("int16", (1, CHUNK))}


def test_a_live_sound_ends_with_whatever_is_left() -> None:
    session = ScriptedSession()
    list(hear(session, sound(2 * CHUNK, live=True), clock=session.clock))
    assert [(length, how) for _, _, length, how in session.sent] == [(CHUNK, "send"), (CHUNK, "send"), (0, "finish")]


def test_as_fast_as_it_goes() -> None:
    session = ScriptedSession(work_s=[0.3, 0.01, 0.02])
    heard = list(hear(session, sound(3 * CHUNK), clock=session.clock))
    assert session.clock.slept_s == []
    assert [each.latency_ms for each in heard] == pytest.approx([300, 10, 20])
    assert [each.service_ms for each in heard] == pytest.approx([300, 10, 20])


@QUICK
@given(st.lists(st.floats(0, 0.3), min_size=1, max_size=10), st.integers(1, CHUNK))
def test_in_real_time(work_s: list[float], rest: int) -> None:
    """A single server with arrivals on a schedule: the schedule never shifts, and waiting counts as latency."""
    session = ScriptedSession(work_s=list(work_s))
    samples = CHUNK * (len(work_s) - 1) + rest
    heard = list(hear(session, sound(samples), realtime=True, clock=session.clock))
    free_s = 0.0
    for number, work in enumerate(work_s):
        due_s = min(CHUNK * (number + 1), samples) / SAMPLE_RATE_HZ
        sent_s = max(due_s, free_s)
        free_s = sent_s + work
        assert session.sent[number][0] - 100 == pytest.approx(sent_s)
        assert heard[number].latency_ms == pytest.approx(1e3 * (free_s - due_s), abs=1e-6)
        assert heard[number].service_ms == pytest.approx(1e3 * work, abs=1e-6)


def test_time_that_passes_while_the_clock_is_read() -> None:
    class BusyClock(HandClock):  # lets no one sleep for less than nothing, as the machine's
        def now(self) -> float:
            self.time_s += 0.06
            return self.time_s

    clock = BusyClock()
    session = ScriptedSession(clock=clock)
    assert len(list(hear(session, sound(3 * CHUNK), realtime=True, clock=clock))) == 3


def test_missed_deadlines_are_those_of_the_schedule() -> None:
    session = ScriptedSession(work_s=[0.05, 0.25, 0.05, 0.01, 0.01])
    heard = list(hear(session, sound(5 * CHUNK), realtime=True, clock=session.clock))
    assert [each.latency_ms for each in heard] == pytest.approx([50, 250, 200, 110, 20])
    assert summary(heard, chunk_s=0.1).missed == 3


def test_a_summary() -> None:
    heard = [Heard(0.1 * (n + 1), ("one",) if n % 50 == 0 else (), float(n + 1), 5.0) for n in range(100)]
    whole = summary(heard, chunk_s=0.095)
    assert whole.transcript == "one one"
    assert (whole.chunks, whole.missed, whole.max_ms) == (100, 5, 100.0)
    assert (whole.p50_ms, whole.p95_ms, whole.p99_ms) == pytest.approx((50.5, 95.05, 99.01))
    assert whole.audio_s == pytest.approx(10)
    assert whole.real_time_factor == pytest.approx(0.05)  # of what was sent, not of what waited


def test_only_frames_that_are_meant_are_words() -> None:
    session = ScriptedSession(tokens=[3, 0, 3, 7], output_length=3)
    assert [each.words for each in hear(session, sound(9))] == [("two", "two")]


@pytest.mark.parametrize("token", [-1, len(VOCABULARY)])
def test_a_token_without_a_word(token: int) -> None:
    with pytest.raises(ServerError, match=f"answers with token {token}, but 11 labels are known"):
        list(hear(ScriptedSession(tokens=[token]), sound(9)))


def test_words_that_are_published_with_the_model() -> None:
    published = replace(SPEECH, labels={"tokens": ("", *"abcdefghij")})
    session = ScriptedSession(tokens=[2, 10], signature=published)
    assert [each.words for each in hear(session, sound(9))] == [("b", "j")]
    with pytest.raises(UserError, match="knows 11 tokens, but has 2 labels for them"):
        labels_of(replace(SPEECH, labels={"tokens": ("", "word")}))
    with pytest.raises(UserError, match="knows 11 tokens, but has 0 labels for them"):
        labels_of(replace(SPEECH, labels={}))


@pytest.mark.parametrize(
    ("signature", "words"),
    [
        (replace(SPEECH, idle_limit_s=None), "it keeps no state between requests"),
        (replace(SPEECH, inputs=SPEECH.inputs[:1]), "it lacks lengths INT32"),
        (replace(SPEECH, outputs=()), "it lacks tokens INT64, output_lengths INT64"),
        (replace(SPEECH, inputs=(*SPEECH.inputs, Tensor("age", "FP32", (-1, 1)))), "it also wants age"),
        (replace(SPEECH, inputs=(Tensor("pcm", "FP32", (-1, 9)), SPEECH.inputs[1])), "it lacks pcm INT16"),
        (replace(SPEECH, inputs=(Tensor("pcm", "INT16", (-1, -1)), SPEECH.inputs[1])), "chunks have no fixed size"),
    ],
)
def test_models_that_cannot_hear(signature: Signature, words: str) -> None:
    assert chunk_samples(SPEECH) == CHUNK
    optional = (*SPEECH.inputs, Tensor("hint", "FP32", (-1, 1), optional=True))
    assert chunk_samples(replace(SPEECH, inputs=optional)) == CHUNK
    with pytest.raises(NotSpeech, match=f"'speech' is no streaming speech model: .*{words}"):
        chunk_samples(signature)


@pytest.mark.parametrize("owed", [False, True])
def test_ctrl_c_tells_the_server(owed: bool) -> None:
    session = ScriptedSession(answered=2, owed=owed)
    with pytest.raises(KeyboardInterrupt), ended_on_failure(session):
        raise KeyboardInterrupt
    assert [(length, how) for _, _, length, how in session.sent] == [(0, "finish")]


def test_a_stream_that_never_began_needs_no_end() -> None:
    session = ScriptedSession()
    with pytest.raises(UserError, match="no sound"), ended_on_failure(session):
        raise UserError("no sound")
    assert session.sent == []


def test_a_stream_that_ended_well_is_left_alone() -> None:
    session = ScriptedSession()
    with ended_on_failure(session):
        list(hear(session, sound(9)))
    assert len(session.sent) == 1

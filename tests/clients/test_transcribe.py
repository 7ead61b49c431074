"""``python -m clients transcribe``, in this process and as one of its own, against a real Triton."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from clients.__main__ import main
from clients.recording import SAMPLE_RATE_HZ
from clients.transcribe import REPLAY
from serving.config import ServerConfig
from serving.heartbeats import Heartbeats
from serving.launcher import Server
from tests import tiny_models
from tests.clients import beep_counter
from tests.clients.beep_counter import beeps

TWELVE = "zero one two three four five six seven eight nine zero one"
LINE_S = 20.0  # for a process to say something


def start(repository: Path) -> Server:
    return Server(ServerConfig(repository, http_port=0, grpc_port=0, metrics_port=0, drain_timeout_s=2))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("repository")
    beep_counter.write(repository, "speech", frames=8)
    beep_counter.write(repository, "speech_chunk_160", frames=4)
    beep_counter.write(repository, "spelling", frames=8, labels=["", *"abcdefghij"])
    beep_counter.write(repository, "spelling_lstm", frames=4, labels=["", *"abcdefghij"])
    beep_counter.write(repository, "spelling_gru", frames=4, labels=["", *"abcdefghij"])
    beep_counter.write(repository, "unlabelled", frames=8, labels=["", "word"])
    beep_counter.write(repository, "speech_alone", frames=8, max_streams=1)
    tiny_models.double().write(repository)
    with start(repository) as running:
        yield running


@pytest.fixture(scope="module")
def wav(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve beeps at 16 kHz, 3.15 s: ten chunks of 320 ms, the last one short."""
    path = tmp_path_factory.mktemp("data") / "beeps.wav"
    soundfile.write(path, beeps(12), SAMPLE_RATE_HZ)
    return path


Command = Callable[..., str]


@pytest.fixture
def transcribe(server: Server, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command against the server; what it printed."""

    def run(*arguments: str | Path) -> str:
        assert main(["transcribe", "--address", server.grpc, *map(str, arguments)]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(server: Server, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command that must fail with one line on standard error; that line."""

    def run(*arguments: str | Path) -> str:
        assert main(["transcribe", "--address", server.grpc, *map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        return error

    return run


@pytest.fixture
def process(server: Server) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start the command as a process with pipes; it is killed after the test."""
    started = []

    def begin(*arguments: str | Path, address: str = server.grpc) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "clients", "transcribe", "--address", address, *map(str, arguments)]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe))
        return started[-1]

    yield begin
    for each in started:
        each.kill()
        each.communicate()


def test_text(transcribe: Command, server: Server, wav: Path) -> None:
    lines = transcribe(wav).splitlines()
    assert lines[0] == f"speech version 1 at {server.grpc}, chunks of 320 ms"
    assert lines[1] == "beeps.wav, 3.15 s, 16000 Hz, 1 channel"
    rows = [line.split() for line in lines[4:14]]
    assert [row[0] for row in rows] == [f"{0.32 * n:.2f}" for n in range(1, 10)] + ["3.15"]
    assert " ".join(word for row in rows for word in row[2:]) == TWELVE
    assert all(float(row[1]) > 0 for row in rows)
    assert lines[15] == TWELVE
    assert lines[17].startswith("3.15 s in 10 chunks; answer ms p50 ")
    assert "answers later than" not in lines[17]


def test_json(transcribe: Command, wav: Path) -> None:
    *chunks, whole = map(json.loads, transcribe(wav, "--json").splitlines())
    assert [word for chunk in chunks for word in chunk["words"]] == whole["transcript"].split() == TWELVE.split()
    latencies = [chunk["latency_ms"] for chunk in chunks]
    assert whole["max_ms"] == max(latencies)
    assert whole["p50_ms"] == pytest.approx(np.median(latencies))
    assert whole["real_time_factor"] == pytest.approx(sum(chunk["service_ms"] for chunk in chunks) / 3150)
    assert (whole["model"], whole["version"], whole["chunk_ms"], whole["missed"]) == ("speech", "1", 320, None)


def test_in_real_time(transcribe: Command, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "beep.wav", beeps(2), SAMPLE_RATE_HZ)
    *chunks, whole = map(json.loads, transcribe(tmp_path / "beep.wav", "--json", "--realtime").splitlines())
    assert whole["missed"] == sum(chunk["latency_ms"] > 320 for chunk in chunks)
    assert "answers later than 320 ms" in transcribe(tmp_path / "beep.wav", "--realtime").splitlines()[-1]


@pytest.mark.parametrize(("rate_hz", "name"), [(8_000, "b.wav"), (44_100, "b.flac"), (48_000, "b.ogg")])
def test_any_recording(transcribe: Command, tmp_path: Path, rate_hz: int, name: str) -> None:
    places = np.arange(0, len(beeps(3)), SAMPLE_RATE_HZ / rate_hz)
    stereo = np.stack([np.interp(places, np.arange(len(beeps(3))), beeps(3) / 32_768)] * 2, axis=1)
    soundfile.write(tmp_path / name, stereo, rate_hz)
    assert transcribe(tmp_path / name).splitlines()[-3] == "zero one two"


def test_shorter_than_a_chunk(transcribe: Command, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "short.wav", beeps(1)[:3_000], SAMPLE_RATE_HZ)
    *chunks, whole = map(json.loads, transcribe(tmp_path / "short.wav", "--json").splitlines())
    assert len(chunks) == whole["chunks"] == 1
    assert whole["transcript"] == "zero"
    soundfile.write(tmp_path / "silent.wav", np.zeros(1), SAMPLE_RATE_HZ)
    assert "(no words)" in transcribe(tmp_path / "silent.wav")


@pytest.mark.parametrize(
    ("arguments", "model", "first"),
    [
        (["--chunk-ms", "160"], "speech_chunk_160", "zero"),
        (["--chunk-ms", "320"], "speech", "zero"),
        (["--chunk-ms", "320", "--model", "spelling"], "spelling", "a"),
        (["--chunk-ms", "160", "--model", "spelling_lstm"], "spelling_lstm", "a"),
        (["--model", "spelling"], "spelling", "a"),
    ],
)
def test_the_model_is_chosen_by_its_chunks(
    transcribe: Command, wav: Path, arguments: list[str], model: str, first: str
) -> None:
    *_, whole = map(json.loads, transcribe(wav, "--json", *arguments).splitlines())
    assert whole["model"] == model
    assert whole["transcript"].split()[0] == first
    assert whole["chunks"] == (20 if whole["chunk_ms"] == 160 else 10)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--chunk-ms", "200"], "none has. The streaming speech models at"),
        (["--chunk-ms", "640"], "are speech (320 ms), speech_alone (320 ms), speech_chunk_160 (160 ms), spelling"),
        (["--chunk-ms", "160", "--model", "spelling"], "several have: spelling_gru, spelling_lstm"),
        (["--model", "nobody"], "no model 'nobody' is loaded. The streaming speech models at"),
        (["--model", "double"], "'double' is no streaming speech model: it lacks pcm INT16"),
        (["--model", "unlabelled"], "knows 11 tokens, but has 2 labels for them"),
        (["--protocol", "http"], "no Triton server answers"),
        (["--address", "127.0.0.1:9"], "no Triton server answers at 127.0.0.1:9"),
        (["--rate", "8000"], "--rate is for raw samples"),
        (["--deadline", "0"], "expected more than 0"),
    ],
)
def test_bad_options(refused: Command, wav: Path, arguments: list[str], words: str) -> None:
    assert words in refused(wav, *arguments)


def test_over_http(server: Server, wav: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", "--protocol", "http", "--url", server.http, str(wav)]) == 2
    assert "streaming sessions need gRPC" in capsys.readouterr().err


def test_bad_recordings(refused: Command, tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "nothing.wav")
    samples = np.zeros(20_000, np.float32)
    samples[15_000] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, SAMPLE_RATE_HZ, subtype="FLOAT")
    assert "holds NaN or infinite samples, the first at 0.938 s" in refused(tmp_path / "nan.wav")
    assert "--realtime paces a file" in refused("-", "--realtime")


def test_a_server_without_speech(refused: Command, practice: Server, wav: Path) -> None:
    for options in ([], ["--chunk-ms", "320"]):
        assert "serves no streaming speech model" in refused(wav, "--address", practice.grpc, *options)


def line(output: Any) -> str:
    """The next line of a process."""
    text: str = output.readline().decode()
    assert text, "the process said no more"
    return text


def test_samples_that_come_live(process: Callable[..., subprocess.Popen[bytes]]) -> None:
    """Each chunk is answered before the next one is spoken; what half a sample at the end was is nobody's guess."""
    command = process("-", "--json")
    assert command.stdin is not None
    pcm = beeps(12)
    for number in range(9):
        command.stdin.write(pcm[number * 5_120 : (number + 1) * 5_120].tobytes())
        command.stdin.flush()
        assert json.loads(line(command.stdout))["end_s"] == pytest.approx(0.32 * (number + 1))
    out, error = command.communicate(pcm[9 * 5_120 :].tobytes() + b"\x01", timeout=LINE_S)
    last, whole = map(json.loads, out.splitlines())
    assert last["end_s"] == pytest.approx(3.15)
    assert whole["transcript"] == TWELVE
    assert (command.returncode, error) == (0, b"")


@pytest.mark.parametrize(("data", "code"), [(b"", 2), (b"\x01", 2), (bytes(10_240), 0)])
def test_short_and_empty_standard_input(
    process: Callable[..., subprocess.Popen[bytes]], data: bytes, code: int
) -> None:
    command = process("-")
    _, error = command.communicate(data, timeout=LINE_S)
    assert command.returncode == code
    assert error.startswith(b"error: standard input ended before its first sample" if code else b"")
    assert error.count(b"\n") == (1 if code else 0)


def test_ctrl_c_ends_the_stream(
    process: Callable[..., subprocess.Popen[bytes]], transcribe: Command, wav: Path
) -> None:
    """The model takes one stream at a time, so the one after it shows that the server was told."""
    command = process("-", "--model", "speech_alone", "--json")
    assert command.stdin is not None
    command.stdin.write(beeps(2)[:5_120].tobytes())
    command.stdin.flush()
    line(command.stdout)
    command.send_signal(signal.SIGINT)
    out, error = command.communicate(timeout=LINE_S)
    assert (command.returncode, error) == (130, b"")
    assert json.loads(out)["transcript"] == "zero"
    assert TWELVE in transcribe(wav, "--model", "speech_alone", "--deadline", "5")


def test_a_reader_that_goes_away(process: Callable[..., subprocess.Popen[bytes]], wav: Path) -> None:
    command = process(wav, "--realtime")
    assert command.stdout is not None
    assert command.stderr is not None
    line(command.stdout)
    command.stdout.close()
    assert command.wait(LINE_S) == 141
    assert command.stderr.read() == b""


def test_a_server_that_dies(process: Callable[..., subprocess.Popen[bytes]], tmp_path: Path, wav: Path) -> None:
    beep_counter.write(tmp_path, "speech", frames=8)
    with start(tmp_path) as dying:
        command = process("-", "--json", address=dying.grpc)
        assert command.stdin is not None
        command.stdin.write(beeps(2)[:5_120].tobytes())
        command.stdin.flush()
        line(command.stdout)
        dying.kill()
        out, error = command.communicate(bytes(20_000), timeout=LINE_S + REPLAY.deadline_s)
    assert (command.returncode, out) == (2, b"")
    assert error.startswith(b"error: standard input is transcribed up to 0.32 s only (zero): stream ")
    assert b"is lost after 1 answered chunks" in error
    assert error.count(b"\n") == 1


def test_a_worker_that_dies_costs_no_words(process: Callable[..., subprocess.Popen[bytes]], server: Server) -> None:
    command = process("-", "--json")
    assert command.stdin is not None
    sound = beeps(3).tobytes()
    command.stdin.write(sound[:20_480])
    command.stdin.flush()
    line(command.stdout)
    (worker,) = {beat.pid for beat in Heartbeats(server.log.parent.name).read() if beat.model == "speech"}
    os.kill(worker, signal.SIGKILL)
    out, error = command.communicate(sound[20_480:], timeout=LINE_S + REPLAY.deadline_s)
    assert (command.returncode, error) == (0, b"")
    assert json.loads(out.splitlines()[-1])["transcript"] == "zero one two"


def test_a_terminal_is_no_microphone(refused: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.openpty()
    with os.fdopen(theirs) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        assert "standard input is a terminal; pipe raw samples into it" in refused("-")
    os.close(ours)


def test_rates_of_raw_samples(process: Callable[..., subprocess.Popen[bytes]]) -> None:
    command = process("-", "--rate", "8000")
    out, _ = command.communicate(beeps(3)[::2].tobytes(), timeout=LINE_S)
    assert out.decode().splitlines()[-3] == "zero one two"
    _, error = process("-", "--rate", "10").communicate(timeout=LINE_S)
    assert b"a rate of 10 Hz; expected 1000" in error

"""Transcribe speech chunk by chunk: the words as they come, and how long each answer took.

    python -m clients transcribe three.flac --realtime
    arecord -t raw -f S16_LE -r 16000 -c 1 | python -m clients transcribe -

The server's description of the model says how long its chunks are; ``--chunk-ms`` picks the model of the family whose
chunks have that length. Ctrl-C ends the stream and prints what was understood until then.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from clients.client import Client
from clients.errors import ClientError, ModelNotFound, ModelNotReady
from clients.listening import Heard, NotSpeech, chunk_samples, ended_on_failure, hear, summary, transcript
from clients.options import connected
from clients.recording import SAMPLE_RATE_HZ, Sound, open_file, open_raw
from clients.replay import Replay
from clients.signature import Signature
from optimize.errors import UserError

MODEL = "speech"
STANDARD_INPUT = "-"
REPLAY = Replay(deadline_s=10)  # a worker that died is back within a few seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE",
                        help="WAV, FLAC, OGG, of any rate; -: raw int16 mono samples from standard input")  # fmt: skip
    parser.add_argument("--rate", type=int, metavar="HZ",
                        help=f"of the raw samples on standard input; default: {SAMPLE_RATE_HZ}")  # fmt: skip
    parser.add_argument("--realtime", action="store_true", help="send a file at the pace at which it was spoken")
    parser.add_argument("--chunk-ms", type=float, metavar="N",
                        help="ask the model, --model or one of its variants, whose chunks are so long")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each chunk and one for the whole")
    parser.add_argument("--model", default=MODEL, help="default: %(default)s")


def run(options: argparse.Namespace) -> None:
    """Print the transcript that the command line asks for. Raises UserError."""
    sound = _open(options)
    with connected(options) as client:
        model = choose(client, options.model, options.chunk_ms)
        with client.stream(model, replay=REPLAY) as session, ended_on_failure(session):
            printer = (_Json if options.json else _Text)(session.signature, options.realtime)
            printer.begin(sound, client.address)
            heard: list[Heard] = []
            try:
                for each in hear(session, sound, realtime=options.realtime):
                    heard.append(each)
                    printer.chunk(each)
            except KeyboardInterrupt:
                if heard:
                    printer.end(heard)
                raise
            except ClientError as error:
                if not heard:
                    raise
                raise UserError(
                    f"{sound.name} is transcribed up to {heard[-1].end_s:.2f} s only "
                    f"({transcript(heard) or 'no words'}): {error}"
                ) from None
            printer.end(heard)


def choose(client: Client, family: str, chunk_ms: float | None) -> str:
    """The model of that name, or the one among it and its variants whose chunks are ``chunk_ms`` long.

    Raises UserError, with the names of what is there, where the server has none or it is no streaming speech model.
    """
    if chunk_ms is None:
        try:
            chunk_samples(client.signature(family))
        except (ModelNotFound, ModelNotReady):
            raise UserError(f"no model '{family}' is loaded. {_listed(client, _served(client))}") from None
        return family
    served = _served(client)
    fitting = [
        name
        for name, milliseconds in served.items()
        if milliseconds == chunk_ms and (name == family or name.startswith(f"{family}_"))
    ]
    if family in fitting:
        return family
    if len(fitting) != 1:
        found = f"several have: {', '.join(fitting)}" if fitting else "none has"
        raise UserError(
            f"--chunk-ms {chunk_ms:g}: expected one model '{family}' or '{family}_...' with chunks of {chunk_ms:g} ms, "
            f"but {found}. {_listed(client, served)}"
        )
    return fitting[0]


def _open(options: argparse.Namespace) -> Sound:
    if options.file != STANDARD_INPUT:
        if options.rate is not None:
            raise UserError(f"--rate is for raw samples on standard input; '{options.file}' says its own rate")
        return open_file(Path(options.file))
    if options.realtime:
        raise UserError("--realtime paces a file; what comes on standard input is sent as it comes")
    return open_raw(sys.stdin.buffer, "standard input", SAMPLE_RATE_HZ if options.rate is None else options.rate)  # type: ignore[arg-type]


def _served(client: Client) -> dict[str, float]:
    """The streaming speech models that are loaded, and how many milliseconds their chunks have."""
    served = {}
    for name in dict.fromkeys(entry.model for entry in client.models()):
        with suppress(NotSpeech, ModelNotFound, ModelNotReady):  # or it is gone again
            served[name] = _milliseconds(client.signature(name))
    return served


def _listed(client: Client, served: dict[str, float]) -> str:
    if not served:
        return (
            f"{client.address} serves no streaming speech model; publish one with "
            "'python -m optimize.export --quantize --model speech'"
        )
    names = ", ".join(f"{name} ({milliseconds:g} ms)" for name, milliseconds in served.items())
    return f"The streaming speech models at {client.address} are {names}"


def _milliseconds(signature: Signature) -> float:
    return 1e3 * chunk_samples(signature) / SAMPLE_RATE_HZ


@dataclass(frozen=True)
class _Text:
    """Lines for people."""

    signature: Signature
    realtime: bool

    def begin(self, sound: Sound, address: str) -> None:
        model, chunk_ms = self.signature, _milliseconds(self.signature)
        print(f"{model.model} version {model.version} at {address}, chunks of {chunk_ms:g} ms")
        print(f"{sound.description}\n\n  until s  answer ms  words", flush=True)

    def chunk(self, heard: Heard) -> None:
        print(f"{heard.end_s:9.2f}  {heard.latency_ms:9.1f}  {' '.join(heard.words)}".rstrip(), flush=True)

    def end(self, heard: list[Heard]) -> None:
        chunk_ms = _milliseconds(self.signature)
        whole = summary(heard, chunk_ms / 1e3)
        missed = f"; {whole.missed} answers later than {chunk_ms:g} ms" if self.realtime else ""
        print(
            f"\n{whole.transcript or '(no words)'}\n\n{whole.audio_s:.2f} s in {whole.chunks} chunks; answer ms "
            f"p50 {whole.p50_ms:.1f}, p95 {whole.p95_ms:.1f}, p99 {whole.p99_ms:.1f}, max {whole.max_ms:.1f}; "
            f"real time factor {whole.real_time_factor:.4f}{missed}",
            flush=True,
        )


class _Json(_Text):
    """The same for machines, times in milliseconds. Only in real time can a deadline be missed: else null."""

    def begin(self, sound: Sound, address: str) -> None:
        pass

    def chunk(self, heard: Heard) -> None:
        print(json.dumps(asdict(heard)), flush=True)

    def end(self, heard: list[Heard]) -> None:
        chunk_ms = _milliseconds(self.signature)
        whole = asdict(summary(heard, chunk_ms / 1e3))
        if not self.realtime:
            whole["missed"] = None
        model = {"model": self.signature.model, "version": self.signature.version, "chunk_ms": chunk_ms}
        print(json.dumps(model | whole), flush=True)

"""Streams that go on for long, and streams that never end: what a streaming server must bear for weeks.

    python -m loadtest.streams --continuous 10                # minutes of audio, as fast as the server answers
    python -m loadtest.streams --continuous 10 --realtime --onnx model_repository/speech/1/model.onnx
    python -m loadtest.streams --abandon 10000                # streams that never send END

--continuous: one stream of unbroken audio. Its --output is bit for bit that of the published model run in this process
(--onnx), or else of a second stream that began later; a chunk takes as long at the end as at the beginning; the
server's memory does not grow.

--abandon: streams that send one or two chunks and are then cancelled, disconnected or silent. The server gives their
slots to others, its memory does not grow, and afterwards as many streams as it has slots start at once. That takes
the model's idle limit for each time that every slot is used.

Memory is the resident memory of tritonserver and its workers, from /proc: for a server on another machine it is not
checked. Status: 0; 1 if a limit is broken; 2 for a mistake.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from clients.client import DEFAULT_ADDRESS, checked_address
from loadtest import abandonment, audio, command, continuous, thresholds
from loadtest.abandonment import Abandonment
from loadtest.continuous import Continuous
from loadtest.thresholds import Verdict

MAX_GROWTH_PERCENT = 2.0


def to_json(result: Continuous | Abandonment, verdicts: Sequence[Verdict]) -> str:
    """The result, and what was held against which limit."""
    return thresholds.to_json(asdict(result) | {"limits": thresholds.held(verdicts)})


def summary(result: Continuous | Abandonment) -> str:
    """What was seen, in words."""
    memory = result.memory_bytes
    seen = "not checked: the server is not on this machine, or another user's"
    if memory is not None:
        seen = f"{memory.first / 2**20:.1f} MiB, then {memory.last / 2**20:.1f} MiB ({memory.growth_percent:+.2f} %)"
    if isinstance(result, Continuous):
        return (
            f"{result.chunks} chunks, {result.audio_s / 60:.1f} min of audio in {result.wall_s / 60:.1f} min\n"
            f"a chunk, median: {result.chunk_ms.first:.3f} ms, then {result.chunk_ms.last:.3f} ms\n"
            f"memory: {seen}"
        )
    ways = ", ".join(f"{number} {way}" for way, number in result.abandoned.items())
    return (
        f"{ways}, {result.failed} failed, in {result.wall_s:.0f} s; {result.slots} slots, idle limit "
        f"{result.idle_limit_s:g} s\n"
        + (f"first failure: {result.first_failure}\n" if result.first_failure else "")
        + f"slowest start: {result.slowest_start_ms:.1f} ms\nmemory: {seen}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    address = checked_address(options.address, "grpc")
    samples = audio.load(options.audio, options.seed)
    result: Continuous | Abandonment
    if options.continuous is not None:
        result = asyncio.run(
            continuous.run(
                address,
                options.model,
                options.continuous,
                samples,
                output=options.output,
                realtime=options.realtime,
                onnx=options.onnx,
                progress=_progress("chunks"),
            )
        )
    else:
        work = abandonment.run(address, options.model, options.abandon, samples, progress=_progress("streams"))
        result = asyncio.run(work)
    limits = [options.max_growth_percent]
    if isinstance(result, Continuous):
        limits.append(options.max_time_ratio)
    verdicts = result.verdicts(*limits)
    print(summary(result))
    print("\n".join(map(str, verdicts)))
    if options.json is not None:
        options.json.write_text(to_json(result, verdicts))
    return 0 if all(verdict.passed for verdict in verdicts) else 1


def _progress(what: str) -> Callable[[int, int], None]:
    """Shows how far it is, on a terminal, twice a second."""
    shown_s = 0.0

    def show(done: int, total: int) -> None:
        nonlocal shown_s
        if sys.stderr.isatty() and (time.monotonic() - shown_s > 0.5 or done == total):
            shown_s = time.monotonic()
            print(f"\r{done} of {total} {what}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show


def _parser() -> argparse.ArgumentParser:
    parser = command.parser(__doc__)
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument(
        "--continuous", type=command.positive, nargs="?", const=10.0, metavar="MINUTES", help="of audio; 10 if bare"
    )
    kind.add_argument("--abandon", type=command.count, nargs="?", const=10_000, metavar="N", help="10000 if bare")
    add = parser.add_argument
    add("--model", default="speech", metavar="NAME", help="default: %(default)s")
    add("--address", default=DEFAULT_ADDRESS["grpc"], metavar="HOST:PORT", help="gRPC; default: %(default)s")
    add("--realtime", action="store_true", help="--continuous: a chunk when it would have been spoken")
    add("--onnx", type=Path, metavar="FILE", help="--continuous: the published model, to compare with")
    add("--output", default="tokens", metavar="NAME", help="--continuous: what to compare; default: %(default)s")
    add("--audio", type=Path, metavar="FILE.wav", help="16 kHz, 16 bit, mono, repeated; default: bursts of noise")
    add("--seed", type=int, default=0, help="of the bursts; default: %(default)s")
    growth = "limit on the growth of the server's memory; default: %(default)s"
    add("--max-growth-percent", type=command.not_negative, default=MAX_GROWTH_PERCENT, metavar="P", help=growth)
    ratio = "--continuous: limit on the time of a chunk, last tenth to first; default: %(default)s"
    add("--max-time-ratio", type=command.positive, default=continuous.MAX_TIME_RATIO, metavar="X", help=ratio)
    add("--json", type=command.new_file, metavar="FILE", help="write the result there")
    return parser


if __name__ == "__main__":
    command.run(main)

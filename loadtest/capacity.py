"""How many real-time streams a running Triton sustains, or how many requests per second.

    python -m loadtest.capacity --model speech                           # streams, each with a chunk every 320 ms
    python -m loadtest.capacity --model load_forecast --p99-ms 20        # requests per second
    python -m loadtest.capacity --model speech --json capacity.json --audio speech.wav --processes 2

Every stream sends each chunk when a microphone would have it, whatever the server does, and its latency counts from
then. A level is sustained if the p99 of the latency is within the chunk's own duration (or --p99-ms), no answer came
later than the next chunk, and nothing failed. Levels are doubled, then bisected, in short trials; the result is
confirmed by a run of --seconds.

The generator measures itself: where its p99 is late by more than a tenth of a chunk (a quarter of --p99-ms for
requests), or it is busy all the time, the result is "at least", and no claim about the server. Its processes use this
machine's cores; run it on another one, or see the column "gen" for how much it took from the server.

Columns: late: p99 of the generator's own delay; rtf: seconds of computing for a second of audio, an utterance's last
chunk counted as a whole one; busy: share of the time in which the model ran; batch: requests a run; gen, server:
processor cores used, by the generator's busiest process and by the server with its workers. Status: 0; 1 if not even
the least load was sustained; 2 for a mistake.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import clients
from clients.client import DEFAULT_ADDRESS, checked_address
from clients.signature import Signature
from loadtest import audio, command, thresholds
from loadtest.chunks import ChunkShape
from loadtest.load import Load
from loadtest.pacing import ARRIVALS
from loadtest.prober import Prober
from loadtest.request_load import RequestLoad
from loadtest.search import Bound, Finding, largest
from loadtest.stream_load import StreamLoad
from loadtest.trial import Goal, Trial
from optimize.errors import UserError

STREAMS, REQUESTS = "real-time streams", "requests per second"
CHUNK_DEADLINES = 10  # an unanswered chunk has failed after so many chunks' time, and at least 5 s


@dataclass(frozen=True)
class Settings:
    """A search. seconds: of the run that confirms; trial_seconds: of those before. ceiling: the most to try."""

    address: str
    model: str
    seconds: float
    trial_seconds: float
    ceiling: int
    p99_ms: float | None
    processes: int
    precision: float
    utterance_s: float
    arrivals: str
    audio: Path | None
    inputs: Path | None
    seed: int


@dataclass(frozen=True)
class Capacity:
    """What was found. level: of what ``unit`` says, confirmed by the last trial; 0 if nothing was sustained."""

    model: str
    version: str
    address: str
    unit: str
    level: int
    bound: Bound
    chunk_ms: float | None
    p99_limit_ms: float
    processes: int
    cores: int
    trials: tuple[Trial, ...]

    @property
    def claim(self) -> str:
        """The result in words."""
        if not self.level:
            why = "and the generator was the limit" if self.bound is Bound.GENERATOR else "not even the least load"
            return f"model '{self.model}' sustains no {self.unit}: {why}"
        more = {
            Bound.SERVER: f"{self.level} {self.unit}, and not many more",
            Bound.GENERATOR: f"at least {self.level} {self.unit}; beyond, {Finding.GENERATOR}",
            Bound.CEILING: f"at least {self.level} {self.unit}, the most that was tried",
        }[self.bound]
        return f"model '{self.model}' sustains {more}"


def measure(settings: Settings, show: Callable[[Trial], None] = lambda trial: None) -> Capacity:
    """Search the capacity. show: called with every trial. Raises UserError: no server, no model, no fitting input."""
    with clients.connect(settings.address) as client:
        signature = client.signature(settings.model)
    load, goal, unit = _plan(settings, signature)
    streams = goal.period_s is not None
    with Prober(
        settings.address, settings.model, load, goal, settings.processes, signature.idle_limit_s or 0.0, show
    ) as prober:
        found = largest(
            lambda level: prober.finding(level, settings.trial_seconds),
            lambda level: prober.finding(level, settings.seconds, confirms=True),
            ceiling=settings.ceiling,
            first=1 if streams else 16,
            precision=settings.precision,
        )
    return Capacity(
        model=signature.model,
        version=signature.version,
        address=settings.address,
        unit=unit,
        level=found.level,
        bound=found.bound,
        chunk_ms=goal.period_s * 1e3 if goal.period_s else None,
        p99_limit_ms=goal.p99_limit_ms,
        processes=settings.processes,
        cores=os.cpu_count() or 1,
        trials=tuple(prober.trials),
    )


def _plan(settings: Settings, signature: Signature) -> tuple[Load, Goal, str]:
    if signature.idle_limit_s is None:
        if settings.p99_ms is None:
            raise UserError(f"model '{signature.model}' keeps no state, so no chunk limits its latency: give --p99-ms")
        deadline_s = max(1.0, 5 * settings.p99_ms / 1e3)
        load = RequestLoad(signature.model, settings.arrivals, deadline_s, settings.inputs)
        return load, Goal(settings.p99_ms), REQUESTS
    shape = ChunkShape.of(signature)
    samples = audio.load(settings.audio, settings.seed)
    deadline_s = max(5.0, CHUNK_DEADLINES * shape.seconds)
    goal = Goal(min(settings.p99_ms or shape.seconds * 1e3, shape.seconds * 1e3), shape.seconds)
    return (
        StreamLoad(signature.model, shape, samples, settings.utterance_s, deadline_s, settings.seed),
        goal,
        STREAMS,
    )


HEAD = ("level", "run", "due", "missed", "failed", "p50 ms", "p95", "p99", "max", "late", "rtf", "busy", "batch",
        "gen", "server", "")  # fmt: skip


def line(trial: Trial) -> str:
    """A trial as a line under ``HEAD``."""
    cells = [
        str(trial.level),
        f"{trial.seconds:.0f} s",
        *(str(count) for count in (trial.requests, trial.missed, trial.failed + trial.dropped)),
        *(f"{value:.1f}" for value in (trial.p50_ms, trial.p95_ms, trial.p99_ms, trial.max_ms, trial.late_p99_ms)),
        "-" if trial.real_time_factor is None else f"{trial.real_time_factor:.4f}",
        f"{trial.compute_share:.0%}",
        f"{trial.mean_batch:.1f}",
        f"{trial.generator_cores:.2f}",
        "-" if trial.server_cores is None else f"{trial.server_cores:.2f}",
    ]
    return _aligned(
        (*cells, trial.finding + (", confirmed" if trial.confirms and trial.finding == "sustained" else ""))
    )


def details(capacity: Capacity) -> str:
    """The confirmed run's batches, and the first failure if there was one."""
    last = capacity.trials[-1]
    sizes = ", ".join(f"{size}: {runs}" for size, runs in last.batch_sizes.items())
    failures = [f"first failure at {t.level}: {t.first_failure}" for t in capacity.trials if t.first_failure][:1]
    return "\n".join([f"runs by batch size in the last run: {sizes or 'none'}", *failures])


def to_json(capacity: Capacity) -> str:
    return thresholds.to_json(asdict(capacity) | {"claim": capacity.claim})


def _aligned(cells: Sequence[str]) -> str:
    *numbers, words = cells
    return "".join(f"{cell:>8}" for cell in numbers) + f"  {words}"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    settings = Settings(
        address=checked_address(options.address, "grpc"),
        model=options.model,
        seconds=options.seconds,
        trial_seconds=min(options.trial_seconds, options.seconds),
        ceiling=options.max_streams,
        p99_ms=options.p99_ms,
        processes=options.processes,
        precision=options.precision,
        utterance_s=options.utterance_s,
        arrivals=options.arrivals,
        audio=options.audio,
        inputs=options.inputs,
        seed=options.seed,
    )
    print(_aligned(HEAD), flush=True)
    capacity = measure(settings, lambda trial: print(line(trial), flush=True))
    print(details(capacity))
    print(capacity.claim)
    if options.json is not None:
        options.json.write_text(to_json(capacity))
    return 0 if capacity.level else 1


def _parser() -> argparse.ArgumentParser:
    parser = command.parser(__doc__)
    add = parser.add_argument
    add("--model", default="speech", metavar="NAME", help="default: %(default)s")
    add("--address", default=DEFAULT_ADDRESS["grpc"], metavar="HOST:PORT", help="gRPC; default: %(default)s")
    add("--seconds", type=command.positive, default=30.0, help="of the run that confirms; default: %(default)s")
    add("--trial-seconds", type=command.positive, default=5.0, help="of the runs before it; default: %(default)s")
    most = "the most streams, or requests per second, to try; default: %(default)s"
    add("--max-streams", "--max-rate", type=command.count, default=4096, metavar="N", help=most)
    limit = "limit on the p99 of the latency; default: the chunk's duration; needed for a model without streams"
    add("--p99-ms", type=command.positive, metavar="MS", help=limit)
    processes = max((os.cpu_count() or 1) // 2, 1)
    add("--processes", type=command.count, default=processes, metavar="N", help="that make load; default: %(default)s")
    near = "stop when the next level known to be too much is nearer than this fraction; default: %(default)s"
    add("--precision", type=command.not_negative, default=0.02, metavar="FRACTION", help=near)
    utterances = "mean length of an utterance, after which a stream begins anew; 0: never; default: %(default)s"
    add("--utterance-s", type=command.not_negative, default=10.0, metavar="SECONDS", help=utterances)
    add("--arrivals", choices=tuple(ARRIVALS), default="poisson", help="of requests; default: %(default)s")
    add("--audio", type=Path, metavar="FILE.wav", help="16 kHz, 16 bit, mono; default: seeded bursts of noise")
    add("--inputs", type=Path, metavar="FILE.npz", help="requests for a model without streams, an array an input")
    add("--seed", type=int, default=0, help="of the audio and the utterances; default: %(default)s")
    add("--json", type=command.new_file, metavar="FILE", help="write the result with all its runs there")
    return parser


if __name__ == "__main__":
    command.run(main)

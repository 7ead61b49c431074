"""Mixed load for long, on a server of one's own: does anything grow that should not, and is every answer right?

    python -m loadtest.soak --minutes 30
    python -m loadtest.soak --minutes 30 --model speech --stateless load_forecast --streams 8 --json soak.json

Four kinds of work at once: streams (every answer checked against the published model in this process,
and some more that never send END), requests that are always new, one request again and again (from the response
cache, where the model has it), and requests that must be refused. Of the server and all its workers it samples memory,
descriptors, threads and shared memory.

The verdict: after the first --warm-up-share of the time, memory and shared memory grow by no more than
--max-growth-percent (of the median, by the median of all slopes), descriptors and threads do not grow, latencies do not
by more than --max-latency-ratio; no wrong answer, none that was to be refused; at the end nothing is left behind.
Status: 0; 1 if any of it does not hold; 2 for a mistake.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

import clients
from clients.aio import AsyncClient
from clients.errors import ClientError
from clients.signature import Array, Signature
from loadtest import audio, command, thresholds
from loadtest.census import Census, growth_percent
from loadtest.checked import Tally, Utterance, prepare, talk
from loadtest.faults import asking, garbage, is_answer
from loadtest.flatness import Trend
from loadtest.hosted import Hosted
from loadtest.invention import made_up
from loadtest.load import clock_s
from loadtest.thresholds import Verdict
from optimize.errors import UserError

MAX_GROWTH_PERCENT = 2.0
MAX_LATENCY_RATIO = 1.5
WARM_UP_SHARE = 0.2
LEAST_SAMPLES = 5
PAUSE_S = 0.01  # between two requests of a kind: the streams are what matters
KINDS = ("streams", "new", "cached", "refused")


@dataclass(frozen=True)
class SoakConfig:
    """streams: at the same time. sample_s: between two looks at the server. outputs: to compare, all if none are
    named."""

    repository: Path = Path("model_repository")
    model: str = "speech"
    stateless: str = "load_forecast"
    streams: int = 8
    minutes: float = 30.0
    sample_s: float = 5.0
    warm_up_share: float = WARM_UP_SHARE
    seed: int = 0
    outputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        settled = (1 - self.warm_up_share) * self.minutes * 60 / self.sample_s
        if not 0 <= self.warm_up_share < 1 or settled < LEAST_SAMPLES:
            raise UserError(
                f"{self.minutes:g} min with a sample every {self.sample_s:g} s and a warm-up of "
                f"{self.warm_up_share:g} leave {settled:.0f} samples; expected at least {LEAST_SAMPLES}"
            )


@dataclass(frozen=True)
class Soak:
    """What was seen. times_s, samples: of the server. latencies_ms: of each kind, medians from sample to sample.
    failures: of requests that should have been answered."""

    config: SoakConfig
    wall_s: float
    times_s: list[float]
    samples: list[Census]
    latencies_ms: dict[str, list[float]]
    requests: dict[str, int]
    tally: Tally
    failures: list[str]
    answered_garbage: list[str]
    left_behind: list[str] = field(default_factory=list)

    def verdicts(
        self, max_growth_percent: float = MAX_GROWTH_PERCENT, max_latency_ratio: float = MAX_LATENCY_RATIO
    ) -> list[Verdict]:
        """Against the limits."""
        begin = int(len(self.samples) * self.config.warm_up_share)
        times_s, samples, name = self.times_s[begin:], self.samples[begin:], self.config.model

        def grown(what: str) -> float:
            return growth_percent(times_s, [float(getattr(sample, what)) for sample in samples])

        def more(what: str) -> float:
            trend = Trend.of([float(getattr(sample, what)) for sample in samples], warm_up=0)
            return trend.last - trend.first

        tally = self.tally
        unlike = tally.lost + tally.unreported + sum(tally.refused.values())
        latencies = {kind: values[begin:] for kind, values in self.latencies_ms.items() if len(values) > begin}
        return [
            Verdict(name, "growth of memory", "%", grown("memory_bytes"), max_growth_percent, False),
            Verdict(name, "growth of shared memory", "%", grown("shared_bytes"), max_growth_percent, False),
            Verdict(name, "files of shared memory", "more", more("shared_files"), 0, False),
            Verdict(name, "descriptors", "more", more("descriptors"), 0, False),
            Verdict(name, "threads", "more", more("threads"), 0, False),
            *(
                Verdict(kind, "latency, last tenth to first", "times", Trend.of(values, warm_up=0).ratio,
                        max_latency_ratio, False)
                for kind, values in latencies.items()
            ),
            Verdict(name, "right sessions", "at all", tally.finished, 1, True),
            Verdict(name, "wrong answers", f"of {tally.answers}", tally.wrong, 0, False),
            Verdict(name, "sessions lost or refused", f"of {tally.finished + unlike}", unlike, 0, False),
            Verdict(name, "requests that failed", "", len(self.failures), 0, False),
            Verdict(name, "garbage that was answered", "", len(self.answered_garbage), 0, False),
            Verdict(name, "left behind", "processes and files", len(self.left_behind), 0, False),
        ]  # fmt: skip


def run(config: SoakConfig, sampled: Callable[[Hosted, float], None] = lambda hosted, at_s: None) -> Soak:
    """Start a server, load it, end it. sampled: called after each sample. Raises UserError."""
    with Hosted(config.repository, config.model) as hosted:
        seen = asyncio.run(_Soaking(config, hosted, sampled).run())
    seen.left_behind.extend(hosted.left_behind())
    return seen


class _Soaking:
    """One run."""

    def __init__(self, config: SoakConfig, hosted: Hosted, sampled: Callable[[Hosted, float], None]) -> None:
        self._config = config
        self._hosted = hosted
        self._sampled = sampled
        self._over = asyncio.Event()
        self._tally = Tally()
        self._recent: dict[str, list[float]] = {kind: [] for kind in KINDS}
        self._requests = dict.fromkeys(KINDS, 0)
        self._failures: list[str] = []
        self._answered: list[str] = []

    async def run(self) -> Soak:
        config = self._config
        async with await clients.aio.connect(self._hosted.grpc) as client:
            signature, stateless = await client.signature(config.model), await client.signature(config.stateless)
            requests = made_up(stateless, np.random.default_rng(config.seed))
            onnx = config.repository / config.model / signature.version / "model.onnx"
            samples = audio.load(None, config.seed)
            utterances = await asyncio.to_thread(prepare, signature, onnx, samples, config.seed, config.outputs)
            work = [
                *(
                    talk(client, config.model, utterances, self._tally, self._over, seed=place)
                    for place in range(config.streams)
                ),
                self._abandon(client, utterances[0]),
                self._ask(client, "new", requests),
                self._ask(client, "cached", _always(next(requests))),
                asyncio.to_thread(self._refused, [signature, stateless]),
            ]
            tasks = [asyncio.create_task(each) for each in work]
            try:
                return await self._watch(tasks)
            finally:
                self._over.set()
                await asyncio.gather(*tasks)

    async def _watch(self, tasks: list[asyncio.Task[None]]) -> Soak:
        config, begin_s = self._config, clock_s()
        times_s, samples, latencies = list[float](), list[Census](), {kind: list[float]() for kind in KINDS}
        while (now_s := clock_s() - begin_s) < config.minutes * 60:
            await asyncio.sleep(max(len(samples) * config.sample_s - now_s, 0.0))
            if broken := next((task for task in tasks if task.done()), None):
                await broken
            times_s.append(clock_s() - begin_s)
            samples.append(await asyncio.to_thread(self._hosted.census))
            self._recent["streams"], self._tally.latencies_ms = self._tally.latencies_ms, []
            for kind, recent in self._recent.items():
                if recent:
                    latencies[kind].append(median(recent))
                self._requests[kind] += len(recent)
                self._recent[kind] = []
            self._sampled(self._hosted, times_s[-1])
        return Soak(config, clock_s() - begin_s, times_s, samples, latencies, self._requests, self._tally,
                    self._failures, self._answered)  # fmt: skip

    async def _ask(self, client: AsyncClient, kind: str, requests: Iterator[dict[str, Array]]) -> None:
        while not self._over.is_set():
            begin_s = clock_s()
            try:
                await client.infer(self._config.stateless, next(requests))
            except ClientError as error:
                self._failures.append(str(error))
            self._recent[kind].append(1e3 * (clock_s() - begin_s))
            await asyncio.sleep(PAUSE_S)

    async def _abandon(self, client: AsyncClient, utterance: Utterance) -> None:
        """Streams that never end, a few each second."""
        while not self._over.is_set():
            with suppress(ClientError):
                async with client.stream(self._config.model) as session:
                    await session.send(utterance.chunks[0])
            await asyncio.sleep(0.5)

    def _refused(self, signatures: Sequence[Signature]) -> None:
        """In a thread: Triton's own client, which sends what this project's does not."""
        with asking(self._hosted.grpc) as ask:
            while not self._over.is_set():
                for signature in signatures:
                    for what, inputs, options in garbage(signature):
                        begin_s = clock_s()
                        if is_answer(ask(signature.model, inputs, **options)):
                            self._answered.append(f"model '{signature.model}': {what}")
                        else:
                            self._recent["refused"].append(1e3 * (clock_s() - begin_s))
                        time.sleep(PAUSE_S)
                    if self._over.is_set():
                        break


def to_json(seen: Soak, verdicts: Sequence[Verdict]) -> str:
    """Everything that was seen, and what was held against which limit."""
    return thresholds.to_json(asdict(seen) | {"limits": thresholds.held(verdicts)})


def summary(seen: Soak) -> str:
    """What was seen, in words."""
    first, last = seen.samples[0], seen.samples[-1]
    lines = [
        f"{seen.wall_s / 60:.1f} min: " + ", ".join(f"{count} {kind}" for kind, count in seen.requests.items()),
        f"memory {first.memory_bytes / 2**20:.1f} MiB, then {last.memory_bytes / 2**20:.1f} MiB; descriptors "
        f"{first.descriptors}, then {last.descriptors}; threads {first.threads}, then {last.threads}; shared memory "
        f"{first.shared_bytes / 2**20:.1f} MiB in {first.shared_files} files, then {last.shared_bytes / 2**20:.1f} MiB "
        f"in {last.shared_files}",
    ]
    wrong = (*seen.tally.examples, *seen.failures[:3], *seen.answered_garbage[:3], *seen.left_behind)
    return "\n".join([*lines, *(f"for example: {each}" for each in wrong)])


def main(arguments: Sequence[str] | None = None) -> int:
    options = vars(_parser().parse_args(arguments))
    file, growth, ratio = (options.pop(name) for name in ("json", "max_growth_percent", "max_latency_ratio"))
    options["outputs"] = tuple(options["outputs"])
    seen = run(SoakConfig(**options), _show)
    verdicts = seen.verdicts(growth, ratio)
    print(summary(seen))
    print("\n".join(map(str, verdicts)))
    if file is not None:
        file.write_text(to_json(seen, verdicts))
    return 0 if all(verdict.passed for verdict in verdicts) else 1


def _show(hosted: Hosted, at_s: float) -> None:
    if sys.stderr.isatty():
        print(f"\r{at_s / 60:.1f} min", end="", file=sys.stderr, flush=True)


def _always(request: dict[str, Array]) -> Iterator[dict[str, Array]]:
    while True:
        yield request


def _parser() -> argparse.ArgumentParser:
    parser, default = command.parser(__doc__), SoakConfig()
    add = parser.add_argument
    add("--repository", type=Path, default=default.repository, metavar="DIR", help="default: %(default)s")
    add("--model", default=default.model, metavar="NAME", help="that has streams; default: %(default)s")
    add("--stateless", default=default.stateless, metavar="NAME", help="that has none; default: %(default)s")
    add("--streams", type=command.count, default=default.streams, metavar="N", help="default: %(default)s")
    add("--minutes", type=command.positive, default=default.minutes, metavar="M", help="default: %(default)s")
    add("--sample-s", type=command.positive, default=default.sample_s, metavar="S", help="default: %(default)s")
    share = "of the time, before anything must be level; default: %(default)s"
    add("--warm-up-share", type=command.not_negative, default=default.warm_up_share, metavar="X", help=share)
    add("--seed", type=int, default=default.seed, help="default: %(default)s")
    add("--outputs", nargs="+", default=(), metavar="NAME", help="of --model to compare; default: all")
    growth = "limit on the growth of memory and shared memory; default: %(default)s"
    add("--max-growth-percent", type=command.not_negative, default=MAX_GROWTH_PERCENT, metavar="P", help=growth)
    ratio = "limit on latencies, last tenth to first; default: %(default)s"
    add("--max-latency-ratio", type=command.positive, default=MAX_LATENCY_RATIO, metavar="X", help=ratio)
    add("--json", type=command.new_file, metavar="FILE", help="write the result there")
    return parser


if __name__ == "__main__":
    command.run(main)

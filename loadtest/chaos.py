"""Break a server of one's own, again and again, under streams whose every answer is checked.

    python -m loadtest.chaos --streams 64 --minutes 10                  # half of the 64 that the machine bears
    python -m loadtest.chaos --streams 64 --minutes 10 --no-replay      # lost sessions must be told, not mended
    python -m loadtest.chaos --streams 64 --minutes 10 --replicas 2

Faults come evenly, first each once and then as the seed draws them: workers killed and stopped, a whole Triton killed
(and started again by the front door's fleet or by this command), clients killed, ENDs dropped, ids used twice, garbage
to every model, random bytes to the ports, shared memory filled up to --shm-mb, answers not read (loadtest/faults.py).

The verdict: no answer differs from the published model's in this process; every session ends right, lost and told so,
or refused before it began; with replay none is lost; garbage is never answered; after each fault answers come again
within --max-recovery-s; at the end, under the same streams, there are no more processes than before the first fault,
and of memory no more than Triton keeps of lost workers until it ends; after that nothing of the server is left.
Status: 0; 1 if any of it does not hold; 2 for a mistake.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from statistics import median

import clients
from loadtest import audio, command, thresholds
from loadtest.census import Census
from loadtest.checked import Tally, prepare, talk
from loadtest.chunks import ChunkShape
from loadtest.faults import FAULTS, LOSING, Scene, WrongAnswer
from loadtest.hosted import Hosted
from loadtest.load import clock_s
from loadtest.thresholds import Verdict
from optimize.errors import UserError

CONNECTIONS = 4
SETTLE_S = 2.0
MAX_GROWTH_PERCENT = 20.0
HELD_FILES = 2  # of shared memory, by Triton and for the counters, for each lost worker until the server ends
MAX_RECOVERY_S = 60.0
_UNSETTLED_S = 20.0


@dataclass(frozen=True)
class ChaosConfig:
    """streams: that the machine bears in real time; half of them talk. speed: times real time, 0 as fast as answers
    come. every_s: between two faults. outputs: to compare, all if none are named."""

    repository: Path = Path("model_repository")
    model: str = "speech"
    streams: int = 32
    minutes: float = 10.0
    replay: bool = True
    replicas: int = 1
    speed: float = 1.0
    every_s: float = 15.0
    seed: int = 0
    shm_mb: int = 256
    outputs: tuple[str, ...] = ()
    faults: tuple[str, ...] = tuple(FAULTS)
    audio: Path | None = None


@dataclass(frozen=True)
class Injected:
    """A fault, when it began, and what came of it. wrong: if something was answered that must not be."""

    name: str
    at_s: float
    said: str
    wrong: bool = False


@dataclass(frozen=True)
class Chaos:
    """What was seen. before, after: the server under the same streams, before the first fault but for the warm-up, and
    after the last."""

    config: ChaosConfig
    version: str
    wall_s: float
    tally: Tally
    faults: list[Injected]
    restarts: int
    before: Census
    after: Census
    left_behind: list[str] = field(default_factory=list)

    def verdicts(self, max_growth_percent: float, max_recovery_s: float) -> list[Verdict]:
        """Against the limits."""
        tally, model = self.tally, self.config.model
        sessions = tally.finished + tally.lost + tally.unreported
        grown = 100 * (self.after.memory_bytes / max(self.before.memory_bytes, 1) - 1)
        slowest_s = max(tally.interruptions_s, default=0.0)
        answered = sum(fault.wrong for fault in self.faults)
        processes = self.after.processes - self.before.processes
        files = self.after.shared_files - self.before.shared_files
        held = HELD_FILES * sum(fault.name in ("kill_worker", "stop_worker") for fault in self.faults)
        found = [
            Verdict(model, "right sessions", f"of {sessions}", tally.finished, 1, True),
            Verdict(model, "wrong answers", f"of {tally.answers}", tally.wrong, 0, False),
            Verdict(model, "sessions that ended without being told so", f"of {sessions}", tally.unreported, 0, False),
            Verdict(model, "faults answered that must be refused", f"of {len(self.faults)}", answered, 0, False),
            Verdict(model, "slowest recovery", "s", slowest_s, max_recovery_s, False),
            Verdict(model, "processes at the end", "more than before", processes, 0, False),
            Verdict(model, "growth of the server's memory", "%", grown, max_growth_percent, False),
            Verdict(model, "shared memory files at the end", "more than before", files, held, False),
            Verdict(model, "left behind", "processes and files", len(self.left_behind), 0, False),
        ]
        if self.config.replay:
            found.insert(2, Verdict(model, "sessions lost in spite of replay", f"of {sessions}", tally.lost, 0, False))
        return found


def run(config: ChaosConfig, progress: Callable[[Injected], None] = lambda injected: None) -> Chaos:
    """Start a server, break it, end it. Raises UserError: a model that has no streams, or does not start."""
    unknown = [name for name in config.faults if name not in FAULTS]
    if unknown or not config.faults:
        raise UserError(f"fault '{''.join(unknown[:1])}' is unknown; choose from {', '.join(FAULTS)} (--faults)")
    samples = audio.load(config.audio, config.seed)
    with Hosted(config.repository, config.model, config.replicas) as hosted:
        seen = asyncio.run(_break(config, hosted, samples, progress))
    seen.left_behind.extend(hosted.left_behind())
    return seen


def schedule(config: ChaosConfig) -> Iterator[str]:
    """The faults, endlessly: each once, then drawn."""
    random = Random(config.seed)
    yield from config.faults
    while True:
        yield random.choice(config.faults)


async def _break(
    config: ChaosConfig, hosted: Hosted, samples: audio.Samples, progress: Callable[[Injected], None]
) -> Chaos:
    async with await clients.aio.connect(hosted.grpc) as client:
        signature = await client.signature(config.model)
        loaded = sorted({each.model for each in await client.models()})
        signatures = [await client.signature(model) for model in loaded]
    onnx = config.repository / config.model / signature.version / "model.onnx"
    chunk_s = ChunkShape.of(signature).seconds / config.speed if config.speed else 0.0
    utterances = await asyncio.to_thread(prepare, signature, onnx, samples, config.seed, config.outputs)
    scene = Scene(hosted, signature, signatures, utterances, Random(config.seed), config.shm_mb * 2**20)
    tally, over, injected = Tally(), asyncio.Event(), list[Injected]()
    async with AsyncExitStack() as stack:
        connected = [
            await stack.enter_async_context(await clients.aio.connect(hosted.grpc)) for _ in range(CONNECTIONS)
        ]
        stack.callback(over.set)
        speakers = [
            asyncio.create_task(
                talk(connected[place % CONNECTIONS], config.model, utterances, tally, over,
                     seed=config.seed + place, replay=config.replay, chunk_s=chunk_s)
            )
            for place in range(max(config.streams // 2, 1))
        ]  # fmt: skip
        begin_s = clock_s()

        async def inject(name: str) -> None:
            injected.append(await asyncio.to_thread(_inject, name, scene, clock_s() - begin_s))
            progress(injected[-1])

        # Garbage and streams without END take memory that is kept for the next ones: that is no growth.
        for name in ("send_garbage", "drop_ends"):
            if name in config.faults:
                await inject(name)
        await asyncio.sleep(SETTLE_S)
        before, names = await asyncio.to_thread(hosted.census), schedule(config)
        end_s = clock_s() + config.minutes * 60
        while clock_s() < end_s:
            name = next(names)
            await inject(name)
            if name in LOSING:  # the next fault must find something to break
                await _all_talk(tally, len(speakers))
            await asyncio.sleep(min(config.every_s, max(end_s - clock_s(), 0.0)))
        await _all_talk(tally, len(speakers))
        after = await _settled(hosted, before, config.model)
        over.set()
        await asyncio.gather(*speakers)
    return Chaos(config, signature.version, clock_s() - begin_s, tally, injected, hosted.restarts, before, after)


def _inject(name: str, scene: Scene, at_s: float) -> Injected:
    try:
        return Injected(name, at_s, FAULTS[name](scene))
    except WrongAnswer as error:
        return Injected(name, at_s, str(error), wrong=True)
    except (OSError, UserError) as error:  # the server is not there: another fault's work
        return Injected(name, at_s, f"not done: {error}")


async def _all_talk(tally: Tally, speakers: int) -> None:
    """Wait until answers come again as before."""
    wanted, end_s = tally.answers + 2 * speakers, time.monotonic() + MAX_RECOVERY_S
    while tally.answers < wanted and time.monotonic() < end_s:
        await asyncio.sleep(0.1)


async def _settled(hosted: Hosted, before: Census, model: str) -> Census:
    """The server under its streams, once it has ended what it was about to end, or does not."""
    end_s = time.monotonic() + _UNSETTLED_S
    while True:
        await asyncio.sleep(SETTLE_S)
        after = await asyncio.to_thread(hosted.census)
        settled = after.processes <= before.processes and after.shared_files <= before.shared_files
        if settled or time.monotonic() > end_s:
            return after


def to_json(seen: Chaos, verdicts: Sequence[Verdict]) -> str:
    """Everything that was seen, and what was held against which limit."""
    content = asdict(seen) | {"limits": thresholds.held(verdicts)}
    content["tally"].pop("latencies_ms")
    return thresholds.to_json(content)


def summary(seen: Chaos) -> str:
    """What was seen, in words."""
    tally, slow = seen.tally, seen.tally.interruptions_s
    refused = ", ".join(f"{count} {kind}" for kind, count in tally.refused.items()) or "none"
    lines = [
        f"{tally.answers} answers in {seen.wall_s / 60:.1f} min, {len(seen.faults)} faults, {seen.restarts} restarts",
        f"sessions: {tally.finished} right, {tally.lost} lost and told so, {tally.unreported} otherwise",
        f"refused: {refused}",
        f"held up: {len(slow)} answers, median {median(slow or [0.0]):.1f} s, longest {max(slow, default=0.0):.1f} s",
        f"memory: {seen.before.memory_bytes / 2**20:.0f} MiB, then {seen.after.memory_bytes / 2**20:.0f} MiB; "
        f"descriptors: {seen.before.descriptors}, then {seen.after.descriptors}",
    ]
    return "\n".join([*lines, *(f"for example: {each}" for each in (*tally.examples, *seen.left_behind))])


def main(arguments: Sequence[str] | None = None) -> int:
    options = vars(_parser().parse_args(arguments))
    file, growth, recovery = (options.pop(name) for name in ("json", "max_growth_percent", "max_recovery_s"))
    for name in ("outputs", "faults"):
        options[name] = tuple(options[name])
    seen = run(ChaosConfig(**options), progress=_show)
    verdicts = seen.verdicts(growth, recovery)
    print(summary(seen))
    print("\n".join(map(str, verdicts)))
    if file is not None:
        file.write_text(to_json(seen, verdicts))
    return 0 if all(verdict.passed for verdict in verdicts) else 1


def _show(injected: Injected) -> None:
    print(f"{injected.at_s:7.1f} s  {injected.name}: {injected.said}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser, default = command.parser(__doc__), ChaosConfig()
    add = parser.add_argument
    add("--repository", type=Path, default=default.repository, metavar="DIR", help="default: %(default)s")
    add("--model", default=default.model, metavar="NAME", help="that has streams; default: %(default)s")
    streams = "that the machine bears (loadtest.capacity); half of them talk; default: %(default)s"
    add("--streams", type=command.count, default=default.streams, metavar="N", help=streams)
    add("--minutes", type=command.positive, default=default.minutes, metavar="M", help="default: %(default)s")
    add("--replay", action=argparse.BooleanOptionalAction, default=default.replay, help="of lost streams, by clients")
    more = "more than 1: behind the front door, which needs nginx; default: %(default)s"
    add("--replicas", type=command.count, default=default.replicas, metavar="N", help=more)
    speed = "times real time, 0: as fast as answers come; default: %(default)s"
    add("--speed", type=command.not_negative, default=default.speed, metavar="X", help=speed)
    add("--every-s", type=command.positive, default=default.every_s, metavar="S", help="a fault; default: %(default)s")
    add("--seed", type=int, default=default.seed, help="default: %(default)s")
    add("--shm-mb", type=command.count, default=default.shm_mb, metavar="MB", help="most to fill; default: %(default)s")
    add("--outputs", nargs="+", default=(), metavar="NAME", help="to compare; default: all")
    add("--faults", nargs="+", default=default.faults, metavar="NAME", help=f"default: {' '.join(FAULTS)}")
    add("--audio", type=Path, metavar="FILE.wav", help="16 kHz, 16 bit, mono; default: bursts of noise")
    growth = "limit on the growth of the server's memory; default: %(default)s"
    add("--max-growth-percent", type=command.not_negative, default=MAX_GROWTH_PERCENT, metavar="P", help=growth)
    recovery = "limit on the longest wait for an answer; default: %(default)s"
    add("--max-recovery-s", type=command.positive, default=MAX_RECOVERY_S, metavar="S", help=recovery)
    add("--json", type=command.new_file, metavar="FILE", help="write the result there")
    return parser


if __name__ == "__main__":
    command.run(main)

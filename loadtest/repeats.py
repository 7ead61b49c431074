"""What Triton's response cache can do for requests that come again, and what it cannot for those that never do.

    python -m loadtest.repeats --model speech_offline                    # noise of varied length
    python -m loadtest.repeats --model speech_offline --audio menu.wav numbers.wav --distinct 200 --zipf 1.3
    python -m loadtest.repeats --model translate --requests-file sentences.npz --json repeats.json

The cache answers a request that is the same, byte for byte, as one answered before; the model does not run. Two loads
take turns on the same server, 50 requests each, from --concurrency callers that wait for their answers:

- repeated: of --distinct prompts (menu announcements, popular phrases), the k-th most popular drawn in proportion to
  1 / k ** zipf. Every first sighting is a miss, so the best possible hit rate is 1 - different / requests.
- unique: as many requests without two alike, as live audio is: its hit rate is 0 % by construction. They also make
  entries that push others out, as they would in production.

Hits and misses are the server's own counters. It does not say which request hit, so latencies are split by what the
client knows: "sent before": an answer to the same bytes had come; "new"; "under way": the same bytes had been sent, but
not answered yet. Every request sent before should hit; where the server counts fewer hits, the line below says why.
A server keeps its cache from run to run: another --seed makes other prompts.

Status: 0; 2 for a mistake, also a model without the cache, or one that keeps state, which Triton cannot cache.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import clients
from clients.aio import AsyncClient
from clients.calls import Config, Statistics
from clients.client import DEFAULT_ADDRESS, checked_address
from clients.grpc_transport import AsyncGrpcTransport
from clients.signature import Signature
from loadtest import audio, command, thresholds
from loadtest.cached_load import Load, counted
from loadtest.load import clock_s
from loadtest.prompts import DISTINCT, Inputs, Prompts, Sightings, zipf
from optimize.errors import UserError

TURN, WARMUP = 50, 5  # requests of a load before the other has its turn; requests before the first, not counted
DEADLINE_S = 30.0
SETTLE_S = 0.05
HEAD = ("requests", "different", "hits", "misses", "hit rate", "at best", "p50 ms", "p95", "p99", "per s")


@dataclass(frozen=True)
class Settings:
    """distinct: None: as many as there are, at most 1,000. See the module for the rest."""

    address: str
    model: str
    distinct: int | None = None
    exponent: float = 1.1
    requests: int = 2000
    concurrency: int = 4
    audio: tuple[Path, ...] = ()
    file: Path | None = None
    seed: int = 0


@dataclass(frozen=True)
class Report:
    """What was measured. made_up: unique requests that the file had no rows left for."""

    settings: Settings
    version: str
    distinct: int
    made_up: int
    loads: tuple[Load, ...]


async def measure(settings: Settings, progress: Callable[[int], None] = lambda done: None) -> Report:
    """Both loads, in turns. progress: called with how many requests of each are done. Raises UserError."""
    async with await clients.aio.connect(settings.address, request_deadline_s=DEADLINE_S) as client:
        signature = await client.signature(settings.model)
        server = AsyncGrpcTransport(settings.address)
        try:
            _check(signature, await server.send(Config(settings.model, ""), DEADLINE_S))
            recordings = [audio.read(path) for path in settings.audio]
            prompts = Prompts(
                signature, settings.seed, distinct=settings.distinct, recordings=recordings, file=settings.file
            )
            warmup, repeated, unique = Load("warm-up"), Load("repeated"), Load("unique")
            ranks = zipf(prompts.distinct, settings.exponent, settings.requests, settings.seed).tolist()
            sightings = Sightings()
            await _turn(
                client, server, settings, warmup, [(-1 - n, prompts.unique()) for n in range(WARMUP)], sightings
            )
            if warmup.uncounted == WARMUP:
                raise UserError(
                    f"the server looked up no request to model '{settings.model}': it was started without a cache; "
                    "start it with 'python -m serving --cache-mb 64'"
                )
            for first in range(0, settings.requests, TURN):
                places = range(first, min(first + TURN, settings.requests))
                again = [(ranks[place], prompts.repeated(ranks[place])) for place in places]
                anew = [(prompts.distinct + place, prompts.unique()) for place in places]
                for load, requests in ((repeated, again), (unique, anew)):
                    await _turn(client, server, settings, load, requests, sightings)
                progress(places.stop)
        finally:
            await server.close()
    return Report(settings, signature.version, prompts.distinct, prompts.made_up, (repeated, unique))


def _check(signature: Signature, config: Mapping[str, Any]) -> None:
    """Raises UserError for a model whose answers Triton does not cache."""
    if signature.idle_limit_s is not None:
        raise UserError(
            f"model '{signature.model}' keeps state between requests, and Triton caches no sequence model, whose "
            "answers depend on the stream's past; only openings can be cached, with ServingSpec(opening_cache_mb=...)"
        )
    if not config.get("response_cache", {}).get("enable"):
        raise UserError(
            f"model '{signature.model}' is served without the response cache; set ServingSpec(response_cache=True) in "
            "its recipe and publish it again, as it was, with 'python -m optimize.export'"
        )


async def _turn(
    client: AsyncClient,
    server: AsyncGrpcTransport,
    settings: Settings,
    load: Load,
    requests: list[tuple[int, Inputs]],
    sightings: Sightings,
) -> None:
    """Send the requests, each with its number, and add what was seen to ``load``."""
    waiting = iter(requests)

    async def caller() -> None:
        for prompt, inputs in waiting:
            sighting, begin_s = sightings.send(prompt), clock_s()
            await client.infer(settings.model, inputs)
            load.taken.append((sighting, (clock_s() - begin_s) * 1e3))
            sightings.answer(prompt)

    async def count() -> Counter[str]:
        return counted(await server.send(Statistics(), DEADLINE_S), settings.model)

    before, begin_s = await count(), clock_s()
    await asyncio.gather(*(caller() for _ in range(settings.concurrency)))
    load.seconds += clock_s() - begin_s
    after, earlier = await count(), before
    while after != earlier and (after - before)["hits"] + (after - before)["misses"] < len(requests):
        await asyncio.sleep(SETTLE_S)  # in case that counting lags behind answering
        after, earlier = await count(), after
    load.server.update(after - before)


def as_table(report: Report) -> str:
    """A line for each load, and below it one for each kind of its requests."""
    lines = [f"{'':<14}" + "".join(f"{title:>11}" for title in HEAD)]
    for load in report.loads:
        found = load.results
        counts = [str(found[name]) for name in ("requests", "different_requests", "server_hits", "server_misses")]
        rates = [f"{found['hit_rate']:.1%}", f"{found['best_hit_rate']:.1%}"]
        for kind, latency in found["latency"].items():
            times = [f"{latency[name]:.2f}" for name in ("p50_ms", "p95_ms", "p99_ms") if latency["count"]]
            if kind == "all":
                cells = [*counts, *rates, *times, f"{found['requests_per_s']:.1f}"]
            else:
                cells = [str(latency["count"]), *[""] * 5, *times]
            if kind == "all" or 0 < latency["count"] < found["requests"]:
                name = load.name if kind == "all" else "  " + kind.replace("_", " ")
                lines.append(f"{name:<14}" + "".join(f"{cell:>11}" for cell in cells))
    for load in report.loads:
        lines.append(f"{load.name}: {load.finding}")
        if load.uncounted > 0:
            lines.append(
                f"{load.name}: {load.uncounted} counted as neither hit nor miss: the model ran, but its answer was "
                "kept already"
            )
    if report.made_up:
        lines.append(f"{report.made_up} unique requests were made up: '{report.settings.file}' had no more rows")
    return "\n".join(lines)


def as_json(report: Report) -> str:
    settings = report.settings
    content = {
        "model": settings.model,
        "version": report.version,
        "address": settings.address,
        "distinct_prompts": report.distinct,
        "zipf_exponent": settings.exponent,
        "concurrency": settings.concurrency,
        "seed": settings.seed,
        "made_up_unique_requests": report.made_up,
        "loads": {load.name: load.results for load in report.loads},
    }
    return thresholds.to_json(content)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    settings = Settings(
        address=checked_address(options.address, "grpc"),
        model=options.model,
        distinct=options.distinct,
        exponent=options.zipf,
        requests=options.requests,
        concurrency=options.concurrency,
        audio=tuple(options.audio),
        file=options.requests_file,
        seed=options.seed,
    )
    report = asyncio.run(measure(settings, _show_progress(settings.requests)))
    print(as_table(report))
    if options.json is not None:
        options.json.write_text(as_json(report))
    return 0


def _show_progress(total: int) -> Callable[[int], None]:
    def show(done: int) -> None:
        print(f"\r{done} of {total} requests of each load", end="\n" * (done == total), file=sys.stderr, flush=True)

    return show if sys.stderr.isatty() else lambda done: None


def _parser() -> argparse.ArgumentParser:
    parser = command.parser(__doc__)
    add = parser.add_argument
    add("--model", required=True, metavar="NAME", help="one that keeps no state and has the response cache")
    add("--address", default=DEFAULT_ADDRESS["grpc"], metavar="HOST:PORT", help="gRPC; default: %(default)s")
    distinct = f"different prompts that are repeated; default: {DISTINCT}, or what the file has"
    add("--distinct", type=command.count, metavar="N", help=distinct)
    add("--zipf", type=command.not_negative, default=1.1, metavar="EXPONENT", help="0: all alike; default: %(default)s")
    add("--requests", type=command.count, default=2000, metavar="N", help="of each load; default: %(default)s")
    add("--concurrency", type=command.count, default=4, metavar="N", help="callers at a time; default: %(default)s")
    content = parser.add_mutually_exclusive_group()
    recordings = "16 kHz, 16 bit, mono; prompts are pieces of them; default: seeded bursts of noise"
    content.add_argument("--audio", type=Path, nargs="+", default=[], metavar="FILE.wav", help=recordings)
    rows = "an array an input; its rows are the prompts, the most popular first, then the unique requests"
    content.add_argument("--requests-file", type=Path, metavar="FILE.npz", help=rows)
    add("--seed", type=int, default=0, help="of the prompts and of the draw; default: %(default)s")
    add("--json", type=command.new_file, metavar="FILE", help="write the result there")
    return parser


if __name__ == "__main__":
    command.run(main)

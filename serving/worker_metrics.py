"""The numbers that Triton lacks, as a page for Prometheus: streams, their ends, batch sizes, what workers were lost.

    print(WorkerMetrics(server_id).page())

Read from what the workers count in shared memory (``backends/onnxruntime/stream_metrics.py``). Counts add up over the
workers of a model, those that have ended included, so they never go back; of a worker that ended as it was asked to,
only what it had counted at the last look is known. The streams that a worker had open when it was killed are the
sessions lost.
"""

from __future__ import annotations

import json
import struct
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from serving.leftovers import SHARED_MEMORY
from serving.running import start_time
from serving.watchman import Losses

EVENTS = ("started", "replaced", "ended", "failed", "expired", "evicted", "unknown", "refused", "late")
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
NUMBERS = (
    "streams", "room", "state_bytes", "rows_sum",
    *EVENTS,
    *(f"rows_{bound}" for bound in ROWS), "rows_inf",
)  # fmt: skip

_LAYOUT = struct.Struct(f"<{len(NUMBERS)}Q")
_GAUGES: dict[str, tuple[str, Callable[[Counter[str]], int]]] = {
    "seqserve_workers": ("Worker processes that serve the model", lambda held: held["workers"]),
    "seqserve_streams_open": ("Streams that are open", lambda held: held["streams"]),
    "seqserve_streams_free": ("Streams for which there is room", lambda held: held["room"] - held["streams"]),
    "seqserve_state_bytes": ("Memory for the states of streams", lambda held: held["state_bytes"]),
}
_SESSIONS_LOST, _EVENTS, _ROWS = "seqserve_sessions_lost_total", "seqserve_stream_events_total", "seqserve_run_rows"
_WORKERS_LOST, _RELOADS = "seqserve_workers_lost_total", "seqserve_model_reloads_total"

Model = tuple[str, str]  # name, version


@dataclass(frozen=True)
class _Worker:
    pid: int
    model: Model
    counts: Counter[str]


class WorkerMetrics:
    """Of one server. server_id: the name of its workspace. losses: of the watchman, by model."""

    def __init__(self, server_id: str, losses: Mapping[str, Losses]) -> None:
        self._prefix = f"{server_id}_count_"
        self._losses = losses
        self._seen: dict[int, _Worker] = {}
        self._ended: dict[Model, Counter[str]] = defaultdict(Counter)
        self._lost: Counter[Model] = Counter()
        self._reading = threading.Lock()

    def page(self) -> str:
        """In Prometheus' text format."""
        with self._reading:
            return "".join(f"{line}\n" for line in self._lines(self._living()))

    def collect(self) -> None:
        """Note what workers that were killed had counted, and remove their files; so does `page`."""
        with self._reading:
            self._living()

    def _living(self) -> list[_Worker]:
        """The workers that serve; what the others have counted is added to the past."""
        living: dict[int, _Worker] = {}
        for path in sorted(SHARED_MEMORY.glob(f"{self._prefix}*")):
            worker = _read(path)
            if worker is None:
                continue
            if start_time(worker.pid) is not None:
                living[worker.pid] = worker
                continue
            worker = _read(path)  # what it counted until it was killed
            if worker is None:  # it was not: its file went with it
                continue
            self._seen[worker.pid] = worker
            self._lost[worker.model] += worker.counts["streams"]
            path.unlink(missing_ok=True)
        for pid in self._seen.keys() - living.keys():
            ended = self._seen[pid]
            self._ended[ended.model] += ended.counts
        self._seen = living
        return list(living.values())

    def _lines(self, living: list[_Worker]) -> Iterator[str]:
        open_now: dict[Model, Counter[str]] = {}
        totals = {model: Counter(counts) for model, counts in self._ended.items()}
        for worker in living:
            held = open_now.setdefault(worker.model, Counter())
            held.update({name: worker.counts[name] for name in ("streams", "room", "state_bytes")}, workers=1)
            totals.setdefault(worker.model, Counter()).update(worker.counts)
        for name, (meaning, number) in _GAUGES.items():
            yield from _head(name, "gauge", meaning)
            yield from (f"{name}{_labels(model)} {number(held)}" for model, held in open_now.items())
        yield from _head(_EVENTS, "counter", "What happened to streams")
        for model, counts in totals.items():
            yield from (f"{_EVENTS}{_labels(model, event=event)} {counts[event]}" for event in EVENTS)
        yield from _head(_SESSIONS_LOST, "counter", "Streams that were open in a worker that was lost")
        yield from (f"{_SESSIONS_LOST}{_labels(model)} {self._lost[model]}" for model in totals)
        yield from _head(_ROWS, "histogram", "Rows (requests, mostly) that shared a run")
        for model, counts in totals.items():
            runs = 0
            for bound in (*map(str, ROWS), "inf"):
                runs += counts[f"rows_{bound}"]
                yield f"{_ROWS}_bucket{_labels(model, le='+Inf' if bound == 'inf' else bound)} {runs}"
            yield f"{_ROWS}_sum{_labels(model)} {counts['rows_sum']}"
            yield f"{_ROWS}_count{_labels(model)} {runs}"
        losses = {model: Losses() for model, _ in totals} | dict(self._losses)
        yield from _head(_WORKERS_LOST, "counter", "Workers that died or hung, and were replaced")
        yield from (f'{_WORKERS_LOST}{{model="{model}"}} {counts.lost}' for model, counts in losses.items())
        yield from _head(_RELOADS, "counter", "Times that a model was reloaded for that")
        yield from (f'{_RELOADS}{{model="{model}"}} {counts.reloaded}' for model, counts in losses.items())


def _read(path: Path) -> _Worker | None:
    """What the worker has counted; None while it has not said everything yet."""
    try:
        content = path.read_bytes()
        numbers, about = _LAYOUT.unpack_from(content), json.loads(content[_LAYOUT.size :])
        return _Worker(
            int(path.name.rpartition("_")[2]),
            (about["model"], about["version"]),
            Counter(dict(zip(NUMBERS, numbers, strict=True))),
        )
    except (OSError, ValueError, struct.error):
        return None


def _head(name: str, kind: str, meaning: str) -> Iterator[str]:
    yield f"# HELP {name} {meaning}"
    yield f"# TYPE {name} {kind}"


def _labels(model: Model, **more: str) -> str:
    pairs = {"model": model[0], "version": model[1], **more}
    return "{" + ",".join(f'{name}="{value}"' for name, value in pairs.items()) + "}"

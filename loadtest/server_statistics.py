"""What Triton itself counts of a model: runs by batch size, and the time that they took.

Read before and after; the difference is what happened between. ``batch_stats`` counts runs, so its times are those
that the model was really busy; ``inference_stats`` charges a run to each request in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clients.calls import Config, Statistics
from clients.grpc_transport import GrpcTransport

DEADLINE_S = 10.0


@dataclass(frozen=True)
class ServerWork:
    """runs: by batch size. compute_s: in the model, of all its instances. queue_s: of all requests together."""

    runs: dict[int, int] = field(default_factory=dict)
    compute_s: float = 0.0
    queue_s: float = 0.0

    @property
    def requests(self) -> int:
        return sum(size * runs for size, runs in self.runs.items())

    @property
    def mean_batch(self) -> float:
        """Requests a run."""
        return self.requests / max(sum(self.runs.values()), 1)

    def since(self, before: ServerWork) -> ServerWork:
        """What was done after ``before``."""
        runs = {size: count - before.runs.get(size, 0) for size, count in self.runs.items()}
        return ServerWork(
            {size: count for size, count in sorted(runs.items()) if count},
            self.compute_s - before.compute_s,
            self.queue_s - before.queue_s,
        )

    @classmethod
    def of(cls, entries: Sequence[Mapping[str, Any]], model: str) -> ServerWork:
        """Of all versions of ``model``, as Triton's statistics have it (64-bit numbers are strings in its JSON)."""
        runs: dict[int, int] = {}
        compute_ns = queue_ns = 0
        for entry in entries:
            if entry["name"] != model:
                continue
            queue_ns += int(entry.get("inference_stats", {}).get("queue", {}).get("ns", 0))
            for batch in entry.get("batch_stats", ()):
                size, busy = int(batch["batch_size"]), batch.get("compute_infer", {})
                runs[size] = runs.get(size, 0) + int(busy.get("count", 0))
                compute_ns += int(busy.get("ns", 0))
        return cls(runs, compute_ns / 1e9, queue_ns / 1e9)


@dataclass(frozen=True)
class RequestTime:
    """Seconds of all answered requests together: waiting for a run, in the model, and copying tensors."""

    requests: int
    queue_s: float
    compute_s: float
    copies_s: float

    def since(self, before: RequestTime) -> RequestTime:
        """Of an average request after ``before``."""
        count = max(self.requests - before.requests, 1)
        return RequestTime(
            count,
            (self.queue_s - before.queue_s) / count,
            (self.compute_s - before.compute_s) / count,
            (self.copies_s - before.copies_s) / count,
        )

    @classmethod
    def of(cls, entries: Sequence[Mapping[str, Any]], model: str) -> RequestTime:
        """Of all versions of ``model``, as Triton's statistics have it."""
        spent = dict.fromkeys(("queue", "compute_infer", "compute_input", "compute_output"), 0)
        requests = 0
        for statistics in (entry.get("inference_stats", {}) for entry in entries if entry["name"] == model):
            requests += int(statistics.get("success", {}).get("count", 0))
            for part in spent:
                spent[part] += int(statistics.get(part, {}).get("ns", 0))
        copies = spent["compute_input"] + spent["compute_output"]
        return cls(requests, spent["queue"] / 1e9, spent["compute_infer"] / 1e9, copies / 1e9)


class ServerStatistics:
    """Asks one server about one model."""

    def __init__(self, address: str, model: str) -> None:
        self._transport = GrpcTransport(address)
        self._model = model

    def read(self) -> ServerWork:
        """Since the server started. Raises ClientError."""
        return ServerWork.of(self._transport.send(Statistics(), DEADLINE_S), self._model)

    def request_time(self) -> RequestTime:
        """Since the server started. Raises ClientError."""
        return RequestTime.of(self._transport.send(Statistics(), DEADLINE_S), self._model)

    def slots(self) -> int:
        """How many streams the model's instances hold at once."""
        config = self._transport.send(Config(self._model, ""), DEADLINE_S)
        instances = sum(int(group.get("count", 1)) for group in config.get("instance_group", [{}]))
        oldest = config.get("sequence_batching", {}).get("oldest")
        if oldest is None:
            return instances * int(config["max_batch_size"] or 1)
        given = config.get("parameters", {}).get("max_streams", {}).get("string_value")
        return instances * int(given or oldest.get("max_candidate_sequences") or 1)

    def close(self) -> None:
        self._transport.close()

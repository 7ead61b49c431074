"""What can be chosen: which file, how many instances of how many threads, which batches, how long to wait for them.

instances x threads stays within the processor cores; a queue delay within a quarter of the latency limit. The present
settings are always among the choices, whatever they are.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from optimize.specs import ModelSpec, ServingSpec

BATCHES = (4, 8, 16, 32)
DELAYS_US = (0, 100, 250, 500, 1000, 2000, 5000, 10_000)
MOST_OF_LIMIT = 0.25  # of the latency limit may be spent waiting for company

Choices = dict[str, list[str]]


@dataclass(frozen=True)
class Candidate:
    """One choice. profile: which file is served, by the name under which the tuner got it."""

    profile: str
    instances: int
    threads: int
    preferred_batch: tuple[int, ...]
    queue_delay_us: int

    @classmethod
    def of(cls, profile: str, serving: ServingSpec) -> Candidate:
        """The choice that these settings are."""
        return cls(profile, serving.instances, serving.threads, tuple(serving.preferred_batch), serving.queue_delay_us)

    @classmethod
    def parse(cls, parameters: Mapping[str, str]) -> Candidate:
        """The inverse of ``parameters``."""
        instances, threads = map(int, parameters["workers"].split("x"))
        batch = tuple(int(size) for size in parameters["batch"].split("+")) if parameters["batch"] != "any" else ()
        return cls(parameters["profile"], instances, threads, batch, int(parameters["delay_us"]))

    @property
    def parameters(self) -> dict[str, str]:
        """As the study keeps them."""
        return {
            "profile": self.profile,
            "workers": f"{self.instances}x{self.threads}",
            "batch": "+".join(map(str, self.preferred_batch)) or "any",
            "delay_us": str(self.queue_delay_us),
        }

    def settings(self, present: ServingSpec) -> ServingSpec:
        """The present settings with what was chosen here."""
        chosen = {name: value for name, value in asdict(self).items() if name != "profile"}
        return replace(present, **chosen)

    def __str__(self) -> str:
        batch = "+".join(map(str, self.preferred_batch)) or "any"
        return (
            f"{self.profile}, {self.instances} x {self.threads} threads, batch {batch}, wait {self.queue_delay_us} us"
        )


def choices(spec: ModelSpec, present: ServingSpec, profiles: Sequence[str], p99_limit_ms: float, cores: int) -> Choices:
    """Every parameter's values, the present settings' among them."""
    counts = sorted({2**power for power in range(cores.bit_length())} | {cores})
    pairs = [(many, wide) for many, wide in itertools.product(counts, counts) if many * wide <= cores]
    largest = MOST_OF_LIMIT * p99_limit_ms * 1e3
    candidates = [
        *(Candidate(profile, 1, 1, (), 0) for profile in profiles),
        *(Candidate(profiles[0], many, wide, (), 0) for many, wide in pairs),
        *(Candidate(profiles[0], 1, 1, (size,), 0) for size in BATCHES if size <= spec.max_batch),
        *(Candidate(profiles[0], 1, 1, (), delay) for delay in DELAYS_US if delay <= largest),
        Candidate.of(profiles[0], present),
    ]
    found: Choices = {}
    for candidate in candidates:
        for name, value in candidate.parameters.items():
            known = found.setdefault(name, [])
            if value not in known:
                known.append(value)
    return found


def size(space: Choices) -> int:
    """How many candidates there are."""
    total = 1
    for values in space.values():
        total *= len(values)
    return total


def digest(*parts: object) -> str:
    """A short name for what a search is about; another search has another."""
    hashes = (hashlib.sha256(part if isinstance(part, bytes) else repr(part).encode()).digest() for part in parts)
    return hashlib.sha256(b"".join(hashes)).hexdigest()[:12]

"""Profile some stages of a model, for single requests and for a batch, and keep what was found beside the artefacts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from rich.progress import Progress
from torch import nn

from optimize.buckets import fitted
from optimize.data.dataset import Arrays, Split
from optimize.errors import UserError
from optimize.profiler.machine import Machine
from optimize.profiler.onnx_profile import profile_onnx
from optimize.profiler.profile import Profile
from optimize.profiler.torch_profile import profile_torch
from optimize.profiler.verdict import verdict
from optimize.report_page import markdown_table
from optimize.report_profile import TITLE, draw
from optimize.report_svg import alone, style
from optimize.report_tables import time_table
from optimize.specs import ModelSpec

BATCH = 16
_REQUESTS, _BATCHES = 4, 2  # different ones that are profiled in turn


@dataclass(frozen=True)
class Source:
    """A stage: an ONNX file, or a torch network."""

    name: str
    precision: str
    artefact: Path | nn.Module


def profile_stages(
    sources: Sequence[Source],
    requests: Split,
    spec: ModelSpec,
    machine: Machine,
    batch: int = BATCH,
    rounds: int = 200,
    progress: Progress | None = None,
) -> list[Profile]:
    """Of every stage the profile of single requests, with the verdict, and that of batches (unless they are of one).

    Raises UserError for fewer requests than a batch, and for a graph that does not run.
    """
    if len(requests) < batch:
        raise UserError(f"profile: {len(requests)} requests are too few for batches of {batch}; use a smaller --batch")
    bar = progress.add_task("profile", total=len(sources)) if progress else None
    found = []
    for source in sources:
        single = _profile(source, _feeds(requests, spec, 1, _REQUESTS), spec, machine, rounds)
        company = []
        if batch > 1:
            feeds = _feeds(requests, spec, batch, _BATCHES)
            company.append(_profile(source, feeds, spec, machine, max(rounds // 4, 1)))
        found.append(replace(single, verdict=verdict(single, machine, *company)))
        found += company
        if progress and bar is not None:
            progress.advance(bar)
    return found


def write(profiles: Sequence[Profile], model: str, machine: Machine, folder: Path) -> list[Path]:
    """Write profile.json, with every operator, profile.md and profile.svg; returns their paths."""
    kept = {"model": model, "machine": asdict(machine), "profiles": [asdict(profile) for profile in profiles]}
    with style():
        picture = alone(draw(profiles))
    rendered = {
        "profile.json": json.dumps(kept, indent=2) + "\n",
        "profile.md": markdown(profiles, model, machine),
        "profile.svg": picture,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in rendered.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in rendered]


def markdown(profiles: Sequence[Profile], model: str, machine: Machine) -> str:
    """The sentences, what the machine can do, and the time by operator and by layer."""
    lines = [f"# {model}: {TITLE.lower()}", "", f"![{TITLE}](profile.svg)", ""]
    lines += [f"- **{profile.label}**: {profile.verdict}." for profile in profiles if profile.verdict]
    lines += ["", f"One thread of this machine: {machine}.", ""]
    lines += [f"- {overhead(profile)}" for profile in profiles]
    lines += ["", *markdown_table(time_table(profiles, "operator", 12))]
    lines += markdown_table(time_table(profiles, "layer", 24))
    return "\n".join(lines)


def overhead(profile: Profile) -> str:
    """What profiling itself cost, and what was done about it."""
    return (
        f"{profile.label}: p50 {profile.p50_ms:.3f} ms, {profile.profiled_p50_ms:.3f} ms while profiled; "
        f"{profile.ms:.3f} ms in the fastest quarter of {profile.runs} runs, to which operators and what is in none "
        f"add up, after {profile.deducted_us:.2f} µs off every call"
    )


def _profile(source: Source, feeds: list[Arrays], spec: ModelSpec, machine: Machine, rounds: int) -> Profile:
    if isinstance(source.artefact, nn.Module):
        return profile_torch(source.name, source.artefact, spec, feeds, machine, rounds)
    return profile_onnx(source.name, source.artefact, source.precision, feeds, machine, rounds)


def _feeds(requests: Split, spec: ModelSpec, batch: int, count: int) -> list[Arrays]:
    """So many different requests, or batches, spread evenly over the data; fewer where there are not as many."""
    starts = np.unique(np.linspace(0, len(requests) - batch, count).astype(int))
    return [fitted(requests.rows(start, start + batch), spec) for start in starts.tolist()]

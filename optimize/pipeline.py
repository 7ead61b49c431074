"""From a trained checkpoint to a published, proven model: ``STAGES``, in order, each filling in the ``Work``.

    report = run(recipes.load("load_forecast"), None, Options(quantize=True))

Every artefact on the way is measured by the same functions and stands in one report. When a gate fails the report is
still written, but nothing is published, and what was published before keeps serving.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from onnx import ModelProto
from rich.progress import Progress

from optimize import fuse, gates, onnx_export, repository, streaming, verify
from optimize.benchmark import (
    Candidate,
    Measurement,
    measure,
    onnx_candidate,
    precision_of,
    torch_candidate,
    torch_threads,
)
from optimize.buckets import fitted
from optimize.card import manifest, model_card
from optimize.checkpoint import load_checkpoint, path_of
from optimize.distill import distill
from optimize.errors import UserError
from optimize.evidence import Judge
from optimize.profiler import machine, stages
from optimize.quantize import calibrate, guards, operators, plan, quantize, sensitivity
from optimize.quantize.coverage import planned_share
from optimize.quantize.fp16 import half
from optimize.quantize.method import PROFILES
from optimize.quantize.shapes import REFUSALS
from optimize.quantize.tune import calibration_feeds, tune
from optimize.recipes import Recipe
from optimize.report import Published, Report, to_json, write
from optimize.work import Options, Work

LOG = logging.getLogger(__name__)


def load_data(work: Work) -> None:
    """The recipe's data set, or its seeded stand-in."""
    work.dataset = work.recipe.load(work.options.data)
    LOG.info("data: %s", work.dataset.source)


def load_teacher(work: Work) -> None:
    """The trained networks that are compared: the teacher must be there, comparison networks may."""
    for network, definition in work.variant.networks.items():
        path = path_of(work.options.checkpoints, work.recipe.name, *work.recipe.origin(work.name, network))
        if network == "teacher" or (network != "student" and path.exists()):
            work.networks[network] = load_checkpoint(path, definition)


def distil_student(work: Work) -> None:
    """Reuse the student whose recorded teacher is the teacher at hand; otherwise, or on request, distil it anew."""
    if "student" not in work.variant.networks:
        return
    path = path_of(work.options.checkpoints, work.recipe.name, *work.recipe.origin(work.name, "student"))
    if path.exists() and not work.options.distill:
        student = load_checkpoint(path, work.variant.networks["student"])
        if student[1].teacher_sha256 == work.networks["teacher"][1].sha256:
            work.networks["student"] = student
            return
        LOG.warning("the saved student was distilled from another teacher: distilling it anew")
    distill(work.recipe, work.name, work.dataset, work.options.checkpoints, work.progress)
    work.networks["student"] = load_checkpoint(path, work.variant.networks["student"])


def export_onnx(work: Work) -> None:
    """The published network to ONNX, or its step if it has states."""
    spec = work.stepping.spec
    module, _ = work.networks[work.variant.published]
    work.add_graph("fp32", onnx_export.export(streaming.served(module, spec), spec, work.variant.opset_version))


def fuse_graph(work: Work) -> None:
    """Fold and fuse; the interface must survive it."""
    fused, work.fusion = fuse.fuse(next(iter(work.steps.values())))
    onnx_export.check(fused, work.stepping.spec)
    work.add_graph("fused", fused)


def quantize_graph(work: Work) -> None:
    """Follow the committed plan, in both profiles; measure a new one when there is none yet, or on request."""
    if not work.options.quantize:
        return
    fused, spec = list(work.steps.values())[-1], work.stepping.spec
    name = work.variant.offline_of or work.name
    if work.options.device == "cuda":  # int8 is for CPUs
        work.add_graph("fp16", half(fused))
        return
    assert work.recipe.file is not None
    path = work.recipe.file.with_suffix(".plan.json")
    saved = None if work.options.retune else plan.read(path, name)
    if saved is None:
        saved = _measured_plan(work, fused)
        plan.write(path, name, saved)
    plan.check(saved, operators(fused), path)
    work.plan, work.profile = saved, work.options.profile or saved.profile
    ranges = calibrate(fused, calibration_feeds(work.requests(work.dataset.train, spec)), *saved.choices.values())
    validation = work.requests(work.dataset.validation, spec)
    for profile in sorted(PROFILES, key=lambda profile: profile == work.profile):  # what is published comes last
        choices = saved.choices[profile]
        published = profile == work.profile
        if not any(choice.quantised for choice in choices.values()):
            if published:
                LOG.warning("nothing is quantised: the plan keeps every operator in fp32 (%s)", path)
        elif published or choices != saved.choices[work.profile]:
            graph = quantize(fused, choices, ranges)
            requests = [validation.rows(0, rows) for rows in (1, 3)]
            guards.require(graph, before=fused, choices=choices, profile=profile, requests=requests)
            work.add_graph("int8" if published else f"int8_{profile}", graph)


def _measured_plan(work: Work, fused: ModelProto) -> plan.Plan:
    """Measured on validation data; operators that cost too much of the metric there are taken out."""
    variant, limit = work.stepping, work.stepping.tolerances.metric_loss
    requests = work.requests(work.dataset.validation, variant.spec)
    measured = tune(fused, requests, variant.methods, keep=variant.keep, progress=work.progress)
    journal = work.folder / "sensitivity.json"
    calibration = calibration_feeds(work.requests(work.dataset.train, variant.spec))
    loss = sensitivity.metric_loss(
        fused, variant.spec, work.recipe.metric, work.dataset.validation, calibration, journal
    )
    choices = {}
    for profile in PROFILES:
        choices[profile] = measured.choices[profile]
        if not (lost := loss(choices[profile])) <= limit:
            LOG.warning("%s costs %.2f %% of the metric: looking for the operators that do", profile, 100 * lost)
            found = sensitivity.search(choices[profile], loss, limit, work.progress)
            choices[profile] = sensitivity.exclude(choices[profile], found)
    return replace(measured, choices=choices)


def measure_stages(work: Work) -> None:
    """Time all candidates interleaved; then metric, parity, coverage and batch drift of each."""
    spec = work.variant.spec
    work.timed = work.requests(work.dataset.test, spec)
    order = ["teacher", *[key for key in ("student",) if key in work.networks]]
    order += [key for key in work.networks if key not in order]
    for network in order:
        name = f"{network}_torch_fp32"
        module, _ = work.networks[network]
        if streaming.can_stream(module, spec):
            work.candidates[name] = torch_candidate(name, module, spec)
    for name in work.graphs:
        work.candidates[name] = onnx_candidate(
            name, work.onnx_path(name), precision_of(name), work.parameters, device=work.options.device
        )
    with torch_threads(1):
        candidates, fit = list(work.candidates.values()), partial(fitted, spec=spec)
        timed = measure(candidates, work.timed, work.options.rounds, progress=work.progress, fit=fit)
    work.chosen = _fastest([name for name in work.graphs if not name.endswith(PROFILES)], work.candidates, timed)
    judge = Judge(
        work.recipe,
        work.variant,
        work.dataset.test,
        work.dataset.train,
        work.answers_of("teacher"),
        work.answers_of(work.variant.published),
        work.timed.rows(0, 1),
    )
    bar = work.progress.add_task("answering the test set", total=len(work.candidates))
    for name, candidate in work.candidates.items():
        if candidate.runtime == "torch":
            stage = judge.torch_stage(candidate, timed[name], work.answers_of(name.removesuffix("_torch_fp32")))
        else:
            reference = f"{work.variant.published}_torch_fp32"
            stage = judge.onnx_stage(candidate, timed[name], work.graphs[name], reference, name == work.chosen)
            if name.endswith(PROFILES):
                stage = replace(stage, role="beside")
        work.stages.append(stage)
        work.progress.advance(bar)


def verify_gates(work: Work) -> None:
    """Hold the stages against the tolerances, and the one to be published against all of them."""
    stages = {stage.name: stage for stage in work.stages}
    chain = [name for name in work.graphs if stages[name].role == "chain"]
    decisions = len(work.dataset.test) if work.recipe.decision else None
    work.gates = [gate for name in chain for gate in gates.of_stage(stages[name], work.variant, decisions)]
    chosen = stages[work.chosen]
    work.gates += gates.of_published(chosen, work.variant)
    if chosen.precision == "int8":
        assert work.plan is not None
        choices = work.plan.choices[work.profile]
        share, missed = planned_share(work.steps[chain[-2]], work.steps[chosen.name], choices)
        work.gates += gates.of_plan(chosen, work.variant, work.profile, share, missed)


def publish_version(work: Work) -> None:
    """Put the chosen stage into the model repository as a new version, if every gate passed."""
    if not all(gate.passed for gate in work.gates):
        return
    stage = next(stage for stage in work.stages if stage.name == work.chosen)
    serving = replace(work.variant.serving, kind="gpu" if work.options.device == "cuda" else "cpu")
    draft = work.draft()
    published = repository.publish(
        work.options.model_repository,
        work.variant.spec,
        serving,
        work.onnx_path(work.chosen),
        {
            "manifest.json": manifest(draft, stage, {name: sidecar for name, (_, sidecar) in work.networks.items()}),
            "README.md": model_card(draft, stage, work.variant.spec).encode(),
            "report.json": to_json(draft).encode(),
        },
        candidate=work.options.candidate,
    )
    work.published = Published(str(published.path), published.version, published.sha256, work.chosen)
    LOG.info("%s %s", "already published:" if published.reused else "published:", published.path)


def profile_published(work: Work) -> None:
    """Where the time of the published stage goes, and that of its fp32 sibling; only told, so no run fails by it."""
    if work.options.device == "cuda":
        return
    names = dict.fromkeys([next(iter(work.graphs)), work.chosen])
    sources = [stages.Source(name, work.candidates[name].precision, work.onnx_path(name)) for name in names]
    spec, this, rounds = work.variant.spec, machine.measured(), work.options.rounds // 4
    try:
        found = stages.profile_stages(sources, work.timed, spec, this, rounds=rounds, progress=work.progress)
    except (UserError, *REFUSALS) as error:
        LOG.warning("not profiled: %s", error)
        return
    stages.write(found, f"{work.recipe.name}/{work.name}", this, work.folder)
    work.profiles = [profile.summary() for profile in found if profile.batch == 1]


def write_report(work: Work) -> None:
    """report.json, report.md and report.html beside the artefacts."""
    work.report = work.draft()
    for path in write(work.report, work.folder):
        LOG.info("report: %s", path)


STAGES: list[tuple[str, Callable[[Work], None]]] = [
    ("load data", load_data),
    ("load teacher", load_teacher),
    ("distil student", distil_student),
    ("export to ONNX", export_onnx),
    ("fuse", fuse_graph),
    ("quantise", quantize_graph),
    ("measure", measure_stages),
    ("verify", verify_gates),
    ("publish", publish_version),
    ("profile", profile_published),
    ("report", write_report),
]


def run(recipe: Recipe, variant: str | None, options: Options, progress: Progress | None = None) -> Report:
    """Run all stages.

    Raises UserError for bad input, and GateError after the report is written when a gate fails.
    """
    name, chosen = recipe.variant(variant)
    progress = progress or Progress(disable=True)
    work = Work(recipe, name, chosen, options, progress)
    _require_writable(work.folder)
    bar = progress.add_task("pipeline", total=len(STAGES))
    for label, stage in STAGES:
        progress.update(bar, description=f"[bold]{label}")
        stage(work)
        progress.advance(bar)
    verify.require(work.gates)
    return work.report


def _fastest(chain: list[str], candidates: dict[str, Candidate], timed: dict[str, Measurement]) -> str:
    """The last of the chain, unless low precision made it slower than the one before."""
    before, last = chain[-2:]
    if candidates[last].precision != "fp32" and timed[last].latency_ms.p50 > timed[before].latency_ms.p50:
        LOG.warning("%s is slower than %s, which is published instead", last, before)
        return before
    return last


def _require_writable(folder: Path) -> None:
    """Fail at the beginning, not after minutes of work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"'{folder}' cannot be written: {error.strerror}; choose another folder with --artifacts"
        ) from None

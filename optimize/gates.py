"""Which gates an export must pass: every ONNX stage's own, and those of the one that is to be published.

``verify`` says what a gate is and measures what is held against it; the limits are the variant's ``Tolerances``.
"""

from __future__ import annotations

from collections.abc import Sequence

from optimize.quantize.method import Profile
from optimize.recipes import Variant
from optimize.report import Stage
from optimize.verify import Gate


def of_stage(stage: Stage, variant: Variant, decisions: int | None) -> list[Gate]:
    """Does it answer as the same network in torch? decisions: how many the test set asks for, if any."""
    assert stage.parity is not None
    limits, low = variant.tolerances, stage.precision != "fp32"
    limit = limits.parity_int8 if low else limits.parity_fp32
    value = stage.parity.relative_rms if low else stage.parity.relative
    advice = "keep more operators in fp32" if low else "the export or a fusion changed the function: report it"
    found = [Gate(f"parity of {stage.name}", value, limit, advice)]
    if decisions is not None:
        limit = limits.flips_int8 if low else limits.flips_fp32
        share = stage.parity.decision_flips / decisions
        found.append(Gate(f"other decisions of {stage.name} than torch's", share, limit, advice))
    if variant.spec.states and not low:
        name = f"{stage.name} in chunks against torch on whole recordings"
        found.append(Gate(name, stage.parity.max_abs, limits.streaming, "the state is not carried: report it"))
    return found


def of_published(stage: Stage, variant: Variant) -> list[Gate]:
    """What it costs of the task metric, and whether its answers depend on their company."""
    assert stage.parity is not None
    assert stage.batch_invariance is not None
    limits, company = variant.tolerances, stage.batch_invariance
    found = [
        Gate(
            "metric loss to the same network in torch, upper end of its 95 % interval",
            stage.parity.metric_loss_ci95[1],
            limits.metric_loss,
            "use --retune, which looks for the operators that cost it, or keep more operators in fp32",
        ),
        Gate(
            "metric loss to teacher",
            stage.metric.loss_to_teacher,
            limits.metric_loss,
            "use a larger student, distil longer, or keep more operators in fp32",
        ),
        Gate(
            "metric change in company",
            company.metric_change,
            limits.batch_metric_change,
            "keep more operators in fp32",
        ),
    ]
    if variant.serving.opening_cache_mb:
        advice = "set opening_cache_mb to 0: it would give one stream what another got in other company"
        name = "drift in company, of a model with a cache of openings"
        found.append(Gate(name, company.max_abs_drift, 0.0, advice))
    return found


def of_plan(stage: Stage, variant: Variant, profile: Profile, share: float, missed: Sequence[str]) -> list[Gate]:
    """Was the plan carried out, and its profile's promise kept? share: of the planned weights that is in int8."""
    assert stage.batch_invariance is not None
    advice = f"still in fp32: {', '.join(missed) or 'nothing'}; use --retune"
    found = [Gate("planned weights in int8", share, variant.tolerances.weight_coverage, advice, at_least=True)]
    if profile == "invariant":
        advice = "report it, and publish with --profile throughput"
        found.append(Gate("drift in company", stage.batch_invariance.max_abs_drift, 0.0, advice))
    return found

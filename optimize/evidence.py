"""Everything that is known of one stage, gathered the same way for all of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from optimize import streaming, verify
from optimize.benchmark import Candidate, Measurement
from optimize.data.dataset import Arrays, Split
from optimize.quantize.coverage import coverage
from optimize.recipes import Recipe, Variant
from optimize.report import BatchDrift, MetricValue, Parity, Quantized, Stage

WITHIN = 0.01  # how near the teacher's metric the smallest torch model of the comparison must come, by Metric.loss
_SAMPLE = 500  # items on which an intermediate stage's batch drift is measured; the published one's is on all


@dataclass(frozen=True)
class Judge:
    """Judges stages on one split: teacher and published are the torch answers of those two networks to it.

    train: the training split, which scales some figures. request: what one call of a candidate takes. A model with
    states is judged chunk by chunk, against torch on whole recordings.
    """

    recipe: Recipe
    variant: Variant
    split: Split
    train: Split
    teacher: Arrays
    published: Arrays
    request: Arrays

    def torch_stage(self, candidate: Candidate, timed: Measurement, outputs: Arrays) -> Stage:
        """A torch network: the chain's if it is teacher or student, else one for comparison."""
        chain = candidate.name.startswith(("teacher_", "student_"))
        return self._stage(candidate, timed, outputs, "chain" if chain else "beside", None, None, None)

    def onnx_stage(
        self, candidate: Candidate, timed: Measurement, graph: ModelProto, reference: str, published: bool
    ) -> Stage:
        """An ONNX graph: parity with the torch network ``reference``, coverage, and drift in company.

        The task metric of the stage to be published is that of answers given alone.
        """
        metric, decision = self.recipe.metric, self.recipe.decision
        run = streaming.whole(candidate.run, self.variant.spec)
        cases = self.split if published else self.split.take(slice(0, _SAMPLE))
        alone = verify.answers(run, cases, batch_size=1)
        drift = verify.batch_invariance(run, cases, metric, alone, decision)
        outputs = alone if published else verify.answers(run, self.split)
        flipped = decision(outputs) != decision(self.published) if decision else np.zeros(len(self.split), bool)
        alike = ~flipped if self.recipe.searches and not flipped.all() else np.ones(len(self.split), bool)
        ours_alike, torchs_alike = (_rows(answers, alike) for answers in (outputs, self.published))
        compared = streaming.compared(ours_alike, torchs_alike, self.variant.spec)
        found, expected = map(verify.real, compared)
        ours, theirs = metric.statistics(outputs, self.split), metric.statistics(self.published, self.split)
        loss, low, high = verify.metric_loss(metric, ours, theirs, self.split.groups)
        return self._stage(
            candidate,
            timed,
            outputs,
            "chain",
            Parity(
                verify.max_abs(found, expected),
                verify.relative(verify.max_abs, found, expected),
                verify.relative(verify.rms, found, expected),
                loss,
                (low, high),
                reference,
                int(np.sum(flipped)),
            ),
            Quantized(**asdict(coverage(graph, inputs=self.request))),
            BatchDrift(**asdict(drift)),
        )

    def _stage(
        self,
        candidate: Candidate,
        timed: Measurement,
        outputs: Arrays,
        role: str,
        parity: Parity | None,
        quantized: Quantized | None,
        drift: BatchDrift | None,
    ) -> Stage:
        metric, groups = self.recipe.metric, self.split.groups
        ours, reference = metric.statistics(outputs, self.split), metric.statistics(self.teacher, self.split)
        loss, low, high = verify.metric_loss(metric, ours, reference, groups)
        return Stage(
            name=candidate.name,
            role=role,
            runtime=candidate.runtime,
            precision=candidate.precision,
            parameters=candidate.parameters,
            size_bytes=candidate.size_bytes,
            latency_ms=timed.latency_ms,
            throughput_per_s=timed.throughput_per_s,
            throughput_batch=timed.batch,
            batch_p50_ms={str(size): p50 for size, p50 in timed.batch_p50_ms.items()},
            server_latency_ms=None,
            metric=MetricValue(
                name=metric.name,
                value=metric.value(ours.sum(axis=0)),
                ci95=verify.confidence(metric, ours, groups),
                higher_is_better=metric.higher_is_better,
                loss_to_teacher=loss,
                loss_to_teacher_ci95=(low, high),
                points=metric.points,
            ),
            also={name: figure(outputs, self.split, self.train) for name, figure in self.recipe.also.items()},
            parity=parity,
            quantized=quantized,
            batch_invariance=drift,
        )


def _rows(answers: Arrays, chosen: NDArray[np.bool_]) -> Arrays:
    return {name: array[chosen] for name, array in answers.items()}


def comparisons(stages: list[Stage], chosen: str) -> dict[str, float]:
    """The ratios that matter, p50 at batch 1: of the chain, of the same network, and against the cheapest rival.

    The rival is the smallest torch network, distilled or not, whose metric is within 1 % of the teacher's: what one
    could serve without any of this.
    """
    by_name = {stage.name: stage for stage in stages}
    published, teacher = by_name[chosen], by_name.get("teacher_torch_fp32")
    fp32 = next(stage for stage in stages if stage.runtime == "onnxruntime")
    same = by_name[fp32.name.replace("_onnx_fp32", "_torch_fp32")]
    within = "1 point" if published.metric.points else "1 %"
    rivals = [stage for stage in stages if stage.runtime == "torch" and stage.metric.loss_to_teacher <= WITHIN]
    speed = {"faster than the torch teacher": teacher} if teacher else {}
    speed |= {"faster than the same network in torch": same, "faster than the same network in ONNX fp32": fp32}
    if rivals:
        rival = min(rivals, key=lambda stage: stage.parameters)
        speed[f"faster than the smallest torch network within {within} of the teacher ({rival.name})"] = rival
    ratios = {label: stage.latency_ms.p50 / published.latency_ms.p50 for label, stage in speed.items()}
    if teacher:
        ratios["smaller than the torch teacher"] = teacher.size_bytes / published.size_bytes
        ratios["items per second against the torch teacher"] = published.throughput_per_s / teacher.throughput_per_s
    return ratios

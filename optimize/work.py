"""What one run of the pipeline is asked for and has so far: its stages fill it in, the report tells of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from onnx import ModelProto
from rich.progress import Progress
from torch import nn

from optimize import offline, onnx_export, streaming
from optimize.benchmark import Candidate, environment, runner, session, torch_threads
from optimize.checkpoint import Sidecar
from optimize.data.dataset import Arrays, Dataset, Split
from optimize.evidence import comparisons
from optimize.profiler.profile import Profile as TimeProfile
from optimize.quantize.method import Profile
from optimize.quantize.plan import Plan
from optimize.recipes import Recipe, Variant
from optimize.report import GateResult, Published, Report, Stage
from optimize.specs import ModelSpec
from optimize.train import predict
from optimize.verify import Gate


@dataclass(frozen=True)
class Options:
    """What a run is asked to do and where; paths are relative to the working directory."""

    quantize: bool = False
    distill: bool = False
    retune: bool = False
    device: Literal["cpu", "cuda"] = "cpu"
    profile: Profile | None = None  # the plan's own
    candidate: bool = False
    data: Path | None = None
    checkpoints: Path = Path("checkpoints")
    artifacts: Path = Path("artifacts")
    model_repository: Path = Path("model_repository")
    rounds: int = 200


@dataclass
class Work:
    """Every stage reads what earlier ones left and adds its own."""

    recipe: Recipe
    name: str  # of the variant
    variant: Variant
    options: Options
    progress: Progress
    dataset: Dataset = field(init=False)
    networks: dict[str, tuple[nn.Module, Sidecar]] = field(default_factory=dict)
    graphs: dict[str, ModelProto] = field(default_factory=dict)  # by stage name, in order
    steps: dict[str, ModelProto] = field(default_factory=dict)  # the same, or what an offline twin repeats
    fusion: dict[str, int] = field(default_factory=dict)
    plan: Plan | None = None
    profile: Profile = "throughput"
    candidates: dict[str, Candidate] = field(default_factory=dict)
    timed: Split = field(init=False)  # the requests that are timed and profiled
    torch_answers: dict[str, Arrays] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)
    chosen: str = ""  # the stage that is to be published
    gates: list[Gate] = field(default_factory=list)
    published: Published | None = None
    profiles: list[TimeProfile] = field(default_factory=list)
    report: Report = field(init=False)

    @property
    def stepping(self) -> Variant:
        """The variant that is exported, fused and quantised: this one, or the one whose offline twin it is."""
        return self.recipe.variants[self.variant.offline_of] if self.variant.offline_of else self.variant

    @property
    def folder(self) -> Path:
        return self.options.artifacts / self.recipe.name / self.name

    @property
    def parameters(self) -> int:
        """Of the network that is published."""
        return sum(parameter.numel() for parameter in self.networks[self.variant.published][0].parameters())

    def onnx_path(self, stage: str) -> Path:
        return self.folder / f"{stage}.onnx"

    def add_graph(self, what: str, graph: ModelProto) -> None:
        """A stage of the chain, or of the step that its offline twin repeats; its file is written."""
        stage = f"{self.variant.published}_onnx_{what}"
        self.steps[stage] = graph
        if self.variant.offline_of:
            graph = offline.offline_twin(graph, self.stepping.spec, self.variant.spec)
            onnx_export.check(graph, self.variant.spec)
        self.graphs[stage] = graph
        onnx_export.save(graph, self.onnx_path(stage))

    def requests(self, split: Split, spec: ModelSpec) -> Split:
        """What one call takes: items of the split, or steps of streams of them."""
        first = next(iter(self.steps.values()))
        return streaming.steps(runner(session(first.SerializeToString())), spec, split)

    def answers_of(self, network: str) -> Arrays:
        """Those of a network in torch to the test set, computed once; torch answers alike in any company."""
        if network not in self.torch_answers:
            with torch_threads(1):  # more would wait for each other on a busy machine: 30 times slower
                answers = predict(self.networks[network][0], self.variant.spec, self.dataset.test)
            self.torch_answers[network] = streaming.meant(answers, self.variant.spec, self.dataset.test.inputs)
        return self.torch_answers[network]

    def draft(self) -> Report:
        """What can be told by now."""
        return Report(
            model=self.recipe.name,
            variant=self.name,
            default=self.name == self.recipe.default_variant,
            data=self.dataset.source,
            environment={**environment(threads=1), "device": self.options.device},
            stages=self.stages,
            gates=[
                GateResult(gate.name, gate.passed, gate.value, gate.limit, gate.at_least, gate.advice)
                for gate in self.gates
            ],
            published=self.published,
            baselines={name: baseline(self.dataset.test) for name, baseline in self.recipe.baselines.items()},
            comparisons=comparisons(self.stages, self.chosen),
            fusion=self.fusion,
            plan={node: asdict(choice) for node, choice in self.plan.choices[self.profile].items()}
            if self.plan
            else {},
            notes=self._notes(),
            profiles=self.profiles,
        )

    def _notes(self) -> list[str]:
        notes = [f"{name}: {network.note}" for name, network in self.variant.networks.items() if network.note]
        if self.plan:
            notes.append(f"{self.profile} profile; {self.plan.reason}")
        for name, (module, sidecar) in self.networks.items():
            if not streaming.can_stream(module, self.variant.spec):
                figure = sidecar.metrics["test"][self.recipe.metric.name]
                notes.append(f"{name}: answers whole recordings only, test {self.recipe.metric.name} {figure:.4g}")
        if "student" in self.networks:
            soft = self.networks["student"][1].training["soft_weight"]
            notes.insert(
                0, f"student: distilled, {soft:.0%} of its loss to the teacher's answers, {1 - soft:.0%} to the truth"
            )
        return notes

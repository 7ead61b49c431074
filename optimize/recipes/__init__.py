"""A recipe says everything that is particular to one system; the pipeline knows nothing else about it.

The built-in recipes are files in this folder. A user's own is one more such file, named on the command line with
``--recipe path/to/file.py``, with exactly the same powers: a module with a constant ``RECIPE``.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from optimize.data.dataset import Arrays, Dataset, Split
from optimize.errors import UserError
from optimize.specs import ModelSpec, ServingSpec

BUILT_IN = ("load_forecast", "speech", "translate", "customer_value")

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Metric:
    """A task metric as sums over items, so that any corpus metric can be bootstrapped.

    statistics: (outputs, split) to (items, k) sums; value: the k sums of any set of items to the metric.
    MAE, say, has k = 2: absolute error and count. Word error rate: errors and words. points: the metric is a
    percentage whose losses are counted in points, each 0.01, where others' are shares of what is lost from.
    """

    name: str
    higher_is_better: bool
    statistics: Callable[[Arrays, Split], NDArray[np.float64]]
    value: Callable[[NDArray[np.float64]], float]
    points: bool = False

    def __call__(self, outputs: Arrays, split: Split) -> float:
        return self.value(self.statistics(outputs, split).sum(axis=0))

    def loss(self, value: float, base: float) -> float:
        """How much worse a value is than another: a share of it, infinite of 0, or points; positive is worse."""
        change = base - value if self.higher_is_better else value - base
        if self.points:
            return change / 100
        if base == 0:
            return math.copysign(math.inf, change) if change else 0.0
        return change / abs(base)


@dataclass(frozen=True)
class Training:
    """How one network is trained. soft_weight: share of the teacher's answers in the loss when it is distilled.

    soft_delay: steps by which the teacher's answers come late, for a student that cannot know what the teacher knows
    at that moment (``Recipe.delay`` says what a step is). relabelled: whether a student learns from what
    ``Recipe.relabel`` makes of the data.
    """

    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    average_decay: float = 0.995
    soft_weight: float = 0.7
    soft_delay: int = 0
    relabelled: bool = True
    seed: int = 1
    bfloat16: bool = False


@dataclass(frozen=True)
class Network:
    """One network of a variant: ``build(config)`` is a module whose forward takes the spec's inputs in order.

    note: what a reader of the report should know of it. weights_of: another variant, whose network of the same name
    this one is, or "variant/network", used otherwise here; it is trained and stored there alone. distilled: it learns
    from the teacher, as the student always does.
    """

    build: Callable[[Any], nn.Module]
    config: Any
    training: Training = field(default_factory=Training)
    note: str = ""
    weights_of: str | None = None
    distilled: bool = False

    def __call__(self) -> nn.Module:
        return self.build(self.config)


@dataclass(frozen=True)
class Tolerances:
    """The gates. All but the last two compare with the named reference; what exceeds them is not published.

    parity_fp32: largest difference of ONNX fp32 from torch, as a share of the output's standard deviation.
    parity_int8: root mean square difference of int8 from torch, likewise: its largest is an accident of the test set.
    flips_fp32, flips_int8: share of the decisions that are others than torch's, of a recipe that has decisions.
    streaming: largest difference of ONNX fp32, chunk by chunk, from torch on whole recordings, in the output's unit.
    metric_loss: ``Metric.loss`` of the published model to the teacher, and to the same network in torch: of that the
    upper end of the 95 % interval.
    batch_metric_change: the metric's change when every item shares its batch with others, likewise.
    weight_coverage: least share of the planned weight bytes that really is in low precision.
    """

    parity_fp32: float = 1e-4
    parity_int8: float = 0.02
    flips_fp32: float = 0.001
    flips_int8: float = 0.05
    streaming: float = 1e-4
    metric_loss: float = 0.01
    batch_metric_change: float = 0.001
    weight_coverage: float = 0.95


@dataclass(frozen=True)
class Variant:
    """One servable form of a recipe: the interface, the networks and how they are deployed.

    networks: ``teacher`` at least; ``student`` if there is one to publish in its stead; ``undistilled``, its twin
    trained on hard targets alone; and any number of ``small_*``, among which the report looks for the smallest
    torch model that answers as well as the teacher. methods: quantisation methods to try besides the usual ones, such
    as "nbits4" or "int8_table". keep: parts of the network (as in "front_end") whose operators stay in fp32.
    weights_of: another variant whose trained networks this one uses, if it has none. offline_of: the streaming variant
    whose step answers whole recordings here, quantised as there (``offline.offline_spec`` makes the spec).
    """

    spec: ModelSpec
    networks: dict[str, Network]
    serving: ServingSpec = field(default_factory=ServingSpec)
    tolerances: Tolerances = field(default_factory=Tolerances)
    opset_version: int = 17
    methods: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    weights_of: str | None = None
    offline_of: str | None = None

    def __post_init__(self) -> None:
        if "teacher" not in self.networks:
            raise UserError(f"model '{self.spec.name}': networks needs a 'teacher', got {sorted(self.networks)}")

    @property
    def published(self) -> str:
        """The name of the network that is exported and served."""
        return "student" if "student" in self.networks else "teacher"


@dataclass(frozen=True)
class Recipe:
    """A system: data, loss, metric and variants (the default first).

    load: data path or None to a Dataset. loss: (outputs, targets) to a scalar, used for true targets and for the
    teacher's answers alike unless soft_loss is given. prepare: called once on a network before it is trained, with
    the training split (to set normalisation). folds: rolling-origin or other cross-validation splits.
    baselines: metric values of answers that need no network, by name, on a split. also: further figures that are
    reported but not gated, by name: (outputs, split, training split) to a number. decision: outputs to the (items,)
    decisions that users act on, such as the best class; the report counts how many flip in company. searches: an answer
    is found by a search that may end elsewhere, with other numbers: these are compared where the decision is the same,
    and how often it is not has limits of its own. delay: the
    teacher's answers, so many steps later, for a student whose training has a soft_delay.

    For networks that write sequences: forward: how one answers in training, (module, inputs, targets) to what the
    losses compare, if not by its own forward, which searches. relabel: (teacher, training split) to the split that
    its student learns from. sizes: (items,) by which items are sorted, so that those of one batch need little padding.
    """

    name: str
    load: Callable[[Path | None], Dataset]
    loss: Callable[[Tensors, Tensors], Tensor]
    metric: Metric
    variants: dict[str, Variant]
    soft_loss: Callable[[Tensors, Tensors], Tensor] | None = None
    delay: Callable[[Tensors, int], Tensors] | None = None
    forward: Callable[[nn.Module, Tensors, Tensors], Tensors] | None = None
    relabel: Callable[[nn.Module, Split], Split] | None = None
    sizes: Callable[[Split], NDArray[np.int64]] | None = None
    augment: Callable[[Tensors, Tensors], tuple[Tensors, Tensors]] | None = None
    prepare: Callable[[nn.Module, Split], None] | None = None
    folds: Callable[[Path | None, int], Iterator[tuple[Split, Split]]] | None = None
    baselines: dict[str, Callable[[Split], float]] = field(default_factory=dict)
    also: dict[str, Callable[[Arrays, Split, Split], float]] = field(default_factory=dict)
    decision: Callable[[Arrays], NDArray[np.generic]] | None = None
    searches: bool = False
    file: Path | None = None

    def __post_init__(self) -> None:
        if not self.variants:
            raise UserError(f"recipe '{self.name}' has no variants; it needs at least one")
        if self.searches and self.decision is None:
            raise UserError(f"recipe '{self.name}' searches; it needs a decision that tells its answers apart")
        for index, (name, variant) in enumerate(self.variants.items()):
            expected = self.name if index == 0 else f"{self.name}_{name}"
            if variant.spec.name != expected:
                raise UserError(f"recipe '{self.name}', variant '{name}': its ModelSpec must be named '{expected}'")
            if variant.weights_of is not None and variant.weights_of not in self.variants:
                raise UserError(
                    f"recipe '{self.name}', variant '{name}': no variant '{variant.weights_of}' for weights_of"
                )
            twin_of = self.variants.get(variant.offline_of) if variant.offline_of else None
            if variant.offline_of and (twin_of is None or not twin_of.spec.states):
                raise UserError(
                    f"recipe '{self.name}', variant '{name}': offline_of is '{variant.offline_of}', which is no "
                    "streaming variant of this recipe"
                )
            for key, network in variant.networks.items():
                origin, its = _place(network.weights_of or name, key)
                if origin not in self.variants or its not in self.variants[origin].networks:
                    raise UserError(
                        f"recipe '{self.name}', variant '{name}', network '{key}': no variant '{origin}' with a "
                        f"network '{its}' for weights_of"
                    )
                if network.training.soft_delay and self.delay is None:
                    raise UserError(
                        f"recipe '{self.name}', variant '{name}', network '{key}': soft_delay needs the recipe's delay"
                    )

    @property
    def default_variant(self) -> str:
        return next(iter(self.variants))

    def variant(self, name: str | None) -> tuple[str, Variant]:
        """A variant by name (None: the default), with the ServingSpec of the recipe's JSON file, if there is one."""
        name = name or self.default_variant
        if name not in self.variants:
            raise UserError(f"recipe '{self.name}' has no variant '{name}'; it has {', '.join(self.variants)}")
        saved = self._serving_specs()
        variant = self.variants[name]
        return name, replace(variant, serving=saved[name]) if name in saved else variant

    def origin(self, variant: str, network: str) -> tuple[str, str]:
        """The variant and the network under whose names a network of ``variant`` is trained and stored."""
        owner = self.variants[variant].weights_of or variant
        return _place(self.variants[owner].networks[network].weights_of or owner, network)

    def export(self, variant: str, *more: str) -> str:
        """The command that publishes a variant, to be told to the user."""
        own = self.file is not None and self.file.parent != Path(__file__).parent
        which = f"--recipe {self.file}" if own else f"--model {self.name}"
        return " ".join(("python -m optimize.export", which, f"--variant {variant} --quantize", *more))

    def save_serving(self, variant: str, serving: ServingSpec) -> Path:
        """Keep a ServingSpec beside the recipe, where ``variant`` finds it."""
        path = self._serving_file()
        specs = {**self._serving_specs(), variant: serving}
        path.write_text(json.dumps({name: asdict(spec) for name, spec in specs.items()}, indent=2) + "\n")
        return path

    def _serving_file(self) -> Path:
        assert self.file is not None, "a recipe is loaded from a file"
        return self.file.with_suffix(".serving.json")

    def _serving_specs(self) -> dict[str, ServingSpec]:
        if self.file is None or not self._serving_file().exists():
            return {}
        known = {item.name for item in fields(ServingSpec)}
        specs = {}
        for name, values in json.loads(self._serving_file().read_text()).items():
            if unknown := sorted(set(values) - known):
                raise UserError(f"'{self._serving_file()}', variant '{name}': unknown {', '.join(unknown)}")
            specs[name] = ServingSpec(**values)
        return specs


def _place(weights_of: str, network: str) -> tuple[str, str]:
    variant, _, other = weights_of.partition("/")
    return variant, other or network


def load(name: str | None = None, file: Path | None = None) -> Recipe:
    """A built-in recipe by name, or the one in a user's file.

    Raises UserError: unknown name, no such file, a file that does not import or has no ``RECIPE``.
    """
    if file is None:
        name = name or BUILT_IN[0]
        if name not in BUILT_IN:
            raise UserError(f"no recipe '{name}'; built in are {', '.join(BUILT_IN)}; use --recipe FILE for your own")
        module = importlib.import_module(f"optimize.recipes.{name}")
        built_in: Recipe = module.RECIPE
        return replace(built_in, file=Path(str(module.__file__)))
    if not file.is_file():
        raise UserError(f"recipe file '{file}' does not exist; give a Python file that defines RECIPE")
    module_spec = importlib.util.spec_from_file_location(file.stem, file)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f"recipe file '{file}' is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[file.stem] = module
    try:
        module_spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"recipe file '{file}' does not import: {type(error).__name__}: {error}") from error
    recipe = getattr(module, "RECIPE", None)
    if not isinstance(recipe, Recipe):
        raise UserError(f"recipe file '{file}' defines no RECIPE; it must be an optimize.recipes.Recipe")
    return replace(recipe, file=file.resolve())

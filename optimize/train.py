"""Train the networks of a recipe on its data.

    python -m optimize.train --model load_forecast                    # the teacher
    python -m optimize.train --network undistilled small_64           # others by name, or `all`
    python -m optimize.train --network small_64 --cross-validate 4    # rolling-origin folds first, then the fit
    python -m optimize.train --model speech --resume                  # go on with an interrupted training

What is kept is the exponential average of the weights at the epoch with the best validation metric.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from optimize import command, recipes
from optimize.checkpoint import Sidecar, path_of, round_to_half, save_checkpoint
from optimize.data.dataset import Arrays, Dataset, Split
from optimize.errors import UserError
from optimize.recipes import Metric, Network, Recipe, Tensors
from optimize.resume import Partial, Stateful
from optimize.specs import ModelSpec

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fit:
    """A trained module, the validation metric of every epoch, and which epoch was kept."""

    module: nn.Module
    validation: list[float]
    best_epoch: int


def fit(
    recipe: Recipe,
    spec: ModelSpec,
    network: Network,
    train: Split,
    validation: Split,
    teacher: nn.Module | None = None,
    progress: Progress | None = None,
    fresh: Callable[[int], Split] | None = None,
    partial: Partial | None = None,
    resume: bool = False,
) -> Fit:
    """Train a network; with a teacher, on a mixture of its answers and the true targets (see distill.py).

    fresh: gives every epoch, counted from 1, its own training split, all of one size. partial: written after every
    epoch; with ``resume`` the training goes on from it.

    AdamW with one warm-up epoch and a cosine decay. The answer is deterministic for a seed, a machine and a number
    of threads.
    """
    settings = network.training
    torch.manual_seed(settings.seed)
    module = network()
    if recipe.prepare:
        recipe.prepare(module, train)
    optimiser = torch.optim.AdamW(module.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    if fresh:
        train = fresh(1)
    batch_size = min(settings.batch_size, len(train))
    steps = len(train) // batch_size
    total = steps * settings.epochs
    answer = recipe.forward or (lambda module, inputs, _: call(module, spec, inputs))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser,
        settings.learning_rate,
        total,
        pct_start=1 / (settings.epochs + 1),
        div_factor=10,
        final_div_factor=100,
    )
    average = AveragedModel(
        module,
        multi_avg_fn=get_ema_multi_avg_fn(settings.average_decay),  # type: ignore[no-untyped-call]
        use_buffers=False,
    )
    order = np.random.default_rng(settings.seed)
    values: list[float] = []
    best = copy.deepcopy(average.module)
    parts: dict[str, Stateful] = {
        "module": module,
        "optimiser": optimiser,
        "schedule": schedule,
        "average": average,
        "best": best,
    }
    if partial and resume:
        values = partial.restore(parts)["validation"]
        LOG.info("going on after epoch %d of %d", len(values), settings.epochs)
    done = len(values)
    bar = progress.add_task("training", total=total, completed=done * steps) if progress else None
    for epoch in range(settings.epochs):
        items = order.permutation(len(train))
        if epoch < done:
            continue
        if fresh:
            train = fresh(epoch + 1)
        if recipe.sizes:
            items = _similar(items, recipe.sizes(train), batch_size, np.random.default_rng((settings.seed, epoch)))
        module.train()
        total_loss = 0.0
        for step in range(steps):
            chosen = items[step * batch_size : (step + 1) * batch_size]
            inputs, targets = _batch(train.inputs, chosen), _batch(train.targets, chosen)
            if recipe.augment:
                inputs, targets = recipe.augment(inputs, targets)
            with torch.autocast("cpu", torch.bfloat16, enabled=settings.bfloat16):
                outputs = answer(module, inputs, targets)
                loss = recipe.loss(outputs, targets)
                if teacher is not None:
                    with torch.no_grad():
                        answers = answer(teacher, inputs, targets)
                    if settings.soft_delay:
                        assert recipe.delay is not None, "checked by the recipe"
                        answers = recipe.delay(answers, settings.soft_delay)
                    soft = (recipe.soft_loss or recipe.loss)(outputs, answers)
                    loss = settings.soft_weight * soft + (1 - settings.soft_weight) * loss
            optimiser.zero_grad()
            total_loss += loss.item()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            average.update_parameters(module)
            if progress and bar is not None:
                progress.advance(bar)
        values.append(recipe.metric(predict(average.module, spec, validation), validation))
        LOG.info(
            "epoch %d: loss %.4g, validation %s %.4g", epoch + 1, total_loss / steps, recipe.metric.name, values[-1]
        )
        if not np.isnan(values[-1]) and _best(recipe.metric, values) == epoch:
            best.load_state_dict(average.module.state_dict())
        if partial:
            partial.save(parts, {"validation": values})
    return Fit(best.eval(), values, _best(recipe.metric, values) + 1)


def train_network(
    recipe: Recipe,
    variant: str,
    name: str,
    dataset: Dataset,
    checkpoints: Path,
    teacher: tuple[nn.Module, Sidecar] | None = None,
    extra_metrics: dict[str, Any] | None = None,
    progress: Progress | None = None,
    resume: bool = False,
) -> Sidecar:
    """Train a network of a variant, round it to half precision, measure that and save it with its sidecar."""
    spec, network = recipe.variants[variant].spec, recipe.variants[variant].networks[name]
    path = path_of(checkpoints, recipe.name, *recipe.origin(variant, name))
    partial = Partial(path.with_suffix(".partial"), f"{name}: {network.config}, {network.training}")
    result = fit(
        recipe,
        spec,
        network,
        dataset.train,
        dataset.validation,
        teacher[0] if teacher else None,
        progress,
        dataset.fresh,
        partial,
        resume,
    )
    round_to_half(result.module)
    metrics: dict[str, dict[str, float]] = {}
    for split_name, split in {"validation": dataset.validation, "test": dataset.test, **dataset.others}.items():
        outputs = predict(result.module, spec, split)
        metrics[split_name] = {recipe.metric.name: recipe.metric(outputs, split)}
        metrics[split_name] |= {label: figure(outputs, split, dataset.train) for label, figure in recipe.also.items()}
    metrics["baselines_test"] = {label: baseline(dataset.test) for label, baseline in recipe.baselines.items()}
    sidecar = Sidecar(
        recipe=recipe.name,
        variant=variant,
        network=name,
        parameters=sum(parameter.numel() for parameter in result.module.parameters()),
        config=asdict(network.config),
        training=asdict(network.training) | {"best_epoch": result.best_epoch, "distilled": teacher is not None},
        data={
            "source": dataset.source,
            "sha256": dataset.sha256,
            "items": {"train": len(dataset.train), "validation": len(dataset.validation), "test": len(dataset.test)},
        },
        metrics=metrics | (extra_metrics or {}),
        teacher_sha256=teacher[1].sha256 if teacher else None,
    )
    saved = save_checkpoint(path, result.module, sidecar)
    partial.remove()
    return saved


def cross_validate(
    recipe: Recipe, spec: ModelSpec, network: Network, data: Path | None, count: int, progress: Progress | None = None
) -> list[float]:
    """The validation metric on each rolling-origin fold, the earliest first; the test data is not touched."""
    if recipe.folds is None:
        raise UserError(f"recipe '{recipe.name}' defines no folds; --cross-validate needs them")
    fits = (
        fit(recipe, spec, network, train, validation, progress=progress)
        for train, validation in recipe.folds(data, count)
    )
    return [fold.validation[fold.best_epoch - 1] for fold in fits]


def call(module: nn.Module, spec: ModelSpec, inputs: Tensors) -> Tensors:
    """Run a module on named tensors, in the order of the spec; returns named outputs."""
    outputs = module(*(inputs[tensor.name] for tensor in spec.inputs))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return dict(zip((tensor.name for tensor in spec.outputs), outputs, strict=True))


def predict(module: nn.Module, spec: ModelSpec, split: Split, batch_size: int = 128) -> Arrays:
    """Answers of a torch module for every item of a split, (items, ...) per output."""
    module.eval()
    with torch.inference_mode():
        batches = [
            call(module, spec, {name: torch.from_numpy(rows) for name, rows in split.rows(i, i + batch_size).items()})
            for i in range(0, len(split), batch_size)
        ]
    return {name: torch.cat([batch[name] for batch in batches]).numpy() for name in batches[0]}


def _batch(arrays: Arrays, items: NDArray[np.int64]) -> Tensors:
    return {name: torch.from_numpy(array[items]) for name, array in arrays.items()}


def _similar(
    items: NDArray[np.int64], sizes: NDArray[np.int64], batch_size: int, random: np.random.Generator
) -> NDArray[np.int64]:
    """The items in another order: batches of similar sizes, sorted within every 50 batches, in random order."""
    whole = items[: len(items) // batch_size * batch_size]
    pool = 50 * batch_size
    pools = [whole[start : start + pool] for start in range(0, len(whole), pool)]
    batches = np.concatenate([part[np.argsort(sizes[part], kind="stable")] for part in pools])
    shuffled: NDArray[np.int64] = random.permutation(batches.reshape(-1, batch_size)).reshape(-1)
    return shuffled


def _best(metric: Metric, values: list[float]) -> int:
    """The index of the best value; NaN is none."""
    if np.isnan(values).all():
        raise UserError(
            f"the training diverged: the validation {metric.name} is NaN after every one of its {len(values)} epochs; "
            "lower the network's Training.learning_rate, train without bfloat16, or look for NaN in the data"
        )
    return int(np.nanargmax(values) if metric.higher_is_better else np.nanargmin(values))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command.parser(__doc__)
    parser.add_argument(
        "--network", nargs="+", default=["teacher"], metavar="NETWORK", help="which; `all` but the student"
    )
    parser.add_argument("--cross-validate", type=int, metavar="FOLDS", help="also report rolling-origin folds")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted training")
    options = parser.parse_args(arguments)
    recipe = recipes.load(options.model, options.recipe)
    name, variant = recipe.variant(options.variant)
    trained = [key for key, network in variant.networks.items() if key != "student" and not network.distilled]
    own = [key for key in trained if recipe.origin(name, key) == (name, key)]
    choices = own or trained
    networks = choices if options.network == ["all"] else options.network
    for network in networks:
        if network in trained and (origin := recipe.origin(name, network)) != (name, network):
            choice = f", or choose from {', '.join(own)}" if own else ""
            raise UserError(
                f"the {network} of variant '{name}' is the {origin[1]} of variant '{origin[0]}'; train it with "
                f"--variant {origin[0]} --network {origin[1]}{choice}"
            )
        if network not in own:
            raise UserError(
                f"variant '{name}' has no network '{network}' to train; choose from {', '.join(choices)} or all; "
                "what learns from the teacher is trained by python -m optimize.distill"
            )
    if options.cross_validate is not None and options.cross_validate < 2:
        raise UserError(f"--cross-validate is {options.cross_validate}; at least 2 folds are needed")
    if options.threads:
        torch.set_num_threads(options.threads)
    dataset = recipe.load(options.data)
    LOG.info("data: %s", dataset.source)
    for network in networks:
        with command.progress() as progress:
            extra: dict[str, Any] = {}
            if options.cross_validate:
                folds = cross_validate(
                    recipe, variant.spec, variant.networks[network], options.data, options.cross_validate, progress
                )
                extra["cross_validation"] = folds
                LOG.info("%s: rolling-origin folds: %s", network, ", ".join(f"{value:.4g}" for value in folds))
            sidecar = train_network(
                recipe,
                name,
                network,
                dataset,
                options.checkpoints,
                extra_metrics=extra,
                progress=progress,
                resume=options.resume,
            )
        LOG.info(
            "%s: test %s, %s",
            network,
            sidecar.metrics["test"],
            path_of(options.checkpoints, recipe.name, *recipe.origin(name, network)),
        )


if __name__ == "__main__":
    command.run(main)

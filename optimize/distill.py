"""Teach a small network to answer like the teacher.

    python -m optimize.distill --model load_forecast

The student's loss is a mixture of two distances: from the teacher's answer, with weight ``Training.soft_weight``,
and from the true target, with the rest (Hinton et al., 2015). The teacher answers every augmented batch afresh, so
the student sees its opinion of days that never were.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.progress import Progress

from optimize import command, recipes
from optimize.checkpoint import CheckpointError, Sidecar, load_checkpoint, path_of
from optimize.data.dataset import Dataset
from optimize.errors import UserError
from optimize.recipes import Recipe
from optimize.train import train_network

LOG = logging.getLogger(__name__)


def distill(
    recipe: Recipe,
    variant: str,
    dataset: Dataset,
    checkpoints: Path,
    progress: Progress | None = None,
    resume: bool = False,
    network: str = "student",
) -> Sidecar:
    """Train the variant's student on its teacher and save it; the sidecar records the teacher's hash.

    network: another one that is distilled, to be compared with the student. Raises UserError for one that is not, and
    for one that is another variant's: it is distilled there alone, under that one's settings.
    """
    networks = recipe.variants[variant].networks
    students = [key for key, definition in networks.items() if key == "student" or definition.distilled]
    if network not in students:
        choice = f"; choose from {', '.join(students)}" if students else ""
        raise UserError(f"variant '{variant}' of recipe '{recipe.name}' has no {network} to distil into{choice}")
    if (origin := recipe.origin(variant, network)) != (variant, network):
        raise UserError(
            f"the {network} of variant '{variant}' is the {origin[1]} of variant '{origin[0]}'; distil it there with "
            f"python -m optimize.distill --variant {origin[0]} --network {origin[1]}"
        )
    teacher = load_checkpoint(
        path_of(checkpoints, recipe.name, *recipe.origin(variant, "teacher")), networks["teacher"]
    )
    if recipe.relabel and networks[network].training.relabelled:
        LOG.info("the teacher writes what the %s learns", network)
        dataset = replace(dataset, train=recipe.relabel(teacher[0], dataset.train))
    return train_network(recipe, variant, network, dataset, checkpoints, teacher, progress=progress, resume=resume)


def is_current(recipe: Recipe, variant: str, checkpoints: Path) -> bool:
    """Whether the saved student was distilled from the saved teacher, going by the recorded hashes."""
    networks = recipe.variants[variant].networks
    paths = {name: path_of(checkpoints, recipe.name, *recipe.origin(variant, name)) for name in ("teacher", "student")}
    try:
        _, teacher = load_checkpoint(paths["teacher"], networks["teacher"])
        _, student = load_checkpoint(paths["student"], networks["student"])
    except CheckpointError:
        return False
    return student.teacher_sha256 == teacher.sha256


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--network", default="student", metavar="NETWORK", help="default: %(default)s")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted training")
    options = parser.parse_args(arguments)
    recipe = recipes.load(options.model, options.recipe)
    name, _ = recipe.variant(options.variant)
    if options.threads:
        torch.set_num_threads(options.threads)
    dataset = recipe.load(options.data)
    LOG.info("data: %s", dataset.source)
    with command.progress() as progress:
        sidecar = distill(recipe, name, dataset, options.checkpoints, progress, options.resume, options.network)
    LOG.info(
        "%s: test %s, %s",
        options.network,
        sidecar.metrics["test"],
        path_of(options.checkpoints, recipe.name, *recipe.origin(name, options.network)),
    )


if __name__ == "__main__":
    command.run(main)

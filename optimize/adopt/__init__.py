"""Publish a stateful ONNX model that was made elsewhere: wrapped, proven to answer as the original, served.

    adopted = adopt(Path("model.onnx"), "my_model", Asked(states=("h:hn", "c:cn")), Options())
    adopted.published.path                 # model_repository/my_model/1

The wrapped graph is published only if it answers as the original to the bit (``side_by_side``) and the
validator finds nothing; a running server then serves it at once. Its states begin as zeros.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from rich.progress import Progress

from optimize import graph_rules, recipes, repository, verify
from optimize.adopt import foreign, names, side_by_side, wrapping
from optimize.adopt.asked import Asked
from optimize.adopt.foreign import Layout
from optimize.adopt.quantised import int8, recorded
from optimize.adopt.side_by_side import Proof
from optimize.benchmark import environment
from optimize.card import code_sha256
from optimize.errors import UserError
from optimize.onnx_export import save
from optimize.onnx_interface import read_interface
from optimize.quantize.method import Profile
from optimize.repository import Published
from optimize.specs import ModelSpec, ServingSpec

RULES = (graph_rules.rnn_layout, graph_rules.runtime_limits, graph_rules.matmul_bits, graph_rules.state_pairs)
"""Those that concern serving; what exporters do to weights or to a GRU is the maker's matter."""

MOST_BYTES = 2**31 - 1  # of a protobuf


@dataclass(frozen=True)
class Adopted:
    """What was published, and what is known of it."""

    spec: ModelSpec
    layout: Layout
    proof: Proof
    published: Published


@dataclass(frozen=True)
class Options:
    """any_chunk, calibration: see ``side_by_side.prove`` and ``quantised.recorded``. profile: the plan's own."""

    artifacts: Path = Path("artifacts")
    model_repository: Path = Path("model_repository")
    any_chunk: bool = True
    calibration: Path | None = None
    quantize: bool = False
    profile: Profile | None = None
    rounds: int = 100


def adopt(path: Path, name: str | None, asked: Asked, options: Options, progress: Progress | None = None) -> Adopted:
    """Wrap, prove, quantise if asked to, publish. name: the file's by default.

    Raises UserError where the graph cannot be understood or served, GateError where it does not keep its promises.
    """
    if options.quantize and options.calibration is None:
        raise UserError(
            "--quantize needs recorded streams here: give --calibration FILE.npz, with an array (streams, chunks, ...) "
            "of what is sent for each input that is no state"
        )
    name = name or names.identifier(path.stem)
    taken = [variant.spec.name for recipe in recipes.BUILT_IN for variant in recipes.load(recipe).variants.values()]
    if name in taken:
        raise UserError(f"'{name}' is the name of a built-in model; give this one another with --name")
    read_interface(path)  # refuses what is no sound model
    original = onnx.load(path)
    if original.ByteSize() >= MOST_BYTES:
        raise UserError(f"'{path}' with its weights has {original.ByteSize():,} bytes; one file holds up to 2 GiB")
    layout = foreign.layout(original, asked)
    spec = wrapping.spec(name, layout)
    wrapped = wrapping.wrap(original, layout)
    for rule in RULES:
        for fault in rule(wrapped):
            where = f"'{path}', '{fault.node}'" if fault.node else f"'{path}'"
            raise UserError(f"{where}: {fault.problem}; {fault.advice}")
    streams = recorded(options.calibration, layout) if options.calibration else None
    proof = side_by_side.prove(original, wrapped, layout, options.any_chunk, streams)
    verify.require(proof.gates)
    served = wrapped
    if options.quantize:
        assert streams is not None
        progress = progress or Progress(disable=True)
        served, gates = int8(wrapped, layout, streams, options.profile, options.rounds, progress)
        verify.require(gates)
        proof = replace(proof, gates=[*proof.gates, *gates])
    folder = options.artifacts / name / "onnx"
    try:
        model = save(served, folder / "model.onnx")
    except OSError as error:
        raise UserError(f"'{folder}' cannot be written: {error.strerror}; choose another with --artifacts") from None
    published = repository.publish(
        options.model_repository,
        spec,
        ServingSpec(),
        model,
        {
            "manifest.json": (json.dumps(_manifest(path, spec, layout, proof), indent=2) + "\n").encode(),
            "README.md": _card(path, spec, layout, proof).encode(),
        },
    )
    return Adopted(spec, layout, proof, published)


def _manifest(path: Path, spec: ModelSpec, layout: Layout, proof: Proof) -> dict[str, Any]:
    return {
        "model": spec.name,
        "source": {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()},
        "tensors": {
            port.name: {"served_as": port.served, "shape": list(port.shape), "served_shape": ["batch", *port.row]}
            for port in (*layout.given, *layout.answered)
        },
        "constants": {name: array.tolist() for name, array in layout.constants.items()},
        "gates": [asdict(gate) | {"passed": gate.passed} for gate in proof.gates],
        "notes": proof.notes,
        "code_sha256": code_sha256(),
        "environment": environment(threads=1),
    }


def _card(path: Path, spec: ModelSpec, layout: Layout, proof: Proof) -> str:
    """Markdown for the people who will call the model."""
    lines = [f"# {spec.name}", "", f"Made elsewhere, from `{path.name}`; served in streams of equal chunks.", ""]
    lines += ["| tensor | dtype | shape (batch first) | in the file |", "|---|---|---|---|"]
    states = [(pair.before, pair.after) for pair in layout.states]
    for kind, ports in (("in", layout.inputs), ("out", layout.outputs), ("state", [before for before, _ in states])):
        for port in ports:
            shape, before = (", ".join(map(str, sizes)) for sizes in (("batch", *port.row), port.shape))
            lines.append(f"| {kind}: `{port.served}` | {port.dtype} | ({shape}) | `{port.name}` ({before}) |")
    lines += ["", *(f"- `{name}` is fixed at {array.tolist()}." for name, array in layout.constants.items())]
    lines += [f"- The next `{before.name}` is `{after.name}`; it begins as zeros." for before, after in states]
    lines += [
        f"- {gate.name}: {gate.value:.3g} (at {'least' if gate.at_least else 'most'} {gate.limit:.3g})"
        for gate in proof.gates
    ]
    lines += [f"- Beware: {note}." for note in proof.notes]
    lines.append("- What it was trained and tested on is not known here.")
    return "\n".join(lines) + "\n"

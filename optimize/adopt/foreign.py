"""An ONNX model made elsewhere, and how it is to be served: which are its states, where its batch is, what is fixed.

    asked = Asked(states=("h0.in:h0.out", "C_prev:C_next"), chunk=("8",))
    found = layout(onnx.load("model.onnx"), asked)
    found.states[0].before                 # h0.in (2, batch, 64): served as state_h0_in (batch, 2, 64)

What the graph says itself is read off it: dtypes, sizes, and the batch axis by the name that the inputs' dynamic axes
share. Where the batch is in an output is found by running the model with 2 and with 3 rows, which also shows that it
takes them. Every other axis gets a fixed size, since a served stream has chunks and states of a fixed capacity.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from optimize.adopt.asked import (
    Asked,
    Dims,
    Values,
    batch_axes,
    constants_in,
    described,
    dims_of,
    dtype_of,
    fixed_sizes,
    listed,
    state_pairs,
    without,
)
from optimize.adopt.names import input_names, output_name
from optimize.benchmark import runner, session
from optimize.data.dataset import Arrays
from optimize.errors import UserError
from optimize.onnx_export import BATCH
from optimize.quantize.shapes import REFUSALS
from optimize.specs import DTYPES, LENGTHS, NEXT_STATE_PREFIX, STATE_PREFIX

Random = np.random.Generator


@dataclass(frozen=True)
class Port:
    """An input or output as it is in the graph, and as it is served: batch first, other axes in their order.

    shape: in the graph, with ``BATCH`` at ``axis``. times: the axes that ``--chunk`` has fixed.
    """

    name: str
    served: str
    dtype: str
    shape: tuple[int | str, ...]
    axis: int
    times: tuple[int, ...] = ()

    @property
    def row(self) -> tuple[int, ...]:
        """The served shape without the batch; Triton has none of no dimension."""
        return tuple(size for size in self.shape if isinstance(size, int)) or (1,)

    @property
    def to_served(self) -> list[int]:
        """The permutation that brings the batch to the front."""
        return [self.axis, *(axis for axis in range(len(self.shape)) if axis != self.axis)]

    @property
    def from_served(self) -> list[int]:
        """The permutation back."""
        return [int(axis) for axis in np.argsort(self.to_served)]

    def inwards(self, served: NDArray[Any]) -> NDArray[Any]:
        """A served array as the graph wants it."""
        return served.reshape(-1) if len(self.shape) == 1 else np.ascontiguousarray(served.transpose(self.from_served))

    def outwards(self, array: NDArray[Any]) -> NDArray[Any]:
        """An array of the graph as it is served."""
        return array.reshape(-1, 1) if len(self.shape) == 1 else np.ascontiguousarray(array.transpose(self.to_served))


@dataclass(frozen=True)
class State:
    """A pair: the graph's input, and its output that is the same input of the next chunk."""

    before: Port
    after: Port

    @property
    def what(self) -> str:
        return self.before.served.removeprefix(STATE_PREFIX)


@dataclass(frozen=True)
class Layout:
    """inputs, outputs: those that are no states. constants: inputs that are fixed. frozen: the graph says batch 1."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    states: tuple[State, ...]
    constants: dict[str, NDArray[Any]]
    frozen: bool

    @property
    def given(self) -> tuple[Port, ...]:
        return (*self.inputs, *(state.before for state in self.states))

    @property
    def answered(self) -> tuple[Port, ...]:
        return (*self.outputs, *(state.after for state in self.states))

    @property
    def renamed(self) -> dict[str, str]:
        """Served names by the graph's own, all of them."""
        return {port.name: port.served for port in (*self.given, *self.answered)}


def layout(model: ModelProto, asked: Asked) -> Layout:
    """How the model is to be served. Raises UserError where that cannot be known, saying how to tell it."""
    fixed = {tensor.name for tensor in model.graph.initializer}
    inputs = {value.name: value for value in model.graph.input if value.name not in fixed}
    outputs = {value.name: value for value in model.graph.output}
    listing = f"the graph's inputs are {listed(inputs)}; its outputs are {listed(outputs)}"
    pairs = state_pairs(asked.states, inputs, outputs, listing)
    constants = constants_in(asked.constants, inputs, listing)
    if both := constants.keys() & pairs:
        raise UserError(f"'{min(both)}' is both a state and a constant; it can only be one of them")
    shapes = {name: dims_of(value) for name, value in inputs.items() if name not in constants}
    axes = batch_axes(shapes, asked.batch_axis, listing)
    frozen = [name for name, axis in axes.items() if shapes[name][axis] == 1]
    sizes = fixed_sizes(shapes, axes, asked.chunk)
    if asked.lengths is not None and asked.lengths not in shapes:
        raise UserError(f"--lengths {asked.lengths}: no such input; {listing}")
    before: dict[str, Port] = {}
    for name in shapes:
        if (dtype := dtype_of(inputs[name])) not in DTYPES:
            raise UserError(f"input '{name}' is {dtype}; what can be served is {', '.join(DTYPES)}")
    names = input_names(shapes, pairs, asked.lengths)
    for name, dims in shapes.items():
        shape: Dims = [size if isinstance(size, int) else sizes[size] for size in without(dims, axes[name])]
        shape.insert(axes[name], BATCH)
        times = tuple(i for i, size in enumerate(dims) if isinstance(size, str) and i != axes[name])
        before[name] = Port(name, names[name], dtype_of(inputs[name]), tuple(shape), axes[name], times)
    if asked.lengths and (before[asked.lengths].row != (1,) or "int" not in before[asked.lengths].dtype):
        raise UserError(f"--lengths {asked.lengths} is {described(inputs[asked.lengths])}; expected one integer a row")
    after = _outputs(model, outputs, list(before.values()), constants, set(names.values()), pairs)
    states = tuple(State(before[name], after[pairs[name]]) for name in pairs)
    for state in states:
        if state.before.row != state.after.row:
            raise UserError(
                f"--states {state.before.name}:{state.after.name}: the input is {described(inputs[state.before.name])}"
                f" and per row {list(state.before.row)}, but the output per row {list(state.after.row)}; a state keeps "
                f"its shape from chunk to chunk: {listing}"
            )
    return Layout(
        tuple(port for name, port in before.items() if name not in pairs),
        tuple(port for name, port in after.items() if name not in pairs.values()),
        states,
        constants,
        bool(frozen),
    )


def seeded(ports: Iterable[Port], rows: int, random: Random) -> Arrays:
    """Served arrays by served name: floats normal, integers 0 and 1, lengths within the chunk."""
    ports, arrays = list(ports), dict[str, NDArray[Any]]()
    longest = _chunk_size(ports)
    for port in ports:
        shape = (rows, *port.row)
        if np.dtype(port.dtype).kind == "f":
            arrays[port.served] = random.normal(size=shape).astype(port.dtype)
        elif port.dtype == "int16":  # samples of sound
            arrays[port.served] = random.integers(-9999, 9999, shape).astype(port.dtype)
        else:
            low, high = (1, longest + 1) if port.served == LENGTHS else (0, 2)
            arrays[port.served] = random.integers(low, high, shape).astype(port.dtype)
    return arrays


def loosened(model: ModelProto, ports: Iterable[Port]) -> ModelProto:
    """A copy whose inputs' batch axes are dynamic, with no sizes of what is computed from them."""
    copy: ModelProto = ModelProto.FromString(model.SerializeToString())
    axes = {port.name: port.axis for port in ports}
    for value in copy.graph.input:
        if value.name in axes:
            value.type.tensor_type.shape.dim[axes[value.name]].dim_param = BATCH
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    del copy.graph.value_info[:]
    return copy


def _chunk_size(ports: Iterable[Port]) -> int:
    """Along the axis that ``--chunk`` has fixed, else along the first of the first input; states have sizes of their
    own, and so has what comes beside a chunk, such as the embedding of a speaker."""
    inputs = [port for port in ports if port.served != LENGTHS and not port.served.startswith(STATE_PREFIX)]
    for port in inputs:
        if port.times:
            return port.row[port.to_served.index(port.times[0]) - 1]
    return inputs[0].row[0] if inputs else 1


def _outputs(
    model: ModelProto,
    outputs: Values,
    given: list[Port],
    constants: dict[str, NDArray[Any]],
    taken: set[str],
    pairs: dict[str, str],
) -> dict[str, Port]:
    """Every output, its sizes and its batch axis found by running the model with 1, 2 and 3 rows."""
    answers = _answers(model, given, constants)
    before, served = {after: name for name, after in pairs.items()}, {port.name: port.served for port in given}
    ports = {}
    for name in outputs:
        found = [answer[name].shape for answer in answers]
        axes = [axis for axis in range(len(found[0])) if [shape[axis] for shape in found] == [1, 2, 3]]
        if len(axes) != 1 or len(rest := {tuple(without(shape, axes[0])) for shape in found}) != 1:
            raise UserError(
                f"output '{name}' has no one axis that is the batch: with 1, 2 and 3 rows its shapes are "
                f"{', '.join(str(list(shape)) for shape in found)}; export the model with a dynamic batch axis, or "
                "without this output"
            )
        shape: Dims = [*rest.pop()]
        shape.insert(axes[0], BATCH)
        if name in before:
            renamed = NEXT_STATE_PREFIX + served[before[name]].removeprefix(STATE_PREFIX)
        else:
            renamed = output_name(name, taken)
        ports[name] = Port(name, renamed, dtype_of(outputs[name]), tuple(shape), axes[0])
    return ports


def _answers(model: ModelProto, given: list[Port], constants: dict[str, NDArray[Any]]) -> list[Arrays]:
    """To 1, 2 and 3 rows."""
    try:
        run = runner(session(loosened(model, given).SerializeToString()))
    except Exception as error:  # ONNX Runtime's own share no base class
        raise UserError(f"ONNX Runtime cannot load the model: {_reason(error)}") from None
    answers = []
    for rows in (1, 2, 3):
        served = seeded(given, rows, np.random.default_rng(rows))
        try:
            answers.append(run({port.name: port.inwards(served[port.served]) for port in given} | constants))
        except REFUSALS as error:
            shapes = ", ".join(f"'{port.name}' [{', '.join(map(str, port.shape))}]" for port in given)
            advice = "its batch is frozen in the graph: export it with a dynamic batch axis, or " if rows > 1 else ""
            raise UserError(
                f"the model does not run with {shapes} and a batch of {rows}: {advice}check --batch-axis, --chunk and "
                f"--constant ({_reason(error)})"
            ) from None
    return answers


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]

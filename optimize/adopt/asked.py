"""What the user says of a graph made elsewhere, read against the graph: every mistake is named, with what is there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ValueInfoProto, helper

from optimize.errors import UserError

BATCH_NAMES = ("batch", "batch_size", "batchsize", "bs", "b", "n")

Dims = list[int | str]
Values = Mapping[str, ValueInfoProto]


@dataclass(frozen=True)
class Asked:
    """What the user says of a graph, as it is written on the command line.

    states: IN:OUT pairs. lengths: the input that says how much of a chunk is meant. batch_axis: a dynamic axis' name,
    or NAME:AXIS for single inputs. chunk: N, or AXIS=N where several axes are dynamic. constants: NAME=VALUE.
    """

    states: tuple[str, ...]
    lengths: str | None = None
    batch_axis: tuple[str, ...] = ()
    chunk: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()


def state_pairs(texts: Sequence[str], inputs: Values, outputs: Values, listing: str) -> dict[str, str]:
    """State inputs to state outputs. A tensor's name may hold ':' itself, so every split is tried."""
    pairs: dict[str, str] = {}
    for text in texts:
        splits = [(text[:i], text[i + 1 :]) for i, letter in enumerate(text) if letter == ":"]
        if not splits:
            raise UserError(
                f"--states {text}: expected IN:OUT, an input and the output that is its next value; {listing}"
            )
        found = [(before, after) for before, after in splits if before in inputs and after in outputs]
        if not found:
            before, after = splits[0]
            missing = f"input '{before}'" if before not in inputs else f"output '{after}'"
            raise UserError(f"--states {text}: there is no {missing}; {listing}")
        before, after = found[0]
        if before in pairs or after in pairs.values():
            raise UserError(f"--states {text}: '{before if before in pairs else after}' is in two pairs; name it once")
        if dtype_of(inputs[before]) != dtype_of(outputs[after]):
            raise UserError(
                f"--states {text}: the input is {described(inputs[before])}, but the output is "
                f"{described(outputs[after])}; a state keeps its type from chunk to chunk: {listing}"
            )
        pairs[before] = after
    if not pairs:
        raise UserError(f"--states IN:OUT is missing: say which output is which input's next value; {listing}")
    return pairs


def constants_in(texts: Sequence[str], inputs: Values, listing: str) -> dict[str, NDArray[Any]]:
    """Inputs with one value for all requests."""
    constants: dict[str, NDArray[Any]] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        if name not in inputs:
            raise UserError(f"--constant {text}: expected NAME=VALUE with an input's name; {listing}")
        dims = dims_of(inputs[name])
        if any(isinstance(size, str) for size in dims):
            raise UserError(f"--constant {text}: '{name}' is {described(inputs[name])}; only fixed sizes can be filled")
        dtype = np.dtype(dtype_of(inputs[name]))
        try:
            value = float(number) if dtype.kind == "f" else int(number)
        except ValueError:
            raise UserError(f"--constant {text}: '{number}' is no {dtype}, which '{name}' is") from None
        constants[name] = np.full([int(size) for size in dims], value, dtype)
    return constants


def batch_axes(shapes: dict[str, Dims], texts: Sequence[str], listing: str) -> dict[str, int]:
    """Where the batch is in every input."""
    axes: dict[str, int] = {}
    named: list[str] = []
    for text in texts:
        name, _, number = text.rpartition(":")
        if not number.isdigit():
            named.append(text)
        elif name not in shapes or int(number) >= len(shapes[name]):
            raise UserError(f"--batch-axis {text}: expected NAME:AXIS of an input, counted from 0; {listing}")
        else:
            axes[name] = int(number)
    if unknown := [one for one in named if one not in _texts(shapes)]:
        raise UserError(f"--batch-axis {unknown[0]}: no input has a dynamic axis of that name; {listing}")
    named += [str(shapes[name][axis]) for name, axis in axes.items() if not isinstance(shapes[name][axis], int)]
    rest = {name: dims for name, dims in shapes.items() if name not in axes}
    shared = [one for one in dict.fromkeys(_texts(rest)) if all(one in dims for dims in rest.values())]
    known = [one for one in shared if one in named] or [one for one in shared if one.lower() in BATCH_NAMES] or shared
    if rest and len(known) != 1:
        why = f"{' and '.join(known)} are dynamic axes of all of them"
        if not known:
            why = "they share no dynamic axis; a batch that is frozen at 1 has none, so export it dynamic if you can"
            for shared_by_some in dict.fromkeys(_texts(rest)):
                missing = [name for name, dims in rest.items() if shared_by_some not in dims]
                if len(missing) < len(rest) - 1:
                    why = f"'{shared_by_some}' is a dynamic axis of all but {', '.join(missing)}"
        say = " ".join(f"{name}:AXIS" for name in rest)
        raise UserError(
            f"which axis of {', '.join(rest)} is the batch cannot be known: {why}; say where it is, such as "
            f"--batch-axis {say} (counted from 0), or by the name of a dynamic axis; fix an input that has none with "
            f"--constant NAME=VALUE; {listing}"
        )
    axes |= {name: dims.index(known[0]) for name, dims in rest.items()}
    for name, place in axes.items():
        if isinstance(size := shapes[name][place], int) and size != 1:
            raise UserError(
                f"'{name}': its batch, axis {place} of {shapes[name]}, is frozen at {size}; export the model with a "
                f"dynamic batch axis, or say where it is with --batch-axis {name}:AXIS"
            )
    return axes


def fixed_sizes(shapes: dict[str, Dims], axes: dict[str, int], texts: Sequence[str]) -> dict[str, int]:
    """Sizes of the dynamic axes that are not the batch."""
    dynamic = list(dict.fromkeys(axis for n, dims in shapes.items() for axis in _texts({n: without(dims, axes[n])})))
    sizes: dict[str, int] = {}
    for text in texts:
        axis, _, number = text.rpartition("=")
        if not number.isdigit() or int(number) < 1:
            raise UserError(f"--chunk {text}: expected the size of one chunk, at least 1, as N or AXIS=N")
        if not axis and len(dynamic) == 1:
            axis = dynamic[0]
        if axis not in dynamic:
            raise UserError(
                f"--chunk {text}: the dynamic axes besides the batch are {', '.join(dynamic) or 'none, all is fixed'}"
                + ("; write AXIS=N for each of them" if len(dynamic) > 1 else "")
            )
        sizes[axis] = int(number)
    if open_ := [axis for axis in dynamic if axis not in sizes]:
        where = ", ".join(name for name, dims in shapes.items() if open_[0] in dims)
        ask = "--chunk N" if len(dynamic) == 1 else "--chunk " + " ".join(f"{axis}=N" for axis in dynamic)
        raise UserError(f"axis '{open_[0]}' of {where} is dynamic, but a stream has chunks of one size; fix it: {ask}")
    return sizes


def dims_of(value: ValueInfoProto) -> Dims:
    """Sizes; a dynamic axis by its name, or by one made from the tensor's."""
    if not value.type.tensor_type.HasField("shape"):
        raise UserError(
            f"'{value.name}' has no shape in the graph, not even its number of axes; export the model with it"
        )
    return [
        int(dim.dim_value) if dim.HasField("dim_value") else str(dim.dim_param) or f"{value.name}.{axis}"
        for axis, dim in enumerate(value.type.tensor_type.shape.dim)
    ]


def dtype_of(value: ValueInfoProto) -> str:
    """Numpy's name of it."""
    return str(np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)))


def described(value: ValueInfoProto) -> str:
    """Type and shape, for messages."""
    shaped = value.type.tensor_type.HasField("shape")
    return f"{dtype_of(value)} [{', '.join(map(str, dims_of(value))) if shaped else '...'}]"


def listed(values: Values) -> str:
    """Names, types and shapes, for messages."""
    return ", ".join(f"'{name}' {described(value)}" for name, value in values.items())


def without(dims: Sequence[Any], axis: int) -> list[Any]:
    """All but one of them."""
    return [size for index, size in enumerate(dims) if index != axis]


def _texts(shapes: dict[str, Dims]) -> Iterator[str]:
    return (size for dims in shapes.values() for size in dims if isinstance(size, str))

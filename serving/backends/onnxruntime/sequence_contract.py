"""Whether the ``sequence_batching`` of a configuration and the ONNX graph agree on what a stream carries along.

Stricter than the C++ backend: that one also loads states which it then pairs wrongly (by their position in two sorted
lists of names, whatever the configuration says) or which begin with whatever the memory held. Those are rejected too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onnx_contract import ContractError, GraphTensor, Tensor, match

_DEFAULT_IDLE_US = 1_000_000  # Triton's own
MAX_STREAMS = "max_streams"

# Where Triton itself limits the streams: it takes a request's arrival for the last sign of life, this backend its
# execution. So a stream that Triton has given up may not be idle enough yet to be forgotten here, and both it and its
# successor need a slot.
_SLOTS_PER_STREAM = 2

_UNSUPPORTED = ("iterative_sequence", "generative_sequence")
_UNSUPPORTED_OF_STATES = ("use_growable_memory",)


@dataclass(frozen=True)
class Sequences:
    """What a stream carries along, and how Triton schedules it.

    inputs, outputs: the states' names in the graph, pairwise. ready: the control input that tells a request from a
    filler of an empty slot, if one is declared. slots: streams that one instance remembers at once. idle_s: after which
    Triton forgets a silent stream.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    ready: str | None
    slots: int
    idle_s: float


def check_sequences(
    config: dict[str, Any], graph_inputs: Sequence[GraphTensor], graph_outputs: Sequence[GraphTensor]
) -> Sequences | None:
    """The streams of a model that has any; raises ContractError if configuration and graph disagree."""
    batching = config.get("sequence_batching")
    if not batching:
        return None
    for setting in _UNSUPPORTED:
        if batching.get(setting):
            raise ContractError(f"sequence_batching: '{setting}' is not supported by this backend")
    states = batching.get("state", [])
    if not states:
        raise ContractError("sequence_batching has no 'state' section, so nothing would be remembered of a stream")
    _check_names(config, states)
    inputs = {tensor.name: tensor for tensor in graph_inputs}
    outputs = {tensor.name: tensor for tensor in graph_outputs}
    max_batch = int(config["max_batch_size"])
    for state in states:
        _check_initial(state)
    return Sequences(
        tuple(match(_entry(state, "input_name"), inputs, max_batch, "state input") for state in states),
        tuple(match(_entry(state, "output_name"), outputs, max_batch, "state output") for state in states),
        _ready(batching),
        _slots(config),
        int(batching.get("max_sequence_idle_microseconds") or _DEFAULT_IDLE_US) / 1e6,
    )


def _slots(config: dict[str, Any]) -> int:
    """The parameter ``max_streams``, of which Triton knows nothing: a START beyond it is for this backend to refuse.

    That needs ``max_candidate_sequences`` to be larger, since Triton lets what is beyond that one wait without a word.
    """
    batching, max_batch = config["sequence_batching"], int(config["max_batch_size"])
    if "oldest" not in batching:
        return _SLOTS_PER_STREAM * max(1, max_batch)
    candidates = int(batching["oldest"].get("max_candidate_sequences") or max_batch or 1)
    given = config.get("parameters", {}).get(MAX_STREAMS, {}).get("string_value")
    if given is None:
        return _SLOTS_PER_STREAM * candidates
    if not given.isdecimal() or not 1 <= int(given) < candidates:
        raise ContractError(
            f"parameter '{MAX_STREAMS}' is '{given}'; expected a number from 1 to less than max_candidate_sequences, "
            f"which is {candidates}"
        )
    return int(given)


def _check_names(config: dict[str, Any], states: list[dict[str, Any]]) -> None:
    for field, kind in (("input_name", "input"), ("output_name", "output")):
        names = [state[field] for state in states]
        visible = {entry["name"] for entry in config[kind]}
        for name in names:
            if names.count(name) > 1:
                raise ContractError(f"state {kind} '{name}' is named twice")
            if name in visible:
                raise ContractError(f"state {kind} '{name}' is also listed under '{kind}'; list it only as a state")
    pairs = sorted((state["input_name"], state["output_name"]) for state in states)
    if [output for _, output in pairs] != sorted(output for _, output in pairs):
        raise ContractError(
            "the states' inputs sort in another order than their outputs, and the C++ backend pairs them by position; "
            "name them state_<what> and next_state_<what>"
        )


def _check_initial(state: dict[str, Any]) -> None:
    name = state["input_name"]
    for setting in _UNSUPPORTED_OF_STATES:
        if state.get(setting):
            raise ContractError(f"state '{name}': '{setting}' is not supported by this backend")
    dims = [int(size) for size in state["dims"]]
    if min(dims, default=0) < 1:
        raise ContractError(f"state '{name}': expected dims of fixed sizes, got {dims}")
    initial = state.get("initial_state", [])
    if len(initial) != 1 or not initial[0].get("zero_data"):
        raise ContractError(f"state '{name}' needs one initial_state with zero_data: true")
    for field, ours, theirs in (
        ("data_type", state["data_type"], initial[0]["data_type"]),
        ("dims", dims, [int(size) for size in initial[0]["dims"]]),
    ):
        if ours != theirs:
            raise ContractError(f"state '{name}': {field} is {ours}, that of its initial_state {theirs}")


def _entry(state: dict[str, Any], field: str) -> dict[str, Any]:
    return {"name": state[field], "data_type": state["data_type"], "dims": state["dims"]}


def _ready(batching: dict[str, Any]) -> str | None:
    for entry in batching.get("control_input", []):
        for control in entry["control"]:
            if control.get("kind") == "CONTROL_SEQUENCE_READY":
                return str(entry["name"])
    return None

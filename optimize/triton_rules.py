"""The rules of ``optimize.validator``: each finds one mistake and says what to do about it.

A rule takes the configuration and the model's interface and yields one message for each place where it is broken.
Sources: the checks in the official backend (onnxruntime_backend r24.10, ``src/onnxruntime.cc``) and in Triton core,
and measurement against the real backend. What the mistake leads to is said in the validator's table.
"""

from __future__ import annotations

from collections.abc import Iterator

from tritonclient.grpc import model_config_pb2 as pb

from optimize import target_runtime as target
from optimize.onnx_interface import OnnxInterface, Port
from optimize.specs import STATE_PREFIX

# The file against the ONNX Runtime in the image.


def ir_version(config: pb.ModelConfig, model: OnnxInterface) -> Iterator[str]:
    if model.ir_version > target.MAX_IR_VERSION:
        yield f"IR version {model.ir_version}, readable is {target.MAX_IR_VERSION}: set model.ir_version when saving"


def opset(config: pb.ModelConfig, model: OnnxInterface) -> Iterator[str]:
    for domain, version in model.opsets.items():
        limit = target.MAX_OPSETS.get(domain, version)
        if version > limit:
            yield f"opset {version} of '{domain or 'ai.onnx'}', {limit} is the newest known: export with that"


def operators(config: pb.ModelConfig, model: OnnxInterface) -> Iterator[str]:
    for domain, name in sorted({(node.domain, node.op_type) for node in model.nodes} - model.functions):
        standard = domain in ("", "ai.onnx", "ai.onnx.ml")
        if not standard and not (domain == "com.microsoft" and name in target.CONTRIB_OPERATORS):
            yield (
                f"operator {domain}.{name} has no CPU kernel in ONNX Runtime {target.ONNX_RUNTIME}: leave out the "
                "fusion or quantisation that brought it in, or write it in standard operators"
            )


def matmul_bits(config: pb.ModelConfig, model: OnnxInterface) -> Iterator[str]:
    for node in model.nodes:
        bits = [attribute.i for attribute in node.attribute if attribute.name == "bits"]
        if node.op_type == "MatMulNBits" and bits != [target.MATMUL_NBITS]:
            yield (
                f"MatMulNBits '{node.name}' has weights of {bits} bits, ONNX Runtime {target.ONNX_RUNTIME} takes only "
                f"{target.MATMUL_NBITS}: use that, or int8 products with static or per-row scales"
            )


# Names, types and shapes.


def backend(config: pb.ModelConfig, model: OnnxInterface) -> Iterator[str]:
    if config.backend != "onnxruntime" or config.platform not in ("", "onnxruntime_onnx"):
        yield f"backend is '{config.backend}', platform '{config.platform}': say backend 'onnxruntime' and no platform"


def undeclared_input(config: pb.ModelConfig, model: OnnxInterface) -> Iterator[str]:
    declared = {tensor.name for tensor in config.input} | _controls(config).keys()
    declared |= {state.input_name for state in config.sequence_batching.state}
    for name in model.inputs:
        if name not in declared:
            where = "sequence_batching.state" if name.startswith(STATE_PREFIX) else "input"
            yield f"the model's input '{name}' is not declared: add it under {where}"


def unknown_input(config: pb.ModelConfig, model: OnnxInterface) -> Iterator[str]:
    for name in [tensor.name for tensor in config.input] + [s.input_name for s in config.sequence_batching.state]:
        if name not in model.inputs:
            yield f"'{name}' is declared, the model's inputs are {', '.join(model.inputs)}: declare those"


def unknown_output(config: pb.ModelConfig, model: OnnxInterface) -> Iterator[str]:
    for tensor in config.output:
        if tensor.name not in model.outputs:
            yield f"'{tensor.name}' is declared, the model's outputs are {', '.join(model.outputs)}: declare those"


def data_types(config: pb.ModelConfig, model: OnnxInterface) -> Iterator[str]:
    for kind, tensor, port in _tensors(config, model):
        declared = pb.DataType.Name(tensor.data_type)
        if declared != port.dtype:
            yield f"{kind} '{tensor.name}' is declared {declared}, the model has {port.dtype}: declare that"


def dims(config: pb.ModelConfig, model: OnnxInterface) -> Iterator[str]:
    for kind, tensor, port in _tensors(config, model):
        declared = tuple(tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims)
        expected = port.shape[1:] if config.max_batch_size else port.shape
        # An input may be declared narrower than the model takes it; an output must be declared as it is.
        if not (_accepts(expected, declared) if kind == "input" else declared == expected):
            hint = ", behind the batch axis" if config.max_batch_size else ""
            yield f"{kind} '{tensor.name}' has dims {[*declared]}, the model {[*expected]}{hint}: declare those"


def dynamic_batch(config: pb.ModelConfig, model: OnnxInterface) -> Iterator[str]:
    for name, port in (model.inputs | model.outputs).items():
        if config.max_batch_size and port.shape[:1] != (-1,):
            yield (
                f"'{name}' has shape {[*port.shape]}, but max_batch_size {config.max_batch_size} needs a dynamic first "
                "axis: export with one, from an example of 2 rows"
            )


def optional_input(config: pb.ModelConfig, model: OnnxInterface) -> Iterator[str]:
    for tensor in config.input:
        if tensor.optional and config.max_batch_size:
            yield f"input '{tensor.name}' is optional, which a model that batches may not have: make it required"


# Instances and scheduling.


def instance_group(config: pb.ModelConfig, model: OnnxInterface) -> Iterator[str]:
    if not config.instance_group:
        yield "no instance_group, so Triton starts two CPU instances, or one on each GPU: write count and kind"


def thread_count(config: pb.ModelConfig, model: OnnxInterface) -> Iterator[str]:
    if "intra_op_thread_count" not in config.parameters:
        yield "no intra_op_thread_count, so every instance starts one thread per core and they fight: write it"


def parameters(config: pb.ModelConfig, model: OnnxInterface) -> Iterator[str]:
    for key in {"intra_op_thread_count", "inter_op_thread_count", "execution_mode"} & set(config.parameters):
        value = config.parameters[key].string_value
        if not value.isdigit():
            yield f"parameter {key} is '{value}', the backend reads a whole number in string_value: write one"


def preferred_batch(config: pb.ModelConfig, model: OnnxInterface) -> Iterator[str]:
    schedulers = (config.dynamic_batching, config.sequence_batching.oldest)
    for size in [size for scheduler in schedulers for size in scheduler.preferred_batch_size]:
        if not 0 < size <= config.max_batch_size:
            yield f"preferred_batch_size {size} is not within 1 and max_batch_size {config.max_batch_size}: drop it"


def response_cache(config: pb.ModelConfig, model: OnnxInterface) -> Iterator[str]:
    if config.response_cache.enable and config.HasField("sequence_batching"):
        yield "response_cache on a sequence model, whose answers depend on the stream's past: turn it off"


def warmup(config: pb.ModelConfig, model: OnnxInterface) -> Iterator[str]:
    if config.model_warmup:
        yield (
            "model_warmup: where it fails in two instances Triton 2.51 crashes with all its models, and a sequence "
            "model gets its warm-up requests without states: drop it"
        )


def idle_limit(config: pb.ModelConfig, model: OnnxInterface) -> Iterator[str]:
    if config.HasField("sequence_batching") and not config.sequence_batching.max_sequence_idle_microseconds:
        yield "no max_sequence_idle_microseconds, so a stream that pauses for 1 s loses its state: write the limit"


# Controls and states of sequences.


def control_input(config: pb.ModelConfig, model: OnnxInterface) -> Iterator[str]:
    for name, dtype in _controls(config).items():
        port = model.inputs.get(name)
        if port is None:
            yield f"control input '{name}' is declared, but the model lacks it: drop the declaration"
        elif port.shape[1:] != (1,) or port.dtype != dtype:
            yield f"control input '{name}' is {port.dtype} {[*port.shape]} in the model: make it {dtype} [-1, 1]"


def state_as_input(config: pb.ModelConfig, model: OnnxInterface) -> Iterator[str]:
    inputs = {tensor.name for tensor in config.input}
    for state in config.sequence_batching.state:
        if state.input_name in inputs:
            yield f"state '{state.input_name}' is also listed under input: list it only as a state"


def state_output(config: pb.ModelConfig, model: OnnxInterface) -> Iterator[str]:
    for state in config.sequence_batching.state:
        if state.output_name not in model.outputs:
            yield f"state output '{state.output_name}' is none of {', '.join(model.outputs)}: name the right one"


def state_type(config: pb.ModelConfig, model: OnnxInterface) -> Iterator[str]:
    for name, state, port in _state_ports(config, model):
        declared = pb.DataType.Name(state.data_type)
        if declared != port.dtype:
            yield f"state '{name}' is declared {declared}, the model has {port.dtype}: declare that"


def state_dims(config: pb.ModelConfig, model: OnnxInterface) -> Iterator[str]:
    for name, state, port in _state_ports(config, model):
        if min(state.dims, default=0) < 1:
            yield f"state '{name}' has dims {[*state.dims]}: give it a fixed capacity"
        elif not _accepts(port.shape[1:], tuple(state.dims)):
            yield f"state '{name}' has dims {[*state.dims]}, the model {[*port.shape[1:]]} per row: declare those"


def initial_state(config: pb.ModelConfig, model: OnnxInterface) -> Iterator[str]:
    for state in config.sequence_batching.state:
        initial = list(state.initial_state)
        alike = [(one.data_type, [*one.dims]) == (state.data_type, [*state.dims]) and one.zero_data for one in initial]
        if alike != [True]:
            yield (
                f"state '{state.input_name}' needs one initial_state with zero_data: true and its own type and dims, "
                "or a stream starts from whatever the memory held: add it"
            )


def state_order(config: pb.ModelConfig, model: OnnxInterface) -> Iterator[str]:
    pairs = sorted((state.input_name, state.output_name) for state in config.sequence_batching.state)
    outputs = [output for _, output in pairs]
    if outputs != sorted(outputs):
        yield (
            "the states' inputs sort in another order than their outputs, and Triton pairs them by position (server "
            "issue 8586), so they are swapped: name them state_<what> and next_state_<what>"
        )


def direct_batch(config: pb.ModelConfig, model: OnnxInterface) -> Iterator[str]:
    found = {node.op_type for node in model.nodes} & target.BATCH_DEPENDENT_OPERATORS
    if config.HasField("sequence_batching") and not config.sequence_batching.HasField("oldest") and found:
        yield (
            f"strategy 'direct' with {', '.join(sorted(found))}, where rows of empty slots share the activation scale: "
            "use strategy 'oldest', or a quantisation with static or per-row scales"
        )


def _tensors(config: pb.ModelConfig, model: OnnxInterface) -> Iterator[tuple[str, pb.ModelInput, Port]]:
    """Declared inputs and outputs, each with the model's port of that name where there is one."""
    for kind, declared, ports in (("input", config.input, model.inputs), ("output", config.output, model.outputs)):
        yield from ((kind, tensor, ports[tensor.name]) for tensor in declared if tensor.name in ports)


def _state_ports(
    config: pb.ModelConfig, model: OnnxInterface
) -> Iterator[tuple[str, pb.ModelSequenceBatching.State, Port]]:
    """Declared states, each with the model's input and its output where there are such."""
    for state in config.sequence_batching.state:
        for name, ports in ((state.input_name, model.inputs), (state.output_name, model.outputs)):
            if name in ports:
                yield name, state, ports[name]


def _controls(config: pb.ModelConfig) -> dict[str, str]:
    """Control inputs by name, with the type that the model must give them."""
    values = {"int32_false_true": "TYPE_INT32", "fp32_false_true": "TYPE_FP32", "bool_false_true": "TYPE_BOOL"}
    found = {}
    for entry in config.sequence_batching.control_input:
        for control in entry.control:
            typed = [dtype for name, dtype in values.items() if getattr(control, name)]
            found[str(entry.name)] = typed[0] if typed else str(pb.DataType.Name(control.data_type))
    return found


def _accepts(model: tuple[int, ...], declared: tuple[int, ...]) -> bool:
    """Whether the model takes whatever the declared dims allow."""
    return len(model) == len(declared) and all(
        ours in (-1, theirs) for ours, theirs in zip(model, declared, strict=True)
    )

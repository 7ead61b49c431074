"""LSTM and GRU encoders: what they compute and remember, whole utterances read backwards, and the graph they become."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import ModelProto

from optimize import fuse, onnx_export, recipes
from optimize.errors import UserError
from optimize.models.frontend import FrontEndConfig
from optimize.models.recurrent import (
    CELLS,
    GRUState,
    LSTMState,
    RecurrentConfig,
    RecurrentEncoder,
    RecurrentLayer,
    state_specs,
)
from optimize.models.speech_encoder import FRAME_SAMPLES
from optimize.offline import offline_spec
from optimize.recipes.speech import spec
from optimize.specs import ModelSpec, StateSpec, TensorSpec
from optimize.streaming import Step

CHUNK = 8 * FRAME_SAMPLES
TOLERANCE = 2e-5


@pytest.fixture(scope="module", params=CELLS)
def model(request: pytest.FixtureRequest) -> RecurrentEncoder:
    return encoder(RecurrentConfig(request.param, layers=2, width=32))


@pytest.fixture(scope="module", params=CELLS)
def bidirectional(request: pytest.FixtureRequest) -> RecurrentEncoder:
    return encoder(RecurrentConfig(request.param, layers=2, width=32, bidirectional=True))


@pytest.fixture(scope="module")
def exported(model: RecurrentEncoder) -> ModelProto:
    declared = spec("speech_rnn", 8, model.config)
    return onnx_export.export(Step(model, len(declared.inputs)), declared)


def encoder(config: RecurrentConfig) -> RecurrentEncoder:
    torch.manual_seed(1)
    return RecurrentEncoder(config).eval()


def pcm(batch: int, samples: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(-9000, 9000, (batch, samples)).astype(np.int16))


def lengths(*samples: int) -> torch.Tensor:
    return torch.tensor([[count] for count in samples], dtype=torch.int32)


def test_the_initial_state_is_zeros_of_the_declared_shapes(model: RecurrentEncoder) -> None:
    state = model.initial_state(3)
    assert isinstance(state, LSTMState if model.config.cell == "lstm" else GRUState)
    assert [declared.what for declared in state_specs(model.config)] == list(state._fields)
    for tensor, declared in zip(state, state_specs(model.config), strict=True):
        assert (tuple(tensor.shape), str(tensor.dtype)) == ((3, *declared.shape), f"torch.{declared.dtype}")
        assert not tensor.any()


def test_the_state_after_a_chunk_has_the_same_shapes_and_is_not_zero(model: RecurrentEncoder) -> None:
    before = model.initial_state(2)
    _, after = model.forward_chunk(pcm(2, CHUNK), lengths(CHUNK, CHUNK), before)
    assert type(after) is type(before)
    for name in before._fields:
        found, expected = getattr(after, name), getattr(before, name)
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert (after.hidden.abs().amax(dim=2) > 0).all()  # of every stream and layer


def test_a_word_across_a_boundary_is_given_once(model: RecurrentEncoder) -> None:
    said = encoder(model.config)
    with torch.no_grad():
        said.output.weight.zero_()
        said.output.bias.copy_(torch.eye(said.config.vocabulary)[3])
        first, state = said.forward_chunk(pcm(1, CHUNK), lengths(CHUNK), said.initial_state(1))
        second, _ = said.forward_chunk(pcm(1, CHUNK), lengths(CHUNK), state)
    assert first.tokens.tolist() == [[3, 0, 0, 0, 0, 0, 0, 0]]
    assert second.tokens.tolist() == [[0] * 8]


@pytest.mark.parametrize(("samples", "frames"), [(0, 0), (1, 1), (640, 1), (641, 2), (CHUNK, 8)])
def test_output_lengths_count_frames_that_were_begun(model: RecurrentEncoder, samples: int, frames: int) -> None:
    outputs, _ = model.forward_chunk(pcm(1, CHUNK), lengths(samples), model.initial_state(1))
    assert outputs.output_lengths.tolist() == [[frames]]
    assert not outputs.tokens[:, frames:].any()


@pytest.mark.parametrize(("samples", "frames"), [(0, 1), (1, 1), (640, 1), (641, 2)])
def test_whole_utterances_of_any_length_are_answered(model: RecurrentEncoder, samples: int, frames: int) -> None:
    assert model(pcm(2, samples), lengths(samples, 0)).log_probs.shape == (2, frames, 11)


@pytest.mark.parametrize("samples", [0, 639, CHUNK + 1])
def test_a_chunk_that_is_no_whole_number_of_frames_is_refused(model: RecurrentEncoder, samples: int) -> None:
    with pytest.raises(UserError, match="expected a multiple of 640"):
        model.forward_chunk(pcm(1, samples), lengths(samples), model.initial_state(1))


def test_a_bidirectional_encoder_has_no_chunks(bidirectional: RecurrentEncoder) -> None:
    with pytest.raises(UserError, match="hears the future and cannot answer a chunk"):
        bidirectional.forward_chunk(pcm(1, CHUNK), lengths(CHUNK), bidirectional.initial_state(1))


def test_padding_and_company_change_nothing_of_what_is_read_backwards(bidirectional: RecurrentEncoder) -> None:
    sizes = (3 * CHUNK, 5_000, 1, 0, 2 * CHUNK + 641)
    utterances = [pcm(1, size, seed) for seed, size in enumerate(sizes)]
    together = pcm(len(sizes), max(sizes) + 2_000, seed=9)  # garbage behind every utterance
    for row, utterance in enumerate(utterances):
        together[row, : utterance.shape[1]] = utterance
    with torch.inference_mode():
        found = bidirectional(together, lengths(*sizes))
        for row, (size, utterance) in enumerate(zip(sizes, utterances, strict=True)):
            alone = bidirectional(utterance, lengths(size))
            frames = -(-size // FRAME_SAMPLES)
            torch.testing.assert_close(
                found.log_probs[row, :frames], alone.log_probs[0, :frames], rtol=0, atol=TOLERANCE
            )
            assert found.tokens[row].tolist()[:frames] == alone.tokens[0].tolist()[:frames]
            assert not found.tokens[row, frames:].any()


def test_the_backward_cell_computes_what_torch_does_with_packed_sequences(bidirectional: RecurrentEncoder) -> None:
    layer, config = bidirectional.layers[0], bidirectional.config
    assert isinstance(layer, RecurrentLayer)
    assert layer.backward_cell is not None
    both = CELLS[config.cell](config.width, config.width, bidirectional=True)
    weights = dict(layer.cell.state_dict())
    weights |= {f"{name}_reverse": value for name, value in layer.backward_cell.state_dict().items()}
    both.load_state_dict(weights)
    x, sizes = torch.randn(7, 3, config.width), torch.tensor([7, 4, 1])
    heard = torch.arange(7) < sizes[:, None]
    places = torch.where(heard, sizes[:, None] - 1 - torch.arange(7), torch.arange(7)).T
    memory = tuple(torch.zeros(1, 3, config.width) for _ in range(1 + (config.cell == "lstm")))
    with torch.inference_mode():
        found, _ = layer(x, memory, places)
        packed = torch.nn.utils.rnn.pack_padded_sequence(layer.norm(x), sizes)
        expected, _ = torch.nn.utils.rnn.pad_packed_sequence(both(packed)[0])
    for row, size in enumerate(sizes):
        directions = expected[:size, row].reshape(-1, 2, config.width).sum(dim=1)
        torch.testing.assert_close(found[:size, row], x[:size, row] + directions, rtol=0, atol=TOLERANCE)


def test_a_bidirectional_encoder_hears_the_future(model: RecurrentEncoder, bidirectional: RecurrentEncoder) -> None:
    utterance = pcm(1, 2 * CHUNK)
    changed = torch.cat([utterance[:, :CHUNK], utterance[:, CHUNK:] // 50], dim=1)
    for module, hears in ((model, False), (bidirectional, True)):
        with torch.inference_mode():
            answers = [module(samples, lengths(2 * CHUNK)).log_probs[:, :8] for samples in (utterance, changed)]
        assert bool((answers[0] - answers[1]).abs().max() > 100 * TOLERANCE) == hears


def test_the_graph_answers_and_remembers_as_torch_does(model: RecurrentEncoder, exported: ModelProto) -> None:
    """Three chunks with carried state, the last one ragged and one stream already over."""
    session = onnxruntime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    declared = spec("speech_rnn", 8, model.config)
    state = model.initial_state(3)
    memory = {state.input_name: np.zeros((3, *state.shape), state.dtype) for state in declared.states}
    for step, meant in enumerate([(CHUNK, CHUNK, CHUNK), (CHUNK, CHUNK, 700), (CHUNK, 1234, 0)]):
        feed = {"pcm": pcm(3, CHUNK, step).numpy(), "lengths": lengths(*meant).numpy()}
        found = dict(zip(declared.output_names, session.run(declared.output_names, feed | memory), strict=True))
        with torch.inference_mode():
            outputs, state = model.forward_chunk(pcm(3, CHUNK, step), lengths(*meant), state)
        for name, expected in zip(declared.output_names, (*outputs, *state), strict=True):
            np.testing.assert_allclose(found[name], expected.numpy(), atol=TOLERANCE, err_msg=f"{name}, chunk {step}")
        memory = {state.input_name: found[state.output_name] for state in declared.states}


def test_the_graph_has_one_operator_for_every_layer(model: RecurrentEncoder, exported: ModelProto) -> None:
    counts = Counter(node.op_type for node in exported.graph.node)
    assert not {"If", "Loop", "Scan"} & set(counts)
    assert counts[model.config.cell.upper()] == 2
    for node in exported.graph.node:
        if node.op_type == "GRU":
            assert [item.i for item in node.attribute if item.name == "linear_before_reset"] == [1]


def test_the_graph_of_whole_utterances_of_any_length_reads_backwards_too(bidirectional: RecurrentEncoder) -> None:
    whole = offline_spec(spec("speech_whole", 8, bidirectional.config), "speech_whole", (2 * CHUNK, 4 * CHUNK))
    fused, _ = fuse.fuse(onnx_export.export(bidirectional, whole))
    onnx_export.check(fused, whole)
    session = onnxruntime.InferenceSession(fused.SerializeToString(), providers=["CPUExecutionProvider"])
    for samples in (1, FRAME_SAMPLES - 1, FRAME_SAMPLES, 2 * CHUNK, 5 * CHUNK + 7):
        feed = {"pcm": pcm(3, samples).numpy(), "lengths": lengths(samples, samples // 2, 0).numpy()}
        with torch.inference_mode():
            expected = bidirectional(*(torch.from_numpy(array) for array in feed.values()))
        for name, found, answer in zip(whole.output_names, session.run(None, feed), expected, strict=True):
            np.testing.assert_allclose(found, answer.numpy(), atol=TOLERANCE, err_msg=f"{name}, {samples} samples")


@pytest.mark.parametrize("cell", CELLS)
def test_the_variant_serves_what_its_networks_take(cell: str) -> None:
    variant = recipes.load("speech").variants[cell]
    declared: ModelSpec = variant.spec
    assert declared.name == f"speech_{cell}"
    assert declared.inputs[0] == TensorSpec("pcm", "int16", (CHUNK,), "16 kHz, one channel")
    config = variant.networks["student"].config
    assert declared.states == state_specs(config)
    assert StateSpec("hidden", "float32", (config.layers, config.width)) in declared.states
    assert variant.networks["undistilled"].config == config


@pytest.mark.parametrize("cell", CELLS)
def test_what_hears_the_future_is_served_for_whole_recordings_alone(cell: str) -> None:
    variant = recipes.load("speech").variants[f"{cell}_bidirectional"]
    assert variant.networks["teacher"].config.bidirectional
    assert not variant.spec.states
    assert variant.serving.response_cache


def test_the_networks_are_small_and_fit_into_eight_megabytes_in_half_precision() -> None:
    variants = recipes.load("speech").variants
    sizes = {
        (cell, name): sum(parameter.numel() for parameter in network().parameters())
        for cell in (*CELLS, *(f"{cell}_bidirectional" for cell in CELLS))
        for name, network in variants[cell].networks.items()
        if not network.weights_of
    }
    assert all(500_000 <= size <= 1_000_000 for size in sizes.values()), sizes
    assert sum(sizes.values()) <= 4_000_000, sizes


@pytest.mark.parametrize("change", [{"cell": "rnn"}, {"width": 40}, {"width": 0}, {"layers": 0}, {"vocabulary": 1}])
def test_impossible_sizes_are_refused(change: dict[str, str | int]) -> None:
    with pytest.raises(UserError, match="RecurrentConfig"):
        RecurrentConfig(**{"cell": "gru", "layers": 2, "width": 32} | change)  # type: ignore[arg-type]


def test_silence_full_scale_and_no_audio_are_finite() -> None:
    module = encoder(RecurrentConfig("lstm", layers=1, width=16, front_end=FrontEndConfig(bins=32, mels=16)))
    loud = torch.full((1, CHUNK), -32768, dtype=torch.int16)
    for samples, length in ((torch.zeros_like(loud), CHUNK), (loud, CHUNK), (loud, 0)):
        outputs, state = module.forward_chunk(samples, lengths(length), module.initial_state(1))
        assert torch.isfinite(outputs.log_probs).all()
        assert all(torch.isfinite(tensor).all() for tensor in state)

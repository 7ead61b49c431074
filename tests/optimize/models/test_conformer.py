"""The Conformer and its front end: what they compute, what they remember, and the graph that they become."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import ModelProto

from optimize import onnx_export, recipes
from optimize.errors import UserError
from optimize.models.conformer import Conformer, ConformerState, state_specs
from optimize.models.conformer_block import CHUNK_FRAMES, ConformerConfig, RelativePositions
from optimize.models.frontend import FrontEndConfig, LogMel
from optimize.models.speech_encoder import FRAME_SAMPLES
from optimize.recipes.speech import STUDENT, TEACHER, spec
from optimize.streaming import Step

CONFIG = ConformerConfig(layers=2, width=32, heads=2, feed_forward=64)
CHUNK = CONFIG.chunk * FRAME_SAMPLES


@pytest.fixture(scope="module")
def model() -> Conformer:
    torch.manual_seed(1)
    module = Conformer(CONFIG).eval()
    torch.nn.init.normal_(module.positions.table)
    return module


@pytest.fixture(scope="module")
def exported(model: Conformer) -> ModelProto:
    return onnx_export.export(Step(model, inputs=2), spec("speech", CONFIG.chunk, CONFIG))


def pcm(batch: int, samples: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(-9000, 9000, (batch, samples)).astype(np.int16))


def lengths(*samples: int) -> torch.Tensor:
    return torch.tensor([[count] for count in samples], dtype=torch.int32)


def test_log_mel_is_that_of_a_plain_fourier_transform() -> None:
    """Against numpy's FFT, which has the frequencies of 128 bins up to 4 kHz at 512 points."""
    config = FrontEndConfig(bins=128)
    samples = np.random.default_rng(0).normal(0, 0.1, 240 + 5 * 160)
    found = LogMel(config)(torch.from_numpy(samples[None].astype(np.float32)))[0].numpy()
    filters = LogMel(config).filters[:128].numpy()
    for frame in range(5):
        window = samples[frame * 160 :][:400]
        window = window - window.mean()
        emphasised = window - 0.97 * np.concatenate([window[:1], window[:-1]])
        power = np.abs(np.fft.rfft(emphasised * np.hanning(400), 512)[1:129]) ** 2
        np.testing.assert_allclose(found[frame], np.log(power @ filters + 1e-6), atol=2e-4)


def test_a_tone_lands_in_its_mel_filter_and_nothing_above_4_khz_is_heard() -> None:
    front_end, time = LogMel(FrontEndConfig()), np.arange(16_000) / 16_000
    loudest = [
        int(front_end(torch.from_numpy(np.sin(2 * np.pi * hz * time, dtype=np.float32)[None])).mean(1).argmax())
        for hz in (200, 500, 1000, 2000, 3500)
    ]
    assert loudest == sorted(set(loudest))
    high = front_end(torch.from_numpy(np.sin(2 * np.pi * 6000 * time, dtype=np.float32)[None]))
    low = front_end(torch.from_numpy(np.sin(2 * np.pi * 1000 * time, dtype=np.float32)[None]))
    assert high.max() < low.max() - 10


def test_normalisation_is_measured_once_and_kept() -> None:
    front_end = LogMel(FrontEndConfig())
    samples = torch.randn(4, 240 + 160 * 50) * 0.1
    front_end.normalise(samples)
    features = front_end(samples)
    assert features.mean((0, 1)).abs().max() < 1e-3
    assert (features.std((0, 1)) - 1).abs().max() < 0.01
    assert set(front_end.state_dict()) == {"mean", "scale"}  # the constants are not stored


def test_the_initial_state_is_zeros_of_the_declared_shapes(model: Conformer) -> None:
    state = model.initial_state(3)
    assert [spec.what for spec in state_specs(CONFIG)] == list(ConformerState._fields)
    for tensor, declared in zip(state, state_specs(CONFIG), strict=True):
        assert (tuple(tensor.shape), str(tensor.dtype)) == ((3, *declared.shape), f"torch.{declared.dtype}")
        assert not tensor.any()


def test_the_mask_shows_a_chunk_and_its_left_context() -> None:
    seen = RelativePositions(1, left_context=3)(frames=6, chunk=2)[0] == 0
    expected = np.zeros((6, 9), bool)  # keys -3 to 5
    for query in range(6):
        start = query // 2 * 2
        expected[query, start : start + 5] = True
    np.testing.assert_array_equal(seen.numpy(), expected)


def test_positions_depend_on_the_distance_alone() -> None:
    positions = RelativePositions(2, left_context=5)
    torch.nn.init.normal_(positions.table)
    whole, chunk = positions(12, chunk=4), positions(4, chunk=4)
    for start in (0, 4, 8):
        torch.testing.assert_close(whole[:, start : start + 4, start : start + 9], chunk)


def test_a_word_across_a_boundary_is_given_once(model: Conformer) -> None:
    """A model that always hears word 3 says so once, whatever the chunks; after a blank, again."""
    said = Conformer(CONFIG).eval()
    with torch.no_grad():
        said.output.weight.zero_()
        said.output.bias.copy_(torch.eye(CONFIG.vocabulary)[3])
        first, state = said.forward_chunk(pcm(1, CHUNK), lengths(CHUNK), said.initial_state(1))
        second, _ = said.forward_chunk(pcm(1, CHUNK), lengths(CHUNK), state)
        after_blank, _ = said.forward_chunk(
            pcm(1, CHUNK), lengths(CHUNK), state._replace(token=torch.zeros(1, 1).long())
        )
    assert first.tokens.tolist() == [[3, 0, 0, 0, 0, 0, 0, 0]]
    assert second.tokens.tolist() == [[0] * 8]
    assert after_blank.tokens.tolist() == [[3, 0, 0, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize(("samples", "frames"), [(0, 0), (1, 1), (640, 1), (641, 2), (CHUNK - 1, 8), (CHUNK, 8)])
def test_output_lengths_count_frames_that_were_begun(model: Conformer, samples: int, frames: int) -> None:
    outputs, state = model.forward_chunk(pcm(1, CHUNK), lengths(samples), model.initial_state(1))
    assert outputs.output_lengths.tolist() == [[frames]]
    assert not outputs.tokens[:, frames:].any()
    assert state.valid.sum() == frames


def test_silence_full_scale_and_no_audio_are_finite(model: Conformer) -> None:
    loud = torch.full((1, CHUNK), -32768, dtype=torch.int16)
    for samples, length in ((torch.zeros_like(loud), CHUNK), (loud, CHUNK), (loud, 0)):
        outputs, state = model.forward_chunk(samples, lengths(length), model.initial_state(1))
        assert torch.isfinite(outputs.log_probs).all()
        assert all(torch.isfinite(tensor).all() for tensor in state)


@pytest.mark.parametrize("samples", [0, 639, CHUNK + 1, (max(CHUNK_FRAMES) + 1) * FRAME_SAMPLES])
def test_a_chunk_of_another_size_is_refused(model: Conformer, samples: int) -> None:
    with pytest.raises(UserError, match="expected a multiple of 640"):
        model.forward_chunk(pcm(1, samples), lengths(samples), model.initial_state(1))


def test_training_draws_chunk_sizes_and_hides_features(model: Conformer) -> None:
    torch.manual_seed(0)
    training = Conformer(CONFIG).train()
    answers = {float(training(pcm(1, 3 * CHUNK), lengths(3 * CHUNK)).log_probs.sum().detach()) for _ in range(4)}
    assert len(answers) == 4
    hidden = training.mask_features(torch.ones(8, 200, 48))
    assert 0.02 < float((hidden == 0).float().mean()) < 0.5


def test_the_networks_have_the_promised_sizes() -> None:
    teacher, student = (sum(p.numel() for p in Conformer(config).parameters()) for config in (TEACHER, STUDENT))
    assert teacher >= 3_000_000
    assert student <= teacher / 4


def test_variants_share_weights_and_differ_in_their_chunk() -> None:
    recipe = recipes.load("speech")
    sizes = {name: variant for name, variant in recipe.variants.items() if name.startswith("chunk_")}
    assert {recipe.origin(name, "student") for name in sizes} == {("chunk_320", "student")}
    for name, variant in sizes.items():
        samples = int(name.removeprefix("chunk_")) * 16
        assert variant.spec.inputs[0].shape == (samples,)
        for network in variant.networks.values():
            assert network.config.chunk * FRAME_SAMPLES == samples


def test_the_graph_answers_and_remembers_as_torch_does(model: Conformer, exported: ModelProto) -> None:
    """Three chunks with carried state, the last one ragged and one stream already over."""
    session = onnxruntime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    declared = spec("speech", CONFIG.chunk, CONFIG)
    state = model.initial_state(3)
    memory = {state.input_name: np.zeros((3, *state.shape), state.dtype) for state in declared.states}
    for step, meant in enumerate([(CHUNK, CHUNK, CHUNK), (CHUNK, CHUNK, 700), (CHUNK, 1234, 0)]):
        feed = {"pcm": pcm(3, CHUNK, step).numpy(), "lengths": lengths(*meant).numpy()}
        found = dict(zip(declared.output_names, session.run(declared.output_names, feed | memory), strict=True))
        with torch.inference_mode():
            outputs, state = model.forward_chunk(pcm(3, CHUNK, step), lengths(*meant), state)
        for name, expected in zip(declared.output_names, (*outputs, *state), strict=True):
            np.testing.assert_allclose(found[name], expected.numpy(), atol=2e-5, err_msg=f"{name}, chunk {step}")
        memory = {state.input_name: found[state.output_name] for state in declared.states}


def test_the_graph_is_bit_equal_in_any_company(model: Conformer, exported: ModelProto) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(exported.SerializeToString(), options, providers=["CPUExecutionProvider"])
    declared = spec("speech", CONFIG.chunk, CONFIG)

    def run(rows: list[int]) -> list[np.ndarray]:  # type: ignore[type-arg]
        random = np.random.default_rng(4)
        feed = {
            state.input_name: random.normal(size=(8, *state.shape)).astype(state.dtype)[rows]
            for state in declared.states
        }
        feed["state_valid"] = np.ones_like(feed["state_valid"])
        feed["pcm"], feed["lengths"] = pcm(8, CHUNK).numpy()[rows], np.full((len(rows), 1), CHUNK, np.int32)
        return list(session.run(None, feed))

    together = run(list(range(8)))
    for rows in ([3], [7, 0], [5, 6, 1]):
        for found, expected in zip(run(rows), together, strict=True):
            np.testing.assert_array_equal(found, expected[rows])


def test_the_graph_has_no_control_flow_and_few_nodes(exported: ModelProto) -> None:
    counts = Counter(node.op_type for node in exported.graph.node)
    assert not {"If", "Loop", "Scan"} & set(counts)
    assert (counts["Softmax"], counts["Conv"], counts["LayerNormalization"]) == (2, 1 + 2, 6 * 2)
    assert sum(counts[kind] for kind in counts.keys() - {"Constant", "Identity"}) <= 60 + 2 * 70


@pytest.mark.parametrize(
    "change", [{"width": 40}, {"heads": 3}, {"feed_forward": 20}, {"kernel": 1}, {"chunk": 17}, {"layers": 0}]
)
def test_impossible_sizes_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(UserError, match="ConformerConfig"):
        ConformerConfig(**{"layers": 2, "width": 32, "heads": 2, "feed_forward": 64} | change)  # type: ignore[arg-type]

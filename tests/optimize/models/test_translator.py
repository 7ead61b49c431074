"""The translator and its search: padding, company, beam against greedy, and known answers of a step made by hand."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import onnxruntime
import pytest
import torch
from torch import Tensor

from optimize.data.subwords import END, PADDING
from optimize.errors import UserError
from optimize.models.beam_search import Found, beam_search, greedy_search, length_penalty
from optimize.models.translator import Memory, State, Translator, TranslatorConfig

CONFIG = TranslatorConfig(vocabulary=48, hidden=32, encoder=16, embedding=16, attention=16, most_tokens=12)
A, B = 4, 5


def translator(**changes: object) -> Translator:
    torch.manual_seed(3)
    module = Translator(replace(CONFIG, **changes)).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(3)  # decisive enough that sentences end and differ
        module.bias[END] += 3
    return module


def sentences(count: int = 9, width: int = 10) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(1, width + 1, (count, 1), generator=generator, dtype=torch.int32)
    source = torch.randint(4, CONFIG.vocabulary, (count, width), generator=generator)
    return source.masked_fill(torch.arange(width) >= lengths, PADDING), lengths


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_padding_and_company_change_nothing(cell: str) -> None:
    module = translator(cell=cell)
    source, lengths = sentences()
    wider = torch.nn.functional.pad(source, (0, 6), value=7)  # not even what the padding holds matters
    together = module(source, lengths)
    padded = module(wider, lengths)
    for row in range(len(source)):
        length = int(lengths[row, 0])
        alone = module(source[row : row + 1, :length], lengths[row : row + 1])
        for name, one, many, wide in zip(("tokens", "lengths", "score"), alone, together, padded, strict=True):
            torch.testing.assert_close(one[0], many[row], msg=f"{name} of row {row}, in company")
            torch.testing.assert_close(one[0], wide[row], msg=f"{name} of row {row}, padded")
    assert len({tuple(row.tolist()) for row in together[0]}) > 2, "the sentences have different translations"


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_the_encoder_reads_both_ways(cell: str) -> None:
    module = translator(cell=cell)
    source, lengths = torch.tensor([[5, 6, 7, 8, PADDING]]), torch.tensor([[4]], dtype=torch.int32)
    memory, _ = module.encode(source, lengths)
    changed, _ = module.encode(torch.tensor([[5, 6, 7, 9, PADDING]]), lengths)
    onward, backward = memory.values[0].chunk(2, dim=1)
    other_onward, other_backward = changed.values[0].chunk(2, dim=1)
    torch.testing.assert_close(onward[:3], other_onward[:3])
    assert (backward[0] - other_backward[0]).abs().max() > 1e-3, "the first word knows of the last"
    mirrored, _ = module.backwards(module._embed(torch.tensor([[8, 7, 6, 5]])))
    torch.testing.assert_close(backward[:4], mirrored[0].flip(0))


def test_a_wrong_length_harms_nobody() -> None:
    module = translator()
    source, _ = sentences(3)
    wrong, right = (torch.tensor([[first], [0], [4]], dtype=torch.int32) for first in (99, 10))
    for found, meant in zip(module(source, wrong), module(source, right), strict=True):
        assert torch.isfinite(found).all()
        torch.testing.assert_close(found, meant)


def test_attention_reads_memory_where_it_should() -> None:
    module = translator()
    keys, values = torch.randn(1, 3, 16), torch.randn(1, 3, 32)
    state, tokens = State(torch.randn(1, 32)), torch.tensor([A])
    all_seen = module.step(tokens, state, Memory(keys, values, torch.tensor([[True, True, True]])))[0]
    two_seen = module.step(tokens, state, Memory(keys, values, torch.tensor([[True, True, False]])))[0]
    two_there = module.step(tokens, state, Memory(keys[:, :2], values[:, :2], torch.tensor([[True, True]])))[0]
    torch.testing.assert_close(two_seen, two_there)
    assert (all_seen - two_seen).abs().max() > 1e-3


@pytest.mark.parametrize("beam", [1, 5])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_training_and_decoding_take_the_same_steps(cell: str, beam: int) -> None:
    module = translator(cell=cell)
    source, lengths = sentences()
    targets, output_lengths, score = translator(cell=cell, beam=beam, length_alpha=0.0)(source, lengths)
    log_probs = torch.log_softmax(module.teacher_forced(source, lengths, targets), dim=1)
    words = targets[targets != PADDING]
    owners = torch.nonzero(targets != PADDING)[:, 0]
    summed = torch.zeros(len(source)).index_add(0, owners, log_probs.gather(1, words.unsqueeze(1)).squeeze(1))
    torch.testing.assert_close(summed, score.squeeze(1), rtol=1e-4, atol=1e-4)
    assert output_lengths.squeeze(1).tolist() == torch.bincount(owners).tolist()


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_beam_of_one_is_greedy(cell: str) -> None:
    module = translator(cell=cell, beam=1, length_alpha=0.0)
    source, lengths = sentences()
    memory, state = module.encode(source, lengths)
    greedy = greedy_search(lambda tokens, state: module.step(tokens, state, memory), state, CONFIG.most_tokens)
    tokens, output_lengths, score = module(source, lengths)
    found = Found(tokens, output_lengths.squeeze(1), score.squeeze(1))
    for name, one, other in zip(found._fields, found, greedy, strict=True):
        torch.testing.assert_close(one, other, msg=name)
    assert found.lengths.min() < CONFIG.most_tokens, "some sentences end"


def test_a_wider_beam_finds_likelier_translations() -> None:
    source, lengths = sentences(40)
    scores = [translator(beam=beam, length_alpha=0.0)(source, lengths)[2].mean() for beam in (1, 4, 48)]
    assert scores[0] < scores[1] <= scores[2] + 1e-5


class First(NamedTuple):
    """Which words were written: 0 none, then A or B first."""

    first: Tensor


def garden_path(tokens: Tensor, state: First) -> tuple[Tensor, First]:
    """A is the likelier first word (0.6), but leads to poor ends; B (0.4) ends at once for certain.

    A END: 0.6 * 0.5. A A END: 0.6 * 0.5 * 1. B END: 0.4 * 1.
    """
    rows = len(tokens)
    probabilities = torch.full((rows, 8), 1e-12)
    first = torch.where(state.first == 0, tokens, state.first)
    begun = tokens > END
    for row in range(rows):
        if not begun[row]:
            probabilities[row, A], probabilities[row, B] = 0.6, 0.4
        elif first[row] == B or state.first[row] == A:
            probabilities[row, END] = 1.0
        else:
            probabilities[row, A], probabilities[row, END] = 0.5, 0.5 - 1e-3
    return probabilities.log(), First(torch.where(begun, first, torch.zeros_like(first)))


def rows(count: int) -> First:
    return First(torch.zeros(count, dtype=torch.int64))


def test_the_beam_leaves_the_garden_path() -> None:
    greedy = greedy_search(garden_path, rows(1), most_tokens=6)
    assert greedy.tokens.tolist() == [[A, A, END, PADDING, PADDING, PADDING]]
    found = beam_search(garden_path, rows(3), beam=3, most_tokens=6, length_alpha=0.0)
    assert found.tokens.tolist() == [[B, END, PADDING, PADDING, PADDING, PADDING]]
    assert found.lengths.tolist() == [2]
    assert found.scores.item() == pytest.approx(math.log(0.4), abs=1e-3)


def test_the_length_penalty_has_the_published_form() -> None:
    assert length_penalty(torch.tensor(1), 0.6).item() == pytest.approx(1.0)
    assert length_penalty(torch.tensor(7), 1.0).item() == pytest.approx(2.0)
    assert length_penalty(torch.tensor(19), 0.5).item() == pytest.approx(2.0)


@pytest.mark.parametrize(("alpha", "expected", "length"), [(0.0, [B, END], 2), (3.0, [A, A, END], 3)])
def test_a_strong_length_penalty_prefers_the_longer(alpha: float, expected: list[int], length: int) -> None:
    # log 0.4 / (7/6)^3 = -0.577 for two tokens, log 0.3 / (8/6)^3 = -0.508 for three
    found = beam_search(garden_path, rows(3), beam=3, most_tokens=6, length_alpha=alpha)
    assert found.tokens[0, :length].tolist() == expected
    assert found.scores.item() == pytest.approx(
        math.log(0.4 if length == 2 else 0.3) / ((5 + length) / 6) ** alpha, abs=1e-3
    )


def test_the_search_stops_early_and_at_the_limit() -> None:
    calls: list[int] = []

    def counted(tokens: Tensor, state: First) -> tuple[Tensor, First]:
        calls.append(len(tokens))
        return garden_path(tokens, state)

    beam_search(counted, rows(6), beam=3, most_tokens=32, length_alpha=0.6)
    assert len(calls) == 3
    cut = beam_search(garden_path, rows(3), beam=3, most_tokens=1, length_alpha=0.6)
    assert cut.tokens.tolist() == [[A]], "what has not ended at the limit counts as it is"


def test_without_sampling_training_is_teacher_forced() -> None:
    source, lengths = sentences()
    targets = torch.randint(4, CONFIG.vocabulary, (len(source), 6))
    expected = translator().teacher_forced(source, lengths, targets)
    torch.testing.assert_close(translator(sampling_rate=0.0).train().teacher_forced(source, lengths, targets), expected)
    eager = translator(sampling_rate=0.5)
    torch.testing.assert_close(eager.teacher_forced(source, lengths, targets), expected, msg="never when evaluated")
    eager.train()
    torch.testing.assert_close(eager.teacher_forced(source, lengths, targets), expected, msg="none in the first batch")
    eager.trained_batches.fill_(1)
    torch.manual_seed(8)
    sampled = eager.teacher_forced(source, lengths, targets)
    assert int(eager.trained_batches) == 2
    assert (sampled - expected).abs().max() > 1e-3
    torch.manual_seed(8)
    torch.testing.assert_close(eager.teacher_forced(source, lengths, targets), sampled, msg="seeded")


def test_always_sampled_is_greedy() -> None:
    module = translator(sampling_rate=1.0).train()
    module.trained_batches.fill_(1)
    source, lengths = sentences()
    memory, state = module.encode(source, lengths)
    greedy = greedy_search(lambda tokens, state: module.step(tokens, state, memory), state, 6)
    logits = module.teacher_forced(source, lengths, torch.full((len(source), 6), B))
    going_on = (greedy.tokens != PADDING) & (greedy.tokens != END)
    own = logits.argmax(1).reshape(len(source), 6)
    reached = torch.cat([torch.ones(len(source), 1, dtype=torch.bool), going_on[:, :-1]], dim=1)
    assert own[reached].tolist() == greedy.tokens[reached].tolist()


class Encode(torch.nn.Module):
    def __init__(self, module: Translator) -> None:
        super().__init__()
        self.module = module

    def forward(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        memory, state = self.module.encode(source, lengths)
        return (*memory, *state)


class Step(Encode):
    def forward(self, tokens: Tensor, hidden: Tensor, *memory: Tensor) -> tuple[Tensor, ...]:
        logits, state = self.module.step(tokens, State(hidden), Memory(*memory))
        return (logits, *state)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_encoder_and_step_become_graphs(cell: str, tmp_path: Path) -> None:
    module = translator(cell=cell)
    source, lengths = sentences(3, 7)
    with torch.inference_mode():
        keys, values, mask, hidden = Encode(module)(source, lengths)
        tokens = torch.tensor([4, 5, 6])
        short = (tokens[:2], hidden[:2], keys[:2, :5], values[:2, :5], mask[:2, :5])
        encode = session(tmp_path / "encode.onnx", Encode(module), (source[:2, :5], lengths[:2].clamp(max=5)), 4)
        step = session(tmp_path / "step.onnx", Step(module), short, 2)
        expected = Step(module)(tokens, hidden, keys, values, mask)
    for found, meant in zip(run(encode, source, lengths), (keys, values, mask, hidden), strict=True):
        torch.testing.assert_close(found, meant, rtol=1e-4, atol=1e-5)
    for found, meant in zip(run(step, tokens, hidden, keys, values, mask), expected, strict=True):
        torch.testing.assert_close(found, meant, rtol=1e-4, atol=1e-5)


def session(
    path: Path, module: torch.nn.Module, example: tuple[Tensor, ...], outputs: int
) -> onnxruntime.InferenceSession:
    """The exported module, batch and source axes dynamic."""
    names = [f"input_{number}" for number in range(len(example))]
    axes = {
        name: {0: "batch"} | ({1: "source"} if tensor.dim() > 1 and tensor.shape[1] == 5 else {})
        for name, tensor in zip(names, example, strict=True)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            example,
            path,
            input_names=names,
            output_names=[f"output_{number}" for number in range(outputs)],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def run(exported: onnxruntime.InferenceSession, *inputs: Tensor) -> list[Tensor]:
    feed = {value.name: tensor.numpy() for value, tensor in zip(exported.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(array) for array in exported.run(None, feed)]


@pytest.mark.parametrize(
    "wrong", [{"hidden": 40}, {"vocabulary": 0}, {"cell": "rnn"}, {"sampling_rate": 1.5}, {"beam": 0}]
)
def test_a_config_that_cannot_work_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        replace(CONFIG, **wrong)  # type: ignore[arg-type]

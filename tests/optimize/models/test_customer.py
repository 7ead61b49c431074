"""The customer model: padding, company and odd requests change nothing; time is read; torch, ONNX and int8 agree."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from optimize import fuse, onnx_export
from optimize.benchmark import runner, session
from optimize.errors import UserError
from optimize.models.customer import KNOTS_HOURS, ClickBranch, CustomerConfig, CustomerModel
from optimize.models.transformer import LayerConfig
from optimize.quantize import calibrate, operators, quantize
from optimize.quantize.plan import Choice
from optimize.recipes.customer_value import SPEC
from tests import tiny_bert

CONFIG = CustomerConfig(100, 30, LayerConfig(32, 2, 48, dropout=0.0), layers=1, tokens=24)
Request = dict[str, NDArray[Any]]
FUSIONS = ("cross", "late", "text", "clicks")


def model(**changes: Any) -> CustomerModel:
    torch.manual_seed(3)
    return CustomerModel(replace(CONFIG, **changes)).eval()


def request(rows: int, tokens: int = 24, events: int = 20, seed: int = 0) -> Request:
    """Some customers; the first has no review, the second no events."""
    random = np.random.default_rng(seed)
    text_lengths = random.integers(1, tokens, (rows, 1), endpoint=True)
    event_lengths = random.integers(1, events, (rows, 1), endpoint=True)
    text_lengths[:1], event_lengths[1:2] = 0, 0
    return {
        "text": random.integers(4, 100, (rows, tokens)),
        "text_lengths": text_lengths.astype(np.int32),
        "events": random.integers(2, 30, (rows, events)),
        "ages": -np.sort(-random.exponential(500, (rows, events)), axis=1).astype(np.float32),
        "event_lengths": event_lengths.astype(np.int32),
    }


def answer(module: CustomerModel, inputs: Request) -> list[NDArray[Any]]:
    with torch.inference_mode():
        return [each.numpy() for each in module(*(torch.from_numpy(inputs[tensor.name]) for tensor in SPEC.inputs))]


def one(inputs: Request, row: int) -> Request:
    return {name: array[row : row + 1] for name, array in inputs.items()}


@pytest.mark.parametrize("fusion", FUSIONS)
def test_probabilities_of_everyone_even_of_whom_something_is_missing(fusion: str) -> None:
    for shares, classes in zip(answer(model(fusion=fusion), request(5)), (4, 3), strict=True):
        assert shares.shape == (5, classes)
        np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-5)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 2**31))
def test_padding_changes_nothing(more_tokens: int, more_events: int, seed: int) -> None:
    module, inputs, random = model(tokens=40), request(4, seed=seed), np.random.default_rng(seed)
    padded = dict(inputs)
    for name, width in (("text", more_tokens), ("events", more_events), ("ages", more_events)):
        junk = random.integers(-5, 10**6, (4, width)).astype(inputs[name].dtype)
        padded[name] = np.concatenate([inputs[name], junk], axis=1)
        lengths = inputs["text_lengths" if name == "text" else "event_lengths"]
        beyond = np.arange(padded[name].shape[1]) >= np.maximum(lengths, 1)
        padded[name] = np.where(beyond, np.flip(padded[name], 0), padded[name])
    for before, after in zip(answer(module, inputs), answer(module, padded), strict=True):
        np.testing.assert_allclose(after, before, atol=2e-6)


def test_each_fusion_reads_what_it_says() -> None:
    inputs = request(6)
    other_text = inputs | {"text": inputs["text"][::-1].copy()}
    other_clicks = inputs | {"events": inputs["events"][::-1].copy()}
    for fusion in FUSIONS:
        module = model(fusion=fusion)
        base, text, clicks = (answer(module, each)[0] for each in (inputs, other_text, other_clicks))
        assert np.allclose(base, text) == (fusion == "clicks")
        assert np.allclose(base, clicks) == (fusion == "text")


def test_missing_is_told_from_empty_words() -> None:
    inputs = one(request(4), 2)
    without = inputs | {"text_lengths": np.zeros((1, 1), np.int32)}
    assert not np.allclose(answer(model(), inputs)[0], answer(model(), without)[0])
    other = without | {"text": inputs["text"] + 1}
    np.testing.assert_array_equal(answer(model(), without)[0], answer(model(), other)[0])


@pytest.mark.parametrize(
    ("name", "value"),
    [("text", 10**12), ("text", -1), ("events", 99), ("ages", np.nan), ("ages", np.inf), ("ages", -5.0),
     ("text_lengths", 9999), ("text_lengths", -3), ("event_lengths", 2**31 - 1)],
)  # fmt: skip
def test_an_odd_request_harms_no_other(name: str, value: float) -> None:
    inputs, module = request(4), model()
    odd = {key: array.copy() for key, array in inputs.items()}
    odd[name][2] = value
    for before, after in zip(answer(module, inputs), answer(module, odd), strict=True):
        assert np.isfinite(after).all()
        np.testing.assert_array_equal(np.delete(after, 2, 0), np.delete(before, 2, 0))


def test_time_is_a_curve_between_knots_and_level_beyond() -> None:
    branch = model().clicks
    assert isinstance(branch, ClickBranch)
    knots = torch.tensor(KNOTS_HOURS)
    at_knots = branch.ramps(knots[None])[0]
    np.testing.assert_allclose(at_knots.sum(dim=1), np.arange(len(knots)), atol=1e-5)
    middle = branch.ramps(((knots[1:] + knots[:-1]) / 2)[None])[0]
    torch.testing.assert_close(middle, (at_knots[1:] + at_knots[:-1]) / 2)
    inputs = one(request(4), 3) | {"event_lengths": np.array([[20]], np.int32)}
    late = inputs | {"ages": inputs["ages"] + 300}
    assert not np.allclose(answer(model(), inputs)[0], answer(model(), late)[0])
    ancient = [inputs | {"ages": np.full((1, 20), age, np.float32)} for age in (4320, 9e9)]
    np.testing.assert_array_equal(answer(model(), ancient[0])[0], answer(model(), ancient[1])[0])


@pytest.fixture(scope="module")
def graphs() -> dict[str, Any]:
    """Runs of the exported model: as it is, fused, and in int8 of two invariant kinds."""
    exported = onnx_export.export(model(tokens=64), SPEC)
    fused, counts = fuse.fuse(exported)
    assert counts["attentions fused"] == 2, "the self-attentions; cross-attention has a mask"
    found = {"fp32": exported, "fused": fused}
    for way in ("static", "per_row"):
        choices = {
            name: Choice(kind, "static" if kind == "Attention" else way, "asked for")
            for name, kind in operators(fused).items()
            if kind != "Gather"
        }
        found[way] = quantize(fused, choices, calibrate(fused, [request(64, 64, 128, seed=9)], choices))
    return {name: runner(session(graph.SerializeToString())) for name, graph in found.items()}


@pytest.mark.parametrize(("stage", "atol"), [("fp32", 1e-6), ("fused", 1e-6), ("static", 0.02), ("per_row", 0.02)])
@pytest.mark.parametrize(("rows", "tokens", "events"), [(1, 16, 16), (5, 7, 33), (16, 64, 128)])
def test_onnx_answers_as_torch_whatever_the_sizes(
    graphs: dict[str, Any], stage: str, atol: float, rows: int, tokens: int, events: int
) -> None:
    inputs = request(rows, tokens, events, seed=rows)
    expected = answer(model(tokens=64), inputs)
    for found, right in zip(graphs[stage](inputs).values(), expected, strict=True):
        np.testing.assert_allclose(found, right, atol=atol)


@pytest.mark.parametrize("stage", ["fp32", "fused", "static", "per_row"])
def test_company_changes_no_bit(graphs: dict[str, Any], stage: str) -> None:
    inputs = request(9, 16, 16)
    together = graphs[stage](inputs)
    for row in range(9):
        for name, alone in graphs[stage](one(inputs, row)).items():
            np.testing.assert_array_equal(alone[0], together[name][row], err_msg=name)


def test_a_pretrained_encoder_reads_the_text(tmp_path: Any) -> None:
    folder = tiny_bert.write(tmp_path)
    module = model(text_encoder=str(folder), tokens=24)
    inputs = request(5)
    fused, counts = fuse.fuse(onnx_export.export(module, SPEC))
    assert counts["attentions fused"] == 3
    found = runner(session(fused.SerializeToString()))(inputs)
    for name, right in zip(("tier", "sentiment"), answer(module, inputs), strict=True):
        np.testing.assert_allclose(found[name].astype(float), right, atol=2e-6)
    other = inputs | {"text": (inputs["text"] + 1) % 100}
    changed = np.abs(answer(module, inputs)[0] - answer(module, other)[0]).max(axis=1)
    assert changed[0] == 0, "who wrote nothing"
    assert np.all(changed[1:] > 0)


def test_bad_settings_are_told() -> None:
    with pytest.raises(UserError, match="fusion is 'early'; expected 'cross'"):
        replace(CONFIG, fusion="early")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="width of a head a multiple of 16"):
        LayerConfig(40, 2, 64)
    with pytest.raises(UserError, match="at least 1 layer"):
        replace(CONFIG, layers=0)

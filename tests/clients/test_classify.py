"""``python -m clients classify`` and ``tokenize`` against a real Triton that has a tokenizer.json."""

from __future__ import annotations

import io
import json
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from optimize.data.texts import Tokenizer
from optimize.specs import ModelSpec, TensorSpec
from serving.config import ServerConfig
from serving.launcher import Server
from tests import tiny_bert, tiny_models
from tests.clients.conftest import Command

LABELS = ("short", "long")
TEXTS = ["The novel is lovely.", "Lovely!", "The packaging was dreadful, and the delivery of it was awful too."]
LONGEST = 32
SPEC = ModelSpec(
    "text_classification",
    inputs=(TensorSpec("tokens", "int64", ("subwords",)), TensorSpec("lengths", "int32", (1,))),
    outputs=(TensorSpec("label", "int64", (1,), labels=LABELS), TensorSpec("log_probs", "float32", (2,))),
    max_batch=4,
    buckets={"subwords": (8, LONGEST)},
    vocabulary=tiny_bert.wordpieces().to_str().encode(),
)


def says_how_long(spec: ModelSpec) -> tiny_models.TinyModel:
    """Sure that a text of at least 8 subwords is long: probabilities 1/5 and 4/5, or the other way round."""
    nodes = [
        helper.make_node("GreaterOrEqual", ["lengths", "eight"], ["is_long"]),
        helper.make_node("Cast", ["is_long"], ["label"], to=onnx.TensorProto.INT64),
        helper.make_node("Where", ["is_long", "if_long", "if_short"], ["weighed"]),
        helper.make_node("ReduceMin", ["tokens"], ["least"], axes=[1]),  # reads its other input too
        helper.make_node("Cast", ["least"], ["least_float"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["least_float", "zero"], ["nothing"]),
        helper.make_node("Add", ["weighed", "nothing"], ["log_probs"]),
    ]
    constants = {
        "eight": np.array(8, np.int32),
        "if_long": np.log(np.array([[0.2, 0.8]], np.float32)),
        "if_short": np.log(np.array([[0.8, 0.2]], np.float32)),
        "zero": np.array(0, np.float32),
    }
    graph = helper.make_graph(
        nodes,
        spec.name,
        [tiny_models._value(tensor) for tensor in spec.inputs],
        [tiny_models._value(tensor) for tensor in spec.outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return tiny_models.TinyModel(
        spec, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("repository")
    unlabelled = (replace(SPEC.outputs[0], labels=()), SPEC.outputs[1])
    for spec in (
        SPEC,
        replace(SPEC, name="wordless", vocabulary=b""),
        replace(SPEC, name="damaged", vocabulary=b"{}"),
        replace(SPEC, name="unlabelled", outputs=unlabelled),
        replace(SPEC, name="mislabelled", outputs=(replace(SPEC.outputs[0], labels=("one",)), SPEC.outputs[1])),
    ):
        says_how_long(spec).write(repository)
    tiny_models.double().write(repository)
    with Server(ServerConfig(repository, http_port=0, grpc_port=0, metrics_port=0, drain_timeout_s=2)) as running:
        yield running


def test_labels_and_how_sure_the_model_is_in_the_order_asked(ask: Command) -> None:
    assert ask("classify", *TEXTS) == "short\t0.800\nshort\t0.800\nlong\t0.800\n"


def test_json(ask: Command) -> None:
    short, long = (json.loads(line) for line in ask("classify", "--json", TEXTS[1], TEXTS[2]).splitlines())
    assert (short["text"], short["label"]) == (TEXTS[1], "short")
    assert (short["model"], short["version"]) == ("text_classification", "1")
    assert long["probabilities"] == {"short": pytest.approx(0.2), "long": pytest.approx(0.8)}
    assert long["latency_ms"] > 0


def test_lines_of_standard_input_stay_in_step(ask: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [TEXTS[2], "", *TEXTS, *["Lovely."] * 5, TEXTS[2]]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(lines).encode())))
    labels = [line.split("\t")[0] for line in ask("classify", "-").split("\n")]
    assert labels == ["long", "", "short", "short", "long", *["short"] * 5, "long", ""]


def test_plain_http_without_the_client(server: Server, ask: Command) -> None:
    body = ask("tokenize", "--model", "text_classification", *TEXTS)
    sent = {tensor["name"]: tensor for tensor in json.loads(body)["inputs"]}
    tokens = np.array(sent["tokens"]["data"]).reshape(sent["tokens"]["shape"])
    tokenizer = Tokenizer.parse(SPEC.vocabulary)
    for row, text in zip(tokens.tolist(), TEXTS, strict=True):
        expected = tokenizer.encode(text)
        assert row == expected + [0] * (LONGEST - len(expected))
    url = f"http://{server.http}/v2/models/text_classification/infer"
    with urllib.request.urlopen(urllib.request.Request(url, body.encode())) as reply:
        outputs = {tensor["name"]: tensor["data"] for tensor in json.load(reply)["outputs"]}
    assert outputs["label"] == [0, 0, 1]


def test_a_text_that_cannot_be_asked(refused: Command) -> None:
    assert "sentence 2 is empty" in refused("classify", "Fine.", " \x00")
    message = refused("classify", "lovely " * 40)
    assert f"sentence 1 has 40 subwords, model 'text_classification' takes at most {LONGEST - 2};" in message


def test_a_model_that_does_not_classify(refused: Command) -> None:
    assert "takes no texts: expected one input of int64" in refused("classify", "--model", "double", "Yes.")
    assert "has no vocabulary in its configuration" in refused("classify", "--model", "wordless", "Yes.")
    assert "is no tokenizer.json of Hugging Face" in refused("classify", "--model", "damaged", "Yes.")
    assert "does not classify texts: expected the outputs" in refused("classify", "--model", "unlabelled", "Yes.")
    assert "answered with label 0 of 2, but its configuration names 1" in refused(
        "classify", "--model", "mislabelled", "Yes."
    )
    assert "does not translate" in refused("translate", "--model", "text_classification", "Yes.")

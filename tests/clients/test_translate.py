"""``python -m clients translate``, ``tokenize`` and ``detokenize`` against a real Triton that searches in the graph.

The networks are tiny and untrained: what they say means nothing, but torch says the same.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import clients
from clients.sentences import Wording
from clients.signature import Signature
from optimize import fuse, onnx_export
from optimize.data.subwords import END, VOCABULARY_FILE, Subwords
from optimize.models.translator import Translator, TranslatorConfig
from optimize.quantize import operators, quantize
from optimize.quantize.plan import Choice
from optimize.recipes.translate import SPEC
from optimize.specs import ModelSpec, ServingSpec
from optimize.triton_config import to_config, to_text
from serving.config import ServerConfig
from serving.launcher import Server
from tests import tiny_models
from tests.clients.conftest import Command

SENTENCES = [
    "I love this book.",
    "Where is the station?",
    "No.",
    "She has never been to Paris, and she does not want to go there.",
    "Don't you?",
]
LONGEST = 24


def network() -> Translator:
    torch.manual_seed(11)
    module = Translator(TranslatorConfig(4096, hidden=32, encoder=16, embedding=32, attention=16)).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(4)
        module.bias[END] += 6
    return module


def in_int8() -> Any:
    fused, _ = fuse.fuse(onnx_export.export(network(), SPEC))
    choices = {
        name: Choice(operator, "int8_table" if operator == "Gather" else "per_row", "asked for")
        for name, operator in operators(fused).items()
    }
    return quantize(fused, choices, {})


def publish(repository: Path, spec: ModelSpec, graph: Any) -> None:
    onnx_export.save(graph, repository / spec.name / "1" / "model.onnx")
    config = to_text(to_config(spec, ServingSpec(response_cache=True)))
    (repository / spec.name / "config.pbtxt").write_text(config)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("repository")
    graph = onnx_export.export(network(), SPEC)
    publish(repository, SPEC, graph)
    publish(repository, replace(SPEC, name="translate_int8"), in_int8())
    publish(repository, replace(SPEC, name="wordless", vocabulary=b""), graph)
    publish(repository, replace(SPEC, name="damaged", vocabulary=b"no vocabulary"), graph)
    tiny_models.double().write(repository)
    with Server(ServerConfig(repository, http_port=0, grpc_port=0, metrics_port=0, drain_timeout_s=2)) as running:
        yield running


@pytest.fixture(scope="module")
def expected() -> list[str]:
    """What torch says."""
    module, subwords, texts = network(), Subwords.load(VOCABULARY_FILE), []
    for sentence in SENTENCES:
        tokens = subwords.encode(sentence)
        with torch.inference_mode():
            found = module(torch.tensor([tokens]), torch.tensor([[len(tokens)]], dtype=torch.int32))[0]
        texts.append(subwords.decode(found[0].tolist()))
    assert len(set(texts)) > 2
    return texts


@pytest.fixture
def standard_input(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    return lambda content: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_one_sentence_and_several(ask: Command, expected: list[str]) -> None:
    assert ask("translate", SENTENCES[0]) == f"{expected[0]}\n"
    assert ask("translate", *SENTENCES).splitlines() == expected


def test_json_says_how_sure_the_model_is(ask: Command, expected: list[str]) -> None:
    lines = [json.loads(line) for line in ask("translate", "--json", *SENTENCES).splitlines()]
    assert [line["translation"] for line in lines] == expected
    assert [line["text"] for line in lines] == SENTENCES
    assert all(line["score"] < 0 < line["latency_ms"] for line in lines)
    assert all(line["complete"] == (line["tokens"][-1] == END) for line in lines)
    assert {(line["model"], line["version"]) for line in lines} == {("translate", "1")}


def test_lines_of_standard_input_stay_in_step(
    ask: Command, standard_input: Callable[[bytes], None], expected: list[str]
) -> None:
    standard_input("\r\n".join([SENTENCES[0], "", " \t\x07", *SENTENCES[1:]]).encode())
    assert ask("translate", "-").split("\n") == [expected[0], "", "", *expected[1:], ""]
    standard_input("\n".join(SENTENCES * 40).encode())
    assert ask("translate", "-").splitlines() == expected * 40


def test_many_sentences_are_many_requests(ask: Command, expected: list[str]) -> None:
    assert ask("translate", *SENTENCES * 30).splitlines() == expected * 30


def test_an_int8_search_answers_alike_in_any_company(server: Server) -> None:
    with clients.connect(server.grpc) as client:
        wording = Wording.of(client.signature("translate_int8"))
        rows = [wording.encode(sentence, sentence) for sentence in SENTENCES]
        together = client.infer("translate_int8", wording.request(rows)).outputs
        for place, row in enumerate(rows):
            request = wording.request([row, max(rows, key=len)])
            alone = client.infer("translate_int8", {name: array[:1] for name, array in request.items()}).outputs
            for name, values in alone.items():
                np.testing.assert_array_equal(values[0], together[name][place], err_msg=name)


def test_an_answer_comes_from_the_cache_the_second_time(server: Server, ask: Command) -> None:
    def hits() -> int:
        with urllib.request.urlopen(f"http://{server.http}/v2/models/translate/stats") as reply:
            (stats,) = json.load(reply)["model_stats"]
            return int(stats["inference_stats"]["cache_hit"]["count"])

    first, before = ask("translate", "Do you hear me?"), hits()
    assert ask("translate", "Do you hear me?") == first
    assert hits() == before + 1


def test_plain_http_without_the_client(
    server: Server, ask: Command, standard_input: Callable[[bytes], None], expected: list[str]
) -> None:
    body = ask("tokenize", *SENTENCES)
    url = f"http://{server.http}/v2/models/translate/infer"
    with urllib.request.urlopen(urllib.request.Request(url, body.encode())) as reply:
        answer = reply.read()
    standard_input(answer)
    assert ask("detokenize").splitlines() == expected


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_clients_have_the_vocabulary_of_the_model(server: Server, protocol: Any) -> None:
    address = server.grpc if protocol == "grpc" else server.http
    with clients.connect(address, protocol=protocol) as client:
        signature = client.signature("translate")
    assert signature.vocabulary == VOCABULARY_FILE.read_bytes()
    assert signature.buckets == {"source": (8, 16, LONGEST)}


def test_requests_are_padded_to_the_buckets(server: Server) -> None:
    with clients.connect(server.grpc) as client:
        wording = Wording.of(client.signature("translate"))
    widths = [wording.request([wording.encode("no " * words, "it")])["source"].shape[1] for words in (1, 7, 8, 15, 23)]
    assert widths == [8, 8, 16, 16, LONGEST]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "sentence 2 is empty, control characters and spaces aside; give it words"),
        (" \n\x00\u200b\x1b", "sentence 2 is empty, control characters"),
        ("ab\udcff", r"sentence 2 is not UTF-8 \(character 3\); convert it first"),
        ("word " * 1000, r"sentence 2 has 1,\d{3} subwords, model 'translate' takes at most 23; split it"),
    ],
    ids=["empty", "control characters", "not UTF-8", "5,000 characters"],
)
@pytest.mark.parametrize("command", ["translate", "tokenize"])
def test_a_sentence_that_cannot_be_asked(refused: Command, command: str, text: str, message: str) -> None:
    assert re.search(message, refused(command, "Fine.", text))


def test_what_the_vocabulary_lacks_is_spelled_and_control_characters_are_spaces(ask: Command) -> None:
    assert ask("translate", "漢字 ☃") == ask("translate", "漢字\x07\x1b☃")
    tokens = np.array(json.loads(ask("tokenize", "漢字 ☃"))["inputs"][0]["data"])
    assert len(tokens[tokens > END]) >= 9, "three bytes each"
    assert 1 not in tokens, "nothing is unknown"


def test_a_line_that_cannot_be_asked(refused: Command, standard_input: Callable[[bytes], None]) -> None:
    standard_input(b"Fine.\n\xff\xfe\n")
    assert "line 2 is not UTF-8 (byte 1)" in refused("translate", "-")
    standard_input(b"Fine.\n" + b"no " * 50 + b"\n")
    assert "line 2 has 50 subwords" in refused("translate", "-")


def test_a_model_that_does_not_translate(refused: Command) -> None:
    assert "model 'wordless' has no vocabulary" in refused("translate", "--model", "wordless", "Yes.")
    assert "is no SentencePiece vocabulary" in refused("translate", "--model", "damaged", "Yes.")
    assert "model 'double' does not translate: expected the inputs" in refused("translate", "--model", "double", "Yes.")
    assert "no_such" in refused("translate", "--model", "no_such", "Yes.")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "standard input is no answer of a Triton server"),
        (b"[1, 2]", "standard input is no answer"),
        (b'{"error": "queue full"}', "the server refused the request: queue full"),
        (b'{"model_version": "1", "outputs": []}', "lacks the output 'tokens'"),
        (b'{"model_version": "7", "outputs": []}', "version 7 of model 'translate' answered, but"),
    ],
)
def test_an_answer_that_is_none(
    refused: Command, standard_input: Callable[[bytes], None], body: bytes, message: str
) -> None:
    standard_input(body)
    assert message in refused("detokenize")


def test_numbers_beyond_the_vocabulary_are_an_error() -> None:
    signature = Signature.of(
        {
            "name": "translate",
            "inputs": [
                {"name": "source", "datatype": "INT64", "shape": [-1, -1]},
                {"name": "lengths", "datatype": "INT32", "shape": [-1, 1]},
            ],
            "outputs": [
                {"name": name, "datatype": "INT64", "shape": [-1, 1]} for name in ("tokens", "output_lengths", "score")
            ],
        },
        {"max_batch_size": 4, "parameters": dict_of(to_config(SPEC, ServingSpec()).parameters)},
    )
    outputs = {"tokens": np.array([[5000]]), "output_lengths": np.array([[1]]), "score": np.zeros((1, 1))}
    with pytest.raises(clients.ServerError, match=r"answered with \(5000,\), but its vocabulary has 4096 subwords"):
        Wording.of(signature).translations(outputs, "1")


def dict_of(parameters: Any) -> dict[str, dict[str, str]]:
    return {key: {"string_value": value.string_value} for key, value in parameters.items()}


def test_as_processes_in_a_pipe(server: Server, expected: list[str]) -> None:
    command = [sys.executable, "-m", "clients", "translate", "--address", server.grpc, "-"]
    made = subprocess.run(command, input="\n".join(SENTENCES).encode(), capture_output=True, timeout=60, check=True)
    assert made.stdout.decode().splitlines() == expected
    broken = subprocess.run([*command[:-1], b"caf\xe9"], capture_output=True, timeout=60, check=False)
    assert broken.returncode == 2
    assert b"is not UTF-8" in broken.stderr

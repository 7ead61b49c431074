"""One line out of a log. The excerpts are Triton 2.51's own."""

from __future__ import annotations

from serving.failures import explain

NOISE = """\
W1121 12:44:03.744146 10429 pinned_memory_manager.cc:273] "Unable to allocate pinned system memory"
E1121 12:44:03.744146 10429 server.cc:241] "CudaDriverHelper has not been initialized."
I1121 12:44:03.754256 10429 model_lifecycle.cc:472] "loading: tiny:1"
"""


def test_a_model_that_does_not_load() -> None:
    reason = r"parsing failed.\n\nAt:\n  /site-packages/onnxruntime/collection.py(778): __init__\n"
    log = NOISE + (
        f'E1121 12:44:04.2 10429 backend_model.cc:692] "ERROR: Failed to create instance: {reason}"\n'
        f"E1121 12:44:04.2 10429 model_lifecycle.cc:642] \"failed to load 'tiny' version 1: Internal: {reason}\"\n"
        "error: creating server: Invalid argument - load failed for model 'tiny'\n"
    )
    assert explain(log, 1) == "model 'tiny' version 1: Internal: parsing failed."


def test_a_configuration_that_cannot_be_read() -> None:
    log = NOISE + (
        "[libprotobuf ERROR text_format.cc:337] Error parsing text-format inference.ModelConfig: 1:5: no field 'not'.\n"
        "E1121 12:44:05.7 10454 model_repository_manager.cc:1460] \"Poll failed for model directory 'tiny'\"\n"
        "error: creating server: Internal - failed to load all models\n"
    )
    assert explain(log, 1) == "Poll failed for model directory 'tiny'; 1:5: no field 'not'."


def test_a_server_that_was_killed() -> None:
    assert explain(NOISE, -9) == "ended by SIGKILL"


def test_an_older_triton_that_does_not_quote() -> None:
    log = "E1121 12:44:05.7 10454 main.cc:245] failed to start GRPC service: Socket '127.0.0.1:1' already in use\n"
    assert explain(log, 1) == "failed to start GRPC service: Socket '127.0.0.1:1' already in use"


def test_a_log_that_says_nothing() -> None:
    assert explain("", 127) == "exit status 127, last line: none"
    assert explain("tritonserver: error while loading libdcgm.so", 127).endswith("libdcgm.so")

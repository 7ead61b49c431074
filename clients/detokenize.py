"""Turn the JSON answer of a translation model, on standard input, into sentences; see tokenize."""

from __future__ import annotations

import argparse
import json
import sys

from clients import json_body
from clients.options import connected
from clients.sentences import Wording
from clients.translate import MODEL
from optimize.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=MODEL, help="default: %(default)s")


def run(options: argparse.Namespace) -> None:
    """Print a line for each sentence. Raises UserError."""
    body = sys.stdin.buffer.read()
    try:
        message = json.loads(body)
        if "error" in message:
            raise UserError(f"the server refused the request: {message['error']}")
        outputs, version = json_body.decode(body.decode()), message["model_version"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"standard input is no answer of a Triton server ({type(error).__name__}: {error}); expected the JSON that "
            f"POST /v2/models/{options.model}/infer gives"
        ) from None
    with connected(options) as client:
        wording = Wording.of(client.signature(options.model))
    try:
        translations = wording.translations(outputs, version)
    except KeyError as error:
        raise UserError(f"the answer on standard input lacks the output {error}; ask for all of them") from None
    for translation in translations:
        print(translation.text)

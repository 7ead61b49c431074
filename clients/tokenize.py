"""Turn sentences into the body of a request to a model that reads texts, for programs without this client.

    python -m clients tokenize "I love this book." |
        curl -s --data @- localhost:8000/v2/models/translate/infer | python -m clients detokenize

The server is asked for the model's vocabulary and for nothing else.
"""

from __future__ import annotations

import argparse

from clients import json_body
from clients.options import connected
from clients.texts import Reading, given
from clients.translate import add_text_arguments
from optimize.errors import UserError

add_arguments = add_text_arguments


def run(options: argparse.Namespace) -> None:
    """Print one request for all the sentences. Raises UserError."""
    with connected(options) as client:
        reading = Reading.of(client.signature(options.model))
    rows = [reading.encode(sentence.text, sentence.name) for sentence in given(options.text)]
    if not 1 <= len(rows) <= reading.max_batch:
        raise UserError(f"model '{reading.model}' takes 1 to {reading.max_batch} sentences a request, got {len(rows)}")
    print(json_body.encode(reading.request(rows)))

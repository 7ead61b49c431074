"""Turn sentences into the body of a translation request, for programs without this client.

    python -m clients tokenize "I love this book." |
        curl -s --data @- localhost:8000/v2/models/translate/infer | python -m clients detokenize

The server is asked for the model's vocabulary and for nothing else.
"""

from __future__ import annotations

import argparse

from clients import json_body
from clients.sentences import Wording
from clients.translate import add_text_arguments, connected, given
from optimize.errors import UserError

add_arguments = add_text_arguments


def run(options: argparse.Namespace) -> None:
    """Print one request for all the sentences. Raises UserError."""
    with connected(options) as client:
        wording = Wording.of(client.signature(options.model))
    rows = [wording.encode(sentence.text, sentence.name) for sentence in given(options.text)]
    if not 1 <= len(rows) <= wording.max_batch:
        raise UserError(f"model '{wording.model}' takes 1 to {wording.max_batch} sentences a request, got {len(rows)}")
    print(json_body.encode(wording.request(rows)))

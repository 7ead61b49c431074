"""Text classification by a pretrained Hugging Face encoder: your folder, your labels, your texts.

    $ export TEXT_ENCODER=path/to/distilbert-base-uncased    # a folder with config.json, weights and tokenizer.json
    $ python -m optimize.train  --recipe docs/examples/text_classification.py --data labelled.tsv
    $ python -m optimize.export --recipe docs/examples/text_classification.py --data labelled.tsv --quantize
    $ python -m serving &
    $ python -m clients classify "Lovely book, will order again."
    positive    0.993

``labelled.tsv`` (or .csv) has the columns ``text`` and ``label``; the labels are those of LABELS below. The teacher is
the whole encoder with a linear layer on the feature of the first subword ([CLS] or <s>); the student begins as the
lower half of its layers. A text that is longer than LONGEST subwords is cut in training and refused by the client.

The checkpoints hold all weights of the fine-tuned networks, but every command here builds them from the folder first:
keep it where it is, as it was. Serving and clients need neither: vocabulary and labels are published with the model.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from optimize.data import reviews
from optimize.data.dataset import Arrays, Dataset, Split, find
from optimize.data.texts import Tokenizer
from optimize.errors import UserError
from optimize.models.pretrained import PretrainedEncoder
from optimize.recipes import Metric, Network, Recipe, Tensors, Tolerances, Training, Variant
from optimize.specs import ModelSpec, TensorSpec

LABELS = ("negative", "neutral", "positive")
LONGEST = 64  # subwords, special ones included
NAME, FILE = "text_classification", "texts/labelled.tsv"
STAND_IN, SEED = 2000, 1

Example = tuple[str, str]  # text, label


@dataclass(frozen=True)
class Config:
    """share: of the encoder's layers, from the lowest."""

    folder: str
    share: float = 1.0


class Classifier(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.encoder = PretrainedEncoder(Path(config.folder), config.share, LONGEST)
        self.dropout = nn.Dropout(0.1)
        self.output = nn.Linear(self.encoder.width, len(LABELS))

    def forward(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """tokens (batch, time) and lengths (batch, 1) to label (batch, 1) and log_probs (batch, labels)."""
        meant = torch.arange(tokens.shape[1]) < lengths.clamp(min=1)
        first = self.encoder(tokens, meant)[:, 0]
        log_probs = torch.log_softmax(self.output(self.dropout(first)), dim=1)
        return log_probs.argmax(dim=1, keepdim=True), log_probs


def read(path: Path) -> list[Example]:
    """The texts of a .csv or .tsv file. Raises UserError: no such columns, an unknown label, an empty text."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="," if path.suffix == ".csv" else "\t")
        if not {"text", "label"} <= set(rows.fieldnames or ()):
            raise UserError(f"'{path}' has the columns {rows.fieldnames}; its first line must name 'text' and 'label'")
        examples = [(row["text"] or "", row["label"] or "") for row in rows]
    for number, (text, label) in enumerate(examples, start=1):
        if label not in LABELS or not text.strip():
            raise UserError(f"'{path}', text {number}, '{text[:40]}': '{label}' is none of {LABELS}, or no text")
    return examples


def made_up() -> list[Example]:
    """Reviews of a shop that is none, and how satisfied their writers are said to be."""
    random, categories = np.random.default_rng(SEED), reviews.CATEGORIES
    meanings = [
        reviews.Meaning(int(random.integers(-2, 3)), int(random.integers(-1, 2)), categories[index % len(categories)])
        for index in range(STAND_IN)
    ]
    return [(reviews.write(meaning, random), meaning.sentiment) for meaning in meanings]


def split(examples: Sequence[Example], tokenizer: Tokenizer) -> Split:
    tokens = np.zeros((len(examples), LONGEST), np.int64)
    lengths = np.zeros((len(examples), 1), np.int32)
    for row, (text, _) in enumerate(examples):
        encoded = tokenizer.encode(text, LONGEST)
        tokens[row, : len(encoded)], lengths[row] = encoded, len(encoded)
    label = np.array([[LABELS.index(label)] for _, label in examples], np.int64)
    return Split({"tokens": tokens, "lengths": lengths}, {"label": label}, np.arange(len(examples)))


def load(data: Path | None, tokenizer: Tokenizer) -> Dataset:
    """A tenth of the texts for validation and one for the test, chosen by hash: a text is in one part only."""
    path = find(FILE, data)
    examples = read(path) if path else made_up()
    parts: dict[int, list[Example]] = {}
    for text, label in examples:
        parts.setdefault(min(hashlib.sha256(text.encode()).digest()[0] % 10, 2), []).append((text, label))
    test, validation, train = (split(parts.get(part, []), tokenizer) for part in range(3))
    source = str(path) if path else f"{STAND_IN} made-up reviews, seed {SEED} (no {FILE} under $DATA_DIR or ./data)"
    return Dataset(train, validation, test, source, hashlib.sha256(repr(examples).encode()).hexdigest())


def trimmed(inputs: Tensors, targets: Tensors) -> tuple[Tensors, Tensors]:
    """A batch without the padding that all its texts share."""
    return {**inputs, "tokens": inputs["tokens"][:, : int(inputs["lengths"].max())]}, targets


def cross_entropy(outputs: Tensors, targets: Tensors) -> Tensor:
    return nn.functional.nll_loss(outputs["log_probs"], targets["label"][:, 0])


def divergence(outputs: Tensors, answers: Tensors) -> Tensor:
    """Of the student's probabilities from the teacher's, nats per text."""
    return nn.functional.kl_div(outputs["log_probs"], answers["log_probs"], reduction="batchmean", log_target=True)


def confusions(outputs: Arrays, items: Split) -> NDArray[np.float64]:
    """(items, 3 labels): hits of every label, answers and texts that are of it."""
    given, true = (np.eye(len(LABELS))[array[:, 0].astype(int)] for array in (outputs["label"], items.targets["label"]))
    return np.concatenate([given * true, given, true], axis=1)


def macro_f1(sums: NDArray[np.float64]) -> float:
    """0 to 100: the mean over the labels of the harmonic mean of precision and recall."""
    hits, given, true = np.split(sums, 3)
    return float(100 * np.mean(2 * hits / np.maximum(given + true, 1)))


def recipe(folder: Path) -> Recipe:
    tokenizer = Tokenizer.load(folder)
    spec = ModelSpec(
        name=NAME,
        inputs=(
            TensorSpec("tokens", "int64", ("subwords",), "subwords, special ones included, then padding"),
            TensorSpec("lengths", "int32", (1,), "subwords that are meant"),
        ),
        outputs=(
            TensorSpec("label", "int64", (1,), "the most probable", labels=LABELS),
            TensorSpec("log_probs", "float32", (len(LABELS),), "of every label, nats"),
        ),
        max_batch=32,
        buckets={"subwords": (16, 32, LONGEST)},
        vocabulary=tokenizer.content,
    )
    tuning = Training(epochs=4, batch_size=32, learning_rate=5e-5, average_decay=0.95)
    distilling = Training(epochs=8, batch_size=32, learning_rate=1e-4, average_decay=0.95)
    return Recipe(
        name=NAME,
        load=lambda data: load(data, tokenizer),
        loss=cross_entropy,
        soft_loss=divergence,
        metric=Metric("macro-F1", True, confusions, macro_f1, points=True),
        decision=lambda outputs: outputs["label"][:, 0],
        augment=trimmed,
        sizes=lambda items: np.asarray(items.inputs["lengths"][:, 0], np.int64),
        variants={
            "encoder": Variant(
                spec=spec,
                methods=("int8_table",),
                tolerances=Tolerances(parity_int8=0.05, metric_loss=0.02),  # 2 points of macro-F1
                networks={
                    "teacher": Network(Classifier, Config(str(folder)), tuning),
                    "student": Network(Classifier, Config(str(folder), share=0.5), distilling),
                },
            )
        },
    )


if "TEXT_ENCODER" not in os.environ:
    raise UserError("TEXT_ENCODER is not set; name the folder of a Hugging Face encoder, such as BERT's, in it")
RECIPE = recipe(Path(os.environ["TEXT_ENCODER"]).resolve())

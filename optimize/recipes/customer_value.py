"""Customer value: a review and a clickstream to a value tier and a sentiment.

A request has a text (subwords) and events with their ages; a length of 0 says that one of the two is missing. The
vocabulary is published with the model, and the names of event types, tiers and sentiments are in its configuration.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from optimize.data import customers
from optimize.data.clickstream import EVENT_TYPES, EVENTS
from optimize.data.customers import TEXT_TOKENS, VOCABULARY, VOCABULARY_FILE
from optimize.data.dataset import Arrays, Split
from optimize.data.reviews import SENTIMENTS
from optimize.data.shop import TIERS
from optimize.data.subwords import UNKNOWN
from optimize.data.texts import Tokenizer
from optimize.models.customer import CustomerConfig, CustomerModel
from optimize.models.transformer import LayerConfig
from optimize.recipes import Metric, Network, Recipe, Tensors, Tolerances, Training, Variant
from optimize.specs import ModelSpec, ServingSpec, TensorSpec

CLASSES = {"tier": len(TIERS), "sentiment": len(SENTIMENTS)}
SENTIMENT_WEIGHT = 0.3  # of the sentiment in the loss, beside the tier
MODALITY_DROPOUT = 0.05  # share of reviews, and of clickstreams, that training hides
WORD_DROPOUT = 0.05  # share of subwords that it makes unknown


def spec(name: str, vocabulary: bytes) -> ModelSpec:
    return ModelSpec(
        name=name,
        inputs=(
            TensorSpec("text", "int64", ("text",), "subwords of the review, then padding"),
            TensorSpec("text_lengths", "int32", (1,), "subwords that are meant; 0: no review"),
            TensorSpec("events", "int64", ("event",), "types of events, oldest first, then padding", EVENT_TYPES),
            TensorSpec("ages", "float32", ("event",), "hours from each event to the moment of asking"),
            TensorSpec("event_lengths", "int32", (1,), "events that are meant; 0: none"),
        ),
        outputs=(
            TensorSpec("tier", "float32", (len(TIERS),), "probability of each tier of value", TIERS),
            TensorSpec("sentiment", "float32", (len(SENTIMENTS),), "probability of each sentiment", SENTIMENTS),
        ),
        buckets={"text": (16, 32, TEXT_TOKENS), "event": (16, 64, EVENTS)},
        vocabulary=vocabulary,
    )


SPEC = spec("customer_value", VOCABULARY_FILE.read_bytes())


def confusion(outputs: Arrays, split: Split, what: str = "tier") -> NDArray[np.float64]:
    """(items, classes squared): one-hot of (true class, class of the highest probability)."""
    count = CLASSES[what]
    places = split.targets[what].astype(np.int64) * count + np.argmax(outputs[what], axis=1)
    one_hot: NDArray[np.float64] = np.eye(count**2)[places]
    return one_hot


def macro_f1(sums: NDArray[np.float64]) -> float:
    """The mean of the classes' F1, in percent; 0 for a class that is neither there nor said."""
    matrix = sums.reshape(int(len(sums) ** 0.5), -1)
    there_and_said = matrix.sum(axis=0) + matrix.sum(axis=1)
    return float(100 * np.mean(2 * np.diag(matrix) / np.maximum(there_and_said, 1)))


MACRO_F1 = Metric("macro-F1 of the tier (%)", True, confusion, macro_f1, points=True)


def accuracy(outputs: Arrays, split: Split, _: Split) -> float:
    """Percent of customers whose tier is right."""
    return float(100 * np.mean(np.argmax(outputs["tier"], axis=1) == split.targets["tier"]))


def sentiment_f1(outputs: Arrays, split: Split, _: Split) -> float:
    """Macro-F1 of the sentiment, in percent, of those who wrote a review."""
    rows = np.flatnonzero(split.inputs["text_lengths"][:, 0])
    written = split.take(rows)
    return macro_f1(confusion({"sentiment": outputs["sentiment"][rows]}, written, "sentiment").sum(axis=0))


def best_tier(outputs: Arrays) -> NDArray[np.generic]:
    """(items,): the most probable tier."""
    places: NDArray[np.intp] = np.argmax(outputs["tier"], axis=1)
    return places


def majority(split: Split) -> float:
    """Macro-F1 of the same answer to everyone: the most frequent tier."""
    counts = np.bincount(split.targets["tier"].astype(np.int64), minlength=len(TIERS))
    return MACRO_F1({"tier": np.tile(counts.astype(float), (len(split), 1))}, split)


def logits(module: nn.Module, inputs: Tensors, _: Tensors) -> Tensors:
    assert isinstance(module, CustomerModel)
    return dict(zip(CLASSES, module.logits(*(inputs[tensor.name] for tensor in SPEC.inputs)), strict=True))


def cross_entropy(outputs: Tensors, targets: Tensors) -> Tensor:
    """Nats a customer, of tier and sentiment."""
    tier, sentiment = (nn.functional.cross_entropy(outputs[what].float(), targets[what]) for what in CLASSES)
    return tier + SENTIMENT_WEIGHT * sentiment


def divergence(outputs: Tensors, answers: Tensors) -> Tensor:
    """Cross entropy with the teacher's probabilities."""
    tier, sentiment = (
        nn.functional.cross_entropy(outputs[what].float(), torch.softmax(answers[what].float(), dim=1))
        for what in CLASSES
    )
    return tier + SENTIMENT_WEIGHT * sentiment


def hidden(inputs: Tensors, targets: Tensors) -> tuple[Tensors, Tensors]:
    """A batch without the padding that all share, with a review or a clickstream left out here and there.

    Nobody loses the only one of the two that there is.
    """
    text_lengths, event_lengths = inputs["text_lengths"], inputs["event_lengths"]
    lost, both = torch.rand(len(text_lengths), 1), (text_lengths > 0) & (event_lengths > 0)
    text_lengths = torch.where(both & (lost < MODALITY_DROPOUT), 0, text_lengths)
    event_lengths = torch.where(both & (lost > 1 - MODALITY_DROPOUT), 0, event_lengths)
    tokens, events = (max(int(lengths.max()), 1) for lengths in (text_lengths, event_lengths))
    return {
        "text": inputs["text"][:, :tokens],
        "text_lengths": text_lengths,
        "events": inputs["events"][:, :events],
        "ages": inputs["ages"][:, :events],
        "event_lengths": event_lengths,
    }, targets


def misread(inputs: Tensors, targets: Tensors) -> tuple[Tensors, Tensors]:
    """The same, with a subword here and there unknown."""
    inputs, targets = hidden(inputs, targets)
    lost = torch.rand(inputs["text"].shape) < WORD_DROPOUT
    return inputs | {"text": torch.where(lost, UNKNOWN, inputs["text"])}, targets


def sizes(split: Split) -> NDArray[np.int64]:
    """(items,): customers of neighbouring sizes make a batch with little padding."""
    events, tokens = (split.inputs[name][:, 0].astype(np.int64) for name in ("event_lengths", "text_lengths"))
    return events // 16 * (TEXT_TOKENS + 1) + tokens


def network(config: CustomerConfig, note: str = "", **training: float) -> Network:
    settings = {"batch_size": 64, "average_decay": 0.99, "weight_decay": 0.05, **training}
    return Network(CustomerModel, config, Training(bfloat16=True, **settings), note)  # type: ignore[arg-type]


TEACHER = CustomerConfig(
    VOCABULARY, len(EVENT_TYPES), LayerConfig(128, 4, 384, dropout=0.15), layers=2, tokens=TEXT_TOKENS
)
STUDENT = replace(TEACHER, layer=LayerConfig(64, 2, 128, dropout=0.1), layers=1)

RECIPE = Recipe(
    name="customer_value",
    load=customers.load,
    loss=cross_entropy,
    soft_loss=divergence,
    metric=MACRO_F1,
    forward=logits,
    augment=misread,
    sizes=sizes,
    decision=best_tier,
    also={"accuracy of the tier (%)": accuracy, "macro-F1 of the sentiment (%)": sentiment_f1},
    baselines={"always the most frequent tier": majority},
    variants={
        "cross": Variant(
            spec=SPEC,
            serving=ServingSpec(response_cache=True),
            tolerances=Tolerances(parity_int8=0.05),
            networks={
                "teacher": network(TEACHER, epochs=16, learning_rate=1.5e-3),
                "student": network(STUDENT, epochs=12, learning_rate=2e-3, soft_weight=0.8),
                "undistilled": network(STUDENT, epochs=12, learning_rate=2e-3),  # the student's settings
                "late": network(
                    replace(STUDENT, fusion="late"),
                    "the student's size, without cross-attention",
                    epochs=12,
                    learning_rate=2e-3,
                ),
                "text_only": network(
                    replace(TEACHER, fusion="text"),
                    "the teacher's branch that reads reviews, alone",
                    epochs=16,
                    learning_rate=1.5e-3,
                ),
                "clicks_only": network(
                    replace(TEACHER, fusion="clicks"),
                    "the teacher's branch that reads events, alone",
                    epochs=16,
                    learning_rate=1.5e-3,
                ),
            },
        )
    },
)


def recipe(text_encoder: Path, name: str = "customer_value_pretrained") -> Recipe:
    """The same with a pretrained Hugging Face encoder, from a local folder, that reads the reviews.

        RECIPE = customer_value.recipe(text_encoder=Path("models/distilbert-base-uncased"))

    The teacher has all its layers, the student the lower half; its tokenizer.json is published with the model. Raises
    UserError for a folder that holds none.
    """
    tokenizer = Tokenizer.load(text_encoder)
    teacher, student = (
        replace(config, vocabulary=tokenizer.size, text_encoder=str(text_encoder), text_share=share)
        for config, share in ((TEACHER, 1.0), (STUDENT, 0.5))
    )
    networks = {
        "teacher": network(teacher, epochs=4, learning_rate=1e-4),
        "student": network(student, epochs=6, learning_rate=2e-4, soft_weight=0.8),
    }
    variant = replace(
        RECIPE.variants["cross"], spec=spec(name, tokenizer.content), networks=networks, methods=("int8_table",)
    )
    load = partial(customers.load, vocabulary=tokenizer)
    return replace(RECIPE, name=name, load=load, augment=hidden, variants={"cross": variant})

"""English to French: a recurrent encoder-decoder with additive attention, and beam search on the server.

A request carries subwords and gets subwords; the vocabulary is published with the model. Numbers that are no subword's
are read as UNKNOWN, and lengths beyond the width as the width, so that no request harms those that share its batch.

The student learns from the teacher word by word (its whole distribution) and sentence by sentence (what its beam search
writes: Kim and Rush, 2016, https://arxiv.org/abs/1606.07947). The variant ``large`` serves the teacher itself.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU as SacreBLEU
from torch import Tensor, nn

from optimize.data import translation
from optimize.data.dataset import Arrays, Split
from optimize.data.subwords import END, PADDING, VOCABULARY_FILE, Subwords
from optimize.data.translation import SOURCE_TOKENS, TARGET_TOKENS
from optimize.models.translator import Translator, TranslatorConfig
from optimize.recipes import Metric, Network, Recipe, Tensors, Tolerances, Training, Variant
from optimize.specs import ModelSpec, ServingSpec, TensorSpec

VOCABULARY = 4096
LABEL_SMOOTHING = 0.1
SEARCH_BATCH = 256

SPEC = ModelSpec(
    name="translate",
    inputs=(
        TensorSpec("source", "int64", ("source_tokens",), "English subwords, END, then padding"),
        TensorSpec("lengths", "int32", (1,), "subwords that are meant, END included"),
    ),
    outputs=(
        TensorSpec("tokens", "int64", (TARGET_TOKENS,), "French subwords, END, then padding"),
        TensorSpec("output_lengths", "int64", (1,), "subwords that are meant, END included"),
        TensorSpec("score", "float32", (1,), "log-probability over the length penalty"),
    ),
    buckets={"source_tokens": (8, 16, SOURCE_TOKENS)},
    vocabulary=VOCABULARY_FILE.read_bytes(),
)


@cache
def subwords() -> Subwords:
    """The vocabulary that the networks were trained with."""
    return Subwords.load(VOCABULARY_FILE)


def translations(outputs: Arrays) -> list[str]:
    """The text of every answer."""
    return [subwords().decode(row.tolist()) for row in outputs["tokens"]]


def ngram_matches(outputs: Arrays, split: Split) -> NDArray[np.float64]:
    """(items, 10): matches and counts of 1- to 4-grams, the length, and that of the closest reference."""
    return _ngram_matches(outputs, split.targets["references"])


def bleu(sums: NDArray[np.float64]) -> float:
    """Corpus BLEU from 0 to 100 (Papineni et al., 2002)."""
    counts = [int(value) for value in sums]
    score = SacreBLEU.compute_bleu(counts[:4], counts[4:8], counts[8], counts[9], smooth_method="exp")
    return float(score.score)


# Lower-cased, sacrebleu's tokenisation 13a, all references of a sentence.
BLEU = Metric("BLEU", True, ngram_matches, bleu, points=True)


def decisions(outputs: Arrays) -> NDArray[np.generic]:
    """(items,): the translations themselves, to be told apart."""
    return np.array([row.tobytes() for row in outputs["tokens"]])


def one_reference(outputs: Arrays, split: Split, _: Split) -> float:
    """BLEU against the first reference alone: what a paper with one reference would report."""
    return bleu(_ngram_matches(outputs, split.targets["references"][:, :1]).sum(axis=0))


def unseen_references(outputs: Arrays, split: Split, train: Split) -> float:
    """BLEU on the sentences none of whose references translates a training sentence too."""
    known = {subwords().decode(row.tolist()) for row in train.targets["tokens"]}
    fresh = [not known.intersection(row.tolist()) for row in split.targets["references"]]
    return bleu(ngram_matches(outputs, split)[fresh].sum(axis=0))


def teacher_forced(module: nn.Module, inputs: Tensors, targets: Tensors) -> Tensors:
    """logits (words, vocabulary) of every word of the targets, given the words before it."""
    assert isinstance(module, Translator)
    return {"logits": module.teacher_forced(inputs["source"], inputs["lengths"], targets["tokens"])}


def cross_entropy(outputs: Tensors, targets: Tensors) -> Tensor:
    """Label-smoothed, nats per word."""
    tokens = targets["tokens"]
    return nn.functional.cross_entropy(
        outputs["logits"].float(), tokens[tokens != PADDING], label_smoothing=LABEL_SMOOTHING
    )


def word_divergence(outputs: Tensors, answers: Tensors) -> Tensor:
    """Cross entropy with the teacher's distribution over the next word, nats per word."""
    meant = torch.softmax(answers["logits"].float(), dim=1)
    return nn.functional.cross_entropy(outputs["logits"].float(), meant)


def as_the_teacher(teacher: nn.Module, train: Split) -> Split:
    """Every pair, and every English sentence with what the teacher's beam search makes of it, if that ends."""
    _, first = np.unique(train.inputs["source"], axis=0, return_index=True)
    order = first[np.argsort(train.inputs["lengths"][first, 0], kind="stable")]
    alone = train.take(order.astype(np.int64))
    written = []
    with torch.inference_mode():
        for start in range(0, len(alone), SEARCH_BATCH):
            rows = {name: torch.from_numpy(array) for name, array in alone.rows(start, start + SEARCH_BATCH).items()}
            inputs, _ = trimmed(rows, {"tokens": rows["source"]})
            written.append(teacher(inputs["source"], inputs["lengths"])[0].numpy())
    said = np.concatenate(written)
    ended = np.flatnonzero((said == END).any(axis=1))
    return Split(
        {name: np.concatenate([array, alone.inputs[name][ended]]) for name, array in train.inputs.items()},
        {"tokens": np.concatenate([train.targets["tokens"], said[ended]])},
        np.concatenate([train.groups, alone.groups[ended]]),
    )


def trimmed(inputs: Tensors, targets: Tensors) -> tuple[Tensors, Tensors]:
    """A batch without the padding that all its sentences share."""
    source, target = int(inputs["lengths"].max()), int((targets["tokens"] != PADDING).sum(1).max())
    return {**inputs, "source": inputs["source"][:, :source]}, {"tokens": targets["tokens"][:, :target]}


def sizes(split: Split) -> NDArray[np.int64]:
    """(items,): items of neighbouring sizes make a batch with little padding; the target weighs most."""
    target = (split.targets["tokens"] != PADDING).sum(axis=1)
    return np.asarray(target * SOURCE_TOKENS + split.inputs["lengths"][:, 0], np.int64)


def network(hidden: int, encoder: int, embedding: int, attention: int, dropout: float, **training: float) -> Network:
    config = TranslatorConfig(
        VOCABULARY,
        hidden,
        encoder,
        embedding,
        attention,
        dropout=dropout,
        sampling_rate=0.2,
        sampling_batches=4000,
        most_tokens=TARGET_TOKENS,
    )
    settings = {"batch_size": 128, "average_decay": 0.998, "learning_rate": 1e-3, **training}
    return Network(Translator, config, Training(bfloat16=True, **settings))  # type: ignore[arg-type]


def small(**training: float) -> Network:
    return network(256, 192, 128, 128, dropout=0.15, learning_rate=2e-3, **training)


def signature() -> str:
    """How BLEU is computed here, as sacrebleu writes it."""
    metric = SacreBLEU(lowercase=True)
    metric.corpus_score(["one", "two"], [["one", "two"], ["1", None]])  # type: ignore[list-item]  # as many as there are
    return str(metric.get_signature())


TEACHER = replace(
    network(512, 384, 256, 256, dropout=0.3, epochs=16, weight_decay=0.02), note=f"BLEU's signature: {signature()}"
)
GREEDY = replace(
    TEACHER,
    config=replace(TEACHER.config, beam=1),
    weights_of="gru/teacher",
    note="the teacher, writing the likeliest word at every step",
)


def _ngram_matches(outputs: Arrays, references: NDArray[np.generic]) -> NDArray[np.float64]:
    metric = SacreBLEU(lowercase=True, effective_order=True)
    rows = []
    for text, texts in zip(translations(outputs), references.tolist(), strict=True):
        score = metric.sentence_score(text, [reference for reference in texts if reference])
        rows.append((*score.counts, *score.totals, score.sys_len, score.ref_len))
    return np.array(rows, np.float64)


RECIPE = Recipe(
    name="translate",
    load=translation.load,
    loss=cross_entropy,
    soft_loss=word_divergence,
    metric=BLEU,
    forward=teacher_forced,
    relabel=as_the_teacher,
    augment=trimmed,
    sizes=sizes,
    decision=decisions,
    searches=True,
    also={"BLEU (one reference)": one_reference, "BLEU (no reference seen)": unseen_references},
    variants={
        "gru": Variant(
            spec=SPEC,
            serving=ServingSpec(response_cache=True),
            tolerances=Tolerances(parity_int8=0.03, metric_loss=0.01),  # 1 point of BLEU
            methods=("int8_table",),
            networks={
                "teacher": TEACHER,
                "greedy_teacher": GREEDY,
                "student": network(384, 256, 192, 192, dropout=0.2, epochs=15, learning_rate=1.5e-3, soft_weight=0.5),
                "small_distilled": replace(
                    small(epochs=8, soft_weight=0.5), distilled=True, note="distilled as the student is, half its size"
                ),
                # As many batches as of the pairs with the teacher's sentences, of fewer pairs.
                "small_word_level": replace(
                    small(epochs=12, soft_weight=0.5, relabelled=False),
                    distilled=True,
                    note="distilled from the teacher's distributions alone, without the sentences it writes",
                ),
                "small_undistilled": small(epochs=12),
            },
        ),
        "large": Variant(
            spec=replace(SPEC, name="translate_large"),
            serving=ServingSpec(response_cache=True),
            tolerances=Tolerances(parity_int8=0.03),
            methods=("int8_table",),
            networks={"teacher": TEACHER, "greedy_teacher": GREEDY},
            weights_of="gru",
        ),
    },
)

"""Streaming speech: 16 kHz PCM in chunks to words, here the ten digits, by a Conformer that remembers.

The tokens are whole words, which is the simplest and fastest for a vocabulary of ten. The three variants are chunk
sizes of the same weights: 160 ms answers soonest, 640 ms needs the least computing per second of speech.
"""

from __future__ import annotations

from dataclasses import replace

import jiwer
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from optimize.data import speech
from optimize.data.dataset import Arrays, Split
from optimize.data.vocabulary import VOCABULARY, text_of
from optimize.models.conformer import BLANK, FRAME_SAMPLES, Conformer, state_specs
from optimize.models.conformer_block import ConformerConfig
from optimize.recipes import Metric, Network, Recipe, Tensors, Training, Variant
from optimize.specs import ModelSpec, ServingSpec, TensorSpec

TEACHER = ConformerConfig(layers=8, width=144, heads=3, feed_forward=576, vocabulary=len(VOCABULARY), dropout=0.0)
STUDENT = ConformerConfig(layers=4, width=96, heads=2, feed_forward=384, vocabulary=len(VOCABULARY), dropout=0.0)


def word_errors(outputs: Arrays, split: Split) -> NDArray[np.float64]:
    """(items, 2): substitutions, deletions and insertions together, and the words that were said."""
    rows = []
    for row, words in enumerate(split.targets["words"]):
        meant = int(outputs["output_lengths"][row, 0])
        result = jiwer.process_words(text_of(words), text_of(outputs["tokens"][row, :meant]))
        errors = result.substitutions + result.deletions + result.insertions
        rows.append((errors, result.hits + result.substitutions + result.deletions))
    return np.array(rows, np.float64)


WER = Metric("WER (%)", False, word_errors, lambda sums: 100 * float(sums[0] / sums[1]))


def ctc(outputs: Tensors, targets: Tensors) -> Tensor:
    """Connectionist temporal classification (Graves et al., 2006), nats per utterance."""
    total = nn.functional.ctc_loss(
        outputs["log_probs"].transpose(0, 1),
        targets["words"],
        outputs["output_lengths"].squeeze(1),
        targets["word_lengths"],
        blank=BLANK,
        reduction="sum",
        zero_infinity=True,
    )
    return total / len(targets["words"])


def posterior_divergence(outputs: Tensors, answers: Tensors) -> Tensor:
    """Kullback-Leibler divergence of the teacher's posteriors from the student's, nats per utterance."""
    frames = outputs["log_probs"].shape[1]
    meant = torch.arange(frames) < answers["output_lengths"]
    divergence = nn.functional.kl_div(outputs["log_probs"], answers["log_probs"], reduction="none", log_target=True)
    return (divergence.sum(-1) * meant).sum() / len(meant)


def normalise(module: nn.Module, train: Split) -> None:
    assert isinstance(module, Conformer)
    with torch.no_grad():
        module.front_end.normalise(torch.from_numpy(train.inputs["pcm"].astype(np.float32) / 32768))


def spec(name: str, chunk: int, config: ConformerConfig) -> ModelSpec:
    """The interface of a chunk of ``chunk`` frames."""
    return ModelSpec(
        name=name,
        inputs=(
            TensorSpec("pcm", "int16", (chunk * FRAME_SAMPLES,), "16 kHz, one channel"),
            TensorSpec("lengths", "int32", (1,), "samples that are meant; less than a chunk only at the end"),
        ),
        outputs=(
            TensorSpec("log_probs", "float32", (chunk, config.vocabulary), "of the blank and the words, every 40 ms"),
            TensorSpec("tokens", "int64", (chunk,), "the word recognised at a frame, 0 where none"),
            TensorSpec("output_lengths", "int64", (1,), "frames that are meant"),
        ),
        states=state_specs(config),
    )


def variant(name: str, chunk: int, weights_of: str | None = None) -> Variant:
    """The networks at one chunk size."""

    def network(config: ConformerConfig, **training: float) -> Network:
        settings = Training(batch_size=32, average_decay=0.998, bfloat16=True, **training)  # type: ignore[arg-type]
        return Network(Conformer, replace(config, chunk=chunk), settings)

    return Variant(
        spec=spec(name, chunk, STUDENT),
        serving=ServingSpec(),
        networks={
            "teacher": network(TEACHER, epochs=24, learning_rate=6e-4, weight_decay=0.05),
            "student": network(STUDENT, epochs=24, learning_rate=1e-3, soft_weight=0.8),
            "undistilled": network(STUDENT, epochs=24, learning_rate=1e-3),  # the student's settings
        },
        weights_of=weights_of,
    )


RECIPE = Recipe(
    name="speech",
    load=speech.load,
    loss=ctc,
    soft_loss=posterior_divergence,
    metric=WER,
    prepare=normalise,
    variants={
        "chunk_320": variant("speech", 8),
        "chunk_160": variant("speech_chunk_160", 4, weights_of="chunk_320"),
        "chunk_640": variant("speech_chunk_640", 16, weights_of="chunk_320"),
    },
)

"""Streaming speech: 16 kHz PCM in chunks to words, here the ten digits, by an encoder that remembers.

The tokens are whole words, which is the simplest and fastest for a vocabulary of ten. Three variants are chunk sizes of
the same Conformer: 160 ms answers soonest, 640 ms needs the least computing per second of speech. Two are recurrent,
``lstm`` and ``gru``; they learn from the Conformer. It hears a chunk to its end, they hear no frame ahead, so it tells
them ``SOFT_DELAY`` frames later. ``offline``, ``lstm_offline`` and ``gru_offline`` answer whole recordings with the
very bits of the stream; ``lstm_bidirectional`` and ``gru_bidirectional`` hear the future, so they answer nothing else.
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
from optimize.models import conformer, recurrent
from optimize.models.conformer import Conformer
from optimize.models.conformer_block import ConformerConfig
from optimize.models.recurrent import RecurrentConfig, RecurrentEncoder
from optimize.models.speech_encoder import BLANK, FRAME_SAMPLES, SpeechEncoder
from optimize.offline import offline_spec
from optimize.recipes import Metric, Network, Recipe, Tensors, Tolerances, Training, Variant
from optimize.specs import ModelSpec, ServingSpec, TensorSpec

TEACHER = ConformerConfig(layers=8, width=144, heads=3, feed_forward=576, vocabulary=len(VOCABULARY), dropout=0.0)
SOFT_DELAY = 3  # frames of 40 ms: the teacher names half of the words 5 frames before they end, 1 in 100 at the last
STUDENT = ConformerConfig(layers=4, width=96, heads=2, feed_forward=384, vocabulary=len(VOCABULARY), dropout=0.0)
RECURRENT_TRAINING = Training(epochs=16, batch_size=32, learning_rate=2e-3, average_decay=0.998, bfloat16=True)
BUCKETS = tuple(16_000 * seconds for seconds in (2, 4, 8, 16))  # samples of whole recordings

SERVING = ServingSpec(max_streams=1024)
# Half a point of the word error rate.
TOLERANCES = Tolerances(parity_int8=0.05, metric_loss=0.005, batch_metric_change=0.0)


def word_errors(outputs: Arrays, split: Split) -> NDArray[np.float64]:
    """(items, 2): substitutions, deletions and insertions together, and the words that were said."""
    rows = []
    for row, words in enumerate(split.targets["words"]):
        meant = int(outputs["output_lengths"][row, 0])
        result = jiwer.process_words(text_of(words), text_of(outputs["tokens"][row, :meant]))
        errors = result.substitutions + result.deletions + result.insertions
        rows.append((errors, result.hits + result.substitutions + result.deletions))
    return np.array(rows, np.float64)


WER = Metric("WER (%)", False, word_errors, lambda sums: 100 * float(sums[0] / sums[1]), points=True)


def transcripts(outputs: Arrays) -> NDArray[np.str_]:
    """(items,) what was understood."""
    return np.array([text_of(tokens) for tokens in outputs["tokens"]])


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


def later(answers: Tensors, frames: int) -> Tensors:
    """The posteriors ``frames`` later; what was before the first is taken to be like it."""
    log_probs = answers["log_probs"]
    first = log_probs[:, :1].expand(-1, min(frames, log_probs.shape[1]), -1)
    return {**answers, "log_probs": torch.cat([first, log_probs[:, :-frames]], dim=1)}


def normalise(module: nn.Module, train: Split) -> None:
    assert isinstance(module, SpeechEncoder)
    with torch.no_grad():
        module.front_end.normalise(torch.from_numpy(train.inputs["pcm"].astype(np.float32) / 32768))


def spec(name: str, chunk: int, config: ConformerConfig | RecurrentConfig) -> ModelSpec:
    """The interface of a chunk of ``chunk`` frames."""
    states = recurrent.state_specs(config) if isinstance(config, RecurrentConfig) else conformer.state_specs(config)
    return ModelSpec(
        name=name,
        inputs=(
            TensorSpec("pcm", "int16", (chunk * FRAME_SAMPLES,), "16 kHz, one channel"),
            TensorSpec("lengths", "int32", (1,), "samples that are meant; less than a chunk only at the end"),
        ),
        outputs=(
            TensorSpec("log_probs", "float32", (chunk, config.vocabulary), "of the blank and the words, every 40 ms"),
            TensorSpec("tokens", "int64", (chunk,), "the word recognised at a frame, 0 where none", VOCABULARY),
            TensorSpec("output_lengths", "int64", (1,), "frames that are meant"),
        ),
        states=states,
    )


def conformer_variant(name: str, chunk: int, weights_of: str | None = None) -> Variant:
    """The Conformers at one chunk size."""

    def network(config: ConformerConfig, **training: float) -> Network:
        settings = Training(batch_size=32, average_decay=0.998, bfloat16=True, **training)  # type: ignore[arg-type]
        return Network(Conformer, replace(config, chunk=chunk), settings)

    return Variant(
        spec=spec(name, chunk, STUDENT),
        serving=SERVING,
        tolerances=TOLERANCES,
        keep=("front_end",),
        networks={
            "teacher": network(TEACHER, epochs=24, learning_rate=6e-4, weight_decay=0.05),
            "student": network(STUDENT, epochs=24, learning_rate=1e-3, soft_weight=0.8),
            "undistilled": network(STUDENT, epochs=24, learning_rate=1e-3),  # the student's settings
        },
        weights_of=weights_of,
    )


def recurrent_variant(cell: str) -> Variant:
    """A stack of one kind of cell, taught by the Conformer; chunks of 320 ms, though any number of frames would do."""
    config = RecurrentConfig(cell, layers=2, width=192, vocabulary=len(VOCABULARY), dropout=0.1)
    soft = replace(RECURRENT_TRAINING, soft_weight=0.5, soft_delay=SOFT_DELAY)
    return Variant(
        spec=spec(f"speech_{cell}", TEACHER.chunk, config),
        serving=SERVING,
        tolerances=TOLERANCES,
        keep=("front_end",),
        networks={
            "teacher": Network(Conformer, TEACHER, weights_of="chunk_320"),
            "student": Network(RecurrentEncoder, config, soft),
            "undistilled": Network(RecurrentEncoder, config, RECURRENT_TRAINING),  # the student's settings
        },
    )


def bidirectional_variant(cell: str) -> Variant:
    """Cells that read a recording from both ends, whole recordings only; about as many weights as where they stream."""
    config = RecurrentConfig(cell, layers=2, width=144, bidirectional=True, vocabulary=len(VOCABULARY), dropout=0.1)
    name = f"speech_{cell}_bidirectional"
    return Variant(
        spec=offline_spec(spec(name, TEACHER.chunk, config), name, BUCKETS),
        serving=ServingSpec(response_cache=True),
        tolerances=TOLERANCES,
        keep=("front_end",),
        networks={"teacher": Network(RecurrentEncoder, config, RECURRENT_TRAINING)},
    )


def offline_variant(streaming: str, name: str) -> Variant:
    """The offline twin of a streaming variant: whole recordings in one request, the same bits."""
    variant = STREAMING[streaming]
    return replace(
        variant,
        spec=offline_spec(variant.spec, name, BUCKETS),
        serving=ServingSpec(response_cache=True),
        weights_of=streaming,
        offline_of=streaming,
    )


STREAMING = {
    "chunk_320": conformer_variant("speech", 8),
    "chunk_160": conformer_variant("speech_chunk_160", 4, weights_of="chunk_320"),
    "chunk_640": conformer_variant("speech_chunk_640", 16, weights_of="chunk_320"),
    "lstm": recurrent_variant("lstm"),
    "gru": recurrent_variant("gru"),
}
RECIPE = Recipe(
    name="speech",
    load=speech.load,
    loss=ctc,
    soft_loss=posterior_divergence,
    delay=later,
    metric=WER,
    decision=transcripts,
    prepare=normalise,
    variants={
        **STREAMING,
        "offline": offline_variant("chunk_320", "speech_offline"),
        "lstm_offline": offline_variant("lstm", "speech_lstm_offline"),
        "gru_offline": offline_variant("gru", "speech_gru_offline"),
        "lstm_bidirectional": bidirectional_variant("lstm"),
        "gru_bidirectional": bidirectional_variant("gru"),
    },
)

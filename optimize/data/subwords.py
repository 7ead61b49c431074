"""Text to the integers that a translation model reads, and back: normalisation and subwords, without torch.

    subwords = Subwords.load(VOCABULARY_FILE)
    subwords.encode("Don't move!")       # [43, 17, ..., 3], ending with END
    subwords.decode([43, 17, ..., 3])    # "don't move !"

The vocabulary is one small SentencePiece file (unigram model, Kudo, 2018; https://github.com/google/sentencepiece),
learned from the training sentences of both languages. Characters that it has never seen are spelled in bytes, so no
text is unknown and ``decode(encode(text)) == normalise(text)`` for any text. A client carries this file and no more.
"""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import sentencepiece

from optimize.errors import UserError

VOCABULARY_FILE = Path(__file__).with_name("eng_fra.subwords.model")
PADDING, UNKNOWN, START, END = 0, 1, 2, 3

_SAME = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "‐": "-", "‑": "-", "“": '"', "”": '"', "…": "...", "▁": " "})
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"})  # Unicode categories
_PUNCTUATION = re.compile(r"\.{2,}|[.,:](?!\d)|(?<!\d)[.,:]|[!?;\"()«»\[\]]")


@dataclass(frozen=True)
class Subwords:
    """A vocabulary. content: the bytes of its file."""

    processor: sentencepiece.SentencePieceProcessor
    content: bytes

    @classmethod
    def load(cls, path: Path) -> Subwords:
        """Raises UserError: no such file, or one that holds no vocabulary."""
        if not path.is_file():
            raise UserError(f"vocabulary '{path}' does not exist; it is published beside the model")
        return cls.parse(path.read_bytes(), str(path))

    @classmethod
    def parse(cls, content: bytes, name: str = "vocabulary") -> Subwords:
        try:
            processor = sentencepiece.SentencePieceProcessor(model_proto=content)
        except RuntimeError:
            raise UserError(f"'{name}' is no SentencePiece vocabulary; restore it or learn it again") from None
        special = (processor.pad_id(), processor.unk_id(), processor.bos_id(), processor.eos_id())
        if special != (PADDING, UNKNOWN, START, END):
            raise UserError(f"'{name}' numbers padding, unknown, start and end {special}; expected 0, 1, 2 and 3")
        return cls(processor, content)

    @property
    def size(self) -> int:
        return int(self.processor.vocab_size())

    def encode(self, text: str) -> list[int]:
        """The subwords of a text, normalised first, and END."""
        return [*self.processor.encode(normalise(text)), END]

    def decode(self, tokens: Iterable[int]) -> str:
        """The normalised text of the tokens up to END; START and PADDING are passed over."""
        meant: list[int] = []
        for token in tokens:
            if token == END:
                break
            if token not in (PADDING, START):
                meant.append(int(token))
        return str(self.processor.decode(meant))


def normalise(text: str) -> str:
    """One spelling of a text: composed (NFC), lower case, plain quotes, punctuation apart, single spaces.

    Apostrophes and hyphens stay inside their words and marks between digits where they are: "L'an 3,5 ?" is
    "l'an 3,5 ?". Normalising twice changes nothing.
    """
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower().translate(_SAME))
    text = "".join(" " if unicodedata.category(character) in _INVISIBLE else character for character in text)
    return " ".join(_PUNCTUATION.sub(r" \g<0> ", text).split())


def learn(texts: Sequence[str], size: int) -> Subwords:
    """A vocabulary of ``size`` subwords for normalised texts; the same texts give the same bytes."""
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="unigram",
            vocab_size=size,
            character_coverage=1.0,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            pad_id=PADDING,
            unk_id=UNKNOWN,
            bos_id=START,
            eos_id=END,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(f"no vocabulary of {size} subwords can be learned from {len(texts)} texts: {error}") from None
    return Subwords.parse(model.getvalue())

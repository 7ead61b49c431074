"""Texts to the numbers that a model reads, and back, by whichever kind of vocabulary is published with it.

    vocabulary = parse(spec.vocabulary)
    vocabulary.encode("I love this book.")      # [101, 1045, 2293, 2023, 2338, 1012, 102]
    vocabulary.decode([101, 1045, 2293, 102])   # "i love"

A SentencePiece file (``Subwords``) or a Hugging Face ``tokenizer.json`` (``Tokenizer``), told apart by their content.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import tokenizers

from optimize.data.subwords import Subwords
from optimize.errors import UserError

TOKENIZER_FILE = "tokenizer.json"


class Vocabulary(Protocol):
    """size: the numbers below it stand for something. encode: with what the model wants at the beginning or the end.
    decode: without that."""

    @property
    def size(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, tokens: Iterable[int]) -> str: ...


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary with its own normalisation and its own special subwords. content: the bytes of its file."""

    tokenizer: tokenizers.Tokenizer
    content: bytes

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """That of a pretrained model's folder. Raises UserError: none there, or a damaged one."""
        path = folder / TOKENIZER_FILE
        if not path.is_file():
            raise UserError(
                f"'{folder}' has no {TOKENIZER_FILE}; write it with transformers: "
                "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
            )
        return cls.parse(path.read_bytes(), str(path))

    @classmethod
    def parse(cls, content: bytes, name: str = "vocabulary") -> Tokenizer:
        try:
            tokenizer = tokenizers.Tokenizer.from_str(content.decode())
        except Exception as error:  # it raises nothing more special
            raise UserError(f"'{name}' is no {TOKENIZER_FILE} of Hugging Face ({error}); restore it") from None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return cls(tokenizer, content)

    @property
    def size(self) -> int:
        return int(self.tokenizer.get_vocab_size())

    def encode(self, text: str, most: int | None = None) -> list[int]:
        """The subwords of a text and the special ones. most: if they are more, the text's last ones are left out."""
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        if most is not None:
            encoding.truncate(max(most - self.tokenizer.num_special_tokens_to_add(is_pair=False), 0))
        return list(self.tokenizer.post_process(encoding).ids)

    def decode(self, tokens: Iterable[int]) -> str:
        return str(self.tokenizer.decode([int(token) for token in tokens]))


def parse(content: bytes, name: str = "vocabulary") -> Vocabulary:
    """The vocabulary in a file. Raises UserError: it is damaged, or of a third kind."""
    return Tokenizer.parse(content, name) if content.lstrip()[:1] == b"{" else Subwords.parse(content, name)

"""The words that the speech models know, and the tokens that stand for them."""

from __future__ import annotations

from collections.abc import Iterable

from optimize.errors import UserError

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
VOCABULARY = ("", *WORDS)  # by token; 0 is the CTC blank


def tokens_of(text: str) -> tuple[int, ...]:
    """Words or digits to tokens: "three five", "3 5" and "35" are (4, 6).

    Raises UserError: nothing there, or a word that is no digit.
    """
    words: list[str] = []
    for word in text.lower().split():
        words += [WORDS[int(digit)] for digit in word] if word.isascii() and word.isdigit() else [word]
    unknown = sorted(set(words) - set(WORDS))
    if unknown or not words:
        raise UserError(f"'{text.strip()}' holds {', '.join(unknown) or 'no words'}; the words are {', '.join(WORDS)}")
    return tuple(VOCABULARY.index(word) for word in words)


def text_of(tokens: Iterable[int]) -> str:
    """The words of the tokens; blanks and padding are passed over."""
    return " ".join(VOCABULARY[int(token)] for token in tokens if token)

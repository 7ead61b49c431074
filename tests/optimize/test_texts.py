"""Two kinds of vocabulary behind one interface."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimize.data.subwords import VOCABULARY_FILE, Subwords
from optimize.data.texts import Tokenizer, parse
from optimize.errors import UserError
from tests import tiny_bert

WORDPIECES = tiny_bert.wordpieces()
TOKENIZER = Tokenizer.parse(WORDPIECES.to_str().encode())
CLS, SEP = 2, 3


def test_the_kind_is_told_by_the_content() -> None:
    assert isinstance(parse(VOCABULARY_FILE.read_bytes()), Subwords)
    assert isinstance(parse(b"\n " + TOKENIZER.content), Tokenizer)


def test_a_tokenizer_writes_and_reads_as_hugging_face_does() -> None:
    text = "I LOVE the novel!"
    tokens = parse(TOKENIZER.content).encode(text)
    assert tokens == WORDPIECES.encode(text).ids
    assert (tokens[0], tokens[-1]) == (CLS, SEP)
    assert TOKENIZER.decode(tokens) == "i love the novel!"
    assert TOKENIZER.size == WORDPIECES.get_vocab_size()


@given(st.text(max_size=60), st.integers(2, 20))
def test_what_is_cut_keeps_its_ends_and_its_beginning(text: str, most: int) -> None:
    whole, cut = TOKENIZER.encode(text), TOKENIZER.encode(text, most)
    assert len(cut) == min(len(whole), most)
    assert cut == [*whole[: len(cut) - 1], SEP]


def test_padding_and_cutting_that_the_file_asks_for_is_not_done() -> None:
    own = tiny_bert.wordpieces()
    own.enable_padding(length=50)
    own.enable_truncation(4)
    text = "the novel is lovely and the packaging is dreadful"
    assert Tokenizer.parse(own.to_str().encode()).encode(text) == TOKENIZER.encode(text)


@pytest.mark.parametrize("content", [b"{}", b"{ half", b'{"\xff'])
def test_a_damaged_one_is_refused(content: bytes) -> None:
    with pytest.raises(UserError, match=r"'vocabulary of it' is no tokenizer.json of Hugging Face"):
        parse(content, "vocabulary of it")


def test_a_folder_without_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no tokenizer.json; write it with transformers"):
        Tokenizer.load(tmp_path)


def test_a_client_needs_neither_torch_nor_transformers() -> None:
    program = "import sys, optimize.data.texts; sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

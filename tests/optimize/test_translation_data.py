"""Sentence pairs: what is refused, what a normalised text is, subwords and back, and splits that share no sentence."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimize.data import learn_subwords, translation
from optimize.data.dataset import Dataset
from optimize.data.grammar import sentence_pairs
from optimize.data.subwords import END, PADDING, START, UNKNOWN, VOCABULARY_FILE, Subwords, learn, normalise
from optimize.errors import UserError

SUBWORDS = Subwords.load(VOCABULARY_FILE)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return translation.dataset(sentence_pairs(3000, seed=1), SUBWORDS, "a grammar")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I don’t know!", "i don't know !"),
        ("Qu'est-ce que c'est\u202f?", "qu'est-ce que c'est ?"),
        ("At 10:30, it cost 3.50 or 1,000.", "at 10:30 , it cost 3.50 or 1,000 ."),
        ("«\u00a0E\u0301te\u0301\u00a0»…", "« été » ..."),
        ("  \t two\u2009words \x00", "two words"),
    ],
)
def test_a_text_has_one_spelling(text: str, expected: str) -> None:
    assert normalise(text) == expected


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@given(st.text())
def test_any_text_comes_back_from_its_subwords(text: str) -> None:
    tokens = SUBWORDS.encode(text)
    assert tokens[-1] == END
    assert {PADDING, UNKNOWN, START, END}.isdisjoint(tokens[:-1])
    assert SUBWORDS.decode(tokens) == normalise(text)


@given(st.lists(st.integers(0, SUBWORDS.size - 1), max_size=20))
def test_any_tokens_give_a_text(tokens: list[int]) -> None:
    shown = SUBWORDS.decode([START, *tokens, END, 700, PADDING])
    before_end = tokens[: tokens.index(END)] if END in tokens else tokens
    assert shown == SUBWORDS.decode([token for token in before_end if token not in (START, PADDING)])


def test_a_vocabulary_is_learned_the_same_every_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, output = tmp_path / "pairs.tsv", tmp_path / "small.model"
    pairs = sentence_pairs(500, seed=2)
    data.write_text("".join(f"{english}\t{french}\n" for english, french in pairs))
    learn_subwords.main(["--data", str(data), "--size", "350", "--output", str(output)])
    assert "350 subwords" in capsys.readouterr().out
    trained = [text for pair in pairs if translation.part_of(pair[0]) == "train" for text in pair]
    assert output.read_bytes() == learn(trained, 350).content
    assert Subwords.load(output).size == 350
    with pytest.raises(UserError, match="no vocabulary of 9000 subwords"):
        learn(trained, 9000)


def test_a_vocabulary_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        Subwords.load(tmp_path / "none.model")
    (tmp_path / "bad.model").write_bytes(b"no vocabulary")
    with pytest.raises(UserError, match="is no SentencePiece vocabulary"):
        Subwords.load(tmp_path / "bad.model")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no pairs"),
        (b"\n \n", "holds no pairs"),
        (b"Go.\tVa !\nStop.\n", "line 2: expected English<TAB>French, got 'Stop.'"),
        (b"Go.\t \n", "line 1: expected English<TAB>French"),
        ("Été\tSummer\n".encode("latin-1"), "is not UTF-8 .byte 0."),
    ],
)
def test_a_bad_file_is_refused_by_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.tsv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        translation.read_pairs(path)


def test_a_missing_or_damaged_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        translation.load(tmp_path / "none.tsv")
    damaged = tmp_path / "damaged.tsv.gz"
    damaged.write_bytes(gzip.compress(b"Go.\tVa !\n" * 99)[:-12])
    with pytest.raises(UserError, match="cannot be read"):
        translation.read_pairs(damaged)
    (tmp_path / "short.tsv").write_text("Go.\tVa !\n")
    with pytest.raises(UserError, match="1 pairs leave nothing to"):
        translation.load(tmp_path / "short.tsv")


def test_a_file_is_read_once_for_every_spelling(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv.gz"
    path.write_bytes(gzip.compress("\ufeffGo.\tVa !\tattribution\r\nGO.\tva\u202f!\r\nGo.\tBouge.".encode()))
    assert translation.read_pairs(path) == [("go .", "va !"), ("go .", "bouge .")]


def test_the_splits_share_no_english_words(dataset: Dataset) -> None:
    words = {
        name: {translation.words_of(SUBWORDS.decode(row.tolist())) for row in split.inputs["source"]}
        for name, split in (("train", dataset.train), ("validation", dataset.validation), ("test", dataset.test))
    }
    assert words["train"].isdisjoint(words["validation"] | words["test"])
    assert words["validation"].isdisjoint(words["test"])
    assert 0.05 < len(words["test"]) / sum(map(len, words.values())) < 0.11
    assert all(translation.part_of(f"do {n} ?") == translation.part_of(f"do , {n} !") for n in range(200))
    assert {translation.part_of(text) for text in (".", "!", "?")} <= {"train", "validation", "test"}


def test_a_test_sentence_has_all_its_references() -> None:
    pairs = [("go .", "va !"), ("run .", "cours !"), ("go .", "bouge ."), ("a " * 30, "un " * 30)]
    split = translation.sentence_split(pairs, SUBWORDS)
    assert split.targets["references"].tolist() == [["va !", "bouge ."], ["cours !", ""]]
    assert split.inputs["lengths"].tolist() == [[len(SUBWORDS.encode("go ."))], [len(SUBWORDS.encode("run ."))]]


def test_a_training_item_is_a_padded_pair() -> None:
    split = translation.pair_split([("go .", "va !"), ("go !", "bouge !"), ("go .", "un " * 40)], SUBWORDS)
    assert len(split) == 2, "the pair that is too long is left out"
    source, target = SUBWORDS.encode("go ."), SUBWORDS.encode("va !")
    np.testing.assert_array_equal(split.inputs["source"][0], source + [PADDING] * (24 - len(source)))
    np.testing.assert_array_equal(split.targets["tokens"][0], target + [PADDING] * (32 - len(target)))
    assert split.groups.tolist() == [0, 0], "they differ in punctuation only"


def test_without_a_file_a_grammar_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    monkeypatch.setattr(translation, "sentence_pairs", lambda count, seed: sentence_pairs(count // 6, seed))
    first, again = translation.load(), translation.load()
    assert "grammar" in first.source
    assert first.sha256 == again.sha256
    np.testing.assert_array_equal(first.train.targets["tokens"], again.train.targets["tokens"])


def test_the_grammar_agrees() -> None:
    pairs = dict(sentence_pairs(4000, seed=3))
    assert len(pairs) == 4000, "every English sentence has one translation"
    known = {english.split(" ")[1]: french for english, french in pairs.items() if english.startswith("some ")}
    assert known["cats"].startswith("des chats")
    assert any("n'aiment pas" in french and "don't love" in english for english, french in pairs.items())
    assert any("une voiture rouge" in french and "red car" in english for english, french in pairs.items())


def test_a_client_needs_no_torch_to_make_subwords() -> None:
    program = "import sys, optimize.data.subwords; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

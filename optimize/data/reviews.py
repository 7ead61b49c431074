"""Seeded product reviews whose meaning is known: what the customer liked, whether they come back, and what it is about.

    write(Meaning(satisfaction=1, loyalty=1, category="books"), random)
    # "Packaging was dreadful but the novel is excellent. Will order again!"

A review is one to four clauses about aspects of a purchase, perhaps small talk, perhaps a word on the future, in any
order. Polarity is also said by negation ("not bad", "far from great"); a clause against the tenor is joined by "but".
Wording varies, letters get lost, so that a list of words does not read it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CATEGORIES = ("books", "clothes", "electronics", "garden", "kitchen", "sport")
SENTIMENTS = ("negative", "neutral", "positive")

_THINGS: dict[str, tuple[str, ...]] = {
    "books": ("novel", "cookbook", "paperback", "travel guide", "comic", "dictionary"),
    "clothes": ("jacket", "dress", "pair of jeans", "sweater", "shirt", "coat"),
    "electronics": ("headphones set", "charger", "camera", "keyboard", "speaker", "tablet"),
    "garden": ("lawn mower", "hose", "plant pot", "rake", "garden chair", "parasol"),
    "kitchen": ("frying pan", "blender", "kettle", "knife", "toaster", "coffee mill"),
    "sport": ("yoga mat", "tent", "football", "bike helmet", "racket", "backpack"),
}
_ASPECTS = (
    "the {thing}", "this {thing}", "the {thing} I bought", "my new {thing}", "the quality of the {thing}", "delivery",
    "the packaging", "customer service", "the price of the {thing}", "the size of the {thing}", "the finish",
    "the colour",
)  # fmt: skip
_GOOD = ("great", "excellent", "lovely", "perfect", "superb", "better than expected", "fantastic", "very good", "solid")
_BAD = (
    "terrible",
    "dreadful",
    "awful",
    "poor",
    "a disappointment",
    "worse than expected",
    "useless",
    "very bad",
    "shoddy",
)
_FEELS_GOOD = ("I love {aspect}", "I am delighted with {aspect}", "so happy with {aspect}", "{aspect} made my day")
_FEELS_BAD = ("I hate {aspect}", "I am annoyed by {aspect}", "so unhappy with {aspect}", "{aspect} let me down")
_IS = ("{aspect} is {word}", "{aspect} was {word}", "{aspect} turned out {word}", "found {aspect} {word}")
_IS_NOT = ("{aspect} is not {word}", "{aspect} was far from {word}", "I can't say {aspect} is {word}",
           "{aspect} isn't {word} at all", "hardly call {aspect} {word}")  # fmt: skip
_BUT = (" but ", ", but ", ", although ", " - still, ", ", yet ")
_AND = (" and ", ". ", ", ", "; ", ". Also ")
_STAYS = ("will order again", "you have a customer for life", "already planning my next order", "I will be back soon",
          "going to buy more here", "can't wait for the next parcel", "won't shop anywhere else")  # fmt: skip
_LEAVES = ("will not order again", "that was my last order", "I am closing my account", "not coming back",
           "going to buy elsewhere", "won't shop here any more", "no next parcel for me")  # fmt: skip
_SMALL_TALK = (
    "bought it for my sister", "it came on a Tuesday", "the box was brown", "ordered two of them", "it rained that day",
    "my neighbour has the same one", "paid by card", "it is for the summer", "a friend told me about this shop",
    "I am writing this on the train", "it was a birthday present", "the courier rang twice",
)  # fmt: skip
_SO_SO = ("{aspect} is okay", "{aspect} does the job", "nothing special about {aspect}", "{aspect} is as described")
_NEGATED, _MISSPELT = 0.3, 0.25


@dataclass(frozen=True)
class Meaning:
    """satisfaction: -2 to 2. loyalty: -1 leaves, 0 says nothing of it, 1 stays. category: what was bought."""

    satisfaction: int
    loyalty: int
    category: str

    @property
    def sentiment(self) -> str:
        return SENTIMENTS[1 + int(np.sign(self.satisfaction))]


def write(meaning: Meaning, random: np.random.Generator) -> str:
    """A review that says so."""
    tenor = int(np.sign(meaning.satisfaction))
    thing = _one(_THINGS[meaning.category], random)
    if tenor:
        count = 1 + int(random.integers(1 + abs(meaning.satisfaction)))
        parts = [_clause(tenor, thing, random) for _ in range(count)]
        if abs(meaning.satisfaction) == 1 and random.random() < 0.6:
            against = _clause(-tenor, thing, random)
            parts[0] = _one(_BUT, random).join([against, parts[0]])
    else:
        parts = [_one(_SO_SO, random).format(aspect=_aspect(thing, random))]
        if random.random() < 0.4:
            pair = [_clause(sign, thing, random) for sign in random.permutation([-1, 1])]
            parts.append(_one(_BUT, random).join(pair))
    if not any(thing in part for part in parts):
        parts.insert(0, f"about the {thing}")
    parts += list(random.choice(_SMALL_TALK, int(random.integers(2)), replace=False))
    if meaning.loyalty:
        parts.append(_one(_STAYS if meaning.loyalty > 0 else _LEAVES, random))
    return _spelled([str(part) for part in random.permutation(parts)], random)


def _clause(sign: int, thing: str, random: np.random.Generator) -> str:
    aspect = _aspect(thing, random)
    if random.random() < _NEGATED:
        return _one(_IS_NOT, random).format(aspect=aspect, word=_one(_BAD if sign > 0 else _GOOD, random))
    if random.random() < 0.35:
        return _one(_FEELS_GOOD if sign > 0 else _FEELS_BAD, random).format(aspect=aspect)
    return _one(_IS, random).format(aspect=aspect, word=_one(_GOOD if sign > 0 else _BAD, random))


def _aspect(thing: str, random: np.random.Generator) -> str:
    return _one(_ASPECTS, random).format(thing=thing)


def _spelled(parts: list[str], random: np.random.Generator) -> str:
    """One text, with the capitals, full stops and slips of somebody's typing."""
    text = parts[0]
    for part in parts[1:]:
        text += _one(_AND, random) + part
    words = text.split(" ")
    if random.random() < _MISSPELT:
        place = int(random.integers(len(words)))
        letter = int(random.integers(max(len(words[place]), 1)))
        words[place] = words[place][:letter] + words[place][letter + 1 :]
    text = " ".join(words) + _one((".", "!", "", " :)", "!!"), random)
    return text[0].upper() + text[1:] if text and random.random() < 0.7 else text


def _one(choices: tuple[str, ...], random: np.random.Generator) -> str:
    return choices[int(random.integers(len(choices)))]

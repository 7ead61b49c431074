"""A small seeded grammar of English and French, for machines without a corpus.

    "the black cats don't see a small house ."    "les chats noirs ne voient pas une petite maison ."

It has what makes translation more than a word list: gender and number agree, some adjectives follow their noun,
negation surrounds the verb. Every noun phrase is "article [adjective] noun"; a sentence is subject, verb, object and
perhaps when.
"""

from __future__ import annotations

import numpy as np

# English singular and plural, French singular and plural, feminine
NOUNS: tuple[tuple[str, str, str, str, bool], ...] = (
    ("cat", "cats", "chat", "chats", False),
    ("dog", "dogs", "chien", "chiens", False),
    ("book", "books", "livre", "livres", False),
    ("garden", "gardens", "jardin", "jardins", False),
    ("house", "houses", "maison", "maisons", True),
    ("car", "cars", "voiture", "voitures", True),
    ("girl", "girls", "fille", "filles", True),
    ("boy", "boys", "garçon", "garçons", False),
    ("table", "tables", "table", "tables", True),
    ("letter", "letters", "lettre", "lettres", True),
)
# English, French masculine and feminine singular (plural adds s), before the noun
ADJECTIVES: tuple[tuple[str, str, str, bool], ...] = (
    ("small", "petit", "petite", True),
    ("pretty", "joli", "jolie", True),
    ("young", "jeune", "jeune", True),
    ("black", "noir", "noire", False),
    ("green", "vert", "verte", False),
    ("red", "rouge", "rouge", False),
)
# English with a singular and a plural subject, French likewise
VERBS = (
    ("sees", "see", "voit", "voient"),
    ("loves", "love", "aime", "aiment"),
    ("finds", "find", "trouve", "trouvent"),
    ("wants", "want", "veut", "veulent"),
    ("hides", "hide", "cache", "cachent"),
)
TIMES = (("", ""), ("today", "aujourd'hui"), ("now", "maintenant"), ("every day", "tous les jours"))


def sentence_pairs(count: int, seed: int) -> list[tuple[str, str]]:
    """``count`` distinct normalised pairs."""
    random = np.random.default_rng(seed)
    pairs: dict[tuple[str, str], None] = {}
    while len(pairs) < count:
        pairs[_sentence(random)] = None
    return list(pairs)


def _sentence(random: np.random.Generator) -> tuple[str, str]:
    plural = bool(random.integers(2))
    english_subject, french_subject = _noun_phrase(random, plural)
    english_object, french_object = _noun_phrase(random, bool(random.integers(2)))
    verb = VERBS[random.integers(len(VERBS))]
    english_verb, french_verb = (verb[1], verb[3]) if plural else (verb[0], verb[2])
    if random.integers(3) == 0:
        english_verb = f"{'don' if plural else 'doesn'}'t {verb[1]}"
        french_verb = f"n'{french_verb} pas" if french_verb[0] == "a" else f"ne {french_verb} pas"
    english_time, french_time = TIMES[random.integers(len(TIMES))]
    english = (english_subject, english_verb, english_object, english_time, ".")
    french = (french_subject, french_verb, french_object, french_time, ".")
    return " ".join(filter(None, english)), " ".join(filter(None, french))


def _noun_phrase(random: np.random.Generator, plural: bool) -> tuple[str, str]:
    noun = NOUNS[random.integers(len(NOUNS))]
    feminine, definite = noun[4], bool(random.integers(2))
    english, french = (noun[1], noun[3]) if plural else (noun[0], noun[2])
    if random.integers(4):
        adjective = ADJECTIVES[random.integers(len(ADJECTIVES))]
        agreed = (adjective[2] if feminine else adjective[1]) + ("s" if plural else "")
        english = f"{adjective[0]} {english}"
        french = f"{agreed} {french}" if adjective[3] else f"{french} {agreed}"
    if plural:
        articles = ("the", "les") if definite else ("some", "des")
    else:
        articles = ("the", "la" if feminine else "le") if definite else ("a", "une" if feminine else "un")
    return f"{articles[0]} {english}", f"{articles[1]} {french}"

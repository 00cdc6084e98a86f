"""Small generated text datasets on which failures of transfer can be demonstrated in seconds. Pure.

The texts are the same on every machine: only the uniform stream of numpy's generators is used.

A text has a few sentences of invented nouns, verbs and names between English function words. A share of the words comes from
the topics of its class; the others come from any topic. Case and accents matter: the name ``Marili`` and the noun ``marili``
belong to different topics.

- ``source`` has eight topics. It teaches a network the topics of words.
- ``near`` has pairs of these topics, each with a few words of its own.
- ``letters`` has the classes of ``near`` in another style: archaic function words, which the vocabulary has in pieces, and
  typing errors.
- ``number`` has subjects in the singular or plural, among other nouns in either.

In the last one, the classes differ by what the source taught the network to ignore. :data:`VERSION` is part of each seed.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from xferbench.data.generated import check_request, random_stream
from xferbench.data.wordpiece import CONTINUATION, SPECIAL_TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

T = TypeVar("T")

VERSION = 1
BLOCK = 240  # texts generated from one seed; a multiple of every number of classes
CONSONANTS, VOWELS, ACCENTED_VOWELS = "bdflmnrstv", "aeiou", "áéíóú"
SYLLABLES = tuple(consonant + vowel for consonant in CONSONANTS for vowel in VOWELS)
ACCENTED_SHARE = 0.15  # of the words
PLURAL_SHARE = 0.4  # of the nouns
TYPO_SHARE = 0.08  # of the content words of ``letters``
TOPICS = 8
PAIRS = ((0, 1), (2, 3), (4, 5), (6, 7), (0, 2), (4, 6))
DETERMINERS = ("the", "my", "her", "our", "some", "no")
TOPIC_PATTERNS = (
    "DETERMINER noun verb DETERMINER noun .",
    "DETERMINER noun of Name verb in DETERMINER noun .",
    "in DETERMINER noun , Name verb DETERMINER noun and DETERMINER noun .",
    "Name verb DETERMINER noun with DETERMINER noun .",
    "there was DETERMINER noun that verb DETERMINER noun near Name .",
)
NUMBER_PATTERNS = (
    "DETERMINER subject verb DETERMINER noun and Name .",
    "DETERMINER subject near DETERMINER noun verb Name .",
    "DETERMINER subject of DETERMINER noun with DETERMINER noun verb DETERMINER noun .",
    "in DETERMINER noun , DETERMINER subject verb DETERMINER noun .",
    "in DETERMINER noun , DETERMINER subject of DETERMINER noun verb Name .",
)
FUNCTION_WORDS = (*DETERMINERS, "of", "in", "and", "with", "there", "was", "that", "near")
ARCHAIC_WORDS = {"the": "ye", "my": "mine", "and": "eke", "with": "wyth", "was": "wert"}
CONTENT_SLOTS = {"noun", "verb", "Name", "subject"}
ENGLISH_WORDS = {*FUNCTION_WORDS, *ARCHAIC_WORDS.values()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lexicon:
    """The words of a topic.

    The vocabulary has the first ``frequent`` nouns, all verbs and all names as tokens, and the other nouns in pieces.
    """

    nouns: tuple[str, ...]
    verbs: tuple[str, ...]
    names: tuple[str, ...]
    frequent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageDataset:
    """What the texts of a dataset have in common.

    Attributes:
        classes: The class names.
        lexicons: The lexicons of each class.
        purity: The share of the nouns, verbs and names that comes from the lexicons of the class. The others come from those of
            any topic.
        patterns: Sentences with the slots ``DETERMINER``, ``noun``, ``verb``, ``Name`` and ``subject``, a noun whose number is
            the class.
        sentences: The possible numbers of sentences.
        archaic: Whether function words are archaic and other words may have typing errors.
    """

    classes: tuple[str, ...]
    lexicons: tuple[tuple[Lexicon, ...], ...]
    purity: float = 0.5
    patterns: tuple[str, ...] = TOPIC_PATTERNS
    sentences: tuple[int, ...] = (2, 3)
    archaic: bool = False


def generate(name: str, split: str, count: int) -> tuple[list[str], np.ndarray]:
    """Generate the first ``count`` texts of a split (``train`` or ``test``).

    The texts depend only on name, split and :data:`VERSION`. A shorter request returns the beginning of a longer one, and in
    every beginning the counts of any two classes differ by at most one.

    Returns:
        The texts and their labels, int64 [N].

    Raises:
        UserError: If the name or split is unknown, or the count is negative.
    """
    check_request("language", name, NAMES, split, count)
    texts: list[str] = []
    labels = np.empty(count, np.int64)
    for start in range(0, count, BLOCK):
        rows = slice(start, min(start + BLOCK, count))
        block_texts, block_labels = _generate_block(name, split, start // BLOCK, rows.stop - start)
        texts += block_texts
        labels[rows] = block_labels
    return texts, labels


def vocabulary_lines() -> list[str]:
    """Return the tokens of the language's WordPiece vocabulary, in the order of their ids."""
    letters = string.ascii_lowercase + ACCENTED_VOWELS
    tokens = [*SPECIAL_TOKENS, ".", ",", *FUNCTION_WORDS, *(word.capitalize() for word in FUNCTION_WORDS)]
    tokens += [*letters, *string.ascii_uppercase, *(CONTINUATION + piece for piece in (*letters, *SYLLABLES))]
    for lexicon in (*TOPIC_LEXICONS, *PAIR_LEXICONS):
        tokens += [*lexicon.nouns[: lexicon.frequent], *lexicon.verbs, *lexicon.names]
    return list(dict.fromkeys(tokens))


def _generate_block(name: str, split: str, block_index: int, count: int) -> tuple[list[str], np.ndarray]:
    """Generate the first ``count`` texts of block ``block_index`` of a split.

    Each run of as many texts as there are classes contains every class once.
    """
    dataset, rng = DATASETS[name], _generator(name, split, block_index)
    classes = len(dataset.classes)
    labels = rng.random((BLOCK // classes, classes)).argsort(axis=1).reshape(BLOCK)[:count]
    return [_write_text(rng, dataset, int(label)) for label in labels], labels


def _generator(*purpose: str | int) -> np.random.Generator:
    return random_stream("language", VERSION, *purpose)


def _choose(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.random() * len(options))]


def _write_text(rng: np.random.Generator, dataset: LanguageDataset, label: int) -> str:
    sentences = []
    for _ in range(_choose(rng, dataset.sentences)):
        slots = _choose(rng, dataset.patterns).split()
        sentence = " ".join(_fill_slot(rng, dataset, label, slot) for slot in slots)
        sentences.append(sentence[0].upper() + sentence[1:])
    return " ".join(sentences)


def _fill_slot(rng: np.random.Generator, dataset: LanguageDataset, label: int, slot: str) -> str:
    """Return a word for a slot of a pattern. A function word or mark stays."""
    if slot in CONTENT_SLOTS:
        word = _content_word(rng, dataset, label, slot)
        return _swap_letters(rng, word) if dataset.archaic and rng.random() < TYPO_SHARE else word
    word = _choose(rng, DETERMINERS) if slot == "DETERMINER" else slot
    return ARCHAIC_WORDS.get(word, word) if dataset.archaic else word


def _content_word(rng: np.random.Generator, dataset: LanguageDataset, label: int, slot: str) -> str:
    lexicon = _choose(rng, dataset.lexicons[label] if rng.random() < dataset.purity else TOPIC_LEXICONS)
    if slot == "verb":
        return _choose(rng, lexicon.verbs)
    if slot == "Name":
        return _choose(rng, lexicon.names)
    is_plural = label == 1 if slot == "subject" else rng.random() < PLURAL_SHARE
    return _choose(rng, lexicon.nouns) + "s" * is_plural


def _swap_letters(rng: np.random.Generator, word: str) -> str:
    """Return a word with two neighboring letters swapped, but not the first, which may be a capital."""
    second = 1 + int(rng.random() * (len(word) - 2))
    return word[:second] + word[second + 1] + word[second] + word[second + 2 :]


def _invent_words(count: int) -> list[str]:
    rng, words = _generator("words"), dict[str, None]()
    while len(words) < count:
        word = "".join(_choose(rng, SYLLABLES) for _ in range(_choose(rng, (2, 3))))
        if rng.random() < ACCENTED_SHARE:
            word = word[:-1] + ACCENTED_VOWELS[VOWELS.index(word[-1])]
        if word not in ENGLISH_WORDS:
            words[word] = None
    return [*words]


def _lexicons(words: Iterator[str], topics: int, *, nouns: int, frequent: int, verbs: int, names: int) -> tuple[Lexicon, ...]:
    """Divide words among topics. The names of a topic are nouns of the next one, with capitals."""
    topic_nouns = [tuple(islice(words, nouns)) for _ in range(topics)]
    return tuple(
        Lexicon(
            nouns=topic_nouns[topic],
            verbs=tuple(islice(words, verbs)),
            names=tuple(noun.capitalize() for noun in topic_nouns[(topic + 1) % topics][:names]),
            frequent=frequent,
        )
        for topic in range(topics)
    )


_words = iter(_invent_words(TOPICS * (48 + 12) + len(PAIRS) * (8 + 4)))
TOPIC_LEXICONS = _lexicons(_words, TOPICS, nouns=48, frequent=36, verbs=12, names=16)
PAIR_LEXICONS = _lexicons(_words, len(PAIRS), nouns=8, frequent=8, verbs=4, names=4)


def _datasets() -> dict[str, LanguageDataset]:
    pairs = tuple(
        (TOPIC_LEXICONS[first], TOPIC_LEXICONS[second]) * 2 + (own,)
        for (first, second), own in zip(PAIRS, PAIR_LEXICONS, strict=True)
    )
    near = tuple(f"near-{first}-{second}" for first, second in PAIRS)
    return {
        "source": LanguageDataset(
            classes=tuple(f"source-{topic}" for topic in range(TOPICS)),
            lexicons=tuple((lexicon,) for lexicon in TOPIC_LEXICONS),
        ),
        "near": LanguageDataset(classes=near, lexicons=pairs, purity=0.65),
        "letters": LanguageDataset(classes=near, lexicons=pairs, purity=0.65, archaic=True),
        "number": LanguageDataset(
            classes=("singular", "plural"), lexicons=(TOPIC_LEXICONS,) * 2, patterns=NUMBER_PATTERNS, sentences=(1,)
        ),
    }


DATASETS = _datasets()
NAMES = tuple(DATASETS)
SPEC_NAMES = {f"text-{name}": name for name in NAMES}  # name in a suite → name of the dataset
CLASSES = {name: dataset.classes for name, dataset in DATASETS.items()}

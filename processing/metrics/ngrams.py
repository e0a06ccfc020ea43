"""Counting n-grams of many reports at once: exact integer ids instead of dictionaries of tuples.

A corpus of a hundred thousand reports fits in a few arrays, and BLEU and CIDEr become sums over them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class GramCounts:
    """How often each n-gram occurs in each text: parallel arrays, sorted by text, then by n-gram.

    Attributes:
        text: index of the text.
        gram: id of the n-gram, the same over all texts that were counted together.
        count: number of occurrences.
        total: number of different ids.
    """

    text: np.ndarray
    gram: np.ndarray
    count: np.ndarray
    total: int


def count_grams(texts: Sequence[Sequence[str]], max_n: int = 4) -> list[GramCounts]:
    """Counts of all n-grams of tokenised texts, one `GramCounts` for each n = 1..max_n."""
    lengths = np.array([len(tokens) for tokens in texts], dtype=np.int64)
    vocabulary: dict[str, int] = {}
    words = np.fromiter(
        (vocabulary.setdefault(token, len(vocabulary)) for tokens in texts for token in tokens),
        dtype=np.int64,
        count=int(lengths.sum()),
    )
    text = np.repeat(np.arange(len(texts)), lengths)
    room = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(words))  # words from here to the end of the text
    grams, total = words, max(len(vocabulary), 1)
    counts = []
    for n in range(1, max_n + 1):
        if n > 1:
            # The id of an n-gram is the rank of (id of its first n - 1 words, last word); ranks stay below the corpus
            # size.
            keep = room[: len(grams)] >= n
            followers = np.zeros(len(grams), dtype=np.int64)
            followers[: max(len(words) - n + 1, 0)] = words[n - 1 :]
            pairs = grams * max(len(vocabulary), 1) + followers
            ids, ranks = np.unique(pairs[keep], return_inverse=True)
            grams = np.zeros(len(words), dtype=np.int64)
            grams[keep] = ranks
            total = max(len(ids), 1)
        valid = room >= n
        keys, occurrences = np.unique(text[valid] * total + grams[valid], return_counts=True)
        counts.append(GramCounts(keys // total, keys % total, occurrences, total))
    return counts


def split_counts(counts: GramCounts, boundary: int) -> tuple[GramCounts, GramCounts]:
    """The counts of the texts before `boundary`, and of those from it on (renumbered from 0)."""
    cut = int(np.searchsorted(counts.text, boundary))
    first = GramCounts(counts.text[:cut], counts.gram[:cut], counts.count[:cut], counts.total)
    second = GramCounts(counts.text[cut:] - boundary, counts.gram[cut:], counts.count[cut:], counts.total)
    return first, second


def look_up(counts: GramCounts, texts: np.ndarray, grams: np.ndarray) -> np.ndarray:
    """Occurrences of the given (text, n-gram) pairs, 0 where there are none."""
    if len(counts.text) == 0:
        return np.zeros(len(texts), dtype=np.int64)
    keys = counts.text * counts.total + counts.gram
    wanted = texts * counts.total + grams
    where = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[where] == wanted, counts.count[where], 0)


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, bit-parallel (Hyyro 2004): one addition of integers per word."""
    if not first or not second:
        return 0
    places: dict[str, int] = {}
    for i, word in enumerate(first):
        places[word] = places.get(word, 0) | (1 << i)
    full = (1 << len(first)) - 1
    state = full
    for word in second:
        matches = places.get(word)
        if matches:
            hit = state & matches
            state = ((state + hit) | (state - hit)) & full
    return len(first) - state.bit_count()

"""Scores of what a model says: reports beside an expert's, answers that are right or wrong, classes.

Texts are compared as words in lower case, without punctuation. Every score is one of single texts or sums of counts, so
that a bootstrap draws texts again without scoring them anew.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genmote.describe import checking
from genmote.describe.examples import Example
from genmote.describe.porter import stem

Floats = NDArray[np.float64]
ORDERS = (1, 2, 3, 4)
DRAWS = 1000


def words(text: str) -> list[str]:
    """
    >>> words("Sinus rhythm. T-waves in V5, 2,6 mV")
    ['sinus', 'rhythm', 't', 'waves', 'in', 'v5', '2', '6', 'mv']
    """
    return re.findall(r"[^\W_]+", text.lower())


def grams(said: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(said[n : n + order]) for n in range(len(said) - order + 1))


# -- reports -----------------------------------------------------------------------------------------------------------


def bleu_counts(said: str, wanted: str) -> Floats:
    """Of one text (10,): n-grams that match and n-grams in all, for each order, and both lengths."""
    a, b = words(said), words(wanted)
    matched = [sum((grams(a, n) & grams(b, n)).values()) for n in ORDERS]
    return np.array([*matched, *(max(0, len(a) - n + 1) for n in ORDERS), len(a), len(b)], np.float64)


def bleu(counts: Floats, order: int = 4) -> float:
    """BLEU of a corpus out of the sums (or rows, (N, 10)) of :func:`bleu_counts`, without smoothing (Papineni et al.,
    "BLEU: a method for automatic evaluation of machine translation", ACL 2002)."""
    total = counts.sum(axis=0) if counts.ndim == 2 else counts
    matched, there, said, wanted = total[:order], total[4 : 4 + order], total[8], total[9]
    if (matched <= 0).any():
        return 0.0
    brevity = min(0.0, 1 - wanted / said)
    return float(np.exp(brevity + np.log(matched / there).mean()))


def rouge_l(said: str, wanted: str) -> float:
    """F1 of the longest common subsequence of words (Lin, "ROUGE: a package for automatic evaluation of summaries",
    2004, with β = 1)."""
    a, b = words(said), words(wanted)
    row = np.zeros(len(b) + 1, np.int64)
    for word in a:
        fresh = row.copy()
        for n, other in enumerate(b, 1):
            fresh[n] = row[n - 1] + 1 if word == other else max(fresh[n - 1], row[n])
        row = fresh
    common = int(row[-1])
    return 2 * common / (len(a) + len(b)) if common else 0.0


def meteor(said: str, wanted: str) -> float:
    """METEOR by exact words and, of those left, Porter's stems, without synonyms (Banerjee and Lavie, "METEOR: an
    automatic metric for MT evaluation with improved correlation with human judgments", 2005): ten times the weight on
    recall, less half of the cube of chunks over matches. Words are put together in the longest runs first."""
    a, b = words(said), words(wanted)
    pairs: dict[int, int] = {}
    _tile(a, b, pairs)
    _tile([stem(word) for word in a], [stem(word) for word in b], pairs)
    if not pairs:
        return 0.0
    chunks = sum(pairs.get(n - 1) != at - 1 for n, at in pairs.items())
    precision, recall = len(pairs) / len(a), len(pairs) / len(b)
    mean = 10 * precision * recall / (recall + 9 * precision)
    return float(mean * (1 - 0.5 * (chunks / len(pairs)) ** 3))


def _tile(a: Sequence[str], b: Sequence[str], pairs: dict[int, int]) -> None:
    """Adds pairs of places with the same word that are in no pair yet, the longest runs first."""
    taken = set(pairs.values())
    while True:
        best = (0, 0, 0)
        for i in range(len(a)):
            for j in range(len(b)):
                length = 0
                while (
                    i + length < len(a)
                    and j + length < len(b)
                    and a[i + length] == b[j + length]
                    and i + length not in pairs
                    and j + length not in taken
                ):
                    length += 1
                best = max(best, (length, -i, -j))
        length, i, j = best[0], -best[1], -best[2]
        if not length:
            return
        for n in range(length):
            pairs[i + n] = j + n
            taken.add(j + n)


def cider(said: Sequence[str], wanted: Sequence[str]) -> Floats:
    """CIDEr of each text (N,), of words as they are: ten times the cosine of the n-grams' counts, weighed by how few of
    the wanted texts have each, mean over the orders 1 to 4 (Vedantam et al., "CIDEr: consensus-based image description
    evaluation", CVPR 2015)."""
    found = np.zeros(len(said))
    for order in ORDERS:
        have, want = ([grams(words(text), order) for text in texts] for texts in (said, wanted))
        seen = Counter(gram for one in want for gram in one)
        rare = {gram: math.log(len(wanted) / count) for gram, count in seen.items()}
        unseen = math.log(len(wanted)) if wanted else 0.0
        for n, (a, b) in enumerate(zip(have, want, strict=True)):
            x = {gram: count * rare.get(gram, unseen) for gram, count in a.items()}
            y = {gram: count * rare[gram] for gram, count in b.items()}
            long = math.sqrt(sum(v * v for v in x.values()) * sum(v * v for v in y.values()))
            if long > 0:
                found[n] += 10 / len(ORDERS) * sum(v * y.get(gram, 0.0) for gram, v in x.items()) / long
    return found


@dataclass(frozen=True)
class Interval:
    """A score, and between which two 95 % of the bootstrap's draws lie."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class ReportScores:
    """Of each report: BLEU's counts (N, 10), and (N,) ROUGE-L, METEOR and CIDEr."""

    counts: Floats
    rouge_l: Floats
    meteor: Floats
    cider: Floats

    def of(self, rows: NDArray[np.intp]) -> dict[str, float]:
        """The scores of some of the reports."""
        found = {f"bleu_{n}": bleu(self.counts[rows], n) for n in ORDERS}
        return found | {name: float(getattr(self, name)[rows].mean()) for name in ("rouge_l", "meteor", "cider")}


def reports(said: Sequence[str], wanted: Sequence[str]) -> ReportScores:
    """Scores of reports beside an expert's."""
    pairs = list(zip(said, wanted, strict=True))
    return ReportScores(
        np.array([bleu_counts(a, b) for a, b in pairs]).reshape(-1, 10),
        np.array([rouge_l(a, b) for a, b in pairs]),
        np.array([meteor(a, b) for a, b in pairs]),
        cider(said, wanted),
    )


# -- classes -----------------------------------------------------------------------------------------------------------


def macro_f1(said: Sequence[Collection[str]], wanted: Sequence[Collection[str]], classes: Sequence[str]) -> float:
    """Mean of the classes' F1, of recordings that may be of several; a class that none is of and none is said to be
    of is left out."""
    found = []
    for one in classes:
        hit = sum(one in a and one in b for a, b in zip(said, wanted, strict=True))
        both = sum(one in a for a in said) + sum(one in b for b in wanted)
        if both:
            found.append(2 * hit / both)
    return float(np.mean(found)) if found else math.nan


def auroc(scores: Floats, truth: NDArray[np.bool_]) -> float:
    """How often a positive one has the higher score than a negative one, ties by half; NaN without one of the two.

    >>> auroc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))
    0.75
    """
    positive, negative = int(truth.sum()), int((~truth).sum())
    if not positive or not negative:
        return math.nan
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[truth].sum() - positive * (positive + 1) / 2) / (positive * negative))


def macro_auroc(scores: Floats, wanted: Sequence[Collection[str]], classes: Sequence[str]) -> float:
    """Mean over the classes that some are of and some are not, of `scores` (N, classes)."""
    found = [auroc(scores[:, n], np.array([one in own for own in wanted])) for n, one in enumerate(classes)]
    known = [value for value in found if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


# -- answers -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AnswerScores:
    """`right`: the share of right answers, to questions that have one; `by_about`: for each kind of question, with how
    many there were; `refused`: the share that was told of what cannot be told, `wrongly_refused` of what can (NaN where
    there was none)."""

    right: float
    by_about: dict[str, tuple[float, int]]
    refused: float
    wrongly_refused: float


def answers(examples: Sequence[Example], texts: Sequence[str]) -> AnswerScores:
    """Scores of a model's answers to questions that can be checked: not reports and captions."""
    by_about: dict[str, list[bool]] = {}
    refused: list[bool] = []
    wrongly: list[bool] = []
    for example, text in zip(examples, texts, strict=True):
        if example.about == "cannot":
            refused.append(checking.refused(text))
            continue
        wrongly.append(checking.refused(text))
        if example.about not in ("report", "caption", "findings"):
            by_about.setdefault(example.about, []).append(checking.right(example, text))
    every = [one for own in by_about.values() for one in own]
    shares = {about: (float(np.mean(own)), len(own)) for about, own in sorted(by_about.items())}
    return AnswerScores(_share(every), shares, _share(refused), _share(wrongly))


def _share(them: Sequence[bool]) -> float:
    return float(np.mean(them)) if them else math.nan


# -- intervals ---------------------------------------------------------------------------------------------------------


def bootstrap(
    score: Callable[[NDArray[np.intp]], float],
    groups: Sequence[Hashable],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """A score of items, and its interval (Efron and Tibshirani, "An introduction to the bootstrap", 1993: percentiles).
    `score` takes the rows that are drawn. `groups` (one an item) are drawn whole, as items of one patient are alike.
    The difference of two scores of the same rows gives the interval of how far one is above the other."""
    members: dict[Hashable, list[int]] = {}
    for n, group in enumerate(groups):
        members.setdefault(group, []).append(n)
    rows = [np.array(own, np.intp) for own in members.values()]
    random = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        drawn = random.integers(0, len(rows), len(rows))
        value = score(np.concatenate([rows[n] for n in drawn]))
        if not math.isnan(value):
            found.append(value)
    low, high = np.percentile(found, (2.5, 97.5)) if found else (math.nan, math.nan)
    return Interval(score(np.arange(len(groups))), float(low), float(high))

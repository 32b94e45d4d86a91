"""Scores against published and hand-computed examples."""

from __future__ import annotations

import math

import numpy as np
import pytest

from genmote.describe import scores
from genmote.describe.examples import Example
from genmote.describe.porter import stem


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        # the examples of Porter's paper, step by step, where no later step changes them
        *[("caresses", "caress"), ("ponies", "poni"), ("ties", "ti"), ("caress", "caress"), ("cats", "cat")],
        *[("feed", "feed"), ("agreed", "agre"), ("plastered", "plaster"), ("bled", "bled"), ("motoring", "motor")],
        *[("sing", "sing"), ("conflated", "conflat"), ("troubled", "troubl"), ("sized", "size"), ("hopping", "hop")],
        *[("tanned", "tan"), ("falling", "fall"), ("hissing", "hiss"), ("fizzed", "fizz"), ("failing", "fail")],
        *[("filing", "file"), ("happy", "happi"), ("sky", "sky"), ("relational", "relat"), ("conditional", "condit")],
        *[("rational", "ration"), ("valenci", "valenc"), ("digitizer", "digit"), ("operator", "oper")],
        *[("feudalism", "feudal"), ("decisiveness", "decis"), ("hopefulness", "hope"), ("formaliti", "formal")],
        *[("triplicate", "triplic"), ("formative", "form"), ("electrical", "electr"), ("hopeful", "hope")],
        *[("goodness", "good"), ("revival", "reviv"), ("allowance", "allow"), ("inference", "infer")],
        *[("airliner", "airlin"), ("adjustable", "adjust"), ("defensible", "defens"), ("irritant", "irrit")],
        *[("replacement", "replac"), ("adjustment", "adjust"), ("dependent", "depend"), ("adoption", "adopt")],
        *[("communism", "commun"), ("activate", "activ"), ("effective", "effect"), ("bowdlerize", "bowdler")],
        *[("probate", "probat"), ("rate", "rate"), ("cease", "ceas"), ("controll", "control"), ("roll", "roll")],
        *[("generalizations", "gener"), ("oscillators", "oscil"), ("by", "by"), ("y", "y")],
    ],
)
def test_stems(word: str, wanted: str) -> None:
    assert stem(word) == wanted


def test_bleu_of_papineni() -> None:
    counts = scores.bleu_counts("the the the the the the the", "The cat is on the mat.")
    assert scores.bleu(counts, 1) == pytest.approx(2 / 7)
    assert scores.bleu(counts, 4) == 0


def test_bleu_by_hand() -> None:
    same = scores.bleu_counts("sinus rhythm normal ecg", "sinus rhythm. normal ECG.")
    assert scores.bleu(same) == pytest.approx(1)
    short = scores.bleu_counts("a b", "a b c d")
    assert scores.bleu(short, 2) == pytest.approx(math.exp(1 - 2))
    # of a corpus the counts are summed before: (4 + 2) of (4 + 2) words, lengths 6 and 8
    assert scores.bleu(np.stack([same, short]), 1) == pytest.approx(math.exp(1 - 8 / 6))
    one = scores.bleu_counts("a b c e", "a b c d")
    assert scores.bleu(one, 2) == pytest.approx(math.sqrt(3 / 4 * 2 / 3))


def test_rouge_l_of_lin() -> None:
    wanted = "police killed the gunman"
    assert scores.rouge_l("police kill the gunman", wanted) == pytest.approx(3 / 4)
    assert scores.rouge_l("the gunman kill police", wanted) == pytest.approx(2 / 4)
    assert scores.rouge_l("", wanted) == scores.rouge_l("nothing alike", wanted) == 0
    assert scores.rouge_l("a x b y c", "a b c d") == pytest.approx(2 * 3 / 9)


def test_meteor() -> None:
    wanted = "the cat sat on the mat"
    assert scores.meteor("the cat sat on the mat", wanted) == pytest.approx(0.9977, abs=1e-4)
    assert scores.meteor("the cat was sat on the mat", wanted) == pytest.approx(0.9654, abs=1e-4)
    # three chunks of six: on the mat | sat | the cat
    assert scores.meteor("on the mat sat the cat", wanted) == pytest.approx(1 - 0.5 * (3 / 6) ** 3)
    # precision 1/2, recall 1/4: 10 * 1/8 / (1/4 + 9/2); one chunk of one match
    assert scores.meteor("cat dog", "a cat b c") == pytest.approx(10 / 8 / (1 / 4 + 9 / 2) * 0.5)
    assert scores.meteor("inverted waves", "inverting wave") == pytest.approx(
        scores.meteor("wave", "waves") * (1 - 0.5 / 8) / 0.5
    ), "stems count as words do"
    assert scores.meteor("", "a") == scores.meteor("x", "a") == 0


def test_cider_by_hand() -> None:
    assert scores.cider(["a b", "a c"], ["a b", "a c"]).tolist() == pytest.approx([5, 5]), "no text has three words"
    assert scores.cider(["a b"], ["a b"]).tolist() == [0], "of one text nothing is rare"
    found = scores.cider(["b d", "x y"], ["b c", "x y"])
    assert found.tolist() == pytest.approx([10 / 4 * 0.5, 5])
    long = "one two three four five"
    assert scores.cider([long, "six"], [long, "seven"]).tolist() == pytest.approx([10, 0])


def test_macro_f1() -> None:
    # the example of scikit-learn's f1_score
    truth, said = ([[str(n)] for n in row] for row in ([0, 1, 2, 0, 1, 2], [0, 2, 1, 0, 0, 1]))
    assert scores.macro_f1(said, truth, "012") == pytest.approx(0.2667, abs=1e-4)
    assert scores.macro_f1([["a", "b"], []], [["a"], ["b"]], "abc") == pytest.approx((1 + 0) / 2)
    assert math.isnan(scores.macro_f1([[]], [[]], "a"))


def test_auroc() -> None:
    truth = np.array([False, False, True, True])
    assert scores.auroc(np.array([0.1, 0.4, 0.35, 0.8]), truth) == 0.75
    assert scores.auroc(np.zeros(4), truth) == 0.5
    assert math.isnan(scores.auroc(np.zeros(2), np.array([True, True])))
    table = np.array([[0.9, 0.2, 0.5], [0.1, 0.8, 0.5]])
    assert scores.macro_auroc(table, [["a"], ["b"]], "abc") == 1, "nobody is of c"


def test_reports_of_some_rows() -> None:
    found = scores.reports(["a b", "c"], ["a b", "d"])
    assert found.of(np.array([0]))["rouge_l"] == 1 and found.of(np.array([1]))["rouge_l"] == 0
    assert found.of(np.array([0, 1]))["bleu_1"] == pytest.approx(2 / 3)
    assert set(found.of(np.array([0]))) == {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "meteor", "cider"}


def test_answers() -> None:
    asked = [
        Example((), "?", "rising", "trend", ("rising", "falling")),
        Example((), "?", "3", "kinds", value=3.0, tolerance=0.0),
        Example((), "?", "I cannot tell: it is noise.", "cannot"),
        Example((), "?", "any", "report"),
    ]
    found = scores.answers(asked, ["It rises.", "I cannot tell.", "I cannot say.", "I cannot tell"])
    assert found.by_about == {"kinds": (0.0, 1), "trend": (1.0, 1)} and found.right == 0.5
    assert found.refused == 1 and found.wrongly_refused == pytest.approx(2 / 3)
    assert math.isnan(scores.answers([], []).right)


def test_bootstrap() -> None:
    x = np.random.default_rng(0).normal(3, 1, 400)
    found = scores.bootstrap(lambda rows: float(x[rows].mean()), range(400))
    assert found.value == pytest.approx(x.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 / 20, rel=0.15), "as the standard error tells"
    again = scores.bootstrap(lambda rows: float(x[rows].mean()), range(400))
    assert (again.low, again.high) == (found.low, found.high)
    alike = np.repeat(np.random.default_rng(1).normal(size=20), 20)
    by_item = scores.bootstrap(lambda rows: float(alike[rows].mean()), range(400))
    by_group = scores.bootstrap(lambda rows: float(alike[rows].mean()), [n // 20 for n in range(400)])
    assert by_group.high - by_group.low > 3 * (by_item.high - by_item.low), "items of one patient are no new ones"
    assert math.isnan(scores.bootstrap(lambda rows: math.nan, range(3)).low)

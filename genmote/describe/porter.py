"""Stems of English words, by M. F. Porter, "An algorithm for suffix stripping", Program 14 (1980) 130-137."""

from __future__ import annotations

from functools import lru_cache

# Longest suffixes first: of those that fit, the longest is the one whose condition is asked.
STEP_2 = (
    "ational:ate tional:tion enci:ence anci:ance izer:ize abli:able alli:al entli:ent eli:e ousli:ous ization:ize "
    "ation:ate ator:ate alism:al iveness:ive fulness:ful ousness:ous aliti:al iviti:ive biliti:ble"
)
STEP_3 = "icate:ic ative: alize:al iciti:ic ical:ic ful: ness:"
STEP_4 = "al ance ence er ic able ible ant ement ment ent ion ou ism ate iti ous ive ize"


def _form(stem: str) -> str:
    """ "v" for each vowel, "c" for each consonant: y is a vowel after a consonant."""
    form = ""
    for n, letter in enumerate(stem):
        vowel = letter in "aeiou" or (letter == "y" and n > 0 and form[-1] == "c")
        form += "v" if vowel else "c"
    return form


def _measure(stem: str) -> int:
    """How many times a consonant follows a vowel."""
    return _form(stem).count("vc")


def _double(stem: str) -> bool:
    return len(stem) > 1 and stem[-1] == stem[-2] and _form(stem)[-1] == "c"


def _cvc(stem: str) -> bool:
    return _form(stem)[-3:] == "cvc" and stem[-1] not in "wxy"


def _replaced(word: str, rules: str, least: int) -> str:
    """The longest suffix of the rules that the word has is replaced, where the measure before it is above `least`."""
    pairs = sorted((rule.partition(":")[::2] for rule in rules.split()), key=lambda pair: -len(pair[0]))
    for suffix, new in pairs:
        if word.endswith(suffix):
            stem = word[: -len(suffix)]
            return stem + new if _measure(stem) > least else word
    return word


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """
    >>> [stem(word) for word in ("caresses", "ponies", "motoring", "relational", "generalizations", "oscillators")]
    ['caress', 'poni', 'motor', 'relat', 'gener', 'oscil']
    """
    if len(word) < 3:
        return word
    for suffix, new in (("sses", "ss"), ("ies", "i"), ("ss", "ss"), ("s", "")):  # 1a
        if word.endswith(suffix):
            word = word[: -len(suffix)] + new
            break
    word = _past(word)
    if word.endswith("y") and "v" in _form(word[:-1]):  # 1c
        word = word[:-1] + "i"
    word = _replaced(word, STEP_2, 0)
    word = _replaced(word, STEP_3, 0)
    for suffix in sorted(STEP_4.split(), key=len, reverse=True):
        if word.endswith(suffix):
            rest = word[: -len(suffix)]
            if _measure(rest) > 1 and (suffix != "ion" or rest.endswith(("s", "t"))):
                word = rest
            break
    if word.endswith("e"):  # 5a
        rest = word[:-1]
        if _measure(rest) > 1 or (_measure(rest) == 1 and not _cvc(rest)):
            word = rest
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word  # 5b


def _past(word: str) -> str:
    """Step 1b."""
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    for suffix in ("ed", "ing"):
        rest = word[: -len(suffix)]
        if word.endswith(suffix) and "v" in _form(rest):
            if rest.endswith(("at", "bl", "iz")):
                return rest + "e"
            if _double(rest) and rest[-1] not in "lsz":
                return rest[:-1]
            return rest + "e" if _measure(rest) == 1 and _cvc(rest) else rest
    return word

"""Templates of log lines, mined online: what a program's lines have in common, and what fills the places that differ.

A prefix tree of fixed depth whose leaves hold templates, merged by similarity, in the manner of He, Zhu, Zheng, Lyu,
"Drain: An Online Log Parsing Approach with Fixed Depth Tree", ICWS 2017. What is surely a parameter (an address, a
number, a path) is masked before. Unlike there, nothing of a line is lost: white space is part of a template, and a
line is its template with the parameters put in, to the last character.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from genmote.errors import SignalError

WILD = "<*>"  # the place of a parameter in a template
REST = 0  # the template of lines that fit no other when there are as many as allowed: a parameter and nothing else
BRANCHES = 100  # words that may follow at one place in the tree; further ones share a branch
LONGEST = 4096  # characters of a line that is mined; a longer one is of the template REST

# One alternative a kind, none of which takes white space or a part of a literal WILD (which is masked itself).
MASK = re.compile(
    r"""(
    <\*>
  | (?<![\w.]) \d{4} [-/] \d{1,2} [-/] \d{1,2} (?: T\d{2}:\d{2}:\d{2} (?:[.,]\d+)? (?:Z|[+-]\d{2}:?\d{2})? )? (?![\w-])
  | (?<![\w:.]) \d{1,2} : \d{2} : \d{2} (?:[.,]\d+)? (?![\w:])
  | /? (?<![\w.]) \d{1,3} (?:\.\d{1,3}){3} (?: :\d+ )? (?![\w.])
  | (?<![\w:.]) [0-9a-fA-F]{2} (?: [:-][0-9a-fA-F]{2} ){5} (?![\w:])
  | (?<![\w:.]) (?: [0-9a-fA-F]{0,4}: ){2,7} [0-9a-fA-F]{0,4} (?![\w:])
  | (?<!\w) 0[xX] [0-9a-fA-F]+ (?!\w)
  | (?<!\w) (?=[0-9a-fA-F-]*\d) [0-9a-fA-F]{8,} (?: -[0-9a-fA-F]{4,} )* (?!\w)
  | (?<![\w/]) / [\w.+@%~-]+ (?: /[\w.+@%~:-]* )*
  | (?<!\w) [A-Za-z]:\\ [^\s<>*"]+
  | (?<![A-Za-z0-9]) (?: (?<![\w.]) [+-] | (?<=_) - )? \d+ (?: [.,]\d+ )* (?![A-Za-z0-9])
    )""",
    re.VERBOSE,
)
SPACE = re.compile(r"(\s+)")
DIGIT = re.compile(r"\d")


@dataclass
class _Template:
    """`words` with a white space of `gaps` before each and one more after the last; WILD where lines differ."""

    number: int
    words: list[str]
    gaps: list[str]

    def text(self) -> str:
        return "".join(gap + word for gap, word in zip(self.gaps, [*self.words, ""], strict=True))


class Miner:
    """At most `most` templates of the lines that were added.

    `depth`: how many of a line's first words lead to the templates it is compared with. `similarity`: which part of its
    words, of 0 to 1, must be those of a template for it to be of that template.

    >>> miner = Miner()
    >>> [miner.add(line)[0] for line in ("sent 5 bytes to ann", "sent 900 bytes to bob", "ready")]
    [1, 1, 2]
    >>> miner.template(1), miner.match("sent 7 bytes to  eve")
    ('sent <*> bytes to <*>', None)
    >>> miner.match("sent 7 bytes to eve")
    (1, ('7', 'eve'))
    """

    def __init__(self, depth: int = 2, similarity: float = 0.7, most: int = 1000) -> None:
        if depth < 0 or not 0 <= similarity <= 1 or most < 0:
            raise SignalError(
                f"depth {depth}, similarity {similarity}, most {most}: wanted a depth and a most of 0 or more and a "
                "similarity from 0 to 1"
            )
        self.depth, self.similarity, self.most = depth, similarity, most
        self._templates = [_Template(REST, [WILD], ["", ""])]
        self._tree: dict[Any, Any] = {}  # by the number of words, then by each of the first words, to a list

    def __len__(self) -> int:
        return len(self._templates)

    def template(self, number: int) -> str:
        """The template's text as it is now: WILD in each parameter's place. It may become wider with further lines."""
        if not 0 <= number < len(self._templates):
            raise SignalError(f"no template {number}: they go from 0 to {len(self._templates) - 1}")
        return self._templates[number].text()

    def add(self, line: str) -> tuple[int, tuple[str, ...]]:
        """The line's template, made or widened for it where need be, and its parameters in that template as it is now.

        >>> miner = Miner()
        >>> number, parameters = miner.add("fan 3  stopped")
        >>> rebuild(miner.template(number), parameters)
        'fan 3  stopped'
        """
        if len(line) > LONGEST:
            return REST, (line,)
        words, gaps, values = _split(line)
        best, score = None, -1.0
        for template in self._candidates(words):
            same = _similar(template.words, words)
            if same > score:
                best, score = template, same
        if best is None or score < self.similarity:
            if len(self._templates) > self.most:
                return REST, (line,)
            best = _Template(len(self._templates), words, gaps)
            self._templates.append(best)
            self._leaf(words).append(best)
        elif best.words != words or best.gaps != gaps:
            best.words = [old if old == new else WILD for old, new in zip(best.words, words, strict=True)]
            best.gaps = [old if old == new else WILD for old, new in zip(best.gaps, gaps, strict=True)]
        return best.number, _parameters(best, words, gaps, values)

    def match(self, line: str) -> tuple[int, tuple[str, ...]] | None:
        """The narrowest template that the line is of, and its parameters, without a change to any; None: it is of none.

        A line that was added is always of one, however the templates have widened since.
        """
        if len(line) > LONGEST:
            return REST, (line,)
        words, gaps, values = _split(line)
        fits = [
            template
            for template in self._candidates(words)
            if all(old in (WILD, new) for old, new in zip(template.words, words, strict=True))
            and all(old in (WILD, new) for old, new in zip(template.gaps, gaps, strict=True))
        ]
        if not fits:
            return (REST, (line,)) if len(self._templates) > self.most else None
        best = min(fits, key=lambda template: template.words.count(WILD))
        return best.number, _parameters(best, words, gaps, values)

    def _candidates(self, words: list[str]) -> Iterator[_Template]:
        """The templates of as many words behind the first ones, or behind WILD in their place."""
        nodes = [self._tree[len(words)]] if len(words) in self._tree else []
        for word in words[: self.depth]:
            keys = (word, WILD) if word != WILD else (WILD,)
            nodes = [node[key] for node in nodes for key in keys if key in node]
        for leaf in nodes:
            yield from leaf

    def _leaf(self, words: list[str]) -> list[_Template]:
        """Where a template of these words belongs, made where need be."""
        node: dict[Any, Any] = self._tree
        key: int | str = len(words)
        for word in words[: self.depth]:
            node = node.setdefault(key, {})
            key = WILD if DIGIT.search(word) or (word not in node and len(node) >= BRANCHES) else word
        leaf: list[_Template] = node.setdefault(key, [])
        return leaf


def rebuild(template: str, parameters: tuple[str, ...]) -> str:
    """The line again.

    >>> rebuild("sent <*> bytes to <*>", ("7", "eve"))
    'sent 7 bytes to eve'
    """
    pieces = template.split(WILD)
    if len(pieces) != len(parameters) + 1:
        raise SignalError(f"{len(parameters)} parameters for the template {template!r}: wanted {len(pieces) - 1}")
    return pieces[0] + "".join(value + piece for value, piece in zip(parameters, pieces[1:], strict=True))


def _split(line: str) -> tuple[list[str], list[str], list[str]]:
    """The masked line's words, the white space around them (one more), and what was masked."""
    parts = MASK.split(line)
    masked = WILD.join(parts[::2])
    words = masked.split()
    if masked == " ".join(words):
        gaps = ["", *[" "] * (len(words) - 1), ""] if words else [""]
    else:
        spaced = SPACE.split(masked)
        gaps = spaced[1::2]
        if spaced[0]:
            gaps.insert(0, "")
        if spaced[-1] and words:
            gaps.append("")
    return words, gaps, parts[1::2]


def _similar(template: list[str], words: list[str]) -> float:
    """Part of the words that are the template's own, masked ones among them."""
    if not words:
        return 1.0
    same = sum(old == new for old, new in zip(template, words, strict=True))
    return same / len(words)


def _parameters(template: _Template, words: list[str], gaps: list[str], values: list[str]) -> tuple[str, ...]:
    """What stands in the template's places, for a line that is of it."""
    if template.words == words and template.gaps == gaps:
        return tuple(values)
    masked = iter(values)
    found = []
    for n, gap in enumerate(gaps):
        if template.gaps[n] == WILD:
            found.append(gap)
        if n < len(words):
            inside = [next(masked) for _ in range(words[n].count(WILD))]
            found += [rebuild(words[n], tuple(inside))] if template.words[n] == WILD else inside
    return tuple(found)

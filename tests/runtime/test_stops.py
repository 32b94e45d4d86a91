"""Stop strings: the outcome does not depend on how the text is cut, and is that of a plain search."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genmote.errors import SpecError
from genmote.runtime.stops import Stops


def plain_search(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Read the text a character at a time until it ends with a stop string."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return text[: end - len(stop)], stop
    return text, None


@settings(max_examples=400, deadline=None)
@given(
    st.text("ab€", max_size=30),
    st.lists(st.text("ab€", min_size=1, max_size=5), min_size=1, max_size=4),
    st.lists(st.integers(0, 30), max_size=12),
)
def test_cut_anywhere_it_is_the_plain_search(text: str, stops: list[str], cuts: list[int]) -> None:
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    finder = Stops(stops)
    shown = ""
    for start, stop in pairwise(places):
        shown += finder.push(text[start:stop])
        wanted, _ = plain_search(text, stops)
        assert wanted.startswith(shown)  # nothing is shown too early
    shown += finder.flush() if finder.found is None else ""
    assert (shown, finder.found) == plain_search(text, stops)


def test_only_what_may_become_a_stop_string_is_held() -> None:
    finder = Stops(["STOP"])
    assert [finder.push(c) for c in "aSTxST"] == ["a", "", "", "STx", "", ""]
    assert finder.flush() == "ST"


def test_nothing_comes_after_the_stop_string() -> None:
    finder = Stops("x")
    assert finder.push("axb") == "a"
    assert finder.push("more") == "" and finder.flush() == "" and finder.found == "x"


@pytest.mark.parametrize("stop", [[""], [3], ["ok", ""]])
def test_an_empty_stop_string_is_told(stop: list[str]) -> None:
    with pytest.raises(SpecError, match="a stop string is text of at least one character"):
        Stops(stop)

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genmote import spec
from genmote.errors import SpecError
from genmote.spec import build, setting


@dataclass(frozen=True)
class Part:
    package: str
    size: int = 0


@dataclass(frozen=True)
class Settings:
    model: str = spec.setting("a model", positional=True)
    count: int = spec.setting("how many", default=3, short="-n")
    share: float = spec.setting("a share of 100%", default=0.5)
    quiet: bool = spec.setting("say nothing", default=False)
    color: bool = spec.setting("use colours", default=True)
    how: Literal["fast", "exact"] = spec.setting("the way", default="fast")
    stop: tuple[str, ...] = spec.setting("stop strings", default=())
    file: Path | None = spec.setting("a file", default=None)
    parts: tuple[Part, ...] = ()

    def faults(self) -> list[str]:
        return [] if self.count > 0 else [f"count={self.count}, wanted at least 1"]


@dataclass(frozen=True)
class Flags:
    """The same without parts, which have no command line form."""

    model: str = spec.setting("a model", positional=True)
    count: int = spec.setting("how many", default=3, short="-n")
    share: float = spec.setting("a share of 100%", default=0.5)
    quiet: bool = spec.setting("say nothing", default=False)
    color: bool = spec.setting("use colours", default=True)
    how: Literal["fast", "exact"] = spec.setting("the way", default="fast")
    stop: tuple[str, ...] = spec.setting("stop strings", default=())
    file: Path | None = spec.setting("a file", default=None)


def test_every_fault_is_listed_at_once() -> None:
    values = {"count": 2.5, "share": float("nan"), "how": "slow", "quit": True, "parts": [{"size": "big"}], "stop": "x"}
    with pytest.raises(SpecError) as fault:
        spec.build(Settings, values)
    text = str(fault.value)
    assert "\n" not in text
    for wanted in (
        "model is missing, wanted text",
        "count=2.5, wanted a whole number",
        "share=nan, wanted a number",
        "how='slow', wanted one of fast, exact",
        "quit is no setting, did you mean quiet?",
        "parts[0].package is missing",
        "parts[0].size='big', wanted a whole number",
        "stop='x', wanted a list",
    ):
        assert wanted in text


def test_a_class_may_tell_more_about_its_values() -> None:
    with pytest.raises(SpecError, match="Settings: count=0, wanted at least 1"):
        spec.build(Settings, {"model": "m", "count": 0})


def test_a_percentage_above_100_is_no_number() -> None:
    assert (spec.number("50%"), spec.number("100%"), spec.number("300")) == (0.5, 1, 300)
    with pytest.raises(ValueError, match="300%: more than 100%"):
        spec.number("300%")


def test_booleans_are_no_numbers() -> None:
    with pytest.raises(SpecError, match="count=True, wanted a whole number"):
        spec.build(Settings, {"model": "m", "count": True})
    with pytest.raises(SpecError, match="share=True, wanted a number"):
        spec.build(Settings, {"model": "m", "share": True})


text = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=12)


@given(
    st.builds(
        Settings,
        model=text,
        count=st.integers(1, 10**9),
        share=st.floats(allow_nan=False),
        quiet=st.booleans(),
        how=st.sampled_from(["fast", "exact"]),
        stop=st.lists(text, max_size=3).map(tuple),
        file=st.none() | st.just(Path("a/b")),
        parts=st.lists(st.builds(Part, text, st.integers(0, 9)), max_size=3).map(tuple),
    )
)
def test_toml_round_trip(settings: Settings) -> None:
    import tomllib

    assert spec.build(Settings, tomllib.loads(spec.to_toml(settings))) == settings


def test_toml_file_faults(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"absent\.toml: cannot be read .* wanted a TOML file"):
        spec.from_toml(Settings, tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_text("count = = 3")
    with pytest.raises(SpecError, match=r"bad\.toml: not TOML"):
        spec.from_toml(Settings, tmp_path / "bad.toml")
    (tmp_path / "wrong.toml").write_text("count = 'x'\nmodel = 'm'\n")
    with pytest.raises(SpecError, match=r"wrong\.toml: count='x', wanted a whole number"):
        spec.from_toml(Settings, tmp_path / "wrong.toml")


def parse(*words: str) -> Flags:
    parser = argparse.ArgumentParser(prog="test", exit_on_error=False)
    spec.add_flags(parser, Flags)
    return spec.from_flags(Flags, parser.parse_args(words))


def test_flags() -> None:
    assert parse("m") == Flags("m")
    words = "m -n 7 --share 0.25 --quiet --no-color --how exact --stop a --stop b --file x.json".split()
    assert parse(*words) == Flags("m", 7, 0.25, True, False, "exact", ("a", "b"), Path("x.json"))


def test_a_flag_of_many_takes_all_words_up_to_the_next_flag() -> None:
    @dataclass(frozen=True)
    class Files:
        train: tuple[Path, ...] = setting("files", many=True)
        gaps: tuple[int, ...] = setting("rows", default=(8,), many=True)

    parser = argparse.ArgumentParser(prog="test")
    spec.add_flags(parser, Files)
    given = parser.parse_args("--train a b --gaps 1 2 --train c".split())
    assert spec.from_flags(Files, given) == Files((Path("a"), Path("b"), Path("c")), (1, 2))
    assert spec.from_flags(Files, parser.parse_args(["--train", "a"])) == Files((Path("a"),), (8,))


def test_a_wrong_value_does_not_hide_what_the_class_says_of_the_others() -> None:
    @dataclass(frozen=True)
    class Pair:
        low: int = setting("the lower", default=0)
        high: int = setting("the higher", default=9)

        def faults(self) -> list[str]:
            return [f"high={self.high}: wanted at least low={self.low}"] if self.high < self.low else []

    with pytest.raises(SpecError, match="^Pair: low='x', wanted a whole number; high=-1: wanted at least low=0$"):
        build(Pair, {"low": "x", "high": -1})


def test_a_nan_from_the_command_line_is_refused() -> None:
    with pytest.raises(SpecError, match="command line: share=nan, wanted a number"):
        parse("m", "--share", "nan")


def test_help_names_every_setting_with_its_default() -> None:
    parser = argparse.ArgumentParser(prog="test")
    spec.add_flags(parser, Flags)
    shown = parser.format_help()
    assert "--count N" in shown and "(default 3)" in shown and "100%" in shown and "{fast,exact}" in shown

"""Every pre-tokenizer variant cuts words as the `tokenizers` library does with the same expressions."""

from __future__ import annotations

import itertools
import random
import struct
import time
import unicodedata
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genmote.errors import ModelFileError
from genmote.models.tokenizer import core, table, twin
from genmote.models.tokenizer.build import build, byte_alphabet
from genmote.models.tokenizer.pattern import compile_stages
from genmote.models.tokenizer.variants import VARIANTS, Variant, variant
from genmote.models.tokenizer.vocabulary import Vocabulary

DISTINCT: dict[Variant, str] = {}
for _name, _variant in VARIANTS.items():
    DISTINCT.setdefault(_variant, _name)

# What the variants tell apart, more often than chance would bring it.
PIECES = [
    *"'s 'S 're 'RE 'ſ 'LL 'd 'x 123 4567 ١٢٣ हिन्दी Ⅷ ½ 你好 かな カナ Hello World camelCase XMLHttp a/b//c".split(" "),
    *"… 。 ( ) | , :// $x <= ^~ ` #include e\u0301 👨‍👩‍👧 한국어 ǅ ʰ ª ſ Kelvin\u212a ﬁ Ａ！ 𝟘 𐐀".split(" "),
    *(" ", "  ", "   ", "\r\n", "\n\n", "\n", "\t", "\u00a0", "\u3000", "\u2028", "\x85", "\u200c", "\x1c"),
]


def assigned() -> list[str]:
    """Characters of every category that has not changed since Unicode 14, which the library knows too."""
    points = [*range(0x300), *range(0x370, 0x3000, 3), *range(0x3000, 0x30000, 97), 0xE0001, 0xF0000, 0x10FFFD]
    return [chr(point) for point in points if unicodedata.category(chr(point)) not in ("Cs", "Cn")]


CHARACTERS = assigned()
texts = st.lists(st.one_of(st.sampled_from(PIECES), st.sampled_from(CHARACTERS)), max_size=30).map("".join)


def tables(stages: tuple[str, ...]) -> list[Any]:
    """The encoders over a vocabulary of the 256 bytes: the twin, and the native one where it is built."""
    letters = {byte: character.encode() for character, byte in byte_alphabet().items()}
    strings = b"".join(struct.pack("<Q", len(letters[byte])) + letters[byte] for byte in range(256))
    vocabulary = Vocabulary(table.BPE, stages, 0, -1, 256, strings, bytes([table.NORMAL]) * 256, b"", 0, b"")
    memory = np.frombuffer(build(vocabulary, bytes(32)), dtype=np.uint8)
    native = core.native_module()
    return [twin.TokenTable(memory), *([native.TokenTable(memory)] if native else [])]


def words(encoder: Any, text: str) -> list[str]:
    utf8 = text.encode()
    ends = [0, *encoder.split(utf8)]
    return [utf8[start:end].decode() for start, end in itertools.pairwise(ends)]


@pytest.mark.parametrize("name", DISTINCT.values())
def test_variant_is_the_library_s(name: str) -> None:
    from tokenizers import Regex, pre_tokenizers

    stages = VARIANTS[name].stages
    oracle = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(stage), "isolated") for stage in stages])
    encoders = tables(stages)

    @settings(deadline=None, max_examples=120, database=None)
    @given(texts)
    def compare(text: str) -> None:
        wanted = [word for word, _ in oracle.pre_tokenize_str(text)]
        for encoder in encoders:
            assert words(encoder, text) == wanted

    compare()
    rng = random.Random(0)
    for _ in range(100):
        text = "".join(rng.choices(PIECES, k=40))
        wanted = [word for word, _ in oracle.pre_tokenize_str(text)]
        for encoder in encoders:
            assert words(encoder, text) == wanted


@pytest.mark.parametrize("name", DISTINCT.values())
def test_long_runs_take_no_square_time(name: str) -> None:
    """Runs that an expression looks along, and then matches in another way or not at all."""
    encoder = tables(VARIANTS[name].stages)[-1]
    size = 50_000 if core.native_module() else 2_000
    for unit in (" ", "\n", "A", "a", "1", "!", "你", "\u0301", "'", " \n", "Aa", " a"):
        text = unit * (size // len(unit)) + "x1 "
        started = time.perf_counter()
        assert "".join(words(encoder, text)) == text
        assert time.perf_counter() - started < 2


def test_every_character_has_the_class_that_unicode_gives_it() -> None:
    """The atoms of all code points, against the category of each."""
    compiled = compile_stages((r"\p{L}+|\p{N}|[\p{P}\s]+",))
    classes = np.unpackbits(compiled.program[-3 * 8 :].view(np.uint8).reshape(3, 32), axis=1, bitorder="little")
    points = range(0, 0x110000, 7)
    atoms = [compiled.atoms[int(compiled.pages[p >> 8]) * 256 + (p & 255)] if p > 127 else p for p in points]
    for point, atom in zip(points, atoms, strict=True):
        category = unicodedata.category(chr(point))
        space = chr(point).isspace() and point not in range(0x1C, 0x20)
        wanted = [category[0] == "L", category[0] == "N", category[0] == "P" or space]
        assert [bool(row[atom]) for row in classes] == wanted, hex(point)


def test_an_unknown_variant() -> None:
    with pytest.raises(
        ModelFileError, match=r"tokenizer.ggml.pre is 'klingon': genmote knows a\.x-4\.0, .*, viking; take"
    ):
        variant("klingon")

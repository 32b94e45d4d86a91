"""Pre-tokenizer variants as data: how each family of byte-level BPE cuts a text into words before it merges.

A variant is one or more regular expressions, applied one after the other: each cuts every piece that the one before
left into its matches and the stretches between them. The expressions are the published definitions of the models'
tokenizers, in the small syntax that `genmote.models.tokenizer.pattern` knows. ``tokenizer.ggml.pre`` of a GGUF file
names one.
"""

from __future__ import annotations

from dataclasses import dataclass

from genmote.errors import ModelFileError

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BREAKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"

# Radford et al. 2019 (GPT-2). Only lower-case English contractions, a space stays with the word after it.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# OpenAI cl100k_base and its descendants: Llama 3 keeps digits in threes, Qwen2 one by one.
_LLAMA3 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_BREAKS}"
_QWEN2 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_BREAKS}"
_QWEN35 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_BREAKS}"
)
# OpenAI o200k_base cuts before a capital; Mistral's Tekken is the same without contractions.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_BREAKS}"
)
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_BREAKS}"
)
# DeepSeek: cased letters as the first release spelt them out, and CJK runs of their own.
_CASED = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ"
    "-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-"
    "ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
_CJK = "[一-龥\u0800-一가-\ud7ff]+"
_ASCII_PUNCTUATION = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]\^_`{|}~]"
_DEEPSEEK3 = (
    rf"{_ASCII_PUNCTUATION}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_BREAKS}"
)
_BAILING = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
_SEED = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_BREAKS}"
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"


@dataclass(frozen=True)
class Variant:
    """How one family of tokenizers cuts words, and what it does when the file does not say."""

    stages: tuple[str, ...]  # regular expressions, applied one after the other
    ignore_merges: bool = False  # a word that is a token as it stands is taken without merging
    add_bos: bool = False  # the beginning-of-text token, where the file has no add_bos_token


_VARIANTS: dict[str, Variant] = {
    "default jais-2": Variant((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "gpt-2 mpt olmo jais phi-2 gigachat jina-es jina-de jina-v1-en jina-v2-es jina-v2-de jina-v2-code roberta-bpe "
    "exaone4 a.x-4.0 mellum trillion granite-docling modern-bert": Variant((_GPT2,)),
    "smollm starcoder refact command-r codeshell exaone minerva-7b": Variant((r"\p{N}", _GPT2)),
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2": Variant((_LLAMA3,), True, True),
    "dbrx smaug-bpe chatglm-bpe glm4": Variant((_LLAMA3,)),
    "qwen2 stablelm2 deepseek-r1-qwen megrez kormo hunyuan": Variant((_QWEN2,)),
    "qwen35": Variant((_QWEN35,)),
    "gpt-4o llama4 kanana2": Variant((_O200K,)),
    "tekken": Variant((_TEKKEN,), True, True),
    "deepseek-llm": Variant(
        ("[\r\n]", rf"\s?[{_CASED}]+", "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+", r"\s+$", _CJK, r"\p{N}+"),
    ),
    "deepseek-coder": Variant((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")),
    "deepseek-v3 hunyuan-dense": Variant((r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", _DEEPSEEK3)),
    "falcon": Variant((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    "poro-chat bloom gpt3-finnish": Variant((_BLOOM,)),
    "viking": Variant((_BLOOM, r"\p{N}")),
    "bailingmoe bailingmoe2 llada-moe": Variant((_BAILING,)),
    "seed-coder": Variant((_SEED,)),
}
VARIANTS: dict[str, Variant] = {name: variant for names, variant in _VARIANTS.items() for name in names.split()}


def variant(name: str) -> Variant:
    """The variant that ``tokenizer.ggml.pre`` names. Raises `ModelFileError` for a name that is not known.

    >>> variant("smollm").stages[0]
    '\\\\p{N}'
    """
    if name not in VARIANTS:
        raise ModelFileError(
            f"tokenizer.ggml.pre is {name!r}: genmote knows {', '.join(sorted(VARIANTS))}; "
            "take a file of a model that uses one of them"
        )
    return VARIANTS[name]

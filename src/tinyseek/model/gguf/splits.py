"""How text is cut before merging: llama.cpp knows it by names (`tokenizer.ggml.pre`), a tokenizer.json by expressions.

Reading, a name becomes its expressions. Writing, the name is *found*: the tokenizer's own merges run behind each name's
expressions on texts that were made to tell them apart, and the name with the same ids is taken. So a tokenizer of one's own gets a
name whenever one will do: ours takes digits one by one where "deepseek-v3" takes them in threes, yet no merge of ours joins digits,
so the ids are the same.
Source: the tokenizer.json of the models that the names are called after; llm_tokenizer_bpe in llama-vocab.cpp of llama.cpp.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import Regex, pre_tokenizers

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT4 = (
    _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # how many digits
)
# DeepSeek's first tokenizer lists the letters that have case one by one.
_CASED = (
    "[A-Za-z"
    "µÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴ"
    "ᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-"
    "𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
    "]"
)
_HAN = "[一-龥ࠀ-一가-퟿]+"


@dataclass(frozen=True)
class Split:
    """The expressions behind a name; each in turn cuts what those before it left whole."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False  # a piece that is a token is that token, whatever the merges say
    nfc: bool = False  # the models of this name normalise text first; llama.cpp does not

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns]
        return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


SPLITS: dict[str, Split] = {
    "deepseek-v3": Split(
        (
            r"\p{N}{1,3}",
            "[一-龥\u3040-\u309f\u30a0-\u30ff]+",
            r"[!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )
    ),
    "gpt-2": Split((_GPT2,)),
    "smollm": Split((r"\p{N}", _GPT2)),
    "qwen2": Split((_GPT4 % r"\p{N}",), nfc=True),
    "llama-bpe": Split((_GPT4 % r"\p{N}{1,3}",), ignore_merges=True),
    "smaug-bpe": Split((_GPT4 % r"\p{N}{1,3}",)),
    "deepseek-llm": Split((r"[\r\n]", rf"\s?{_CASED}+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", _HAN, r"\p{N}+")),
    "deepseek-coder": Split((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN, r"\p{N}")),
    "default": Split(
        (
            r"[\p{P}\$\+<=>\^~\|]+",
            r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
            r"\p{N}+",
            "[0-9][0-9][0-9]",
        )
    ),
}
# Names that llama.cpp reads as another one of the table.
ALIASES = {
    "": "default",
    "deepseek-r1-qwen": "qwen2",
    "megrez": "qwen2",
    "hunyuan": "qwen2",
    "stablelm2": "qwen2",
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "falcon3": "llama-bpe",
    "pixtral": "llama-bpe",
    "dbrx": "smaug-bpe",
    "starcoder": "smollm",
    "refact": "smollm",
    "command-r": "smollm",
    "codeshell": "smollm",
    "exaone": "smollm",
    "minerva-7b": "smollm",
    "phi-2": "gpt-2",
    "mpt": "gpt-2",
    "olmo": "gpt-2",
    "jais": "gpt-2",
    "trillion": "gpt-2",
}


@dataclass(frozen=True)
class Match:
    """The name that cuts most like a tokenizer, and how often it did not on the texts tried."""

    name: str
    tried: int
    differ: int  # texts that got other ids
    example: str = ""  # the shortest of them


def find_split(rust: tokenizers.Tokenizer, texts: Sequence[str] | None = None) -> Match:
    """The name under which llama.cpp will give this byte-level BPE's ids.

    Args:
        rust: the tokenizer; its normaliser and control tokens are left out, as neither is a matter of cutting.
        texts: what to try; `probes()` by default.
    """
    texts = list(probes() if texts is None else texts)
    ignoring = bool(json.loads(rust.to_str())["model"].get("ignore_merges"))
    own = tokenizers.Tokenizer(rust.model)
    own.pre_tokenizer = rust.pre_tokenizer
    wanted = own.encode_batch_fast(texts, add_special_tokens=False)
    pieces = [_pieces(own, text) for text in texts]
    best: tuple[int, int, Match] | None = None
    for name, split in SPLITS.items():
        if split.ignore_merges != ignoring:
            continue
        own.pre_tokenizer = split.pre_tokenizer()
        got = own.encode_batch_fast(texts, add_special_tokens=False)
        wrong = [text for text, here, there in zip(texts, wanted, got, strict=True) if here.ids != there.ids]
        if best is not None and len(wrong) > best[0]:
            continue
        cut = sum(_pieces(own, text) != there for text, there in zip(texts, pieces, strict=True))
        if best is None or (len(wrong), cut) < best[:2]:
            best = len(wrong), cut, Match(name, len(texts), len(wrong), min(wrong, key=len, default=""))
        if best[:2] == (0, 0):
            break
    assert best is not None
    return best[2]


def _pieces(rust: tokenizers.Tokenizer, text: str) -> list[Any]:
    return [piece for piece, _ in rust.pre_tokenizer.pre_tokenize_str(text)] if rust.pre_tokenizer else [text]


_WORDS = (
    *(
        "The world",
        "isn't",
        "We'll",
        "THEY'RE",
        "o'clock",
        "'s",
        "camelCase",
        "snake_case",
        "naïve",
        "Übergröße",
        "ﬁn",
        "I'VE",
    ),
    *("Привет", "Ελλάδα", "שלום", "مرحبا", "नमस्ते", "កាន់តែ", "ไทย", "한국어", "საქართველო", "ǅ", "ß", "µ", "ʕ"),
    *(
        "中文",
        "世界你好",
        "㐀㐁",
        "𠀀",
        "々",
        "〇",
        "コーヒー",
        "ひらがな",
        "ｶﾅ",
        "ー",
        "漢字かな交じり",
        "第3章",
        "、。",
        "「引用」",
    ),
    *("0", "7", "42", "123", "2024", "1234567", "3.14", "1,000", "٣٤", "²³", "Ⅷ", "½", "１２", "४"),
    *(
        "!",
        "?!",
        "...",
        "--",
        "=>",
        "!=",
        "#include",
        "$100",
        "a+b",
        "x^2",
        "@me",
        "`code`",
        "~",
        "|",
        "<b>",
        "{}",
        "[0]",
        "\\n",
    ),
    *(
        "🚀",
        "👩‍👩‍👧",
        "é",
        "e\u0301",
        "\u200b",
        "\u00a0",
        "\u3000",
        "…",
        "“quote”",
        "‘it’s’",
        "—",
        "€",
        "★",
        "№",
        "。！？",
    ),
)
_GAPS = ("", "", " ", " ", " ", "  ", "   ", "\t", "\n", "\n\n", " \n", "\r\n", "\n ", " \t ", "    ")


def probes(count: int = 600, seed: int = 0) -> list[str]:
    """Texts of many scripts, digits, signs and gaps in every order: where two ways to cut differ, some of these show it."""
    draw = random.Random(seed)
    texts = [f"{left}{gap}{right}" for left in _WORDS[::3] for gap in ("", " ", "\n") for right in _WORDS[::5]]
    for _ in range(count):
        words = (draw.choice(_WORDS) + draw.choice(_GAPS) for _ in range(draw.randint(1, 12)))
        texts.append(draw.choice(_GAPS) + "".join(words))
    return texts

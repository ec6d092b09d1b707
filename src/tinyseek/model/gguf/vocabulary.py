"""A file's tokens as the files that a Hugging Face folder keeps them in, and back. Byte-level BPE ("gpt2") alone.

GGUF gives each token a type: normal, control (hidden in answers), user-defined (shown, yet never cut), unused (fills up the rows of
the embedding). In a tokenizer.json these are the vocabulary, added tokens flagged special, added tokens that are not, and nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from tinyseek.artifact import write_text
from tinyseek.errors import UserError
from tinyseek.model.gguf.container import Reader, i32s, u32
from tinyseek.model.gguf.splits import ALIASES, SPLITS, Split, find_split
from tinyseek.text.tokenizer import Tokenizer

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_FILLER = re.compile(r"\[PAD\d+\]|<\|?(unused|reserved|dummy|extra)[\w ]*\d+\|?>")
_ENDS_TURN = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
)  # llama.cpp ends answers at these too
_ROLES = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}  # ours: GGUF's, before _token_id
# Texts of the tokens that surround a hole to fill in, by GGUF's key.
_FILL_IN = {
    "fim_pre": ("<｜fim▁begin｜>", "<|fim_prefix|>", "<fim_prefix>"),
    "fim_suf": ("<｜fim▁hole｜>", "<|fim_suffix|>", "<fim_suffix>"),
    "fim_mid": ("<｜fim▁end｜>", "<|fim_middle|>", "<fim_middle>"),
}


# ---- reading ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Vocabulary:
    """What a file says of its tokens."""

    spec: dict[str, Any]  # tokenizer.json
    config: dict[str, Any]  # tokenizer_config.json
    template: str | None
    bos_id: int | None
    eos_ids: list[int] = field(default_factory=list)  # all that end an answer, the end token first

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
        config = self.config | ({"chat_template": self.template} if self.template is not None else {})
        write_text(folder / "tokenizer.json", json.dumps(self.spec, ensure_ascii=False, indent=1))
        write_text(folder / "tokenizer_config.json", json.dumps(config, ensure_ascii=False, indent=2) + "\n")
        if self.template is not None:
            write_text(folder / "chat_template.jinja", self.template)


def vocabulary_from_gguf(reader: Reader, say: Callable[[str], None]) -> Vocabulary:
    """The tokenizer of an open file.

    Args:
        say: is told what had to be guessed.
    Raises:
        UserError: another kind of tokenizer than byte-level BPE, or lists that do not fit together.
    """
    kind = reader.metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        what = {"llama": "a SentencePiece", "bert": "a WordPiece", "t5": "a Unigram", None: "no"}.get(
            kind, f'a "{kind}"'
        )
        raise UserError(
            f"{reader.path}: has {what} tokenizer; tinyseek reads byte-level BPE (Llama 3, Qwen, DeepSeek, SmolLM). Pull the "
            "model's own Hugging Face folder instead, if its tokenizer is one"
        )
    tokens, types, merges = _lists(reader)
    vocabulary: dict[str, int] = {}
    added = []
    for index, (text, token_type) in enumerate(zip(tokens, types, strict=True)):
        if token_type == _UNUSED and _FILLER.fullmatch(text):
            continue
        if text in vocabulary:
            raise UserError(
                f'{reader.path}: the token "{text}" stands in its list twice ({vocabulary[text]} and {index})'
            )
        vocabulary[text] = index
        if token_type in (_CONTROL, _USER_DEFINED):
            flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
            added.append({"id": index, "content": text, **flags, "special": token_type == _CONTROL})
    name, split = _split_of(reader, say)
    cuts = [{"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False} for p in split.patterns]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    spec: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if split.nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*cuts, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": split.ignore_merges,
            "vocab": vocabulary,
            "merges": _pairs(reader, merges),
        },
    }
    return _with_roles(reader, name, tokens, spec)


def _lists(reader: Reader) -> tuple[list[str], list[int], list[str]]:
    """Tokens, their types, merges: of the right kinds and lengths."""
    found = []
    for name in ("tokens", "merges"):
        value = reader.metadata.get(f"tokenizer.ggml.{name}")
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise UserError(
                f"{reader.path}: tokenizer.ggml.{name} is {'missing' if value is None else 'no list of text'}"
            )
        found.append(value)
    tokens, merges = found
    types = reader.metadata.get("tokenizer.ggml.token_type")
    if types is None:
        return tokens, [_NORMAL] * len(tokens), merges
    if not isinstance(types, np.ndarray) or types.size != len(tokens):
        raise UserError(
            f"{reader.path}: tokenizer.ggml.token_type does not have one number for each of {len(tokens)} tokens"
        )
    rows = reader.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in reader.tensors else len(tokens)
    if len(tokens) > rows:
        raise UserError(f"{reader.path}: {len(tokens)} tokens, but the embedding has only {rows} rows")
    return tokens, types.tolist(), merges


def _pairs(reader: Reader, merges: list[str]) -> list[list[str]]:
    """ "Ġ t" to ["Ġ", "t"]. The first character is never the space between the two."""
    out = []
    for merge in merges:
        at = merge.find(" ", 1)
        if at < 0:
            raise UserError(f'{reader.path}: "{merge}" in tokenizer.ggml.merges is no pair')
        out.append([merge[:at], merge[at + 1 :]])
    return out


def _split_of(reader: Reader, say: Callable[[str], None]) -> tuple[str, Split]:
    name = reader.metadata.get("tokenizer.ggml.pre", "")
    known = ALIASES.get(name, name) if isinstance(name, str) else ""
    if known not in SPLITS:
        raise UserError(
            f'{reader.path}: cuts text in a way called "{name}", which tinyseek does not know; known are {", ".join(SPLITS)}'
        )
    if known == "default":
        say(
            f"{reader.path}: does not say how its tokenizer cuts text; llama.cpp's default is used, and answers may suffer"
        )
    return known, SPLITS[known]


def _with_roles(reader: Reader, name: str, tokens: list[str], spec: dict[str, Any]) -> Vocabulary:
    """Begin, end and padding tokens, whether the begin token is put before texts, and the template."""
    metadata = reader.metadata

    def index_of(role: str) -> int | None:
        index = metadata.get(f"tokenizer.ggml.{role}_token_id")
        if not isinstance(index, int) or not 0 <= index < len(tokens):
            return None
        return index if spec["model"]["vocab"].get(tokens[index]) == index else None

    ids = {role: index_of(theirs) for role, theirs in _ROLES.items()}
    ends = [index_of("eos"), index_of("eot"), index_of("eom")]
    ends += [
        spec["model"]["vocab"].get(text) for text in _ENDS_TURN if text in {t["content"] for t in spec["added_tokens"]}
    ]
    begins = metadata.get("tokenizer.ggml.add_bos_token")
    begins = name == "llama-bpe" if not isinstance(begins, bool) else begins
    template = metadata.get("tokenizer.chat_template")
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": begins,
        **{f"{role}_token": tokens[index] for role, index in ids.items() if index is not None},
    }
    context = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    if isinstance(context, int):
        config["model_max_length"] = context
    bos = ids["bos"]
    if begins and bos is not None:
        spec["post_processor"] = _prefixing(tokens[bos], bos)
    ordered = list(dict.fromkeys(index for index in ends if index is not None))
    return Vocabulary(spec, config, template if isinstance(template, str) else None, bos, ordered)


def _prefixing(text: str, index: int) -> dict[str, Any]:
    """The tokenizer.json's way to put a token before every text."""
    first = {"SpecialToken": {"id": text, "type_id": 0}}
    parts = [{"Sequence": {"id": letter, "type_id": number}} for number, letter in enumerate("AB")]
    known = {text: {"id": text, "ids": [index], "tokens": [text]}}
    return {"type": "TemplateProcessing", "single": [first, parts[0]], "pair": [first, *parts], "special_tokens": known}


def check_vocabulary(vocabulary: Vocabulary, where: Path) -> None:
    """Build the tokenizer once.

    Raises:
        UserError: the library refuses it: a merge of tokens that there are not, for example.
    """
    try:
        tokenizers.Tokenizer.from_str(json.dumps(vocabulary.spec, ensure_ascii=False))
    except Exception as error:  # the library raises a bare Exception for whatever it cannot use
        raise UserError(f"{where}: its tokenizer does not fit together ({error})") from None


# ---- writing ---------------------------------------------------------------------------------------------------------------------


def keys_from_tokenizer(folder: Path, rows: int, say: Callable[[str], None]) -> dict[str, Any]:
    """The keys of a folder's tokenizer.

    Args:
        rows: of the embedding; tokens that are missing up to there are filled in as unused.
        say: is told where llama.cpp will cut text in another way.
    Raises:
        UserError: no tokenizer in the folder, or one with more tokens than the model has rows.
    """
    tokenizer = Tokenizer.load(folder)
    if tokenizer.vocab_size > rows:
        raise UserError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size} tokens, its model {rows}: they do not belong together"
        )
    spec = json.loads(tokenizer._rust.to_str())
    tokens = [f"[PAD{index}]" for index in range(rows)]
    types = [_UNUSED] * rows
    for text, index in spec["model"]["vocab"].items():
        tokens[index], types[index] = text, _NORMAL
    for token in spec["added_tokens"]:
        tokens[token["id"]] = token["content"]
        types[token["id"]] = _CONTROL if token["special"] else _USER_DEFINED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in spec["model"]["merges"]]
    match = find_split(tokenizer._rust)
    if match.differ:
        say(
            f'llama.cpp knows no way to cut text quite like this tokenizer; "{match.name}" comes closest: {match.differ} of '
            f"{match.tried} trying texts get other tokens there, the shortest is {match.example!r}"
        )
    config = _read(folder / "tokenizer_config.json")
    keys: dict[str, Any] = {
        "model": "gpt2",
        "pre": match.name,
        "tokens": tokens,
        "token_type": i32s(types),
        "merges": merges,
        "bos_token_id": u32(tokenizer.bos_id),
        "eos_token_id": u32(tokenizer.eos_id),
        "padding_token_id": u32(tokenizer.pad_id),
        "add_bos_token": begins_with_bos(tokenizer, config),
        "add_space_prefix": False,
    }
    others = sorted(tokenizer.stop_ids - {tokenizer.eos_id})
    if others:
        keys["eot_token_id"] = u32(others[0])
    for role, texts in _FILL_IN.items():
        index = next((tokenizer.controls[text] for text in texts if text in tokenizer.controls), None)
        if index is not None:
            keys[f"{role}_token_id"] = u32(index)
    out = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    if tokenizer.chat_template is not None:
        out["tokenizer.chat_template"] = plain_template(tokenizer.chat_template)
    return out


def begins_with_bos(tokenizer: Tokenizer, config: Mapping[str, Any]) -> bool:
    """Whether texts begin with the begin token: said so, done so by the tokenizer itself, or written so by the chat template."""
    said = config.get("add_bos_token")
    if isinstance(said, bool):
        return said
    if tokenizer._rust.encode("a").ids[:1] == [tokenizer.bos_id]:
        return True
    return "bos_token" in (tokenizer.chat_template or "")


def plain_template(template: str) -> str:
    """A template without `{% generation %}`, which not every reader of templates knows; the trimming of spaces stays as it was."""
    opened = re.sub(r"\{%(-?)\s*generation\s*(-?)%\}", r"{%\1 if true \2%}", template)
    return re.sub(r"\{%(-?)\s*endgeneration\s*(-?)%\}", r"{%\1 endif \2%}", opened)


def _read(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}

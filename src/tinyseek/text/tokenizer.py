"""The Tokenizer that all else uses: text to ids and back, by the Rust library, with DeepSeek's special tokens.

Two habits make it safe. Text is text: `<｜User｜>` typed by a user is letters, not a control token, unless `specials=True` says
that the text was written by us. And bytes are exact: `token_bytes` and the stream decoder know a token by its bytes, so that half
of a Chinese character is never shown and always counted.

`bpe.py` is the same algorithm in plain Python.
"""

from __future__ import annotations

import codecs
import heapq
import json
import random
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import tokenizers
from pydantic import Field, field_validator
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from tinyseek import artifact
from tinyseek.errors import UserError
from tinyseek.settings import StageSettings, taken_from
from tinyseek.text import chat, download
from tinyseek.text.bpe import CHAR_TO_BYTE, PATTERNS

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
# The ids of our own tokenizers: these from 0, then the bytes, then the merges. True: flagged "special", so that readers who skip
# special tokens drop it. As in DeepSeek's own tokenizer, reasoning and tool calls are not flagged: they carry meaning to a parser.
SPECIALS: dict[str, bool] = {
    BOS: True,
    EOS: True,
    PAD: True,
    "<｜User｜>": True,
    "<｜Assistant｜>": True,
    "<think>": False,
    "</think>": False,
    "<｜fim▁begin｜>": True,
    "<｜fim▁hole｜>": True,
    "<｜fim▁end｜>": True,
    "<｜tool▁calls▁begin｜>": False,
    "<｜tool▁calls▁end｜>": False,
    "<｜tool▁call▁begin｜>": False,
    "<｜tool▁call▁end｜>": False,
    "<｜tool▁outputs▁begin｜>": False,
    "<｜tool▁outputs▁end｜>": False,
    "<｜tool▁output▁begin｜>": False,
    "<｜tool▁output▁end｜>": False,
    "<｜tool▁sep｜>": False,
}
SMALLEST_VOCABULARY = 256 + len(SPECIALS)

_BATCH_CHARS = 1 << 19  # what the Rust side encodes at once: its own records of a text are some fifty times the text
_CHUNK_CHARS = 1 << 16  # a longer text is cut into such chunks where a cut cannot be seen in the ids
_SAFE_CUT = re.compile(
    r"(?<=[^\W\d_]\n)(?=[^\W\d_])"
)  # a line end between two letters is a piece of its own in every pattern
_SURROGATE = re.compile("[\ud800-\udfff]")


class TokenizerSettings(StageSettings):
    """Train a byte-level BPE tokenizer on cleaned documents and on the words of conversations."""

    data: list[str] = taken_from(["data"], "what to train on: data stages, tasks stages, or folders with a train.jsonl")
    vocab_size: int = Field(
        4096, le=1 << 20, description=f"tokens, at least {SMALLEST_VOCABULARY}: the bytes and the special tokens"
    )
    pattern: Literal["deepseek", "gpt2"] = Field(
        "deepseek",
        description="how text is cut before merging; deepseek: digits one by one, Chinese runs by themselves",
    )
    sample_mb: float = Field(
        8.0,
        gt=0,
        description="megabytes of text to train on, drawn evenly from all; Chinese takes about 80 MB of memory each",
    )
    seed: int = Field(0, ge=0, description="of the sample")

    @field_validator("vocab_size")
    @classmethod
    def _holds_the_bytes(cls, vocab_size: int) -> int:
        if vocab_size < SMALLEST_VOCABULARY:
            raise UserError(
                f"vocab_size={vocab_size} is too small: 256 bytes and {len(SPECIALS)} special tokens need "
                f"{SMALLEST_VOCABULARY} at least"
            )
        return vocab_size


class StreamDecoder:
    """Ids to text as they arrive; the pieces joined are `decode` of all the ids.

    The bytes of a character that is not complete are held back until it is.
    """

    def __init__(self, tokenizer: Tokenizer, skip_specials: bool) -> None:
        self._table = tokenizer._bytes if skip_specials else tokenizer._shown_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, index: int) -> str:
        """The text that the token `index` completes; "" while a character is still open."""
        return self._decoder.decode(self._table.get(index, b""))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that never was completed."""
        return self._decoder.decode(b"", final=True)


class Tokenizer:
    """A byte-level BPE vocabulary with control tokens and, if it is one for chat, a template."""

    def __init__(
        self,
        rust: tokenizers.Tokenizer,
        config: Mapping[str, Any],
        chat_template: str | None,
        also_stop: Iterable[int] = (),
    ) -> None:
        """Use `train` or `load`.

        Args:
            rust: the Rust library's tokenizer.
            config: tokenizer_config.json.
            chat_template: Jinja.
            also_stop: ids that end an answer beside the end token.
        """
        rust.no_padding()
        rust.no_truncation()
        self._rust = rust
        self._config = dict(config)
        self.chat_template = chat_template
        added = rust.get_added_tokens_decoder()
        self._added = {index: token.content for index, token in added.items()}
        self._skipped = {index for index, token in added.items() if token.special}
        # Some vocabularies (GPT-NeoX's) add runs of spaces as tokens: those are text, all others are control tokens.
        self.controls: dict[str, int] = {text: index for index, text in self._added.items() if text.strip()}
        self.vocab_size: int = max(rust.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        eos = self._role("eos", EOS, "<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "</s>")
        if eos is None:
            raise UserError("the tokenizer has no end token; name its eos_token in tokenizer_config.json")
        bos = self._role("bos", BOS, "<|begin_of_text|>", "<s>")
        pad = self._role("pad", PAD, "<|endoftext|>")
        self.eos_id: int = eos
        self.bos_id: int = eos if bos is None else bos
        self.pad_id: int = eos if pad is None else pad
        self.stop_ids: set[int] = {eos, *also_stop}

    @property
    def begin_ids(self) -> list[int]:
        """What stands before a plain text: the begin token, for tokenizers whose models learnt to see one there.

        Qwen's and GPT-2's models have none; in ChatML's the token so named opens a turn.
        """
        begins = map(self.token_id, (BOS, "<|begin_of_text|>", "<s>"))
        return [self.bos_id] if self.bos_id in begins else []

    def _role(self, role: str, *usual: str) -> int | None:
        """The id of the bos, eos or pad token: what the configuration names, else the first of the usual ones there is."""
        named = self._config.get(f"{role}_token", usual)
        names = [named.get("content") if isinstance(named, dict) else named] if not isinstance(named, tuple) else named
        found = (self.token_id(name) for name in names if isinstance(name, str))
        return next((index for index in found if index is not None), None)

    # ---- making, reading, writing ----

    @staticmethod
    def train(texts: Iterable[str], settings: TokenizerSettings) -> Tokenizer:
        """Learn a vocabulary from an even sample of `texts`, of at most `settings.sample_mb`.

        The vocabulary comes out smaller than asked for where the text runs out of pairs.

        Raises:
            UserError: no text.
        """
        return _train(_sample(texts, settings), settings)

    @staticmethod
    def load(folder: str | Path) -> Tokenizer:
        """Read a folder of ours, or any published one with a byte-level BPE (GPT-2, Qwen, DeepSeek, Llama 3, ...).

        tokenizer.json is enough; vocab.json with merges.txt is read as GPT-2's.

        Raises:
            UserError: missing, damaged, or of another kind.
        """
        path = Path(folder)
        if not path.exists():
            raise UserError(f"{path}: no such folder; give one that a tokenizer was saved in")
        file = path / "tokenizer.json" if path.is_dir() else path
        folder = file.parent
        if path.is_dir() and not file.is_file() and (base := _base_of_adapter(path)) is not None:
            return Tokenizer.load(base)
        config = _read_json(folder / "tokenizer_config.json")
        if file.is_file():
            rust = _read_rust(file)
        elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            rust = _read_gpt2(folder, config)
        else:
            raise UserError(f"{folder}: no tokenizer.json in it; give a folder that a tokenizer was saved in")
        if not isinstance(rust.model, models.BPE) or not isinstance(rust.decoder, decoders.ByteLevel):
            kind = type(rust.model).__name__
            raise UserError(
                f"{file}: a {kind} tokenizer; tinyseek reads byte-level BPE (GPT-2, Qwen, DeepSeek, Llama 3)"
            )
        stops = _read_json(folder / "generation_config.json").get("eos_token_id")
        try:
            return Tokenizer(
                rust,
                config,
                _read_template(folder, config),
                [index for index in (stops if isinstance(stops, list) else [stops]) if isinstance(index, int)],
            )
        except UserError as error:
            raise UserError(f"{folder}: {error}") from None

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and chat_template.jinja, as transformers 4 and 5 read them.

        Raises:
            UserError: the folder cannot be written.
        """
        folder = Path(folder)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False} | self._config
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template  # where transformers 4 looks; 5 prefers the file
        try:
            folder.mkdir(parents=True, exist_ok=True)
            artifact.write_text(folder / "tokenizer.json", self._rust.to_str(pretty=True))
            if self.chat_template is not None:
                artifact.write_text(folder / "chat_template.jinja", self.chat_template)
            text = json.dumps(config, ensure_ascii=False, indent=2)
            artifact.write_text(folder / "tokenizer_config.json", text + "\n")
        except OSError as error:
            raise UserError(f"{error.filename or folder}: cannot be written ({error.strerror})") from None

    def for_whole_texts(self, begin_of_itself: bool = True) -> Tokenizer:
        """The same tokenizer as other programs should find it beside a model that reads texts as a whole. Nothing changes here.

        There is a token to pad with, and a text gets its `begin_ids` of itself; not so for conversations, whose template has them.
        """
        rust = tokenizers.Tokenizer.from_str(self._rust.to_str())
        begin = self.begin_ids if begin_of_itself else []
        if begin and rust.encode("a").ids[: len(begin)] != begin:
            text = self._added[begin[0]]
            adds = processors.TemplateProcessing(
                single=f"{text} $A", pair=f"{text} $A {text} $B:1", special_tokens=[(text, begin[0])]
            )
            before = rust.post_processor
            rust.post_processor = adds if before is None else processors.Sequence([before, adds])
        config = dict(self._config)
        if not config.get("pad_token"):
            config["pad_token"] = self._added[self.pad_id]
        return Tokenizer(rust, config, self.chat_template, self.stop_ids)

    # ---- text to ids ----

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        """Ids of `text`. Nothing is added at its ends.

        Args:
            text: any string; lone surrogates, which no UTF-8 can hold, become U+FFFD.
            specials: read control tokens written in `text` as such. Only for text that we wrote ourselves.
        """
        if len(text) > _CHUNK_CHARS:
            return self.encode_batch([text], specials=specials)[0]
        rust = self._rust if specials else self._plain
        try:
            return rust.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError):
            return rust.encode(_mended(text), add_special_tokens=False).ids

    def encode_published(self, text: str) -> list[int]:
        """Ids as transformers gives them: control tokens in the text are read as such, and what the published tokenizer.json puts
        at the ends (Llama's begin token) is there. Only for text that we wrote ourselves."""
        return self._rust.encode(_mended(text)).ids

    def encode_batch(self, texts: Iterable[str], *, specials: bool = False) -> list[list[int]]:
        """`encode` of each text, on all cores, in bounded memory."""
        rust = self._rust if specials else self._plain
        results: list[list[int]] = []
        chunks: list[tuple[int, str]] = []  # which text, a part of it

        def flush() -> None:
            parts = [part for _, part in chunks]
            try:
                encoded = rust.encode_batch_fast(parts, add_special_tokens=False)
            except (TypeError, UnicodeEncodeError):
                encoded = rust.encode_batch_fast(list(map(_mended, parts)), add_special_tokens=False)
            for (index, _), encoding in zip(chunks, encoded, strict=True):
                results[index] += encoding.ids
            chunks.clear()

        waiting = 0
        for text in texts:
            results.append([])
            for part in _chunks(text) if not specials and self._cuts_unseen else [text]:
                chunks.append((len(results) - 1, part))
                waiting += len(part)
                if waiting >= _BATCH_CHARS:
                    flush()
                    waiting = 0
        flush()
        return results

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """The same tokenizer without its control tokens: whatever the text says, none of their ids can come out.

        The library's own switch (`encode_special_tokens`) is not enough: it leaves added tokens that are not flagged special, as
        DeepSeek's `<｜User｜>`, in force. A vocabulary can also hold a control token's text as an ordinary entry, which merges
        could reach; entry and merges go too.
        """
        entries = self._rust.get_vocab(with_added_tokens=False)
        reachable = any(text in entries and CHAR_TO_BYTE.keys() >= set(text) for text in self.controls)
        if not reachable and len(self.controls) == len(
            self._added
        ):  # the usual published one: its model will do as it is
            plain = tokenizers.Tokenizer(self._rust.model)
            plain.pre_tokenizer = self._rust.pre_tokenizer
            if self._rust.normalizer is not None:
                plain.normalizer = self._rust.normalizer
            return plain
        spec = json.loads(self._rust.to_str())
        model = spec["model"]
        kept = [token for token in spec["added_tokens"] if token["content"] not in self.controls]
        model["vocab"] = {text: index for text, index in model["vocab"].items() if text not in self.controls}
        model["vocab"] |= {token["content"]: token["id"] for token in kept}
        pairs = [merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"]]
        model["merges"] = [pair for pair in pairs if not {*pair, "".join(pair)} & self.controls.keys()]
        spec["added_tokens"] = kept
        spec["post_processor"] = None
        return tokenizers.Tokenizer.from_str(json.dumps(spec, ensure_ascii=False))

    @cached_property
    def _cuts_unseen(self) -> bool:
        """Whether a long text may be encoded in chunks: not where the tokenizer adds a space before a text, or trims it."""
        left, right = "ab\n", "cd"
        return self.encode(left) + self.encode(right) == self.encode(left + right)

    @cached_property
    def controls_pattern(self) -> re.Pattern[str]:
        """Matches a control token, the longest where two begin at one place."""
        texts = sorted(self.controls, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts)) or r"(?!)")

    @cached_property
    def control_starts(self) -> re.Pattern[str]:
        """Matches the first character of every control token, also of one that begins inside another."""
        return re.compile(f"(?=(?:{self.controls_pattern.pattern}))(?s:.)")

    # ---- ids to text ----

    @cached_property
    def _shown_bytes(self) -> dict[int, bytes]:
        """Bytes of every id, control tokens as they are written."""
        return {
            index: bytes(map(CHAR_TO_BYTE.__getitem__, token)) if CHAR_TO_BYTE.keys() >= set(token) else token.encode()
            for token, index in self._rust.get_vocab(with_added_tokens=False).items()
        } | {index: text.encode() for index, text in self._added.items()}

    @cached_property
    def _bytes(self) -> dict[int, bytes]:
        """Bytes of every id, none for the special tokens."""
        return self._shown_bytes | dict.fromkeys(self._skipped, b"")

    def token_bytes(self, index: int) -> bytes:
        """The bytes that a token adds to the text, perhaps only a part of a character; b"" for a special or unknown one.

        Joined over the ids of a text they are its UTF-8 (`decode(ids, skip_specials=True)`). `<think>` and the tool tokens are not
        flagged special and count as they are written.
        """
        return self._bytes.get(index, b"")

    def decode(self, ids: Iterable[int], *, skip_specials: bool = False) -> str:
        """Text of `ids`; bytes that are no UTF-8 become U+FFFD, unknown ids nothing.

        Args:
            ids: token ids.
            skip_specials: leave out the tokens that are flagged special (begin, end, roles; not reasoning and tool calls).
        """
        table = self._bytes if skip_specials else self._shown_bytes
        return b"".join([table.get(index, b"") for index in ids]).decode(errors="replace")

    def stream(self, *, skip_specials: bool = False) -> StreamDecoder:
        """A decoder for ids that come one by one."""
        return StreamDecoder(self, skip_specials)

    def same_vocabulary(self, other: Tokenizer) -> bool:
        """Whether both give every token the same id, control tokens included; templates and end tokens may differ."""
        mine, its = self._rust.get_vocab(with_added_tokens=True), other._rust.get_vocab(with_added_tokens=True)
        return mine == its and self.controls == other.controls

    def token_id(self, text: str) -> int | None:
        """The id of a control token, or of an entry of the vocabulary as the vocabulary writes it."""
        return self._rust.token_to_id(text)

    # ---- conversations ----

    def render(
        self,
        messages: Sequence[chat.Message],
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool | None = None,
        generation_marks: tuple[str, str] | None = None,
    ) -> str:
        """A conversation as the text that the model was trained on. To get ids, use `chat.encode_prompt`, which is safe.

        Args:
            messages: the conversation.
            add_generation_prompt: end where the assistant speaks.
            tools: functions that the assistant may call.
            thinking: ask a template that knows it (as `thinking` or `enable_thinking`) to open or to skip the reasoning.
            generation_marks: what to put around `{% generation %}` blocks.
        Raises:
            UserError: no template, or one that refuses the messages.
        """
        if self.chat_template is None:
            raise UserError("this tokenizer has no chat template: the model is no chat model; fine-tune it first")
        names = {}
        for role, index in (("bos", self.bos_id), ("eos", self.eos_id), ("pad", self.pad_id)):
            configured = self._config.get(f"{role}_token", self._added.get(index))
            names[f"{role}_token"] = configured.get("content") if isinstance(configured, dict) else configured
        asked = {} if thinking is None else {"thinking": thinking, "enable_thinking": thinking}
        variables = {
            **names,
            **asked,
            "add_generation_prompt": add_generation_prompt,
            "tools": list(tools) if tools else None,
            "generation_marks": generation_marks,
        }
        return chat.render_template(self.chat_template, messages, variables)


def _mended(text: str) -> str:
    return _SURROGATE.sub("\ufffd", text)


def _chunks(text: str) -> Iterator[str]:
    """Parts of a long text that encode, one by one, to the ids of the whole."""
    start = 0
    while len(text) - start > 2 * _CHUNK_CHARS and (cut := _SAFE_CUT.search(text, start + _CHUNK_CHARS)):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


# ---- training ----


def _sample(texts: Iterable[str], settings: TokenizerSettings) -> list[str]:
    """An even sample of at most `sample_mb`: each part of a text draws a number, and the smallest numbers stay."""
    limit, held = settings.sample_mb * 1e6, 0
    draw = random.Random(settings.seed)
    kept: list[tuple[float, int, str]] = []
    for text in texts:
        for part in _chunks(text):
            for at in range(0, len(part), _CHUNK_CHARS * 2):
                piece = _mended(part[at : at + _CHUNK_CHARS * 2])
                held += len(piece.encode())
                heapq.heappush(kept, (-draw.random(), len(kept), piece))
                while held > limit and len(kept) > 1:
                    held -= len(heapq.heappop(kept)[2].encode())
    return [piece for _, _, piece in sorted(kept, reverse=True)]


def _train(sample: list[str], settings: TokenizerSettings) -> Tokenizer:
    if not any(map(str.strip, sample)):
        raise UserError("there is no text to train a tokenizer on")
    rust = tokenizers.Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=settings.pattern == "gpt2")
    splits = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in PATTERNS[settings.pattern]]
    rust.pre_tokenizer = byte_level if settings.pattern == "gpt2" else pre_tokenizers.Sequence([*splits, byte_level])
    rust.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        special_tokens=[tokenizers.AddedToken(text, normalized=False, special=True) for text in SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rust.train_from_iterator(sample, trainer)
    spec = json.loads(rust.to_str())  # the trainer flags all of them special
    for token in spec["added_tokens"]:
        token["special"] = SPECIALS[token["content"]]
    config = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD, "model_max_length": 1 << 30}
    rust = tokenizers.Tokenizer.from_str(json.dumps(spec, ensure_ascii=False))
    return Tokenizer(rust, config, chat.TEMPLATE)


# ---- reading ----


def _base_of_adapter(folder: Path) -> Path | None:
    """The base's folder of an adapter that brings no tokenizer of its own, as PEFT leaves it."""
    name = _read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        return None
    places = (Path(name), download.cache_folder() / "models" / name)
    return next((place for place in places if (place / "tokenizer.json").is_file()), None)


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: an object is expected, not {type(values).__name__}")
    return values


def _read_rust(file: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises a bare Exception for whatever it cannot parse
        raise UserError(f"{file}: no tokenizer, or a damaged one ({error})") from None


def _read_gpt2(folder: Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """GPT-2's first form of publication: vocab.json and merges.txt."""
    known = config.get("tokenizer_class", "GPT2Tokenizer")
    if known not in ("GPT2Tokenizer", "GPT2TokenizerFast"):
        raise UserError(f"{folder}: vocab.json and merges.txt of a {known}, not of GPT-2; a tokenizer.json is needed")
    try:
        model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    except Exception as error:  # as above
        raise UserError(f"{folder}: vocab.json or merges.txt is damaged ({error})") from None
    rust = tokenizers.Tokenizer(model)
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space", False)))
    rust.decoder = decoders.ByteLevel()
    named = [config.get(f"{role}_token", "<|endoftext|>") for role in ("bos", "eos", "pad", "unk")]
    texts = {entry.get("content") if isinstance(entry, dict) else entry for entry in named}
    rust.add_special_tokens(
        sorted(text for text in texts if isinstance(text, str) and rust.token_to_id(text) is not None)
    )
    return rust


def _read_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file}: cannot be read ({error})") from None
    inside = config.get("chat_template")
    if isinstance(inside, list):  # several named ones
        named = {entry.get("name"): entry.get("template") for entry in inside if isinstance(entry, dict)}
        inside = named.get("default")
    return inside if isinstance(inside, str) else None


# ---- the stage ----


def _texts_of(path: Path) -> Iterator[str]:
    """The documents of a data folder's train.jsonl, and what is said in a tasks folder's."""
    file = path / "train.jsonl" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file}: no such file; a tokenizer is trained on a data or a tasks stage")
    try:
        with file.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                try:
                    record = json.loads(line)
                except ValueError as error:
                    raise UserError(f"{file}, line {number}: not JSON ({error})") from None
                if isinstance(record, dict) and isinstance(record.get("text"), str):
                    yield record["text"]
                elif isinstance(record, dict) and isinstance(record.get("messages"), list):
                    for message in record["messages"]:
                        yield from (message[key] for key in ("content", "reasoning_content") if message.get(key))
                else:
                    raise UserError(f'{file}, line {number}: neither "text" nor "messages" in it')
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 ({error})") from None


def bytes_per_token(tokenizer: Tokenizer, texts: Iterable[str]) -> dict[str, float]:
    """How much text a token holds, in bytes of UTF-8: over all texts, and by their language ("zh" is a text mostly of Han)."""
    sums: dict[str, list[int]] = {"all": [0, 0]}
    texts = list(texts)
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        language = "zh" if 3 * len(re.findall("[\u4e00-\u9fff]", text)) > len(text) else "other"
        for name in ("all", language):
            entry = sums.setdefault(name, [0, 0])
            entry[0] += len(text.encode(errors="replace"))
            entry[1] += len(ids)
    return {name: round(size / count, 3) for name, (size, count) in sums.items() if count}


def build(settings: TokenizerSettings, folder: Path) -> None:
    """Train a tokenizer on the stage's inputs and leave it in `folder`.

    Raises:
        UserError: an input is missing or unreadable, or holds no text.
    """
    from rich.console import Console

    console = Console(stderr=True)
    inputs = {role: Path(path) for role, path in settings.taken().items()}
    started = time.monotonic()
    with artifact.writing(folder, "tokenizer", settings.essence(), inputs=inputs) as (partial, figures):
        with console.status("tokenizer: reading and training") if sys.stderr.isatty() else console:
            sample = _sample((text for path in inputs.values() for text in _texts_of(path)), settings)
            tokenizer = _train(sample, settings)
        tokenizer.save(partial)
        figures["vocab_size"] = tokenizer.vocab_size
        figures["sample_mb"] = round(sum(len(text.encode()) for text in sample) / 1e6, 3)
        measured, size = [], 0
        for text in sample:
            measured.append(text)
            size += len(text)
            if size > 2_000_000:
                break
        figures["bytes_per_token"] = bytes_per_token(tokenizer, measured)
        console.print(
            f"tokenizer: {tokenizer.vocab_size:,} tokens from {figures['sample_mb']:.1f} MB in "
            f"{time.monotonic() - started:.0f} s, {figures['bytes_per_token']['all']:.2f} bytes a token"
        )

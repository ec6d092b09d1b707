"""Bits per byte: what a model needs to write a text down, whatever its tokenizer.

Every text is a document of its own, behind a begin token. A sliding window passes over it so that each token is scored once, with
at least `seq_len - stride` tokens before it wherever the document has that many.

What is counted: the bits of the text's own tokens, over the bytes of those tokens, as `Tokenizer.token_bytes` has them, so that
half a Chinese character counts as its own bytes and not as those of U+FFFD. Begin and end tokens stand for no text: they give
context, and neither their bits nor any bytes of theirs are counted. (The bits of an end token belong to no byte; counting them
would make many short documents look worse than one long one.)
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyseek.errors import UserError

if TYPE_CHECKING:
    from tinyseek.model.transformer import CausalLM
    from tinyseek.text.tokenizer import Tokenizer

# Logits of one batch, as numbers: 2**25 float32 are 128 MiB.
_MOST_LOGITS = 1 << 25
_MOST_TOKENS = 8192


@dataclass(frozen=True)
class TextScore:
    """What a text cost a model."""

    bits: float  # sum over tokens of -log2 p
    bytes: int  # of the text that these tokens spell
    tokens: int  # scored: the text's own, without begin and end tokens
    documents: int

    @property
    def bits_per_byte(self) -> float:
        return self.bits / self.bytes

    @property
    def perplexity(self) -> float:
        """Per token: 2 to the bits per token. Comparable only between models of one tokenizer."""
        return math.exp2(min(self.bits / self.tokens, 1023.0))

    def plain(self) -> dict[str, float | int]:
        return {
            "bits_per_byte": round(self.bits_per_byte, 5),
            "perplexity": round(self.perplexity, 3),
            "bytes": self.bytes,
            "tokens": self.tokens,
            "documents": self.documents,
        }


@dataclass(frozen=True)
class Window:
    """A stretch of a document: ids[:-1] go in, ids[1:] are the targets, and of these the ones from `first` on are scored."""

    ids: list[int]
    first: int


def windows(ids: list[int], seq_len: int, stride: int) -> Iterator[Window]:
    """Windows over one document, whose ids begin with the begin token, such that each later id is scored in exactly one.

    Each window but the first scores `stride` new targets; the last is moved back to the document's end, so that it is full.

    Raises:
        ValueError: stride > seq_len, which would leave targets out.
    """
    if not 1 <= stride <= seq_len:
        raise ValueError(f"stride {stride} must lie between 1 and seq_len {seq_len}")
    targets = len(ids) - 1
    scored = 0
    while scored < targets:
        end = min(targets, scored + (seq_len if scored == 0 else stride))
        start = max(0, end - seq_len)
        yield Window(ids[start : end + 1], scored - start)
        scored = end


def bits_per_byte(
    model: CausalLM,
    tokenizer: Tokenizer,
    texts: Iterable[str],
    *,
    seq_len: int | None = None,
    stride: int | None = None,
    begin: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> TextScore:
    """Score texts, each a document of its own.

    Args:
        seq_len: tokens that the model sees at once; default the model's longest, at most 1024.
        stride: new tokens a window; default half of seq_len. 1 gives every token the most context, at seq_len times the cost.
        begin: the token that stands before every text; default the tokenizer's begin token. It should be what stood there in
            training: of our own models the end token, since `tokens` puts one between documents and nothing before them.
        progress: told the bytes done after each batch.
    Raises:
        UserError: no text at all, or the tokenizer does not fit the model.
    """
    longest = model.config.max_position_embeddings
    seq_len = min(seq_len or 1024, longest)
    stride = min(stride or max(1, seq_len // 2), seq_len)
    vocab_size = model.config.vocab_size
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model knows {vocab_size}; use the model's own tokenizer"
        )
    begin = tokenizer.bos_id if begin is None else begin
    lengths: dict[int, int] = {}
    documents = total_bytes = total_tokens = 0
    bits = 0.0

    def all_windows() -> Iterator[Window]:
        nonlocal documents, total_bytes, total_tokens
        for text in texts:
            ids = tokenizer.encode(text)
            if not ids:
                continue
            for token in set(ids) - lengths.keys():
                lengths[token] = len(tokenizer.token_bytes(token))
            documents += 1
            total_tokens += len(ids)
            total_bytes += sum(lengths[token] for token in ids)
            yield from windows([begin, *ids], seq_len, stride)

    most_tokens = min(_MOST_TOKENS, max(1, _MOST_LOGITS // vocab_size))
    was_training = model.training
    model.eval()
    try:
        for batch in _batches(all_windows(), most_tokens):
            bits += _bits(model, batch)
            if progress:
                progress(total_bytes)
    finally:
        model.train(was_training)
    if not total_bytes:
        raise UserError("there is no text to score: every document is empty")
    return TextScore(bits, total_bytes, total_tokens, documents)


def _batches(items: Iterator[Window], most_tokens: int) -> Iterator[list[Window]]:
    """Windows of about one length together, so that little is padded; a buffer of a few batches at a time is sorted."""
    buffer: list[Window] = []
    held = 0

    def emptied() -> Iterator[list[Window]]:
        buffer.sort(key=lambda window: len(window.ids), reverse=True)
        while buffer:
            rows = max(1, most_tokens // len(buffer[0].ids))
            yield buffer[:rows]
            del buffer[:rows]

    for item in items:
        buffer.append(item)
        held += len(item.ids)
        if held >= 8 * most_tokens:
            yield from emptied()
            held = 0
    yield from emptied()


def _bits(model: CausalLM, batch: list[Window]) -> float:
    """The sum of -log2 p over what the windows score. Padding stands behind, where a causal model cannot see it."""
    import torch

    longest = max(len(window.ids) for window in batch)
    ids = torch.tensor([window.ids + [0] * (longest - len(window.ids)) for window in batch], device=model.device)
    place = torch.arange(longest - 1, device=model.device)
    first = torch.tensor([[window.first] for window in batch], device=model.device)
    end = torch.tensor([[len(window.ids) - 1] for window in batch], device=model.device)
    scored_BT = (place >= first) & (place < end)
    with torch.no_grad():  # not inference_mode: what the model caches here may be trained on later
        logits_BTV = model(ids[:, :-1])
        nats_BT = logits_BTV.logsumexp(-1) - logits_BTV.gather(-1, ids[:, 1:, None]).squeeze(-1)
        return float(nats_BT[scored_BT].double().sum()) / math.log(2)


def read_texts(path: Path, max_bytes: int) -> Iterator[str]:
    """The documents of a data folder's val.jsonl, of a .jsonl with "text" fields, or a text file as one document.

    Of a file with more than `max_bytes`, an even choice of its documents; a longer document is cut.

    Raises:
        UserError: missing, not UTF-8, or a line that is no {"text": ...} (file and line named).
    """
    file = path / "val.jsonl" if path.is_dir() else path
    try:
        size = file.stat().st_size
        share = min(1.0, max_bytes / max(1, size))
        left, due = max_bytes, 0.0
        with file.open(encoding="utf-8") as stream:
            if file.suffix != ".jsonl":
                yield _cut(stream.read(max_bytes), max_bytes)
                return
            for number, line in enumerate(stream, 1):
                due += share
                if due < 1 or not line.strip():
                    continue
                due -= 1
                text = _text_of(line, file, number)
                yield _cut(text, left)
                left -= len(text.encode("utf-8", "replace"))
                if left <= 0:
                    return
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; give a data folder, a .jsonl or a text file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text (byte {error.start}); convert it first") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None


def _text_of(line: str, file: Path, number: int) -> str:
    try:
        record: Any = json.loads(line)
        text = record["text"]
        if isinstance(text, str):
            return text.encode("utf-8", "replace").decode("utf-8")  # JSON can carry half a surrogate pair
    except (ValueError, TypeError, KeyError):
        pass
    raise UserError(f'{file}, line {number}: not {{"text": ...}}')


def _cut(text: str, most: int) -> str:
    """The beginning of a text, at most `most` bytes and no half character."""
    return text.encode("utf-8")[:most].decode("utf-8", "ignore")

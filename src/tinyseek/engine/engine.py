"""The Engine: many texts written at once by one model.

    engine = Engine.load(folder, EngineSettings())
    for piece in engine.submit(tokenizer.encode("Once upon"), SamplingParams(max_tokens=50)):
        print(piece.text, end="")

`step` is the whole of it: take what was submitted, schedule, run, sample, hand out. `start` repeats it in a thread.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F

from tinyseek.engine.options import EngineSettings
from tinyseek.engine.params import SamplingParams
from tinyseek.engine.request import Finish, Piece, QueueFullError, Request, TokenLogprob
from tinyseek.engine.sampler import sample
from tinyseek.errors import UserError
from tinyseek.model.transformer import CausalLM
from tinyseek.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tinyseek.engine.inspect import Inspection

__all__ = ["Engine", "EngineSettings", "Piece", "QueueFullError", "Request", "SamplingParams", "Stats", "TokenLogprob"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stats:
    """What an engine is doing and has done. Counts are since it was made."""

    running: int = 0  # texts being written
    waiting: int = 0  # texts whose turn has not come
    blocks: int = 0  # of the cache
    blocks_used: int = 0  # held by running texts
    blocks_cached: int = 0  # held by none, but kept for prompts that begin alike
    block_size: int = 0  # tokens
    bytes_per_token: int = 0  # of cache
    requests: int = 0
    finished: dict[str, int] = field(default_factory=dict)  # texts by why they ended
    prompt_tokens: int = 0  # of all requests
    cached_tokens: int = 0  # of these, how many the prefix cache saved
    generated_tokens: int = 0
    preemptions: int = 0
    drafted: int = 0  # tokens guessed ahead
    accepted: int = 0  # of these, how many were right
    tokens_per_second: float = 0.0  # generated, over the last ten seconds
    first_token_count: int = 0  # requests whose first token came
    first_token_seconds: float = 0.0  # summed over these, from submission
    first_token_recent: tuple[float, ...] = ()  # seconds, of the last thousand


@dataclass(eq=False)
class _Text:
    request: Request
    index: int
    tokens: list[int]
    decoder: Any


class Engine:
    """A model, its tokenizer, and the texts that are being written.

    Attributes:
        context: the longest prompt and answer together, tokens.
    """

    def __init__(self, model: CausalLM, tokenizer: Tokenizer | None, settings: EngineSettings | None = None) -> None:
        self.model, self._tokenizer = model, tokenizer
        self.settings = settings or EngineSettings()
        self.context = model.config.max_position_embeddings
        self._stepping = threading.Lock()
        self._changed = threading.Condition()
        self._inbox: deque[Request] = deque()
        self._texts: list[_Text] = []
        self._thread: threading.Thread | None = None
        self._closed = False

    @classmethod
    def load(cls, folder: str | Path, settings: EngineSettings | None = None) -> Self:
        """Load a model folder with its tokenizer.

        Raises:
            UserError: no model, a damaged one, a tokenizer that does not belong to it, or a device that is not there.
        """
        settings = settings or EngineSettings()
        tokenizer = Tokenizer.load(folder)
        model = CausalLM.load(folder)
        return cls(model, tokenizer, settings)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        if self._tokenizer is None:
            raise UserError("this engine has no tokenizer")
        return self._tokenizer

    @property
    def threaded(self) -> bool:
        """Whether a thread runs the engine."""
        return self._thread is not None

    def submit(self, prompt: Sequence[int], params: SamplingParams) -> Request:
        """Ask for `params.n` texts after a prompt. From any thread or event loop; returns at once.

        Raises:
            UserError: it cannot be served.
            QueueFullError: too many texts wait already.
        """
        request = Request(self, prompt, params)
        with self._changed:
            self._inbox.append(request)
            self._changed.notify()
        return request

    def step(self) -> bool:
        """One iteration, in the caller's thread: at most `max_batch_tokens` tokens. False when nothing is left to do."""
        with self._stepping:
            while self._inbox:
                request = self._inbox.popleft()
                self._texts += [
                    _Text(request, index, list(request.prompt), self._tokenizer and self._tokenizer.stream())
                    for index in range(request.params.n)
                ]
            for text in list(self._texts):
                self._write(text)
            return bool(self._texts or self._inbox)

    def _write(self, text: _Text) -> None:
        request, params = text.request, text.request.params
        if request.cancelled:
            self._texts.remove(text)
            request.deliver(Piece(text.index, finish="cancelled"))
            return
        with torch.inference_mode():
            logits = self.model(torch.tensor([text.tokens], device=self.model.device))[:, -1]
            token = int(sample(logits, params))
        stops = params.stop_ids | (set() if params.ignore_eos or not self._tokenizer else self._tokenizer.stop_ids)
        finish: Finish | None = None
        ids: tuple[int, ...] = ()
        if token in stops:
            finish = "stop"
        else:
            text.tokens.append(token)
            ids = (token,)
            if len(text.tokens) - len(request.prompt) >= params.max_tokens or len(text.tokens) >= self.context:
                finish = "length"
        request.generated_tokens += 1
        words = "".join(text.decoder.push(token) for token in ids) if text.decoder else ""
        request.deliver(Piece(text.index, ids, words, finish=finish, stop=token if finish == "stop" else None))
        if finish:
            self._texts.remove(text)

    def wake(self) -> None:
        """Let the thread look at what changed."""
        with self._changed:
            self._changed.notify()

    def start(self) -> None:
        """Step in a thread of its own from now on."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not self._closed:
            if not self.step():
                with self._changed:
                    if not self._inbox and not self._closed:
                        self._changed.wait(1.0)

    def close(self, drain_seconds: float = 0) -> None:
        """Take nothing new, let what runs go on for at most `drain_seconds`, cancel the rest, stop the thread."""
        self._closed = True
        self.wake()

    def embed(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """The mean of the last hidden states over each prompt, of length 1. From any thread."""
        with self._stepping, torch.inference_mode():
            hidden = [self.model.hidden(torch.tensor([list(p)], device=self.model.device))[0][0] for p in prompts]
            return [F.normalize(h.float().mean(0), dim=0).tolist() for h in hidden]

    def inspect(self, ids: Sequence[int]) -> Inspection:
        """What the model does with each token of a text. From any thread."""
        raise NotImplementedError

    def stats(self) -> Stats:
        """What the engine is doing and has done. From any thread."""
        return Stats(running=len(self._texts), waiting=len(self._inbox))

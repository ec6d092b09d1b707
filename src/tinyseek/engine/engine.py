"""The Engine: many texts written at once by one model.

    engine = Engine.load(folder, EngineSettings())
    for piece in engine.submit(tokenizer.encode("Once upon"), SamplingParams(max_tokens=50)):
        print(piece.text, end="")

`step` is the whole of it: take what was submitted, schedule, run, sample, hand out. `start` repeats it in a thread.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar

import torch
import torch.nn.functional as F

from tinyseek.engine.blocks import BlockPool, Prefix
from tinyseek.engine.cache import PagedCache, bytes_per_token, default_tokens
from tinyseek.engine.loading import load_model
from tinyseek.engine.options import EngineSettings
from tinyseek.engine.params import SamplingParams
from tinyseek.engine.request import Finish, Piece, QueueFullError, Request, TokenLogprob
from tinyseek.engine.runner import Runner
from tinyseek.engine.sampler import Drawn, Sampling, sample, told
from tinyseek.engine.scheduler import Scheduler
from tinyseek.engine.sequence import Chunk, Outlet
from tinyseek.engine.sequence import Sequence as Text
from tinyseek.engine.speculate import Speculator, Step, make_speculator, places_of
from tinyseek.engine.stats import Meter, Stats
from tinyseek.errors import UserError
from tinyseek.model.transformer import CausalLM
from tinyseek.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tinyseek.engine.adapters import Adapter, Adapters
    from tinyseek.engine.inspect import Inspection

__all__ = ["Engine", "EngineSettings", "Piece", "QueueFullError", "Request", "SamplingParams", "Stats", "TokenLogprob"]

Result = TypeVar("Result")

SCORED_AT_ONCE = 64  # positions of a prompt whose logits are held at a time: 40 MB for a vocabulary of 150,000
_log = logging.getLogger(__name__)


class Ending(NamedTuple):
    """Why a text ends; see `Piece`."""

    finish: Finish
    stop: str | int | None = None
    error: str | None = None


class Engine:
    """A model, its tokenizer, the adapters that texts may have, and the texts that are being written.

    Everything public may be called from any thread. Without `start`, whoever reads a request steps the engine.

    Attributes:
        context: the longest prompt and answer together, tokens: the model's own, or less where the cache is smaller.
    """

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer | None = None,
        settings: EngineSettings | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        """An engine over a model that is loaded.

        Args:
            tokenizer: without one there is no text in the pieces, and no stop strings and constraints.
            adapters: of this model; requests name them.
        """
        self.model, self._tokenizer = model, tokenizer
        self._adapters = adapters
        if adapters is not None:
            adapters.bind(model)
        self.settings = settings = settings or EngineSettings()
        size, longest = settings.block_size, model.config.max_position_embeddings
        dtype = next(model.model.norm.parameters()).dtype
        layers = model.config.num_hidden_layers + (len(model.mtp) if settings.speculate == "mtp" else 0)
        tokens = settings.cache_tokens or default_tokens(
            model.config, bytes_per_token(model.config, dtype, layers), model.device, settings.max_sequences
        )
        blocks = -(-tokens // size)
        self.context = min(longest, blocks * size)
        self.cache = PagedCache(model.config, blocks, size, dtype, model.device, layers)
        self.pool = BlockPool(blocks, size)
        self.scheduler = self._make_scheduler()
        self.runner = Runner(model, self.cache, self.context, adapters)
        self._speculator = make_speculator(settings, self.runner, self.cache, self.context)

        self._stepping = threading.RLock()  # held by whoever steps
        self._changed = threading.Condition()  # guards what follows, and tells the thread of it
        self._inbox: deque[list[Text]] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._open = 0  # texts that were accepted and have not ended
        self._closed = self._aborted = False  # nothing new is taken; nothing goes on
        self._thread: threading.Thread | None = None

        self._meter = Meter()

    def _make_scheduler(self) -> Scheduler:
        settings = self.settings
        return Scheduler(self.pool, settings.max_sequences, settings.max_batch_tokens, settings.prefix_cache)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        settings: EngineSettings | None = None,
        adapters: Mapping[str, Path] | None = None,
    ) -> Self:
        """Load a model folder with its tokenizer.

        Args:
            adapters: folders of adapters of this model, by the names that requests use.
        Raises:
            UserError: no model, a damaged one, a tokenizer that does not belong to it, a device that is not there, an adapter
                of another model or of a kind that cannot be run beside others.
        """
        settings = settings or EngineSettings()
        found: Adapters | None = None

        def read(model: CausalLM, tokenizer: Tokenizer) -> None:
            nonlocal found
            if adapters:
                from tinyseek.engine.adapters import load_adapters

                found = load_adapters(adapters, model, tokenizer, str(folder))

        return cls(*load_model(folder, settings, read), settings, found)

    @property
    def adapters(self) -> list[str]:
        """The names of the adapters that requests may ask for."""
        return list(self._adapters.all) if self._adapters else []

    def tokenizer_of(self, adapter: str | None) -> Tokenizer:
        """The tokenizer of texts with an adapter, whose chat template may be its own; without one the model's.

        Raises:
            UserError: there is no tokenizer, or no such adapter.
        """
        worn = self.adapter(adapter)
        return (worn.tokenizer if worn else None) or self.tokenizer

    def adapter(self, name: str | None) -> Adapter | None:
        """An adapter by its name; none for the model itself.

        Raises:
            UserError: there is none of that name.
        """
        if name is None:
            return None
        if self._adapters is None:
            raise UserError(f'there is no adapter "{name}" over this model, which has none')
        return self._adapters.find(name)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        if self._tokenizer is None:
            raise UserError("this engine has no tokenizer, so it knows no text")
        return self._tokenizer

    @property
    def threaded(self) -> bool:
        """Whether a thread runs the engine."""
        return self._thread is not None

    # ---- asking ----

    def submit(self, prompt: Sequence[int], params: SamplingParams, adapter: str | None = None) -> Request:
        """Ask for `params.n` texts after a prompt. Returns at once.

        Args:
            adapter: who is to write them; none for the model itself.
        Raises:
            UserError: it cannot be served: an empty prompt, one that leaves no room, a token that the model does not know, a
                constraint that cannot be met, an adapter that is not there.
            QueueFullError: too many texts wait already.
        """
        self._check(prompt, params)
        request = Request(self, prompt, params, self.adapter(adapter))
        texts = self._texts(request)
        with self._changed:
            self._refuse_if_closed()
            most = self.settings.max_sequences + self.settings.max_waiting
            if self._open and self._open + params.n > most:
                raise QueueFullError(f"{self._open} texts are being written or wait already; try again later")
            self._open += params.n
            self._meter.requests += 1
            self._inbox.append(texts)
            self._changed.notify_all()
        return request

    def _check(self, prompt: Sequence[int], params: SamplingParams) -> None:
        vocabulary = self.model.config.vocab_size
        if not len(prompt):
            raise UserError("the prompt is empty")
        if len(prompt) + min(params.max_tokens, 1) > self.context:
            raise UserError(f"the prompt has {len(prompt)} tokens, but the context is {self.context}; shorten it")
        if not 0 <= min(prompt) <= max(prompt) < vocabulary:
            wrong = next(token for token in prompt if not 0 <= token < vocabulary)
            raise UserError(
                f"token {wrong} is beyond the model's vocabulary of {vocabulary}: this is another model's tokenizer"
            )
        for name, tokens in (("logit_bias", params.logit_bias), ("stop_ids", params.stop_ids)):
            if wrong_tokens := [token for token in tokens if not 0 <= token < vocabulary]:
                raise UserError(f"{name}: token {wrong_tokens[0]} is beyond the model's vocabulary of {vocabulary}")

    def _texts(self, request: Request) -> list[Text]:
        """The sequences that a request asks for. Its constraint is compiled here, in the asker's thread."""
        params, adapter = request.params, request.adapter
        tokenizer = (adapter.tokenizer if adapter else None) or self._tokenizer
        stops: dict[int, str | int] = {token: token for token in params.stop_ids}
        if tokenizer and not params.ignore_eos:
            stops |= {token: token for token in tokenizer.stop_ids}
        if params.stop:  # a control token spelt out is met as a token too, which may add nothing to the text
            controls = self.tokenizer.controls
            stops |= {controls[string]: string for string in params.stop if string in controls}
        matcher = None
        if params.constraint is not None:
            from tinyseek.engine.grammar import Matcher

            matcher = Matcher(params.constraint, tokenizer or self.tokenizer)
        beginning = self.pool.beginning(adapter.name) if adapter else self.pool.root
        beginning = beginning if self.settings.prefix_cache else Prefix()
        limit = min(request.prompt_tokens + params.max_tokens, self.context)
        return [
            Text(
                request,
                index,
                beginning,
                limit,
                stops,
                Outlet(self._tokenizer, params.stop),
                Sampling(params, index),
                matcher.copy() if matcher else None,
            )
            for index in range(params.n)
        ]

    def embed(self, prompts: Sequence[Sequence[int]], adapter: str | None = None) -> list[list[float]]:
        """The mean of the last hidden states over each prompt, scaled to length 1.

        Raises:
            UserError: as `submit`.
        """
        worn = self.adapter(adapter)
        for prompt in prompts:
            self._check(prompt, SamplingParams(max_tokens=0, prompt_logprobs=0))
        return [self._between_steps(partial(self._embedding, prompt, worn)) for prompt in prompts]

    def _worn(self, adapter: Adapter | None) -> AbstractContextManager[None]:
        """The model wears an adapter meanwhile."""
        return self._adapters.worn(adapter) if self._adapters else nullcontext()

    @torch.inference_mode()
    def _embedding(self, prompt: Sequence[int], adapter: Adapter | None) -> list[float]:
        with self._worn(adapter):
            hidden_1TD, _, _ = self.model.hidden(torch.tensor([list(prompt)], device=self.model.device))
        mean_D: list[float] = F.normalize(hidden_1TD[0].float().mean(0), dim=0).tolist()
        return mean_D

    def inspect(self, ids: Sequence[int], adapter: str | None = None) -> Inspection:
        """What the model does with each token of a text.

        Raises:
            UserError: as `submit`.
        """
        from tinyseek.engine.inspect import inspect

        self._check(ids, SamplingParams(max_tokens=0, prompt_logprobs=0))
        worn = self.adapter(adapter)

        def look() -> Inspection:
            with self._worn(worn):
                return inspect(self.model, ids)

        return self._between_steps(look)

    def forget(self) -> None:
        """Empty the prefix cache. Needed after the model's weights were changed."""
        self._between_steps(self.pool.clear)

    def _between_steps(self, work: Callable[[], Result]) -> Result:
        """Do something with the model while no step runs: in the engine's thread if there is one."""
        if not self.threaded or threading.current_thread() is self._thread:
            with self._stepping:
                return work()
        future: Future[Result] = Future()

        def call() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        with self._changed:
            self._refuse_if_closed()
            self._calls.append(call)
            self._changed.notify_all()
        return future.result()

    # ---- the loop ----

    def step(self) -> bool:
        """One iteration, in the caller's thread: at most `max_batch_tokens` tokens. False when nothing is left to do."""
        with self._stepping:
            self._receive()
            try:
                chunks = self.scheduler.schedule()
                if chunks:
                    self._run(chunks)
            except BaseException as error:
                self._start_anew(error)
                if not isinstance(error, Exception):  # Ctrl-C is no fault
                    raise
            with self._changed:
                return bool(self.scheduler.running or self.scheduler.waiting or self._inbox or self._calls)

    def _receive(self) -> None:
        """Take in what was submitted, do what was called for, let go of what was cancelled."""
        with self._changed:
            calls, texts = list(self._calls), [text for texts in self._inbox for text in texts]
            self._calls.clear()
            self._inbox.clear()
        for call in calls:
            call()
        for text in texts:
            self.scheduler.add(text)
            self._meter.prompt_tokens += text.prompt if text.index == 0 else 0
        for text in [*self.scheduler.running, *self.scheduler.waiting]:
            if text.request.cancelled or self._aborted:
                self._end(text, "cancelled")

    def _run(self, chunks: list[Chunk]) -> None:
        """Run the chunks, draw the next tokens, hand them out. What fails ends the texts that it concerns, and nothing else."""
        try:
            hidden = self.runner.run(chunks)
        except Exception as error:
            self._blame(chunks, error, self._run)
            return
        ready: list[tuple[Text, torch.Tensor]] = []
        for chunk, hidden_TD in zip(chunks, hidden, strict=True):
            text = chunk.sequence
            self.scheduler.computed(text, min(chunk.start + chunk.count, len(text.tokens)))  # not the draft yet
            if text.scoring:
                self._score(text, chunk, hidden_TD)
            if not text.remaining:
                ready.append((text, hidden_TD[-1 - len(text.draft) :]))
        ends = self._draw(ready) if ready else {}
        if self._speculator is not None:
            self._guess(self._speculator, chunks, hidden, ends)
        for text, end in ends.items():
            self._end(text, *end)

    def _draw(self, ready: list[tuple[Text, torch.Tensor]]) -> dict[Text, Ending]:
        """Draw tokens for each text that is run to its end, given hidden states [1 + its draft, D]: after its last token, and after
        each of its draft. Returns the texts that end."""
        # Else nothing but the prompt's own log-probabilities was asked for.
        ends = {text: Ending("length") for text, _ in ready if text.limit <= text.prompt}
        texts = [text for text, _ in ready if text not in ends]
        if not texts:
            return ends
        logits_RV = self._logits([hidden for text, hidden in ready if text not in ends], texts)
        with torch.inference_mode():
            drawn = iter(sample(logits_RV, [place for text in texts for place in places_of(text)]))
        self._meter.drawn(text.request for text in texts)
        for text in texts:
            rows = list(islice(drawn, 1 + len(text.draft)))
            try:
                end = self._extend(text, rows)
            except Exception as error:
                end = Ending("error", error=_told(text, error))
            if end is not None:
                ends[text] = end
        return ends

    def _logits(self, hidden: Sequence[torch.Tensor], texts: Sequence[Text]) -> torch.Tensor:
        """float32 logits [R, V] of each text's hidden states, by its own adapter's output head if that has one."""
        hidden_RD = torch.cat(list(hidden))
        logits_RV = self.runner.logits(hidden_RD)
        if self._adapters is not None:
            of_R = [text.request.adapter for text, rows in zip(texts, hidden, strict=True) for _ in rows]
            with torch.inference_mode():
                self._adapters.add_to_logits(logits_RV, hidden_RD, of_R)
        return logits_RV

    def _extend(self, text: Text, rows: list[Drawn]) -> Ending | None:
        """Add what was drawn after a text, and after each token of its draft as long as that is what was drawn."""
        draft, text.draft = text.draft, []
        right, end = 0, self._append(text, rows[0])
        while end is None and right < len(draft) and rows[right].token == draft[right]:
            right += 1
            self.scheduler.computed(text, len(text.tokens))
            self._meter.drawn([text.request])
            end = self._append(text, rows[right])
        if self._speculator is not None:
            self._meter.drafted += len(draft)
            self._meter.accepted += right
            self._speculator.learn(text, len(draft), right)
        return end

    def _append(self, text: Text, drawn: Drawn) -> Ending | None:
        """Add a token to its text, which it may end."""
        if drawn.error is not None:
            return Ending("error", error=drawn.error)
        token = drawn.token
        if text.matcher is not None:
            text.matcher.accept(token)
        if token in text.stops:
            return Ending("stop", text.stops[token])
        text.tokens.append(token)
        stop = text.outlet.push(token, drawn.logprob, watch=text.output >= text.params.min_tokens)
        if stop is not None or (text.matcher is not None and text.matcher.finished):
            return Ending("stop", stop)
        if len(text.tokens) >= text.limit:
            return Ending("length")
        piece = text.outlet.take(text.index)
        if piece.ids or piece.text:
            text.request.deliver(piece)
        return None

    def _guess(
        self, speculator: Speculator, chunks: list[Chunk], hidden: list[torch.Tensor], ends: dict[Text, Ending]
    ) -> None:
        """Give the texts drafts for the next step. Should that fail they go on without."""
        steps = [
            Step(text, chunk.start, hidden_TD[: text.computed - chunk.start], text.remaining == 1 and text not in ends)
            for chunk, hidden_TD in zip(chunks, hidden, strict=True)
            for text in [chunk.sequence]
        ]
        try:
            speculator.guess(steps, self.scheduler.reserve)
        except Exception:
            _log.exception("guessing ahead failed")

    def _score(self, text: Text, chunk: Chunk, hidden_TD: torch.Tensor) -> None:
        """Tell the log-probabilities of the prompt's tokens after each position of a chunk."""
        scored, count = text.scored, text.params.prompt_logprobs
        with torch.inference_mode():
            for part, hidden in enumerate(hidden_TD.split(SCORED_AT_ONCE)):
                start = chunk.start + part * SCORED_AT_ONCE + 1
                following = text.tokens[start : min(start + len(hidden), text.prompt)]
                if following:
                    rows = self._logits([hidden[: len(following)]], [text])
                    scored[start:] = told(rows, following, [count] * len(following))
        if len(scored) == text.prompt:
            text.request.prompt_logprobs = scored

    def _end(self, text: Text, finish: Finish, stop: str | int | None = None, error: str | None = None) -> None:
        """A text ends: its blocks are given back, its last piece is handed out."""
        self.scheduler.finish(text)
        self._tell_end(text, finish, stop, error)

    def _tell_end(self, text: Text, finish: Finish, stop: str | int | None = None, error: str | None = None) -> None:
        with self._changed:
            self._open -= 1
            self._meter.finished[finish] += 1
            self._changed.notify_all()
        text.request.deliver(text.outlet.take(text.index, finish, stop, error))

    def _blame(self, chunks: list[Chunk], error: Exception, again: Callable[[list[Chunk]], None]) -> None:
        """A forward pass failed: the chunks are run again one by one, and the text whose chunk fails alone ends."""
        if len(chunks) > 1:
            _log.warning(
                "a step of %d texts failed (%s: %s); they go on one by one", len(chunks), type(error).__name__, error
            )
            for chunk in chunks:
                again([chunk])
        else:
            text = chunks[0].sequence
            self._end(text, "error", error=_told(text, error))

    def _start_anew(self, error: BaseException) -> None:
        """After a failure that left who knows what behind: end all that ran or waited, and begin with an empty cache."""
        texts = [*self.scheduler.running, *self.scheduler.waiting]
        preemptions, reused = self.scheduler.preemptions, self.scheduler.reused
        self.pool = BlockPool(self.pool.total, self.pool.block_size)
        self.scheduler = self._make_scheduler()
        self.scheduler.preemptions, self.scheduler.reused = preemptions, reused
        if isinstance(error, Exception):
            ended = ", ".join(sorted({_number(text) for text in texts}))
            _log.error("a step failed, and with it the requests %s", ended, exc_info=error)
        for text in texts:
            self._tell_end(text, "error", error=_calm(text))

    # ---- the thread ----

    def start(self) -> None:
        """Step in a thread of its own from now on.

        Raises:
            UserError: the engine is closed.
        """
        with self._changed:
            self._refuse_if_closed()
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="tinyseek-engine", daemon=True)
                self._thread.start()
                atexit.register(self.close)  # a thread that is inside of torch when Python ends takes the process down

    def wake(self) -> None:
        """Let the thread look at what changed."""
        with self._changed:
            self._changed.notify_all()

    def _loop(self) -> None:
        with self._stepping:
            if not self.pool.used:
                self.runner.warm()
        while True:
            busy = True
            with suppress(BaseException):  # `step` told it and ended what it concerned
                busy = self.step()
            with self._changed:
                while not (busy or self._inbox or self._calls or self._closed):
                    self._changed.wait()
                if self._closed and not (busy or self._inbox or self._calls):
                    return

    def close(self, drain_seconds: float = 0) -> None:
        """Take nothing new, let what runs or waits go on for at most `drain_seconds`, cancel the rest, end the thread."""
        until = time.monotonic() + drain_seconds
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            while self.threaded and self._open and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
        while not self.threaded and self._open and time.monotonic() < until:
            self.step()
        self._aborted = True
        if self._thread is None:
            self.step()
        elif self._thread is not threading.current_thread():
            self.wake()
            self._thread.join()
            self._thread = None
            atexit.unregister(self.close)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise UserError("the engine is closed")

    # ---- what it tells of itself ----

    def stats(self) -> Stats:
        """What the engine is doing and has done."""
        meter, pool = self._meter, self.pool
        with self._changed:
            running = len(self.scheduler.running)
            return Stats(
                running=running,
                waiting=self._open - running,
                blocks=pool.total,
                blocks_used=pool.used,
                blocks_cached=pool.cached,
                block_size=pool.block_size,
                bytes_per_token=self.cache.bytes_per_token,
                requests=meter.requests,
                finished=dict(meter.finished),
                prompt_tokens=meter.prompt_tokens,
                cached_tokens=self.scheduler.reused,
                generated_tokens=meter.generated_tokens,
                preemptions=self.scheduler.preemptions,
                drafted=meter.drafted,
                accepted=meter.accepted,
                tokens_per_second=meter.tokens_per_second,
                first_token_count=meter.first_token_count,
                first_token_seconds=meter.first_token_seconds,
                first_token_recent=meter.first_token_recent,
            )


def _told(text: Text, error: BaseException) -> str:
    """Log a fault; returns what whoever asked is told of it."""
    _log.error("request %s failed", _number(text), exc_info=error)
    return _calm(text)


def _calm(text: Text) -> str:
    """Nothing of a fault's kind: that is in the log, under the request's number."""
    return f"the model failed at this text; the log says why under request {_number(text)}"


def _number(text: Text) -> str:
    return text.request.id[:12]

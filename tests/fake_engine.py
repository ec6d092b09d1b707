"""An engine without a model: it says what it is told to say, or noise that obeys the request's constraint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinyseek.engine.grammar import Matcher
from tinyseek.engine.params import SamplingParams
from tinyseek.engine.request import Piece, Request, TokenLogprob
from tinyseek.errors import UserError
from tinyseek.text.tokenizer import Tokenizer


class FakeEngine:
    """Stepped by its readers, or by a test.

    Args:
        says: token ids of each answer of `n`, or a text in which control tokens count; none for noise.
        size: tokens a piece.
    """

    threaded = False

    def __init__(
        self, tokenizer: Tokenizer, says: Sequence[str | list[int]] | None = None, context: int = 512, size: int = 3
    ):
        self.tokenizer, self.context, self.size = tokenizer, context, size
        self.says = says
        self.requests: list[Request] = []
        self.fails: str | None = None
        self._writing: list[dict[str, Any]] = []

    def submit(self, prompt: Sequence[int], params: SamplingParams, adapter: None = None) -> Request:
        assert adapter is None
        request = Request(self, prompt, params)  # type: ignore[arg-type]
        for index in range(params.n):
            matcher = Matcher(params.constraint, self.tokenizer) if params.constraint else None
            says = self.says[index % len(self.says)] if self.says else None
            ids = self.tokenizer.encode(says, specials=True) if isinstance(says, str) else list(says or [])
            self._writing.append(
                {
                    "request": request,
                    "index": index,
                    "ids": ids,
                    "told": "",
                    "matcher": matcher,
                    "written": [],
                    "rng": np.random.default_rng(index + (params.seed or 0)),
                }
            )
        self.requests.append(request)
        return request

    def wake(self) -> None:
        pass

    def step(self) -> bool:
        for text in list(self._writing):
            self._write(text)
        return bool(self._writing)

    def _write(self, text: dict[str, Any]) -> None:
        request, index = text["request"], text["index"]
        finish: Any = None
        stop: Any = None
        if request.cancelled or self.fails:
            self._writing.remove(text)
            kind: Any = "cancelled" if request.cancelled else "error"
            request.deliver(Piece(index, finish=kind, error=None if request.cancelled else self.fails))
            return
        fresh: list[int] = []
        while len(fresh) < self.size and finish is None:
            token = self._next(text)
            request.generated_tokens += 1
            if token in self.tokenizer.stop_ids:
                finish, stop = "stop", token
                break
            fresh.append(token)
            text["written"].append(token)
            if len(text["written"]) >= request.params.max_tokens:
                finish = "length"
            if text["matcher"] is not None:
                text["matcher"].accept(token)
                finish = finish or ("stop" if text["matcher"].finished else None)
        decoder = self.tokenizer.stream(skip_specials=True)
        whole = "".join(decoder.push(token) for token in text["written"]) + (decoder.flush() if finish else "")
        for word in request.params.stop:
            if word in whole:  # as the real one: what is before it comes out, tokens that reach into it do not
                whole = whole[: whole.index(word)]
                kept, size = 0, 0
                decoder = self.tokenizer.stream(skip_specials=True)
                for token in text["written"]:
                    size += len(decoder.push(token))
                    if size > len(whole):
                        break
                    kept += 1
                fresh = text["written"][len(text["written"]) - len(fresh) : kept]
                finish, stop = "stop", word
        piece = whole[len(text["told"]) :]
        text["told"] = whole
        logprobs = ()
        if request.params.logprobs is not None:
            logprobs = tuple(TokenLogprob(token, -0.5, ((token, -0.5), (5, -1.5))) for token in fresh)
        request.deliver(Piece(index, tuple(fresh), piece, logprobs, finish, stop))
        if finish:
            self._writing.remove(text)

    def _next(self, text: dict[str, Any]) -> int:
        if text["ids"]:
            return int(text["ids"].pop(0))
        matcher = text["matcher"]
        if self.says is not None and (matcher is None or matcher.may_end):
            return self.tokenizer.eos_id
        rng = text["rng"]
        scores = rng.normal(size=self.tokenizer.vocab_size) * 3
        if matcher is not None:
            scores[[self.tokenizer.encode(letter)[0] for letter in '"]}']] += len(text["written"]) / 8
            scores[~matcher.allowed()] = -np.inf
        for token, bias in text["request"].params.logit_bias.items():
            scores[token] += bias
        return int(scores.argmax())

    def embed(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        return [[float(len(prompt)), 1.0] for prompt in prompts]

    def close(self, drain_seconds: float = 0) -> None:
        if drain_seconds < 0:
            raise UserError("no")

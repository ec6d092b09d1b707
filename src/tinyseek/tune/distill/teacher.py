"""Asking a teacher: a model here by the engine, many texts at once; or one behind a server, many requests at once.

A server's failures are of three kinds. What may pass (busy, broken, unreachable) is asked again, all requests waiting where the
server asks for a pause. What concerns one prompt (400: too long, forbidden) is that prompt's answer: it was rejected. What concerns
all (a bad key, no money, no such model) ends the collection; the answers under way are still taken in.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tinyseek.errors import UserError
from tinyseek.llm.base import Answer, ChatError, ChatModel, ChatOptions, Collector, ContextError, Message, Usage, gather
from tinyseek.llm.local import LocalChat
from tinyseek.llm.remote import RemoteChat
from tinyseek.llm.retry import PASSING, PassingError, wait_before
from tinyseek.model.hub import find_model
from tinyseek.tune.distill.options import CollectSettings
from tinyseek.tune.distill.pace import Pace
from tinyseek.tune.distill.verify import Kind, kind_of

REJECTED = {400, 413, 422, 451}  # statuses by which servers refuse one request and not all
AGAIN: tuple[Kind, ...] = ("blank", "truncated", "refused")
GIVE_UP_AFTER = 5  # requests in a row that failed for good
TRIES_AHEAD = 3  # times `at_once` that the engine is given, so that it never waits for more


@dataclass(frozen=True)
class Ask:
    """One answer that is wanted."""

    key: str  # the hash of all that decides it
    row: int  # which prompt
    messages: list[Message]
    tools: list[dict[str, Any]] | None
    tried: int = 0  # answers to it that came and would not do


@dataclass
class Got:
    """One answer that came."""

    kind: Kind
    message: Message | None  # none: rejected
    finish: str | None
    usage: Usage
    last: bool  # not asked for again
    error: str | None = None


Record = Callable[[Ask, Got], None]


@dataclass
class Outcome:
    """How the asking ended."""

    failed: list[str] = field(default_factory=list)  # why answers could not be had
    stopped: str | None = None  # why nothing more was asked
    reason: Literal["budget", "server"] | None = None
    fatal: UserError | None = None  # what is wrong with all of it


def options_of(settings: CollectSettings, ask: Ask, tried: int) -> ChatOptions:
    """How an answer is drawn: by a seed that is its own, and another when it is asked for again."""
    seed = None
    if settings.seed is not None:
        digest = hashlib.blake2b(f"{settings.seed} {ask.key} {tried}".encode(), digest_size=8).digest()
        seed = int.from_bytes(digest, "little") % 2**31
    return ChatOptions(
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        max_tokens=settings.max_tokens,
        seed=seed,
        thinking=settings.thinking,
        tools=ask.tools,
    )


def times_again(settings: CollectSettings, local: bool) -> int:
    """How often an answer is asked for again. What draws nothing would only say the same."""
    if local and (settings.temperature or 0.0) == 0.0:
        return 0
    return (0 if local else 2) if settings.ask_again is None else settings.ask_again


# ---- a model here ----------------------------------------------------------------------------------------------------------------


def ask_model(chat: LocalChat, asks: Iterable[Ask], settings: CollectSettings, record: Record) -> Outcome:
    """Every answer by the engine, which is stepped here; answers are recorded in the order of asking.

    Raises:
        UserError: the model has no chat template, or the engine failed.
    """
    again = times_again(settings, local=True)
    waiting: deque[tuple[Ask, int, Iterator[Any] | UserError]] = deque()
    source = iter(asks)

    def submit(ask: Ask, tried: int) -> None:
        try:
            deltas: Iterator[Any] | UserError = chat.stream(ask.messages, options_of(settings, ask, tried))
        except ContextError as error:
            deltas = error
        waiting.append((ask, tried, deltas))

    def fill() -> None:
        while len(waiting) < TRIES_AHEAD * settings.at_once and (ask := next(source, None)) is not None:
            submit(ask, ask.tried)

    fill()
    while waiting:
        ask, tried, deltas = waiting.popleft()
        if isinstance(deltas, UserError):
            record(ask, Got("rejected", None, None, Usage(), True, str(deltas)))
        else:
            got = taken(gather(deltas)[0], settings, tried >= again)
            record(ask, got)
            if not got.last:
                submit(ask, tried + 1)
        fill()
    return Outcome()


def taken(answer: Answer, settings: CollectSettings, last: bool) -> Got:
    """An answer that came, with what kind of one it is."""
    kind = kind_of(answer, settings.refusals)
    usage = answer.usage or Usage()
    if not usage.completion_tokens:  # a server that does not count: four bytes a token is about right
        said = len((answer.reasoning + answer.content).encode())
        usage = replace(usage, completion_tokens=-(-said // 4))
    return Got(kind, answer.message, answer.finish, usage, last or kind not in AGAIN)


# ---- a server --------------------------------------------------------------------------------------------------------------------


def ask_server(
    chat: RemoteChat, asks: Sequence[Ask], settings: CollectSettings, spent: float, record: Record
) -> Outcome:
    """Every answer by requests, several under way at a time.

    Args:
        chat: with its own retries off: when to ask again is decided here, for all requests together.
        spent: money so far.
    """
    asking = _Asking(chat, asks, settings, spent, record).run()
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(asking)
    with ThreadPoolExecutor(1) as thread:  # a notebook's loop is running in this one
        return thread.submit(asyncio.run, asking).result()


class _Asking:
    """The requests of one collection."""

    def __init__(
        self, chat: RemoteChat, asks: Sequence[Ask], settings: CollectSettings, spent: float, record: Record
    ) -> None:
        self.chat, self.settings, self.record = chat, settings, record
        self.todo = iter(asks)
        self.again = times_again(settings, local=False)
        self.pace = Pace(settings.requests_per_minute, settings.tokens_per_minute, settings.budget, spent)
        self.outcome = Outcome()
        self.answered = 0
        self.failing = 0  # requests in a row that failed for good
        self.rejected: list[tuple[Ask, Got]] = []  # before anything was answered: perhaps all will be

    async def run(self) -> Outcome:
        count = max(1, self.settings.at_once // 4)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(count):
                    group.create_task(self._work())
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None
        finally:
            with contextlib.suppress(Exception):
                await self.chat.aclose()
        if self.rejected and not self.outcome.fatal:  # nothing else ever came: that is what is wrong
            self.outcome.fatal = UserError(self.rejected[0][1].error or "the server rejects every request")
        return self.outcome

    async def _work(self) -> None:
        while not self.pace.stopped.is_set() and (ask := next(self.todo, None)) is not None:
            await self._one(ask)

    async def _one(self, ask: Ask) -> None:
        """One answer, asked for as often as it takes and may."""
        failures, answered = 0, self.answered
        tried = ask.tried
        while True:
            sent = await self.pace.turn(*self._most(ask))
            if sent is None:
                self._out_of_money()
                return
            answers, collector, error = None, Collector(), None
            try:
                options = options_of(self.settings, ask, tried)
                async for delta in self._deltas(ask, options):
                    collector.push(delta)
                answers = collector.answers()
            except ChatError as failed:
                error = failed
            except UserError as wrong:
                self._end(wrong)
                return
            finally:
                usage = answers[0].usage if answers else None
                self.pace.done(sent, usage.total_tokens if usage else 0, (usage.cost or 0.0) if usage else 0.0)
            if answers:
                got = taken(answers[0], self.settings, tried >= self.again)
                self._record(ask, got)
                if got.last:
                    return
                tried, failures = tried + 1, 0
                continue
            if error is None:
                error = PassingError("the server answered with nothing")
            if error.status in REJECTED:
                self._reject(ask, str(error))
                return
            if error.status is not None and error.status not in PASSING and error.status < 500:
                self._end(error)
                return
            if error.status == 429 and self.answered > answered:  # busy, but others are served
                failures, answered = 0, self.answered
            wait = self._wait(failures, error)
            if wait is None:
                self._fail(error)
                return
            if error.status == 429:
                self.pace.hold(wait)
            failures += 1
            await self.pace.pause(wait)
            if self.pace.stopped.is_set():
                return

    async def _deltas(self, ask: Ask, options: ChatOptions) -> AsyncIterator[Any]:
        async with contextlib.aclosing(self.chat.astream(ask.messages, options)) as deltas:
            async for delta in deltas:
                yield delta

    def _most(self, ask: Ask) -> tuple[float, float]:
        """Tokens and money that a request may take at most. A token is a byte at least."""
        prompt = sum(len(str(message.get("content") or "").encode()) + 16 for message in ask.messages)
        prices = self.settings.server.prices
        money = prices.cost(prompt, 0, self.settings.max_tokens) if prices else 0.0
        return prompt / 4 + self.settings.max_tokens, money

    def _wait(self, failures: int, error: ChatError) -> float | None:
        """Seconds before the next try; none when there is none."""
        passing = error if isinstance(error, PassingError) else PassingError(str(error), error.status)
        try:
            return wait_before(failures, passing, self.settings.server)
        except ChatError:
            return None

    def _record(self, ask: Ask, got: Got) -> None:
        self.answered += 1
        self.failing = 0
        for held in self.rejected:
            self.record(*held)
        self.rejected.clear()
        self.record(ask, got)

    def _reject(self, ask: Ask, why: str) -> None:
        got = Got("rejected", None, None, Usage(), True, why)
        if self.answered:
            self.record(ask, got)
            return
        self.rejected.append((ask, got))
        if len(self.rejected) >= GIVE_UP_AFTER:
            self._end(UserError(why))

    def _fail(self, error: ChatError) -> None:
        self.outcome.failed.append(str(error))
        self.failing += 1
        if self.failing >= GIVE_UP_AFTER and not self.pace.stopped.is_set():
            self.outcome.stopped, self.outcome.reason = f"{self.failing} requests in a row failed: {error}", "server"
            self.pace.stopped.set()

    def _end(self, error: UserError) -> None:
        self.outcome.fatal = self.outcome.fatal or error
        self.pace.stopped.set()

    def _out_of_money(self) -> None:
        if self.settings.budget is not None and not self.pace.stopped.is_set():
            self.outcome.stopped = (
                f"the budget of {self.settings.budget:g} would be passed ({self.pace.spent:.6g} is spent)"
            )
            self.outcome.reason = "budget"
            self.pace.stopped.set()


class Teacher:
    """Who answers. A model here is loaded when it is first asked, since all may be there already.

    Attributes:
        identity: which model it is: by its content, or by its server and name.
    """

    def __init__(self, settings: CollectSettings, key: str) -> None:
        """Find it.

        Args:
            key: of a model here.
        Raises:
            UserError: there is no key for the server, or no server.
        """
        self._settings, self.identity = settings, key
        self._chat: RemoteChat | LocalChat | None = None
        self.name = Path(settings.teacher).name
        if settings.at_server:
            chat = ChatModel.open(settings.teacher, model=settings.model, remote=settings.server)
            assert isinstance(chat, RemoteChat)
            chat.settings = settings.server.model_copy(update={"retries": 0})  # when to ask again is decided here
            self._chat, self.name, self.identity = chat, chat.name, f"{chat.url} {chat.model}"
        elif settings.model is not None:
            raise UserError(f"model={settings.model}: only a server has several models; {settings.teacher} is one here")

    def ask(self, asks: Sequence[Ask], spent: float, record: Record) -> Outcome:
        """Have all answers, each recorded as it comes; see `ask_model` and `ask_server`.

        Raises:
            UserError: a model here that cannot be loaded, or is no chat model.
        """
        if isinstance(self._chat, RemoteChat):
            return ask_server(self._chat, asks, self._settings, spent, record)
        self._chat = self._chat or load(self._settings)
        return ask_model(self._chat, asks, self._settings, record)

    def close(self) -> None:
        """Give back what it holds."""
        if self._chat is not None:
            self._chat.close()


def load(settings: CollectSettings) -> LocalChat:
    """A model here, with room for many texts at once."""
    from tinyseek.engine.options import EngineSettings

    engine = EngineSettings(
        device=settings.device,
        quantize=settings.quantize,
        max_sequences=settings.at_once,
        max_batch_tokens=max(1024, settings.at_once),
        max_waiting=TRIES_AHEAD * settings.at_once,
    )
    return LocalChat.load(find_model(settings.teacher), engine)

"""RemoteChat: any OpenAI-compatible server - DeepSeek's API, Ollama, vLLM, OpenAI, our own - as a chat model.

Everything that waits is written once, for asyncio; `stream` reads it through a thread of its own. An answer is asked for again
while nothing of it has been handed out; after that a failure is an error, never a second beginning.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import threading
import time
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from tinyseek.errors import UserError
from tinyseek.llm.base import (
    DEFAULT,
    Answer,
    ChatDelta,
    ChatError,
    ChatModel,
    ChatOptions,
    Collector,
    Message,
    Usage,
    gather,
)
from tinyseek.llm.chunks import ChunkReader, error_of, read_usage
from tinyseek.llm.options import RemoteSettings
from tinyseek.llm.retry import PASSING, PassingError, retry_after, wait_before
from tinyseek.llm.sending import Kind, chat_body, wants_beta, wants_json
from tinyseek.llm.sse import EventReader

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")

_EMBED_BATCH = 64  # texts a request
_LONGEST_ERROR = 1 << 16  # bytes of a failed answer that are read
_KEYS = {"deepseek": "DEEPSEEK_API_KEY", "openai": "OPENAI_API_KEY", "ollama": None, "other": "TINYSEEK_API_KEY"}


class RemoteChat(ChatModel):
    """A model behind a server.

    Attributes:
        url: of the API, without a slash at its end.
        model: its name there.
        kind: whose server it is, where that makes a difference.
        total: tokens, and cost, of all answers so far.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        kind: Kind = "other",
        key: str | None = None,
        settings: RemoteSettings | None = None,
    ) -> None:
        """Nothing is connected yet.

        Args:
            url: of the API, with its version: `http://127.0.0.1:8000/v1`.
            model: the name of a model there.
            kind: "deepseek", "openai", "ollama" or "other".
            key: the server's; none to take it from the environment (`RemoteSettings.key_from`).
            settings: time-outs, retries, prices.
        """
        self.url, self.model, self.kind = url.rstrip("/"), model, kind
        self.name = model
        self.settings = settings or RemoteSettings()
        self.total = Usage()
        self._key_from = self.settings.key_from or _KEYS[kind]
        self._key = key or (os.environ.get(self._key_from) if self._key_from else None) or None
        self._clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, httpx2.AsyncClient] = (
            weakref.WeakKeyDictionary()
        )
        self._thread = _LoopThread()
        self._counting = threading.Lock()

    def __repr__(self) -> str:
        return f"RemoteChat({self.url!r}, {self.model!r})"

    # ---- answers

    def stream(self, messages: Sequence[Message], options: ChatOptions = DEFAULT) -> Iterator[ChatDelta]:
        """The answer, piece by piece. Closing the iterator hangs up."""
        deltas = self.astream(messages, options)
        return self._thread.iterate(lambda: deltas)

    def astream(self, messages: Sequence[Message], options: ChatOptions = DEFAULT) -> AsyncGenerator[ChatDelta, None]:
        """`stream` for asyncio.

        Raises:
            UserError: at once, for what the server is known not to do.
            ChatError: while reading: the server refuses, fails, or breaks off.
        """
        body = chat_body(self.kind, self.model, messages, options)
        root = self.url + ("/beta" if wants_beta(self.kind, options) else "")
        return self._answer(f"{root}/chat/completions", body, wants_json(options))

    def complete_all(self, messages: Sequence[Message], options: ChatOptions = DEFAULT) -> list[Answer]:
        """All `n` answers. JSON that came blank is asked for again."""
        answers = gather(self.stream(messages, options), options)
        for _ in range(self.settings.retries):
            if not _blank(answers, options):
                break
            answers = gather(self.stream(messages, options), options)
        return answers

    async def acomplete_all(self, messages: Sequence[Message], options: ChatOptions = DEFAULT) -> list[Answer]:
        """All `n` answers, for asyncio."""
        answers: list[Answer] = []
        for _ in range(self.settings.retries + 1):
            collector = Collector()
            async for delta in self.astream(messages, options):
                collector.push(delta)
            answers = collector.answers(options)
            if not _blank(answers, options):
                break
        return answers

    async def _answer(self, url: str, body: dict[str, Any], json_wanted: bool) -> AsyncGenerator[ChatDelta, None]:
        """The deltas of an answer, asked for as often as it takes."""
        attempt = 0
        while True:
            reader = ChunkReader(self.settings.prices)
            held: list[ChatDelta] = []  # white space before JSON: perhaps all that comes
            given = False
            try:
                async with contextlib.aclosing(self._once(url, body, reader)) as deltas:
                    async for delta in deltas:
                        held.append(delta)
                        if json_wanted and not reader.said:
                            continue
                        for one in held:
                            given = True
                            yield one
                        held.clear()
                if not held or attempt >= self.settings.retries:
                    for one in held:
                        yield one
                    return
                wait = wait_before(attempt, PassingError("the server answered with nothing"), self.settings)
            except PassingError as error:
                if given:
                    raise ChatError(f"{self._told(error)}; the answer broke off", error.status) from None
                wait = wait_before(
                    attempt, PassingError(self._told(error), error.status, error.retry_after), self.settings
                )
            except ChatError as error:
                if "stream_options" in body and error.status in (400, 422) and "stream_options" in str(error):
                    body = {name: value for name, value in body.items() if name != "stream_options"}
                    continue
                raise ChatError(self._told(error), error.status) from None
            attempt += 1
            await asyncio.sleep(wait)

    async def _once(self, url: str, body: dict[str, Any], reader: ChunkReader) -> AsyncGenerator[ChatDelta, None]:
        """One try."""
        settings = self.settings
        events = EventReader()
        began = heard = time.monotonic()
        first = True  # still waiting for the first delta
        try:
            async with contextlib.AsyncExitStack() as stack:
                async with asyncio.timeout(settings.first_token_seconds):
                    response = await stack.enter_async_context(self._post(url, body))
                kind = response.headers.get("content-type", "")
                if "json" in kind and "event-stream" not in kind:  # a server that does not stream
                    async with asyncio.timeout(max(0.0, began + settings.first_token_seconds - time.monotonic())):
                        whole = await response.aread()
                    for delta in reader.read(_json(whole)):
                        yield delta
                else:
                    chunks = response.aiter_bytes()
                    done = False
                    while not done:
                        limit = began + settings.first_token_seconds
                        if not first:  # signs of life count, but not for ever
                            limit = min(
                                time.monotonic() + settings.between_tokens_seconds, heard + settings.first_token_seconds
                            )
                        async with asyncio.timeout(max(0.0, limit - time.monotonic())):
                            chunk = await anext(chunks, None)
                        for data in events.push(chunk) if chunk is not None else events.end():
                            if data.strip() == "[DONE]":
                                done = True
                                break
                            for delta in reader.read(_json(data)):
                                first, heard = False, time.monotonic()
                                yield delta
                        done = done or chunk is None
            for delta in reader.end():
                yield delta
        except TimeoutError:
            waited = time.monotonic() - (began if first else heard)
            what = "no token" if first else "nothing more"
            raise PassingError(f"the server sent {what} for {waited:.0f} seconds") from None
        except ValueError as error:
            raise ChatError(str(error)) from None
        finally:
            if reader.usage:
                self._count(reader.usage)

    # ---- embeddings and models

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """A vector for each text.

        Raises:
            ChatError: the server has no embeddings, or gives something else.
        """
        return self._thread.run(self.aembed(texts))

    async def aembed(self, texts: Sequence[str]) -> list[list[float]]:
        """`embed` for asyncio."""
        vectors: list[list[float]] = []
        for start in range(0, len(texts), _EMBED_BATCH):
            batch = list(texts[start : start + _EMBED_BATCH])
            body = {"model": self.model, "input": batch, "encoding_format": "float"}
            reply = await self._ask("POST", f"{self.url}/embeddings", body)
            try:
                entries = sorted(reply["data"], key=lambda entry: entry.get("index", 0))
                found = [[float(value) for value in entry["embedding"]] for entry in entries]
            except (TypeError, KeyError, ValueError, AttributeError):
                raise ChatError(f"{self.url}: the server's embeddings cannot be read") from None
            if len(found) != len(batch):
                raise ChatError(f"{self.url}: {len(batch)} texts came back as {len(found)} embeddings")
            if isinstance(reply.get("usage"), dict):
                self._count(read_usage(reply["usage"], self.settings.prices))
            vectors += found
        return vectors

    def models(self) -> list[str]:
        """The names of the server's models."""
        return self._thread.run(self.amodels())

    async def amodels(self) -> list[str]:
        """`models` for asyncio."""
        reply = await self._ask("GET", f"{self.url}/models", None)
        entries = reply.get("data") if isinstance(reply, dict) else None
        return [str(entry["id"]) for entry in entries or () if isinstance(entry, dict) and "id" in entry]

    async def _ask(self, method: str, url: str, body: dict[str, Any] | None) -> Any:
        """A request whose answer is one JSON value, repeated as often as it takes."""
        attempt = 0
        while True:
            try:
                async with (
                    asyncio.timeout(self.settings.first_token_seconds),
                    self._post(url, body, method) as response,
                ):
                    return _json(await response.aread())
            except PassingError as error:
                wait = wait_before(
                    attempt, PassingError(self._told(error), error.status, error.retry_after), self.settings
                )
            except ChatError as error:
                raise ChatError(self._told(error), error.status) from None
            except TimeoutError:
                wait = wait_before(attempt, PassingError(f"{self.url}: no answer in time"), self.settings)
            except ValueError as error:
                raise ChatError(f"{self.url}: {error}") from None
            attempt += 1
            await asyncio.sleep(wait)

    # ---- the connection

    @contextlib.asynccontextmanager
    async def _post(
        self, url: str, body: dict[str, Any] | None, method: str = "POST"
    ) -> AsyncIterator[httpx2.Response]:
        """A response whose status is 200, its body unread.

        Raises:
            PassingError: the server is unreachable, busy or broken, or breaks off while the body is read.
            ChatError: it refuses.
        """
        import httpx2

        headers = {"authorization": f"Bearer {self._key}"} if self._key else {}
        if body is not None:
            headers["content-type"] = "application/json"
        content = None if body is None else json.dumps(body, ensure_ascii=False).encode(errors="replace")
        try:
            async with self._client().stream(method, url, headers=headers, content=content) as response:
                if response.status_code != 200:
                    raise await _refusal(response)
                yield response
        except httpx2.ConnectTimeout:
            raise PassingError(f"no connection within {self.settings.connect_seconds:g} seconds") from None
        except httpx2.ConnectError as error:
            raise PassingError(f"no server answers there; is it running? ({error})") from None
        except httpx2.TimeoutException:
            raise PassingError("no answer in time") from None
        except (httpx2.TransportError, httpx2.StreamError) as error:
            raise PassingError(f"the connection broke ({error or type(error).__name__})") from None
        except (httpx2.InvalidURL, httpx2.HTTPError, UnicodeError) as error:
            raise ChatError(f"no request can be sent there ({error})") from None

    def _client(self) -> httpx2.AsyncClient:
        """The connections of this event loop."""
        import httpx2

        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            timeout = httpx2.Timeout(None, connect=self.settings.connect_seconds, pool=self.settings.connect_seconds)
            # No proxy to ourselves, and no following to elsewhere with the key.
            here = httpx2.URL(self.url).host in ("127.0.0.1", "localhost", "::1")
            secure = self.url.startswith("https:")  # else no certificates need be read, which takes a tenth of a second
            client = httpx2.AsyncClient(
                timeout=timeout,
                verify=secure,
                trust_env=not here,
                follow_redirects=False,
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20),
            )
            self._clients[loop] = client
        return client

    def _told(self, error: ChatError) -> str:
        """An error's words with what to do about it, without the key."""
        hint = ""
        if error.status in (401, 403):
            hint = f"; set {self._key_from} to a valid key" if self._key_from else "; it wants a key"
        elif error.status == 402:
            hint = "; the account has no balance left"
        elif error.status == 404:
            hint = f"; is {self.model!r} one of its models, and {self.url} its address?"
        text = f"{self.url}: {error}{hint}"
        return text.replace(self._key, "***") if self._key else text

    def _count(self, usage: Usage) -> None:
        with self._counting:
            total = self.total
            cost = None if total.cost is None and usage.cost is None else (total.cost or 0) + (usage.cost or 0)
            self.total = Usage(
                total.prompt_tokens + usage.prompt_tokens,
                total.completion_tokens + usage.completion_tokens,
                total.cached_tokens + usage.cached_tokens,
                total.reasoning_tokens + usage.reasoning_tokens,
                cost,
            )

    def close(self) -> None:
        """Close the connections of `stream`, `embed` and `models`."""
        self._thread.close(self.aclose)

    async def aclose(self) -> None:
        """Close the connections of this event loop."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()


async def _refusal(response: httpx2.Response) -> ChatError:
    """What a response that is not 200 says."""
    read = b""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(10):
            async for chunk in response.aiter_bytes():
                read += chunk
                if len(read) > _LONGEST_ERROR:
                    break
    try:
        body = json.loads(read)
    except (ValueError, RecursionError):
        text = " ".join(read.decode(errors="replace").split())
        body = (
            text[:200] if not text.startswith("<") else response.reason_phrase
        )  # a web page says nothing to a terminal
    status = response.status_code
    if 300 <= status < 400:
        return ChatError(f"the server sends us elsewhere ({status}); give the address that it names", status)
    return error_of(
        body or response.reason_phrase, status, retry_after(response.headers) if status in PASSING else None
    )


def _json(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        shown = text.decode(errors="replace") if isinstance(text, bytes) else text
        raise ChatError(f"the server sent something that is no JSON: {' '.join(shown.split())[:120]!r}") from None


def _blank(answers: list[Answer], options: ChatOptions) -> bool:
    """JSON was asked for and nothing came, as DeepSeek's API sometimes does."""
    return wants_json(options) and any(
        answer.finish == "stop" and not answer.content.strip() and not answer.tool_calls for answer in answers
    )


class _LoopThread:
    """A thread with an event loop, for callers that have none; started when it is first needed."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="remote chat", daemon=True)
                self._thread.start()
            return self._loop

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine."""
        future = asyncio.run_coroutine_threadsafe(work, self._running())
        try:
            return future.result()
        finally:
            future.cancel()

    def iterate(self, make: Callable[[], AsyncGenerator[T, None]]) -> Iterator[T]:
        """The items of an async iterator. Leaving early cancels it."""
        items: queue.SimpleQueue[tuple[T | None, Exception | None]] = queue.SimpleQueue()

        async def pump() -> None:
            try:
                async with contextlib.aclosing(make()) as source:
                    async for item in source:
                        items.put((item, None))
            except asyncio.CancelledError:
                items.put((None, ChatError("the connection was closed")))
                raise
            except Exception as error:
                items.put((None, error))
            else:
                items.put((None, None))

        future = asyncio.run_coroutine_threadsafe(pump(), self._running())
        try:
            while True:
                item, error = items.get()
                if error is not None:
                    raise error
                if item is None:
                    return
                yield item
        finally:
            future.cancel()

    def close(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `last` in the loop, if there is one, and stop it."""
        with self._starting:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is None or thread is None:
            return

        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await last()

        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(end(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()


def server(kind: Kind, model: str, settings: RemoteSettings | None = None) -> RemoteChat:
    """A server whose address is known: DeepSeek's, OpenAI's, or Ollama on this machine.

    Raises:
        UserError: it wants a key and there is none.
    """
    address = {
        "deepseek": "https://api.deepseek.com",
        "openai": os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1",
        "ollama": _ollama_address(),
    }[kind]
    chat = RemoteChat(address, model, kind=kind, settings=settings)
    if chat._key is None and chat._key_from:
        raise UserError(f"{kind}: no key; put it into the environment: export {chat._key_from}=...")
    return chat


def _ollama_address() -> str:
    host = os.environ.get("OLLAMA_HOST", "").strip().rstrip("/") or "127.0.0.1:11434"
    host = host.replace("0.0.0.0", "127.0.0.1")  # where it listens, not where it is
    return (host if "://" in host else f"http://{host}") + "/v1"

"""Scheduler: what the next step runs.

First come, first served, with three rules on top. Texts being written go first, one token each (and their drafts), so that no
prompt makes them wait. What is left of `max_batch_tokens` goes to prompts, in chunks: half of it to the oldest, the rest to the
shortest first, so that a short prompt need not wait for a long one, nor the long one for ever. And a prompt whose next block is
just being computed for another waits for that one and takes its block.

When blocks run out the text that came last gives its own back and waits again; its tokens are kept and run once more later. The
oldest is therefore never stopped, and everything ends.
"""

from __future__ import annotations

from collections import deque

from tinyseek.engine.blocks import BlockPool, Prefix
from tinyseek.engine.sequence import Chunk, Sequence


class Scheduler:
    """Who waits and who runs.

    Attributes:
        waiting: in the order of arrival; all came after those that run.
        running: in the order of arrival.
        keep: whether the blocks of a text that has ended are kept for others.
    """

    def __init__(self, pool: BlockPool, max_sequences: int, max_batch_tokens: int, keep: bool = True) -> None:
        self.pool, self.max_sequences, self.max_batch_tokens = pool, max_sequences, max_batch_tokens
        self.keep = keep
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0
        self.reused = 0  # prompt tokens that were not run, since their blocks were known

    def add(self, sequence: Sequence) -> None:
        """Let a text wait for its turn."""
        self.waiting.append(sequence)

    def schedule(self) -> list[Chunk]:
        """What to run next, at most `max_batch_tokens` tokens; empty only when nothing waits or runs. The blocks are there."""
        self._admit()
        while True:
            batch = self._writing()
            batch += self._reading(self.max_batch_tokens - sum(chunk.count for chunk in batch))
            if batch or not self.running:
                return batch
            self._preempt(self.running[-1])  # several prompts that hold all blocks between them

    def computed(self, sequence: Sequence, length: int) -> None:
        """The first `length` tokens are in the cache now; let others find the blocks that became full."""
        sequence.computed = length
        size = self.pool.block_size
        while (sequence.published + 1) * size <= length:
            start = sequence.published * size
            tokens = tuple(sequence.tokens[start : start + size])
            sequence.place = self.pool.publish(sequence.place, tokens, sequence.blocks[sequence.published])
            sequence.blocks[sequence.published] = sequence.place.block
            sequence.published += 1

    def reserve(self, sequence: Sequence, drafts: int) -> bool:
        """Give a text the blocks for so many guessed tokens, if every running text is then left one: none stops for a guess."""
        length = len(sequence.tokens) + drafts
        missing = max(self.pool.blocks_for(length) - len(sequence.blocks), 0)
        return missing + len(self.running) <= self.pool.free and self._room(sequence, length)

    def finish(self, sequence: Sequence) -> None:
        """A text has ended: its blocks are free, or kept for others."""
        (self.running if sequence in self.running else self.waiting).remove(sequence)
        self.pool.release(sequence.blocks, self.keep)
        sequence.restart()

    def _admit(self) -> None:
        """Let waiting texts run while there is room for the whole of each, besides what the running ones still need."""
        reserved = self._reserved() if self.waiting else 0
        while self.waiting and len(self.running) < self.max_sequences:
            sequence = self.waiting[0]
            found = [] if sequence.scoring else self._known(sequence)
            held = sum(self.pool.holders(place.block) > 0 for place in found)
            if self.running and self._missing(sequence) - held + reserved > self.pool.free:
                return
            self.running.append(self.waiting.popleft())
            self._reuse(sequence)
            reserved += self._reserve_of(sequence)

    def _missing(self, sequence: Sequence) -> int:
        """Blocks that a text needs to draw its next token."""
        return self.pool.blocks_for(len(sequence.tokens) + 1) - len(sequence.blocks)

    def _reserved(self) -> int:
        """Blocks to leave for the texts that run: what they miss, and one more each."""
        return sum(map(self._reserve_of, self.running))

    def _reserve_of(self, sequence: Sequence) -> int:
        return max(self._missing(sequence), 0) + 1

    def _writing(self) -> list[Chunk]:
        """The texts that need but one token run, with their drafts."""
        batch = []
        left = self.max_batch_tokens
        stopped: set[Sequence] = set()
        for sequence in list(self.running):
            if sequence.remaining != 1 or sequence in stopped:
                continue
            if sequence.draft:
                del sequence.draft[max(left - len(self.running), 0) :]
                if not self._room(sequence, len(sequence.tokens) + len(sequence.draft)):
                    sequence.draft.clear()
            while not self._room(sequence, len(sequence.tokens)):
                last = self.running[-1]
                self._preempt(last)
                stopped.add(last)
                if last is sequence:
                    break
            else:
                batch.append(self._chunk(sequence, 1 + len(sequence.draft)))
                left -= batch[-1].count
        return batch

    def _reading(self, budget: int) -> list[Chunk]:
        """Chunks of the prompts that are not read yet, the shortest last bit first but for the oldest."""
        prompts: list[Sequence] = []
        being_computed: set[tuple[int, tuple[int, ...]]] = set()
        size = self.pool.block_size
        for sequence in self.running:
            if sequence.remaining == 1:
                continue
            self._reuse(sequence)
            start = sequence.computed
            if start == sequence.published * size and sequence.remaining > size:
                block = id(sequence.place), tuple(sequence.tokens[start : start + size])
                if block in being_computed and not sequence.scoring:
                    continue
                being_computed.add(block)
            prompts.append(sequence)
        if not prompts:
            return []
        oldest, *others = prompts
        counts = {oldest: min(oldest.remaining, -(-budget // 2))}
        left = budget - counts[oldest]
        for sequence in sorted(others, key=lambda sequence: sequence.remaining):
            counts[sequence] = min(sequence.remaining, left)
            left -= counts[sequence]
        counts[oldest] += min(left, oldest.remaining - counts[oldest])
        chunks = [self._part(sequence, count) for sequence, count in counts.items() if count]
        return [chunk for chunk in chunks if chunk is not None]

    def _part(self, sequence: Sequence, count: int) -> Chunk | None:
        """A chunk of at most `count` tokens, as far as there are blocks; it ends with a block where it can."""
        size = self.pool.block_size
        count = min(count, (len(sequence.blocks) + self.pool.free) * size - sequence.computed)
        if count < sequence.remaining and (whole := count - (sequence.computed + count) % size) > 0:
            count = whole
        if count < 1 or not self._room(sequence, sequence.computed + count):
            return None
        return self._chunk(sequence, count)

    def _chunk(self, sequence: Sequence, count: int) -> Chunk:
        last = 1 + len(sequence.draft) if count >= sequence.remaining else 0
        wanted = count if sequence.scoring else last
        return Chunk(sequence, sequence.computed, count, wanted)

    def _room(self, sequence: Sequence, length: int) -> bool:
        """Give a text the blocks for so many tokens, if there are."""
        missing = self.pool.blocks_for(length) - len(sequence.blocks)
        if missing > 0:
            blocks = self.pool.allocate(missing)
            if blocks is None:
                return False
            sequence.blocks += blocks
        return True

    def _known(self, sequence: Sequence) -> list[Prefix]:
        """Places of the full blocks that come next in a text and are known already. At least one token is left to be run."""
        return self.pool.match(sequence.place, sequence.tokens[sequence.computed : -1])

    def _reuse(self, sequence: Sequence) -> None:
        """Take the next blocks from others where they are known."""
        size = self.pool.block_size
        if (
            sequence.scoring
            or sequence.computed != sequence.published * size
            or len(sequence.blocks) > sequence.published
        ):
            return
        for place in self._known(sequence):
            self.pool.hold(place.block)
            sequence.blocks.append(place.block)
            sequence.place = place
            sequence.published += 1
            sequence.computed += size
            if sequence.index == 0 and not sequence.preempted:
                sequence.request.cached_tokens += size
                self.reused += size

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.pool.release(sequence.blocks)
        sequence.restart()
        sequence.preempted = True
        self.waiting.appendleft(sequence)
        self.preemptions += 1

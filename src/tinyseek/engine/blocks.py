"""BlockPool: which blocks of the cache are held, free, or kept because a prompt may begin like one before. No torch here.

A full block's contents follow from its tokens and all those before it, so a block is known by a chain: its parent's place and its
own tokens. Chains are found by a hash and then compared, token by token and parent by parent; a collision costs a comparison, never
a wrong answer. (The idea is vLLM's automatic prefix caching.)

A block that nobody holds stays findable until its memory is needed: the block longest unused goes first, the end of a text before
its beginning.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


def chain_hash(parent: int, tokens: tuple[int, ...]) -> int:
    """The hash of a block after its parent's. Python's own over integers: the same in every process, and fast."""
    return hash((parent, tokens))


class Prefix:
    """A full block's place in the chain of blocks from the beginning of a text; without a parent, that beginning.

    Args:
        tokens: the block's; of a beginning what makes it another than others: the adapter that reads the text.
    """

    __slots__ = ("block", "hash", "parent", "tokens")

    def __init__(self, parent: Prefix | None = None, tokens: tuple[int, ...] = (), block: int = -1) -> None:
        self.parent, self.tokens, self.block = parent, tokens, block
        self.hash: int = chain_hash(parent.hash, tokens) if parent else chain_hash(0, tokens) if tokens else 0


class BlockPool:
    """The blocks of one cache, by number.

    Attributes:
        root: the beginning that all texts without an adapter share; `beginning` gives that of others. Texts that begin with a
            `Prefix()` of their own share with nobody else.
    """

    def __init__(self, blocks: int, block_size: int) -> None:
        self.total, self.block_size = blocks, block_size
        self.root = Prefix()
        self._beginnings: dict[str, Prefix] = {}
        self._holders = [0] * blocks
        self._places: list[Prefix | None] = [None] * blocks
        self._found: dict[int, list[Prefix]] = {}  # hash -> places
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(blocks))  # held by nobody; the first goes first
        self._kept = 0  # of the free ones, how many can be found

    def beginning(self, adapter: str) -> Prefix:
        """The beginning of all texts that an adapter reads: another adapter's keys are others, whatever the tokens."""
        return self._beginnings.setdefault(adapter, Prefix(None, tuple(adapter.encode())))

    @property
    def free(self) -> int:
        """Blocks that can be had, the kept ones included."""
        return len(self._free)

    @property
    def used(self) -> int:
        """Blocks that somebody holds."""
        return self.total - len(self._free)

    @property
    def cached(self) -> int:
        """Blocks that nobody holds, kept to be found."""
        return self._kept

    def holders(self, block: int) -> int:
        """How many texts hold a block."""
        return self._holders[block]

    def blocks_for(self, tokens: int) -> int:
        """How many blocks so many tokens fill or begin."""
        return -(-tokens // self.block_size)

    def allocate(self, count: int) -> list[int] | None:
        """Hold `count` blocks with nothing in them; none if there are not so many. What was kept in them is forgotten."""
        if count > len(self._free):
            return None
        blocks = []
        for _ in range(count):
            block, _ = self._free.popitem(last=False)
            self._forget(block)
            self._holders[block] = 1
            blocks.append(block)
        return blocks

    def hold(self, block: int) -> None:
        """Hold a block that was found."""
        if not self._holders[block]:
            del self._free[block]
            self._kept -= 1
        self._holders[block] += 1

    def release(self, blocks: Sequence[int], keep: bool = True) -> None:
        """Hold a text's blocks no longer. They are given from its beginning on; its end is forgotten first.

        Args:
            keep: let what nobody holds be found by others.
        """
        for block in reversed(blocks):
            assert self._holders[block], f"block {block} was released more often than held"
            if not keep and self._holders[block] == 1:
                self._forget(block)
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            self._free[block] = None
            if self._places[block] is None:
                self._free.move_to_end(block, last=False)  # nothing in it to keep
            else:
                self._kept += 1

    def find(self, parent: Prefix, tokens: tuple[int, ...]) -> Prefix | None:
        """The place of the block with these tokens after `parent`, if it is kept or held."""
        for place in self._found.get(chain_hash(parent.hash, tokens), ()):
            if place.parent is parent and place.tokens == tokens:
                return place
        return None

    def match(self, parent: Prefix, tokens: Sequence[int]) -> list[Prefix]:
        """The places of the longest known run of full blocks at the beginning of `tokens`, which follow `parent`."""
        found = []
        for start in range(0, len(tokens) - self.block_size + 1, self.block_size):
            place = self.find(parent, tuple(tokens[start : start + self.block_size]))
            if place is None:
                break
            found.append(place)
            parent = place
        return found

    def publish(self, parent: Prefix, tokens: tuple[int, ...], block: int) -> Prefix:
        """Let others find a block that is full now.

        Where another with the same contents is known already, that one is held from now on and `block` is not: so equal texts come
        to share, and a block's parent is always held or kept at least as long as itself.

        Returns:
            The place; its `block` is the one to use.
        """
        place = self.find(parent, tokens)
        if place is None:
            place = Prefix(parent, tokens, block)
            self._places[block] = place
            self._found.setdefault(place.hash, []).append(place)
        elif place.block != block:
            self.hold(place.block)
            self.release([block])
        return place

    def clear(self) -> None:
        """Forget all contents, since the model's weights have changed. What is held stays held."""
        for block in range(self.total):
            self._forget(block)

    def _forget(self, block: int) -> None:
        """Let nobody find a block any more."""
        place = self._places[block]
        if place is None:
            return
        self._places[block] = None
        same = self._found[place.hash]
        same.remove(place)
        if not same:
            del self._found[place.hash]
        if not self._holders[block]:
            self._kept -= 1

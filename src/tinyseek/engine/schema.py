"""Whether any text of finite length can satisfy a JSON schema. The library that enforces schemas does not ask.

`{"properties": {"next": {"$ref": "#"}}, "required": ["next"], ...}` is met by no finite value: a model would write until it is cut
off. What is finite is found as a least fixed point: a reference counts as finite once its target does by those that count already.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

_MOST_WORK = 200_000  # schemas looked at; a larger one is taken to be finite
_SCALARS = {"string", "number", "integer", "boolean", "null"}


class _EnoughError(Exception):
    pass


def can_end(schema: Mapping[str, Any] | bool) -> bool:
    """False if every value that satisfies the schema would be endless; True where that is not certain."""
    return _Search(schema).run()


class _Search:
    def __init__(self, root: Mapping[str, Any] | bool) -> None:
        self._root = root
        self._finite: set[str] = set()
        self._work = 0

    def run(self) -> bool:
        waiting = dict.fromkeys(_references(self._root))
        try:
            while True:
                found = [reference for reference in waiting if self._ends(self._target(reference))]
                if not found:
                    return self._ends(self._root)
                self._finite.update(found)
                for reference in found:
                    del waiting[reference]
        except (_EnoughError, RecursionError):
            return True

    def _target(self, reference: str) -> Any:
        """What a reference inside the document stands for; True (anything) for one that leads elsewhere."""
        if reference != "#" and not reference.startswith("#/"):
            return True
        node: Any = self._root
        for part in reference.split("/")[1:]:
            name = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(node, Mapping) and name in node:
                node = node[name]
            elif isinstance(node, list) and name.isdecimal() and int(name) < len(node):
                node = node[int(name)]
            else:
                return True
        return node

    def _ends(self, node: Any) -> bool:
        self._work += 1
        if self._work > _MOST_WORK:
            raise _EnoughError
        if not isinstance(node, Mapping):
            return True
        reference = node.get("$ref")
        if isinstance(reference, str) and reference not in self._finite:
            return False
        if not all(map(self._ends, _list(node.get("allOf")))):
            return False
        for name in ("anyOf", "oneOf"):
            branches = _list(node.get(name))
            if branches and not any(map(self._ends, branches)):
                return False
        types = node.get("type")
        types = {types} if isinstance(types, str) else set(_list(types))
        if not types or types & _SCALARS or "enum" in node or "const" in node:
            return True
        return ("object" in types and self._object_ends(node)) or ("array" in types and self._array_ends(node))

    def _object_ends(self, node: Mapping[str, Any]) -> bool:
        properties = node.get("properties")
        known = properties if isinstance(properties, Mapping) else {}
        return all(self._ends(known[name]) for name in _list(node.get("required")) if name in known)

    def _array_ends(self, node: Mapping[str, Any]) -> bool:
        least = node.get("minItems", 0)
        if not isinstance(least, int) or least < 1:
            return True
        first = _list(node.get("prefixItems"))
        return all(map(self._ends, first[:least])) and (least <= len(first) or self._ends(node.get("items", True)))


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for inner in node.values():
            yield from _references(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from _references(inner)


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else []

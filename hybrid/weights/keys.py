"""Published parameter names and ours, by one table that reads both ways."""

from __future__ import annotations

import re
from collections.abc import Iterable


class KeyMap:
    """Pairs of prefixes (published, ours), in which `{}` stands for a number. The first that fits is replaced.

    >>> keys = KeyMap(("layers.{}.attn.", "groups.{}.attention."))
    >>> keys.to_ours("layers.3.attn.qkv.weight")
    'groups.3.attention.qkv.weight'
    >>> keys.to_published("groups.3.attention.qkv.weight")
    'layers.3.attn.qkv.weight'
    """

    def __init__(self, *pairs: tuple[str, str]) -> None:
        self._to_ours = [(_pattern(published), ours) for published, ours in pairs]
        self._to_published = [(_pattern(ours), published) for published, ours in pairs]

    def to_ours(self, key: str) -> str:
        """Our name of a published parameter; names that the table does not hold stay."""
        return _replace(key, self._to_ours)

    def to_published(self, key: str) -> str:
        """The published name of one of our parameters."""
        return _replace(key, self._to_published)


def _pattern(prefix: str) -> re.Pattern[str]:
    return re.compile(re.escape(prefix).replace(r"\{\}", r"(\d+)"))


def _replace(key: str, table: list[tuple[re.Pattern[str], str]]) -> str:
    for pattern, other in table:
        if found := pattern.match(key):
            return other.format(*found.groups()) + key[found.end() :]
    return key


def count_numbered(keys: Iterable[str], prefix: str) -> int:
    """One more than the highest number that follows `prefix` in the keys.

    >>> count_numbered(["layers.0.weight", "layers.11.weight"], "layers.")
    12
    """
    numbers = (re.match(re.escape(prefix) + r"(\d+)\.", key) for key in keys)
    return 1 + max((int(number[1]) for number in numbers if number), default=-1)

"""YAML that people write, read within bounds: plain values alone, no key twice, and nothing that grows when it is looked at.

PyYAML's safe loader runs no code, but lets more through than its own errors where a value cannot be built, and takes aliases
that stand for billions of values; whoever prints or compares those never ends.
"""

from __future__ import annotations

from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

LARGEST = 1 << 20
"""Bytes of a file; the largest that ships has a tenth of it."""
MOST_VALUES = 100_000
"""Values in it, each alias counted as what it stands for."""

# What PyYAML lets through where a tag and its value do not go together (`!!timestamp x`), and from deep nesting.
_UNBUILT = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError)


def read_yaml(path: Path | Traversable) -> Any:
    """The plain values of a YAML file.

    Raises:
        OSError: It cannot be read.
        yaml.YAMLError: It is no text, not YAML, too large, names a key twice, or refers to itself.
    """
    with path.open("rb") as stream:
        data = stream.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise yaml.YAMLError(f"it has more than {LARGEST:,} bytes")
    try:
        return parse_yaml(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise yaml.YAMLError("it is no text in UTF-8") from error


def parse_yaml(text: str) -> Any:
    """The plain values of a text in YAML.

    >>> parse_yaml("{a: [1, 2.5], b: yes}")
    {'a': [1, 2.5], 'b': True}

    Raises:
        yaml.YAMLError: As `read_yaml`.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node)
        return loader.construct_document(node)
    except _UNBUILT as error:
        deep = isinstance(error, RecursionError)
        raise yaml.YAMLError("it is nested too deep" if deep else f"a value in it cannot be understood ({error})") from error
    finally:
        loader.dispose()


def _check(root: yaml.Node) -> None:
    """Refuse keys given twice, of which PyYAML would keep the last without a word, and aliases that grow or turn in a circle."""
    sizes: dict[int, int | None] = {}  # None while the node is being counted

    def size_of(node: yaml.Node) -> int:
        known = sizes.get(id(node), 0)
        if known is None:
            raise ConstructorError(None, None, "it refers to itself", node.start_mark)
        if known:
            return known
        sizes[id(node)] = None
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
            total = 1 + sum(size_of(part) for pair in node.value for part in pair)
        else:
            total = 1 + (sum(map(size_of, node.value)) if isinstance(node, yaml.SequenceNode) else 0)
        if total > MOST_VALUES:
            raise ConstructorError(None, None, f"it holds more than {MOST_VALUES:,} values", node.start_mark)
        sizes[id(node)] = total
        return total

    size_of(root)


def _check_keys(node: yaml.MappingNode) -> None:
    seen = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if (key.tag, key.value) in seen:
                raise ConstructorError(None, None, f"the key {key.value!r} is given twice", key.start_mark)
            seen.add((key.tag, key.value))

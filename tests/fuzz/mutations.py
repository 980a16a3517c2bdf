"""Damage done to small valid files: bytes at random, and numbers and pieces where the format has them.

What is written about a format here is only where its numbers lie and what must be made good (checksums, compression) so that
damage gets past the first check. The same seed gives the same damage.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import struct
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import yaml

from tests.fuzz.formats import PNG, spots_of, with_checksums

Rng = np.random.Generator
Files = dict[str, bytes]
"""An input: contents by file names, all in one folder."""

NUMBERS = (0, 1, 2, 3, 4, 7, 8, 15, 16, 127, 128, 255, 256, 1000, 4096, 32767, 32768, 65535, 65536, 200_000, 2**24, 2**31 - 1,
           2**31, 2**32 - 1, 2**32, 2**40, 2**63 - 1, 2**63, 2**64 - 1)  # fmt: skip
WORDS = (
    *(
        "null",
        "~",
        "true",
        "no",
        "0",
        "-1",
        "1",
        "3.5",
        "1e400",
        ".nan",
        ".inf",
        "-.inf",
        "0x10",
        "1:60:99",
        "2001-99-99",
        "1_000",
    ),
    *("2001-12-14t21:59:43.10-05:00", "99999999999999999999999", "9" * 5000, "[]", "{}", "''", '"\\ud800"', '"\\0"', "é" * 300),
    *("!!python/object/apply:os.system ['id']", "!!python/name:builtins.eval", "!!binary aGk", "!!binary ä", "!!set {a, b}"),
    *("!!timestamp x", "!!int x", "!!float x", "!!bool 3", "!!omap [1]", "&a [*a]", "*b", "<<: *a", "{<<: 3}", "{[1]: 2}"),
    *("? [1]", "[" * 2000, "{a: " * 500, "- " * 500, "../../etc/passwd", "/etc/passwd", "a/b", "a\\b", "%ZZ", "\x07"),
    *('{"a":' * 2000, '"', "NaN", "Infinity", "1E999", "[[], []]", "!<x> y", "%YAML 9.9\n---", "--- 1\n--- 2", "\ufeff", "\t"),
)
BOMB = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{two}: &{two} [{', '.join([f'*{one}'] * 8)}]\n" for one, two in zip("abcdefgh", "bcdefghi", strict=True)
)


def damaged(files: Files, others: Sequence[Files], rng: Rng) -> Files:
    """One of an input's files damaged, seldom two; or a file that is missing, doubled, or in the place of another."""
    found = dict(files)
    names = list(found)
    for _ in range(1 + (len(names) > 1 and rng.random() < 0.2)):
        name = names[rng.integers(len(names))]
        donor = others[rng.integers(len(others))]
        other = donor[list(donor)[rng.integers(len(donor))]]
        if len(names) > 1 and rng.random() < 0.05:
            found[name] = found[names[rng.integers(len(names))]]
            continue
        found[name] = mutate(found[name], other, rng)
    if len(names) > 2 and rng.random() < 0.03:
        del found[names[rng.integers(len(names))]]
    return found


def mutate(data: bytes, other: bytes, rng: Rng) -> bytes:
    """Damaged bytes; `other` is where foreign pieces come from."""
    for inside in (_in_gzip, _in_zip, _in_safetensors, _in_text):
        if rng.random() < 0.85 and (done := inside(data, other, rng)) is not None:
            return done
    for _ in range(int(rng.geometric(0.45))):
        spots = spots_of(data) if rng.random() < 0.6 else []
        data = _at_spot(data, spots, rng) if spots else OPERATIONS[rng.integers(len(OPERATIONS))](data, other, rng)
    return with_checksums(data) if data.startswith(PNG) and rng.random() < 0.85 else data


# Plain bytes -----------------------------------------------------------------------------------------------------


def _flip(data: bytes, other: bytes, rng: Rng) -> bytes:
    body = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        if body:
            body[_place(body, rng)] ^= 1 << int(rng.integers(8))
    return bytes(body)


def _number(data: bytes, other: bytes, rng: Rng) -> bytes:
    size = int(rng.choice((1, 2, 4, 8)))
    if len(data) < size:
        return data
    at = min(_place(data, rng), len(data) - size)
    return data[:at] + _packed(rng, data[at : at + size]) + data[at + size :]


def _cut(data: bytes, other: bytes, rng: Rng) -> bytes:
    return data[: rng.integers(len(data) + 1)]


def _drop(data: bytes, other: bytes, rng: Rng) -> bytes:
    at, size = _piece(data, rng)
    return data[:at] + data[at + size :]


def _repeat(data: bytes, other: bytes, rng: Rng) -> bytes:
    at, size = _piece(data, rng)
    return data[:at] + data[at : at + size] * int(rng.integers(2, 5)) + data[at + size :]


def _fill(data: bytes, other: bytes, rng: Rng) -> bytes:
    at, size = _piece(data, rng)
    return data[:at] + bytes([int(rng.choice((0, 0, 255, 32, 127)))]) * size + data[at + size :]


def _noise(data: bytes, other: bytes, rng: Rng) -> bytes:
    at, size = _piece(data, rng)
    return data[:at] + rng.bytes(int(rng.integers(1, 33))) + data[at + size * int(rng.integers(2)) :]


def _splice(data: bytes, other: bytes, rng: Rng) -> bytes:
    at, size = _piece(other, rng)
    into, length = _piece(data, rng)
    if rng.random() < 0.3:  # the beginning of one and the end of another
        return data[:into] + other[at:]
    return data[:into] + other[at : at + size] + data[into + length * int(rng.integers(2)) :]


OPERATIONS: tuple[Callable[[bytes, bytes, Rng], bytes], ...] = (
    *(_flip, _flip, _number, _number, _number, _cut, _drop, _repeat, _fill, _noise, _splice),
)


def _place(data: bytes | bytearray, rng: Rng) -> int:
    """An offset: headers count for as much as all the rest."""
    return int(rng.integers(min(len(data), 400) if rng.random() < 0.5 else len(data)))


def _piece(data: bytes, rng: Rng) -> tuple[int, int]:
    if not data:
        return 0, 0
    return _place(data, rng), int(rng.integers(1, int(rng.choice((4, 16, 64, max(2, len(data)))))))


def _packed(rng: Rng, was: bytes) -> bytes:
    """A telling number in the place of another of the same size."""
    order = "little" if rng.random() < 0.5 else "big"
    size = len(was)
    before = int.from_bytes(was, order)
    kind = int(rng.integers(6))
    if kind == 0:
        return rng.bytes(size)
    if kind == 1 and size in (4, 8):
        value = float(rng.choice((0.0, -1.0, 1e-30, 1e30, np.nan, np.inf, -np.inf)))
        return struct.pack(("<" if order == "little" else ">") + ("f" if size == 4 else "d"), value)
    near = before + int(rng.integers(-4, 5)) if kind == 2 else before * int(rng.choice((2, 3, 256))) if kind == 3 else None
    value = near if near is not None else int(NUMBERS[rng.integers(len(NUMBERS))])
    return (value % (1 << 8 * size)).to_bytes(size, order)


def _at_spot(data: bytes, spots: list[tuple[int, int]], rng: Rng) -> bytes:
    at, size = spots[rng.integers(len(spots))]
    if at + size > len(data):
        return data
    return data[:at] + _packed(rng, data[at : at + size]) + data[at + size :]


# Containers ------------------------------------------------------------------------------------------------------


def _in_gzip(data: bytes, other: bytes, rng: Rng) -> bytes | None:
    if data[:2] != b"\x1f\x8b":
        return None
    inner = other if other[:2] != b"\x1f\x8b" else gzip.decompress(other)
    return gzip.compress(mutate(gzip.decompress(data), inner, rng), 1, mtime=0)


def _in_zip(data: bytes, other: bytes, rng: Rng) -> bytes | None:
    if data[:4] != b"PK\3\4":
        return None
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(out, "w") as target:
        members = source.infolist()
        chosen = int(rng.integers(len(members)))
        for at, info in enumerate(members):
            content = source.read(info)
            name = info.filename
            if at == chosen:
                kind = rng.random()
                if kind < 0.06:
                    continue
                if kind < 0.12:
                    name = str(
                        rng.choice(("../../x", "/etc/x", "a" * 255, "x/" * 100, "data.pkl", "ä\u0000b", "", ".x", "X.PTH"))
                    )
                else:
                    content = mutate(content, other, rng)
            method = zipfile.ZIP_DEFLATED if rng.random() < 0.03 else info.compress_type
            target.writestr(zipfile.ZipInfo(name or "-"), content, method)
    packed = out.getvalue()
    return _number(packed, other, rng) if rng.random() < 0.1 else packed


def _in_safetensors(data: bytes, other: bytes, rng: Rng) -> bytes | None:
    size = int.from_bytes(data[:8], "little")
    if data[8:9] != b"{" or size + 8 > len(data):
        return None
    if rng.random() < 0.5:
        header = json.dumps(_changed(json.loads(data[8 : 8 + size]), rng)).encode()
    else:
        header = mutate_text(data[8 : 8 + size].decode("latin-1"), rng).encode("utf-8", "replace")
    claimed = len(header) if rng.random() < 0.9 else int(NUMBERS[rng.integers(len(NUMBERS))]) % 2**64
    return claimed.to_bytes(8, "little") + header + data[8 + size :]


# Texts -----------------------------------------------------------------------------------------------------------


def _in_text(data: bytes, other: bytes, rng: Rng) -> bytes | None:
    if b"\0" in data[:400] or not data:
        return None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    if rng.random() < 0.4 and text.count("\n{") > 0 and text.startswith("{"):  # an object a line
        lines = text.split("\n")
        at = int(rng.integers(len(lines)))
        if (changed_line := _in_text(lines[at].encode(), b"", rng)) is not None:
            return "\n".join([*lines[:at], changed_line.decode("utf-8", "replace"), *lines[at + 1 :]]).encode()
    if rng.random() < 0.4:
        try:
            tree = json.loads(text) if text.lstrip().startswith("{") and "\n{" not in text.strip() else yaml.safe_load(text)
            changed = _changed(tree, rng)
            as_json = text.lstrip().startswith("{")
            return (json.dumps(changed) if as_json else yaml.safe_dump(changed, sort_keys=False)).encode()
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError, yaml.YAMLError):
            pass  # it was damaged before
    return mutate_text(text, rng).encode("utf-8", "surrogatepass")


def mutate_text(text: str, rng: Rng) -> str:
    """Words and lines exchanged for those that parsers stumble over."""
    for _ in range(int(rng.geometric(0.6))):
        lines = text.split("\n")
        kind, at = int(rng.integers(8)), int(rng.integers(len(lines)))
        if kind <= 3:
            tokens = [match.span() for match in re.finditer(r"[^\s:,\[\]{}\"]+|[:,\[\]{}\"]", text)]
            if tokens:
                start, end = tokens[rng.integers(len(tokens))]
                text = text[:start] + str(WORDS[rng.integers(len(WORDS))]) + text[end:]
            continue
        if kind == 4:
            lines[at : at + 1] = [lines[at]] * int(rng.integers(0, 3))
        elif kind == 5:
            lines[at] = " " * int(rng.integers(9)) + lines[at].lstrip()
        elif kind == 6:
            lines.insert(at, BOMB if rng.random() < 0.2 else str(WORDS[rng.integers(len(WORDS))]))
        else:
            lines[at] = lines[at][: rng.integers(len(lines[at]) + 1)]
        text = "\n".join(lines)
    return text


_VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        0,
        -1,
        1,
        2**63,
        10**400,
        0.5,
        float("nan"),
        float("inf"),
        -0.0,
        "",
        "x",
        "é\u0000",
        "../x",
        "a" * 1000,
        [],
        {},
    ),
    *([1, 2, 3], {"a": 1}, [[]], "1", "null", "F32", "I8", [0, 10**12], [10, 0], [-1, 4], [2**40, 2**40]),
)


def _changed(tree: Any, rng: Rng) -> Any:
    """A tree of plain values with one of its nodes exchanged, missing, or under another key."""
    nodes: list[tuple[Any, Any]] = []

    def collect(node: Any) -> None:
        items = list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
        for key, value in items:
            nodes.append((node, key))
            collect(value)

    collect(tree)
    if not nodes:
        return _VALUES[rng.integers(len(_VALUES))]
    parent, key = nodes[rng.integers(len(nodes))]
    kind = rng.random()
    if kind < 0.65:
        parent[key] = _VALUES[rng.integers(len(_VALUES))]
    elif kind < 0.8:
        del parent[key]
    elif isinstance(parent, dict) and kind < 0.9:
        parent[str(WORDS[rng.integers(16)])] = parent.pop(key)
    else:
        donor, other = nodes[rng.integers(len(nodes))]
        parent[key] = json.loads(json.dumps(donor[other], default=str))
    return tree

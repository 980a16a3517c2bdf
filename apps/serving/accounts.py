"""Accounts of the app: a file of names and hashed passwords, and the sessions of browsers that signed in.

A line of the file is ``name:scrypt$N$r$p$salt$hash`` (RFC 7914), salt and hash in base64. Lines that begin with # are left alone.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
import secrets
import threading
import time
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hybrid.errors import InputError, OutputError, RequestError
from hybrid.records import replacing

COST = (2**14, 8, 5)
"""N, r, p of scrypt: 16 MiB, about a fifth of a second."""
SALT_BYTES = 16
SHORTEST = 8
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_ADD = "restore app --add-user NAME --auth FILE"

TRIES = 5
"""Wrong passwords for a name, within `WINDOW` seconds, after which it has to wait."""
WINDOW = 300.0


@dataclass(frozen=True)
class PasswordHash:
    """A password that cannot be read back."""

    cost: tuple[int, int, int]
    salt: bytes
    digest: bytes

    @classmethod
    def of(cls, password: str, cost: tuple[int, int, int] = COST) -> PasswordHash:
        """Hash a password with a new salt."""
        salt = secrets.token_bytes(SALT_BYTES)
        return cls(cost, salt, _scrypt(password, salt, cost))

    @classmethod
    def parse(cls, text: str) -> PasswordHash:
        """Read what `str` gave.

        Raises:
            ValueError: It is no such text.
        """
        scheme, *numbers, salt, digest = text.split("$")
        if scheme != "scrypt" or len(numbers) != 3:
            raise ValueError("not a scrypt hash")
        n, r, p = (int(number) for number in numbers)
        if not (n > 1 and n & (n - 1) == 0 and 0 < r <= 64 and 0 < p <= 64 and n * r <= 2**24):
            raise ValueError("costs out of range")
        try:
            return cls((n, r, p), base64.b64decode(salt, validate=True), base64.b64decode(digest, validate=True))
        except binascii.Error as error:
            raise ValueError(str(error)) from error

    def fits(self, password: str) -> bool:
        """Whether it is the hash of this password; takes the same time whatever the answer."""
        return hmac.compare_digest(self.digest, _scrypt(password, self.salt, self.cost))

    def __str__(self) -> str:
        salt, digest = (base64.b64encode(part).decode() for part in (self.salt, self.digest))
        return "$".join(("scrypt", *map(str, self.cost), salt, digest))


class Accounts:
    """Who may sign in.

    Args:
        hashes: Name to hash.
    """

    def __init__(self, hashes: Mapping[str, PasswordHash]) -> None:
        self.hashes = dict(hashes)
        cost = next((each.cost for each in self.hashes.values()), COST)
        self._nobody = PasswordHash.of(secrets.token_urlsafe(), cost)  # so that an unknown name takes as long as a known one
        self._failures: defaultdict[str, deque[float]] = defaultdict(deque)
        self._lock = threading.Lock()

    @classmethod
    def read(cls, path: Path) -> Accounts:
        """Read a file of accounts.

        Raises:
            InputError: It is not there, holds no account, or a line is no hash, as where a password stands in clear.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise InputError(f"The accounts {path} cannot be read: {error.strerror}.", hint=f"Make them: {_ADD}.") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is no text file of accounts.", hint=f"Make one: {_ADD}.") from error
        hashes: dict[str, PasswordHash] = {}
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.startswith("#"):
                continue
            name, _, text = line.strip().partition(":")
            try:
                hashes[_checked(name)] = PasswordHash.parse(text)
            except (ValueError, RequestError) as error:  # the line itself may be a password: it is not quoted
                raise InputError(
                    f"Line {number} of {path} holds no hashed password.", hint=f"Delete the line and type {_ADD}."
                ) from error
        if not hashes:
            raise InputError(f"{path} holds no account.", hint=f"Add one: {_ADD}.")
        return cls(hashes)

    def verify(self, name: str, password: str) -> bool:
        """Whether a name and a password belong together.

        Raises:
            RequestError: Too many wrong passwords for this name of late.
        """
        self._check_rate(name)
        fits = self.hashes.get(name, self._nobody).fits(password) and name in self.hashes
        with self._lock:
            if fits:
                self._failures.pop(name, None)
            else:
                self._failures[name].append(time.monotonic())
        return fits

    def _check_rate(self, name: str) -> None:
        with self._lock:
            failures = self._failures[name]
            while failures and failures[0] < time.monotonic() - WINDOW:
                failures.popleft()
            if len(failures) >= TRIES:
                raise RequestError("Too many wrong passwords.", hint="Wait five minutes.")
            if len(self._failures) > 10_000:  # names that somebody makes up
                self._failures.clear()


def add_user(path: Path, name: str, password: str) -> bool:
    """Add an account to a file, or give it another password; the file is for its owner alone.

    Returns:
        Whether the account is a new one.

    Raises:
        RequestError: A name or password that cannot be used.
        InputError: The file is there and is none of accounts.
        OutputError: It cannot be written.
    """
    _checked(name)
    if len(password) < SHORTEST:
        raise RequestError(f"A password has at least {SHORTEST} characters.", hint="Choose a longer one, such as four words.")
    kept = []
    if path.exists():
        Accounts.read(path) if path.stat().st_size else None
        kept = path.read_text(encoding="utf-8").splitlines()
    others = [line for line in kept if not line.startswith(f"{name}:")]
    text = "\n".join([*others, f"{name}:{PasswordHash.of(password)}"]) + "\n"
    try:
        with replacing(path) as part:
            os.close(os.open(part, os.O_WRONLY | os.O_CREAT, 0o600))
            part.chmod(0o600)
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}.", hint="Choose another --auth.") from error
    return len(others) == len(kept)


@dataclass
class Session:
    """A browser.

    Attributes:
        owner: Whose workspace it is: an account, or something random.
        account: Name of the account; None where there are none.
        seen: When it was last heard of.
    """

    owner: str
    account: str | None
    seen: float


class Sessions:
    """Browsers that may use the app, by the token in their cookie.

    Args:
        idle: Seconds after which a session that is not used ends.
    """

    def __init__(self, idle: float) -> None:
        self.idle = idle
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def begin(self, account: str | None) -> str:
        """A new session's token."""
        token = secrets.token_urlsafe(32)
        owner = account if account is not None else f"browser-{secrets.token_hex(4)}"
        with self._lock:
            now = time.monotonic()
            self._sessions = {key: one for key, one in self._sessions.items() if now - one.seen < self.idle}
            self._sessions[token] = Session(owner, account, now)
        return token

    def find(self, token: str | None) -> Session | None:
        """The session of a token."""
        with self._lock:
            session = self._sessions.get(token or "")
            if session is None or time.monotonic() - session.seen >= self.idle:
                return None
            session.seen = time.monotonic()
            return session

    def end(self, token: str | None) -> None:
        """End a session."""
        with self._lock:
            self._sessions.pop(token or "", None)


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise RequestError(f"{name!r} cannot be a name.", hint="Use letters, digits and . _ - @, 64 at most.")
    return name


def _scrypt(password: str, salt: bytes, cost: tuple[int, int, int]) -> bytes:
    n, r, p = cost
    return hashlib.scrypt(password.encode(), salt=salt, n=n, r=r, p=p, maxmem=128 * r * (n + p + 32), dklen=32)

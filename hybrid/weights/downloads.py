"""Fetch one file over HTTP: resumed where the server supports it, and refused where it is not the file.

RFC 9110: a range request (14) is sent only with If-Range (13.1.5) and the validator that came with the first part, so
that two versions of a file are never joined.
"""

from __future__ import annotations

import errno
import json
import logging
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import urlsplit

from hybrid.errors import ResourceError, WeightsError

if TYPE_CHECKING:
    from requests import Response

log = logging.getLogger(__name__)

OnProgress = Callable[[int, int], None]
ATTEMPTS = 3
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Timeouts:
    """Seconds to wait for a connection, and for the next bytes once connected."""

    connect: float = 10.0
    read: float = 30.0


class _NotFetchedError(Exception):
    """One attempt failed; `again` tells whether the same address is worth another one."""

    def __init__(self, reason: str, *, again: bool = False) -> None:
        super().__init__(reason)
        self.again = again


def download(
    urls: Sequence[str],
    part: Path,
    *,
    check: Callable[[Path], None],
    timeouts: Timeouts,
    on_progress: OnProgress | None = None,
) -> None:
    """Fill `part` from the first address that gives the right file.

    What an interrupted transfer left in `part` is continued, at this call or a later one, when the server vouches that
    the file is still the same. A wrong file is removed.

    Args:
        urls: Addresses of the same file, tried in this order.
        part: The file to fill; a small file beside it remembers what it is a part of.
        check: Raises WeightsError when the complete file is not the right one.
        timeouts: How long to wait.
        on_progress: Called with bytes done and bytes in all (0 where the server does not say).

    Raises:
        WeightsError: No address gave the file; the message says why for each.
        ResourceError: The disk is full.
    """
    reasons = []
    try:
        for url in urls:
            try:
                _fetch(url, part, timeouts, on_progress or _silent)
                check(part)
                return _forget(part, keep=True)
            except _NotFetchedError as error:
                reasons.append(f"{_server(url)} {error}")
            except WeightsError as error:
                _forget(part)
                reasons.append(f"{_server(url)} sent a wrong file: {error.message.rstrip('.')}")
            log.info("download: %s", reasons[-1])
        raise WeightsError("; ".join(reasons) + ".")
    except BaseException:
        if not _note(part).exists():  # nothing that a later call could continue
            part.unlink(missing_ok=True)
        raise


def _fetch(url: str, part: Path, timeouts: Timeouts, on_progress: OnProgress) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _transfer(url, part, timeouts, on_progress)
        except _NotFetchedError as error:
            if not error.again or attempt == ATTEMPTS:
                raise
            log.info("download: %s %s; attempt %d follows", url, error, attempt + 1)


def _transfer(url: str, part: Path, timeouts: Timeouts, on_progress: OnProgress) -> None:
    """One request: append to `part` what is missing of it, or fill it anew."""
    import requests

    done, validator = _begun(url, part)
    headers = {"Accept-Encoding": "identity", "User-Agent": "hybrid-imaging"}
    if done:
        headers |= {"Range": f"bytes={done}-", "If-Range": validator}
    answered, total = False, 0
    try:
        with requests.get(url, headers=headers, stream=True, timeout=(timeouts.connect, timeouts.read)) as response:
            answered = True
            done = _accepted(response, done, part)
            length = response.headers.get("Content-Length", "")
            total = done + int(length) if length.isdecimal() else 0
            _check_room(part, total - done)
            if not done:
                _remember(url, part, response)
            with part.open("ab" if done else "wb") as stream:
                done = _copy(response, stream, done, total, on_progress)
    except requests.Timeout as error:
        waited = timeouts.connect if isinstance(error, requests.ConnectTimeout) else timeouts.read
        raise _NotFetchedError(f"did not answer within {waited:g} s") from error
    except requests.RequestException as error:
        raise _lost(error, part, total, timeouts, answered=answered) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ResourceError(
            f"The disk is full: {part.name} could not be written.", hint="Free some space and try again."
        ) from error
    if total and done != total:
        raise _NotFetchedError(f"sent {done:,} of {total:,} bytes", again=True)


def _accepted(response: Response, done: int, part: Path) -> int:
    """From which byte on the response continues the file; raises when it does not hold the file."""
    status = response.status_code
    if status == HTTPStatus.PARTIAL_CONTENT and response.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
        return done
    if status in (HTTPStatus.PARTIAL_CONTENT, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE):
        _forget(part)
        raise _NotFetchedError("sent another piece of the file than was asked for", again=True)
    page = _page(response)
    if status != HTTPStatus.OK:
        reason = {401: "asks for a login", 403: "refuses the file", 404: "does not have the file", 410: "no longer has the file"}
        busy = "is too busy" if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR else None
        raise _NotFetchedError(f"{reason.get(status) or busy or 'does not give the file'} (HTTP {status}{page and ': ' + page})")
    if page:
        raise _NotFetchedError(f"sent a web page instead of the file ({page})")
    return 0


def _page(response: Response) -> str:
    """In a few words what a web page says that came instead of a file; empty if it is none."""
    if "html" not in response.headers.get("Content-Type", "").lower():
        return ""
    text = next(response.iter_content(_CHUNK), b"").decode("utf-8", "replace")
    if re.search(r"quota|too many users|limit exceeded", text, re.IGNORECASE):
        return "its download quota is used up"
    if re.search(r"sign in|log ?in|password", text, re.IGNORECASE):
        return "it asks for a login"
    if re.search(r"virus|download anyway", text, re.IGNORECASE):
        return "it asks for a confirmation"
    title = re.search(r"<title[^>]*>\s*(.{1,80}?)\s*</title>", text, re.IGNORECASE | re.DOTALL)
    return f'titled "{" ".join(title[1].split())}"' if title else "without a title"


def _copy(response: Response, stream: BinaryIO, done: int, total: int, on_progress: OnProgress) -> int:
    for chunk in response.iter_content(_CHUNK):
        stream.write(chunk)
        done += len(chunk)
        on_progress(done, total)
    return done


def _lost(error: Exception, part: Path, total: int, timeouts: Timeouts, *, answered: bool) -> _NotFetchedError:
    """What a broken connection amounts to: never made, silent, or cut."""
    from urllib3.exceptions import ReadTimeoutError

    if not answered:
        return _NotFetchedError("cannot be reached from here")
    got = part.stat().st_size if part.exists() else 0
    of = f" of {total:,}" if total else ""
    if any(isinstance(cause, ReadTimeoutError) for cause in error.args):
        return _NotFetchedError(f"sent nothing for {timeouts.read:g} s after {got:,}{of} bytes", again=True)
    return _NotFetchedError(f"dropped the connection after {got:,}{of} bytes", again=True)


def _check_room(part: Path, wanted: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if wanted > free:
        raise ResourceError(
            f"The disk has {free:,} bytes free; {part.name} needs {wanted:,} more.", hint="Free some space, or set HYBRID_CACHE."
        )


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _begun(url: str, part: Path) -> tuple[int, str]:
    """Bytes of `part` that may be continued from `url`, and the validator to send; (0, "") to begin anew."""
    try:
        note = json.loads(_note(part).read_text(encoding="utf-8"))
        done = part.stat().st_size
    except (OSError, ValueError):
        return 0, ""
    if not isinstance(note, dict) or note.get("url") != url or not isinstance(note.get("validator"), str):
        return 0, ""
    return done, note["validator"]


def _remember(url: str, part: Path, response: Response) -> None:
    etag = response.headers.get("ETag", "")
    # If-Range takes strong validators only; a weak tag may stand for two different files.
    validator = etag if etag.startswith('"') else response.headers.get("Last-Modified", "")
    _forget(part)
    if validator and response.headers.get("Accept-Ranges", "bytes") != "none":
        _note(part).write_text(json.dumps({"url": url, "validator": validator}), encoding="utf-8")


def _forget(part: Path, *, keep: bool = False) -> None:
    _note(part).unlink(missing_ok=True)
    if not keep:
        part.unlink(missing_ok=True)


def _silent(done: int, total: int) -> None:
    """Progress that nobody asked for."""


def _server(url: str) -> str:
    """Host and port of an address, without the name and password that it may hold."""
    return urlsplit(url).netloc.rpartition("@")[2]

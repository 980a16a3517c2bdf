"""The audit log: who did what and when, one JSON object a line. No names of files, and nothing of a patient."""

from __future__ import annotations

import json
import logging
import os
import threading
from pathlib import Path

from hybrid.errors import OutputError
from hybrid.records import timestamp

log = logging.getLogger(__name__)


class Audit:
    """A log that is only appended to.

    Args:
        path: The file, made with rights for its owner alone; None for no log.

    Raises:
        OutputError: It cannot be written.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._lock = threading.Lock()
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
            except OSError as error:
                raise OutputError(
                    f"The audit log {path} cannot be written: {error.strerror}.", hint="Choose another --audit."
                ) from error

    def note(self, user: str, action: str, **facts: str | int | float | list[int] | None) -> None:
        """Append one line.

        Args:
            user: Name of the account, or what stands for a browser session.
            action: What was done, such as ``sign-in``, ``upload``, ``restore``, ``segment``, ``delete``.
            **facts: Sizes, model, seconds, outcome. Never the name of a file, never what is in one.
        """
        line = json.dumps({"time": timestamp(), "user": user, "action": action} | facts, ensure_ascii=False)
        if self.path is None:
            return
        with self._lock, self.path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

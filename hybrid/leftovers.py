"""What killed processes leave behind: temporary files that never came to their names."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_TEMPORARY = re.compile(r"\.[0-9a-f]{12}(\.\w+)?|\.writing-[0-9a-f]{12}|\.part-\w{8}")
"""Names of `hybrid.records.replacing`, `restore.images.writing` and `medical.volumes.staging.staged`."""


def remove_leftovers(folders: Iterable[Path], *, before: float) -> None:
    """Remove temporary files and folders that were last changed before a time, in seconds since the epoch.

    Only for folders in which no other run is at work, as the journal's lock makes sure.
    """
    for folder in folders:
        for path in folder.glob(".*") if folder.is_dir() else ():
            with suppress(OSError):  # gone meanwhile, or not ours to remove
                if _TEMPORARY.fullmatch(path.name) and path.lstat().st_mtime < before:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

"""Locks that keep processes from one another's way, on systems and file systems that have them."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)


def lock(descriptor: int) -> None:
    """Wait for the lock of an open file or folder; it goes when that is closed. Not on Windows, nor on some network disks."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except (ImportError, OSError) as error:
        log.info("no lock can be had here: %s", error)


def try_lock(descriptor: int) -> bool:
    """Take the lock of an open file or folder if nobody has it; where there are no locks, as if nobody had."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError) as error:
        log.info("no lock can be had here: %s", error)
    return True

"""What the tabs share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from apps.serving.audit import Audit
from apps.serving.jobs import Jobs
from apps.serving.workspace import Limits, Workspaces

First = Literal["scan", "picture"]
"""Which tab comes first."""


@dataclass(frozen=True)
class AppContext:
    """What the tabs share.

    Attributes:
        workspaces: The private folders; a handler asks `apps.serving.workspace.workspace_of` for that of its request.
        limits: What users may send and keep.
        device: Device of the networks: auto, cpu, cuda, cuda:1 or mps.
        jobs: The runs of all users.
        audit: What was done, without names of files or patients.
        data: Folder that holds the folders of benchmark data; None for what is shipped alone.
        prefix: Path under which a proxy shows the app; empty for none.
    """

    workspaces: Workspaces
    limits: Limits
    device: str
    jobs: Jobs
    audit: Audit
    data: Path | None = None
    prefix: str = ""

"""What the buttons of "Segment a scan" do: from what a user sent to a finished, compared, corrected segmentation.

Nothing here knows of components: the tab turns these answers into them.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

from apps.scans import run as scan_run
from apps.scans.compare import read_reference
from apps.scans.models import Model
from apps.scans.reading import ALL_VOLUMES, read, receive, safe_name
from apps.scans.session import Result, Session, Sessions
from apps.serving.jobs import Report
from apps.serving.workspace import Workspace
from hybrid.errors import HybridError, InputError, RequestError
from medical.volumes.modality import check_modality

EXAMPLE, EXAMPLE_MASK = "hippocampus_141.nii.gz", "hippocampus_141_reference.nii.gz"


def example(name: str) -> Path:
    """A scan that comes with the package, or its mask.

    Raises:
        InputError: This installation lacks it.
    """
    path = Path(str(resources.files("medical"))) / "examples" / name
    if not path.is_file():
        raise InputError("This installation has no example.", hint="Send a scan of your own.")
    return path


def take(sessions: Sessions, workspace: Workspace, files: Sequence[Path]) -> Session:
    """A new session with the scan that these files are; opened, unless there is something to choose from.

    Raises:
        HybridError: They are no scan; nothing of them is kept.
    """
    folder = workspace.new_folder("scan")
    try:
        place = folder / "sent"
        place.mkdir()
        received = receive(files, place, unpacked=workspace.limits.unpacked)
        session = sessions.new(workspace.owner, folder)
        session.received = received
        if not received.choices:
            session.open(read(received))
    except HybridError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return session


def choose(session: Session, key: str) -> None:
    """Open one of several series or volumes.

    Raises:
        HybridError: It cannot be read.
    """
    if session.received is None:
        raise RequestError("No scan was sent.", hint="Send one first.")
    session.open(read(session.received, key))


def segmentation(
    session: Session, workspace: Workspace, model: Model, *, device: str, uncertainty: bool, any_modality: bool = False
) -> Callable[[Report], Result]:
    """What segments the open scan once it is called with a progress callback; the session takes the result.

    It raises `Cancelled` and whatever goes wrong, and leaves no file then.

    Raises:
        HybridError: It cannot be done.
    """
    check(session, model, any_modality=any_modality)
    workspace.check_room()
    scan = session.opened

    def work(report: Report) -> Result:
        folder = session.folder / f"segmented-{secrets.token_hex(4)}"
        folder.mkdir()
        try:
            settings = scan_run.settings_of(session, uncertainty=uncertainty, any_modality=any_modality)
            result = scan_run.run(session, model.entry.name, folder, settings=settings, device=device, report=report)
            report(1, 1)  # who cancelled while the files were written was told that nothing is
            if session.scan is not scan:
                raise RequestError("Another scan was opened meanwhile.", hint="Segment it in its turn.")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        session.take(result)
        return result

    return work


def check(session: Session, model: Model, *, any_modality: bool = False) -> None:
    """Refuse what cannot go well before it waits for its turn.

    Raises:
        RequestError: The weights are not here, or the scan has other channels than the network takes.
        InputError: The scan says that it is of another modality, and not `any_modality` is taken.
    """
    scan, wanted = session.opened, len(model.protocol.channels)
    if not model.at_hand:
        raise RequestError(
            f"The weights of {model.entry.title} are not on this machine.",
            hint="Choose another model, or ask whoever runs this server to fetch them.",
        )
    have = scan.received.channels if scan.key == ALL_VOLUMES else 1
    if have != wanted:
        names = ", ".join(model.protocol.channels)
        raise RequestError(
            f"{model.entry.title} takes {wanted} channel{'s' * (wanted > 1)} ({names}), and this scan has {have}.",
            hint="Choose another model, or another volume of the file.",
        )
    if not any_modality:
        check_modality(scan.volume.origin, model.protocol.modality, scan.received.source.name)


def compare(session: Session, path: Path | None) -> None:
    """Take a mask to compare with, or put it away.

    Raises:
        HybridError: It is no label map on the scan's grid.
    """
    if path is None:
        session.compare(None)
        return
    # Its names may lie beside it, and nothing that another user sent may.
    place = session.folder / f"mask-{secrets.token_hex(4)}"
    place.mkdir()
    copy = place / safe_name(path.name)
    shutil.copyfile(path, copy)
    session.compare(read_reference(copy, session.opened.volume.grid))


def corrected_files(session: Session) -> tuple[Path, ...]:
    """Write the corrected label map and what goes with it.

    Raises:
        HybridError: Nothing was corrected, or the files cannot be written.
    """
    folder = session.folder / "corrected"
    folder.mkdir(exist_ok=True)
    return scan_run.write_corrected(session, folder)

"""The tab "Segment a scan": send, look, segment, check, compare, correct, download."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from starlette.concurrency import run_in_threadpool

from apps.scans import actions as scan_actions
from apps.scans.models import Model, card_html, segmentation_models
from apps.scans.session import Result, Session, Sessions
from apps.scans.tables import agreement_html, figures_html, scan_html, titled, uncertainty_html
from apps.scans.viewer import scan_viewer
from apps.serving.running import run_told
from apps.serving.words import complaint, download_links, said
from apps.serving.workspace import Workspace, workspace_of
from hybrid.errors import HybridError
from medical.volumes.volume import stem

if TYPE_CHECKING:
    from apps.serving.context import AppContext

Updates = dict[Any, Any]
_BEGIN = said("Send a scan, or open the example.")
_AFTER = said("Shown once the scan is segmented.")


@dataclass(frozen=True, eq=False)
class Parts:
    """The components that handlers fill."""

    token: gr.State
    files: gr.File
    choice: gr.Dropdown
    facts: gr.HTML
    told: gr.HTML
    viewer: gr.HTML
    volumes: gr.HTML
    unsure: gr.HTML
    agreement: gr.HTML
    results: gr.HTML
    corrected: gr.HTML
    segment: gr.Button
    cancel: gr.Button


class Handlers:
    """What events do. Each answers with the components that change.

    Args:
        context: Of the app.
        parts: The components.
        sessions: Open scans of all users.
        models: To choose from, by name.
    """

    def __init__(self, context: AppContext, parts: Parts, sessions: Sessions, models: dict[str, Model]) -> None:
        self.context, self.parts, self.sessions, self.models = context, parts, sessions, models

    def sent(self, files: Sequence[str] | None, request: gr.Request) -> Updates:
        """Files came."""
        workspace = workspace_of(request)
        try:
            return self._taken(workspace, [workspace.own(file) for file in files or ()])
        except HybridError as error:
            return self._refused(workspace, error)

    def example(self, request: gr.Request) -> Updates:
        """The scan that comes with the package."""
        workspace = workspace_of(request)
        try:
            return self._taken(workspace, [scan_actions.example(scan_actions.EXAMPLE)])
        except HybridError as error:
            return self._refused(workspace, error)

    def chosen(self, token: str, key: str, request: gr.Request) -> Updates:
        """One of several series or volumes."""
        try:
            session = self.session(token, request)
            scan_actions.choose(session, key)
        except HybridError as error:
            return {self.parts.told: said(complaint(error), "failed")}
        return self._opened(session)

    async def run(
        self, token: str, model: str, uncertainty: bool, any_modality: bool, request: gr.Request
    ) -> AsyncIterator[Updates]:
        """Segment; progress, then all that comes of it."""
        parts, workspace = self.parts, workspace_of(request)
        device = self.context.device
        try:
            session = self.session(token, request)
            asked = {"uncertainty": uncertainty, "any_modality": any_modality}
            work = await run_in_threadpool(
                lambda: scan_actions.segmentation(session, workspace, self.models[model], device=device, **asked)
            )
        except HybridError as error:
            self.context.audit.note(workspace.owner, "segment", model=model, outcome="refused")
            yield {parts.told: said(complaint(error), "failed")}
            return
        yield {parts.segment: gr.update(interactive=False), parts.cancel: gr.update(interactive=True)}
        idle = {parts.segment: gr.update(interactive=True), parts.cancel: gr.update(interactive=False)}
        async for step in run_told(self.context, workspace, "segment", work, "Segmenting", {"model": model}):
            if isinstance(step, str):
                yield {parts.told: step}
            else:
                yield await run_in_threadpool(self._finished, session, workspace, step.result)
        yield idle

    def cancel(self, request: gr.Request) -> None:
        """Cancel whatever this user runs."""
        self.context.jobs.cancel(workspace_of(request))

    def compare(self, token: str, path: str | None, request: gr.Request) -> Updates:
        """A mask came, or went."""
        return self._compared(token, request, lambda: workspace_of(request).own(path) if path else None)

    def compare_example(self, token: str, request: gr.Request) -> Updates:
        """The mask that comes with the example."""
        return self._compared(token, request, lambda: scan_actions.example(scan_actions.EXAMPLE_MASK))

    def corrected(self, token: str, request: gr.Request) -> Updates:
        """The label map was corrected in the viewer."""
        parts = self.parts
        try:
            session = self.session(token, request)
            strokes = session.corrected.strokes
        except HybridError as error:
            return {parts.told: said(complaint(error), "failed")}
        note = said(f"Strokes of the brush: {strokes}. They are not written yet.") if strokes else ""
        return {
            parts.volumes: figures_html(session.figures(), corrected=bool(strokes)),
            parts.agreement: self._agreement(session),
            parts.corrected: note,
        }

    def write(self, token: str, request: gr.Request) -> Updates:
        """Write the corrected label map."""
        try:
            session = self.session(token, request)
            files = scan_actions.corrected_files(session)
        except HybridError as error:
            return {self.parts.corrected: said(complaint(error), "failed")}
        return {self.parts.corrected: download_links(workspace_of(request), titled(files, stem(files[0])))}

    def card(self, model: str) -> str:
        """What a model is."""
        return card_html(self.models[model])

    def session(self, token: str, request: gr.Request) -> Session:
        """The open scan of this page.

        Raises:
            InputError: There is none.
        """
        return self.sessions.get(token or "", workspace_of(request).owner)

    def _taken(self, workspace: Workspace, files: Sequence[Path]) -> Updates:
        parts = self.parts
        session = scan_actions.take(self.sessions, workspace, files)
        self.context.audit.note(workspace.owner, "upload", files=len(files), outcome="done")
        assert session.received is not None
        choices = [(choice.words, choice.key) for choice in session.received.choices]
        start = {parts.token: session.token, parts.files: None}
        if not choices:
            return start | {parts.choice: gr.update(choices=[], value=None, visible=False)} | self._opened(session)
        waiting = said(f"{session.received.source.name} holds several scans: choose one from the list.")
        return start | self._cleared() | {
            parts.choice: gr.update(choices=choices, value=None, visible=True), parts.told: waiting, parts.facts: "",
            parts.viewer: "", parts.segment: gr.update(interactive=False),
        }  # fmt: skip

    def _refused(self, workspace: Workspace, error: HybridError) -> Updates:
        self.context.audit.note(workspace.owner, "upload", outcome="refused")
        return {self.parts.told: said(complaint(error), "failed"), self.parts.files: None}

    def _opened(self, session: Session) -> Updates:
        parts = self.parts
        return self._cleared() | {
            parts.facts: scan_html(session.opened), parts.viewer: _shown(session),
            parts.told: said("The scan is open. Choose a model and press Segment."),
            parts.segment: gr.update(interactive=True),
        }  # fmt: skip

    def _cleared(self) -> Updates:
        parts = self.parts
        return {parts.volumes: _AFTER, parts.unsure: _AFTER, parts.agreement: "", parts.results: _AFTER, parts.corrected: ""}

    def _finished(self, session: Session, workspace: Workspace, result: Result) -> Updates:
        parts = self.parts
        name = stem(result.outputs[0])
        notes = "".join(said(note) for note in result.notes)
        return {
            parts.told: said(f"Segmented in {result.seconds:.1f} s. Check the result before you use it.", "good") + notes,
            parts.viewer: _shown(session),
            parts.volumes: figures_html(session.figures()),
            parts.unsure: uncertainty_html(result.uncertainty),
            parts.agreement: self._agreement(session),
            parts.results: download_links(workspace, titled(result.outputs, name)),
            parts.corrected: "",
        }

    def _compared(self, token: str, request: gr.Request, path: Any) -> Updates:
        try:
            session = self.session(token, request)
            scan_actions.compare(session, path())
        except HybridError as error:
            return {self.parts.agreement: said(complaint(error), "failed")}
        return {self.parts.agreement: self._agreement(session), self.parts.viewer: _shown(session)}

    def _agreement(self, session: Session) -> str:
        if session.reference is None:
            return ""
        if session.result is None:
            return said(f"{session.reference.name} is shown. Scores follow once the scan is segmented.")
        return agreement_html(session.agreement(), session.reference.name)


def scan_tab(context: AppContext) -> None:
    """Build the tab inside the page that is being built."""
    models = {model.entry.name: model for model in segmentation_models()}
    sessions = Sessions()
    context.workspaces.when_deleted(sessions.forget)
    with gr.Row(elem_classes="split"):
        with gr.Column(scale=1, min_width=300):
            side = _Side(models)
        with gr.Column(scale=3, min_width=480):
            viewer = scan_viewer(sessions)
            below = _Below()
    parts = Parts(
        gr.State(""), side.files, side.choice, side.facts, side.told, viewer, below.volumes, below.unsure, below.agreement,
        below.results, below.corrected, side.segment, side.cancel,
    )  # fmt: skip
    _connect(Handlers(context, parts, sessions, models), parts, side, below)


class _Side:
    """Scan, model, run."""

    def __init__(self, models: dict[str, Model]) -> None:
        first = next(iter(models))
        gr.Markdown("### 1. Scan")
        gr.HTML('<p class="quiet">One scan: .nii or .nii.gz, a zip of a DICOM series, or all its DICOM files.</p>')
        self.files = gr.File(label="NIfTI or DICOM", file_count="multiple", height=130, elem_id="scan-files")
        self.example = gr.Button("Open the example (hippocampus, MR)", size="sm", elem_id="scan-example")
        self.choice = gr.Dropdown([], label="Series or volume", visible=False, elem_id="scan-choice")
        with gr.Accordion("What was read", open=True):
            self.facts = gr.HTML("", elem_id="scan-facts")
        gr.Markdown("### 2. Model")
        choices = [(model.choice, name) for name, model in models.items()]
        self.model = gr.Dropdown(choices, value=first, label="Model", elem_id="scan-model")
        with gr.Accordion("What it finds, its training and figures", open=False):
            self.card = gr.HTML(card_html(models[first]), elem_id="scan-card")
        self.uncertainty = gr.Checkbox(
            False, label="Uncertainty", info="Segments mirror images too: twice the time or more.", elem_id="scan-uncertainty"
        )
        self.any_modality = gr.Checkbox(
            False, label="Any modality (--any-modality)", elem_id="scan-any-modality",
            info="Takes a scan whose headers name another modality than the model was trained on.",
        )  # fmt: skip
        gr.Markdown("### 3. Segment")
        with gr.Row():
            self.segment = gr.Button("Segment", variant="primary", interactive=False, elem_id="scan-segment", min_width=120)
            self.cancel = gr.Button("Cancel", interactive=False, elem_id="scan-cancel", min_width=90)
        self.told = gr.HTML(_BEGIN, elem_id="scan-told")


class _Below:
    """What stands below the viewer."""

    def __init__(self) -> None:
        with gr.Tabs():
            with gr.Tab("Volumes"):
                self.volumes = gr.HTML(_AFTER, elem_id="scan-volumes")
            with gr.Tab("Downloads"):
                self.results = gr.HTML(_AFTER, elem_id="scan-results")
            with gr.Tab("Uncertainty"):
                self.unsure = gr.HTML(_AFTER, elem_id="scan-unsure")
            with gr.Tab("Compare with a mask"):
                with gr.Row():
                    self.mask = gr.File(label="A label map on the scan's grid (NIfTI)", height=110, elem_id="scan-mask")
                    self.example_mask = gr.Button("Mask of the example, drawn by hand", size="sm", elem_id="scan-example-mask")
                self.agreement = gr.HTML("", elem_id="scan-agreement")
            with gr.Tab("Corrections"):
                gr.Markdown("Choose **Paint** or **Erase** above the slices and drag over one. **Undo** takes a stroke back.")
                self.write = gr.Button("Write the corrected label map", size="sm", elem_id="scan-write")
                self.corrected = gr.HTML("", elem_id="scan-corrected")


def _connect(handlers: Handlers, parts: Parts, side: _Side, below: _Below) -> None:
    every = [getattr(parts, name) for name in Parts.__dataclass_fields__]
    quiet: dict[str, Any] = {"show_progress": "hidden"}
    side.files.upload(handlers.sent, [side.files], every, show_progress_on=[parts.told])
    side.example.click(handlers.example, None, every, show_progress_on=[parts.told])
    side.choice.input(handlers.chosen, [parts.token, side.choice], every, show_progress_on=[parts.told])
    side.model.input(handlers.card, [side.model], [side.card], **quiet)
    # "multiple": a click is else lost while the page winds up the run before.
    asked = [parts.token, side.model, side.uncertainty, side.any_modality]
    side.segment.click(handlers.run, asked, every, concurrency_limit=None, trigger_mode="multiple", show_progress_on=[parts.told])
    side.cancel.click(handlers.cancel, queue=False, **quiet)
    compared = [parts.agreement, parts.viewer]
    below.mask.upload(handlers.compare, [parts.token, below.mask], compared, show_progress_on=[parts.agreement])
    below.mask.clear(handlers.compare, [parts.token, below.mask], compared, **quiet)
    below.example_mask.click(handlers.compare_example, [parts.token], compared, **quiet)
    outputs = [parts.told, parts.volumes, parts.agreement, parts.corrected]
    parts.viewer.corrected(handlers.corrected, [parts.token], outputs, **quiet)
    below.write.click(handlers.write, [parts.token], [parts.corrected], show_progress_on=[parts.corrected])


def _shown(session: Session) -> str:
    """The value of the viewer that makes it ask for a session anew."""
    return f"{session.token}|{secrets.token_hex(4)}"

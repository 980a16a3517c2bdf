"""The tab "Restore a picture": from upload to the file that the command would write, with a look at it on the way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.concurrency import run_in_threadpool

from apps.pictures.controls import EMPTY, SAME, START, make_buttons, make_inputs, make_results
from apps.pictures.example import make_example
from apps.pictures.models import TASKS, facts, offer
from apps.pictures.run import Restored, Trial, Wish, restore_all, try_part, write_archive
from apps.pictures.show import RESULT, Looked, describe, downloads, draw, outcome_table, thumbnail
from apps.pictures.view import ZOOMS, Window
from apps.serving.context import AppContext
from apps.serving.jobs import Report
from apps.serving.running import run_told
from apps.serving.words import complaint, said
from apps.serving.workspace import Workspace, workspace_of
from hybrid.console import format_duration
from hybrid.errors import HybridError, InputError, RequestError
from restore.images import probe
from restore.tasks import FACE, SR

Update = dict[Any, Any]


def picture_tab(context: AppContext) -> None:
    """Build the tab inside the current `gr.Blocks`."""
    PictureTab(context)


class PictureTab:
    """The components of the tab and what happens when."""

    def __init__(self, context: AppContext) -> None:
        self.context = context
        with gr.Row(elem_classes="split"):
            with gr.Column(scale=2, min_width=320):
                self.left = make_inputs()
            with gr.Column(scale=5, min_width=420):
                self.buttons = make_buttons()
                self.right = make_results()
        self._listen()

    def _listen(self) -> None:
        left, right, buttons = self.left, self.right, self.buttons
        asked = left.asked
        quick: dict[str, Any] = {"show_progress": "hidden"}
        asked.task.change(self.task_chosen, asked.task, [asked.model, asked.scale, asked.fidelity, left.model_facts], **quick)
        asked.model.change(self.model_chosen, [asked.task, asked.model], left.model_facts, **quick)
        left.example.click(self.take_example, asked.task, left.files, **quick)
        left.files.change(self.files_came, left.files, [left.about, right.place, right.small, right.status], **quick)
        # "multiple": a click is else lost while the page winds up the run before.
        heavy: dict[str, Any] = {"concurrency_limit": None, "show_progress_on": right.status, "trigger_mode": "multiple"}
        place = [right.across, right.down]
        buttons.trial.click(self.try_part, [left.files, *place, *asked.all], right.after_a_run, **heavy)
        buttons.run.click(self.restore, [left.files, *right.window, *asked.all], right.after_a_run, **heavy)
        buttons.cancel.click(self.cancel, queue=False, **quick)
        right.picture.input(self.picture_chosen, [right.looked, right.picture, *right.window], [right.shown, right.pair], **quick)
        look = [right.looked, right.picture, right.shown, *right.window]
        for control in (right.shown, right.zoom, right.across, right.down):
            control.input(self.look, look, right.pair, trigger_mode="always_last", **quick)
        right.place.select(self.place_chosen, [right.small, right.zoom], [right.across, right.down, right.zoom], **quick).then(
            self.look, look, right.pair, **quick
        )

    def task_chosen(self, task: str) -> tuple[Any, Any, Any, str]:
        """The models of a task."""
        command = TASKS[task]
        choices = offer(command).choices(command)
        name = choices[0][1] if choices else None
        scale = gr.update(visible=command in (SR, FACE), value=4 if command is SR else 1)
        return gr.update(choices=choices, value=name), scale, gr.update(visible=command is FACE), facts(command, name)

    def model_chosen(self, task: str, model: str | None) -> str:
        """What is known of a model."""
        return facts(TASKS[task], model)

    def take_example(self, task: str, request: gr.Request) -> Any:
        """A picture with the damage that the task mends."""
        if TASKS[task] is FACE:
            gr.Info("No portrait comes with the package: send one.")
            return gr.skip()
        return [str(make_example(TASKS[task], workspace_of(request).new_folder("example")))]

    def files_came(self, request: gr.Request, files: list[str] | None) -> tuple[str, str | None, tuple[int, int], str]:
        """Facts of the pictures, a small view of the first with its size, and what is wrong with any."""
        if not files:
            return "", None, (1, 1), said(START)
        workspace = workspace_of(request)
        try:
            sources = _own(workspace, files)
            about, wrong = describe(sources)
            small = thumbnail(sources, workspace)
        except HybridError as error:
            return "", None, (1, 1), said(complaint(error), "failed")
        status = said(wrong, "failed") if wrong else said("Ready.")
        if small is None:
            return about, None, (1, 1), status
        info = probe(small)
        return about, str(small), (info.width, info.height), status

    async def try_part(
        self, request: gr.Request, files: list[str] | None, across: float, down: float, *asked: Any
    ) -> AsyncIterator[Update]:
        """Restore a small part, and say how long the whole would take."""
        workspace = workspace_of(request)

        def work(report: Report) -> Trial:
            wish, sources = self._wish(asked), _own(workspace, files)
            return try_part(wish, sources[0], workspace.new_folder("part"), (across / 100, down / 100), report)

        facts = {"task": asked[0], "model": asked[1] or ""}
        async for step in run_told(self.context, workspace, "try", work, "Trying a part", facts):
            if isinstance(step, str):
                yield {self.right.status: step}
                continue
            trial = step.result
            looked = Looked(trial.before.parent, trial=trial)
            width, height = trial.size
            text = f"{width} x {height} pixels took {format_duration(trial.seconds)} with {trial.model}."
            whole = f" The whole picture takes about {format_duration(trial.whole)}."
            yield {
                self.right.status: said(text + whole, "good"),
                self.right.looked: looked,
                self.right.picture: gr.update(visible=False),
                self.right.shown: gr.update(visible=False),
                self.right.pair: await run_in_threadpool(draw, looked, 0, RESULT, Window(), workspace),
                self.right.links: "",
                self.right.table: "",
            }

    async def restore(
        self, request: gr.Request, files: list[str] | None, zoom: str, across: float, down: float, *asked: Any
    ) -> AsyncIterator[Update]:
        """Restore all pictures."""
        workspace = workspace_of(request)

        def work(report: Report) -> Looked:
            wish, sources = self._wish(asked), _own(workspace, files)
            folder = workspace.new_folder("restored")
            results = tuple(restore_all(wish, sources, folder, report))
            return Looked(folder, results, archive=write_archive(results, folder) if len(results) > 1 else None)

        facts = {"task": asked[0], "model": asked[1] or "", "files": len(files or ())}
        async for step in run_told(self.context, workspace, "restore", work, "Restoring", facts):
            if isinstance(step, str):
                yield {self.right.status: step}
            else:
                yield await run_in_threadpool(self._results, step.result, _window(zoom, across, down), workspace)

    def cancel(self, request: gr.Request) -> None:
        """End what runs, and what waits; the run itself says so."""
        self.context.jobs.cancel(workspace_of(request))

    def picture_chosen(
        self, request: gr.Request, looked: Looked | None, picture: int, zoom: str, across: float, down: float
    ) -> tuple[Any, str]:
        """Another picture of a batch is looked at."""
        shown = looked.shown(picture) if looked else [RESULT]
        html = self.look(request, looked, picture, RESULT, zoom, across, down)
        return gr.update(choices=shown, value=RESULT, visible=len(shown) > 1), html

    def look(
        self,
        request: gr.Request,
        looked: Looked | None,
        picture: int | None,
        shown: str | None,
        zoom: str,
        across: float,
        down: float,
    ) -> str:
        """Draw the comparison anew."""
        try:
            return draw(looked, picture or 0, shown or RESULT, _window(zoom, across, down), workspace_of(request)) or EMPTY
        except HybridError as error:
            return said(complaint(error), "failed")

    def place_chosen(self, event: gr.SelectData, small: tuple[int, int], zoom: str) -> tuple[float, float, str]:
        """A click on the small view."""
        across, down = (min(100.0, 100 * at / length) for at, length in zip(event.index, small, strict=True))
        return round(across), round(down), "1:1" if zoom == "Whole" else zoom

    def _results(self, looked: Looked, window: Window, workspace: Workspace) -> Update:
        pictures = looked.pictures
        first = pictures[0][1] if pictures else 0
        shown = looked.shown(first) if pictures else [RESULT]
        failed = len(looked.results) - len(pictures)
        if len(looked.results) == 1:
            text = looked.results[0].error if failed else f"Done in {format_duration(_seconds(looked.results))}."
        else:
            text = f"{len(pictures)} of {len(looked.results)} pictures restored." + (" See the table." if failed else "")
        right = self.right
        return {
            right.status: said(text, "failed" if failed else "good"),
            right.looked: looked,
            right.picture: gr.update(choices=pictures, value=first if pictures else None, visible=len(pictures) > 1),
            right.shown: gr.update(choices=shown, value=RESULT, visible=len(shown) > 1),
            right.pair: draw(looked, first, RESULT, window, workspace) or EMPTY,
            right.links: downloads(looked, workspace),
            right.table: outcome_table(looked),
        }

    def _wish(self, asked: Sequence[Any]) -> Wish:
        task, model, scale, format, quality, several, main, ensemble, fidelity, deidentify = asked
        command = TASKS[task]
        if model is None or model not in {name for _, name in offer(command).choices(command)}:
            raise RequestError(f"No network for {command.against} is on this computer.", hint="Choose another task.")
        return Wish(
            command,
            model,
            float(scale),
            None if format == SAME else format,
            int(quality),
            bool(several),
            "mean" if main == "mean" else "best",
            bool(ensemble),
            float(fidelity),
            bool(deidentify),
            self.context.device,
        )


def _own(workspace: Workspace, files: Sequence[str] | None) -> list[Path]:
    """Paths that came with a request, each known to be this user's.

    Raises:
        InputError: There is none, or one is not.
    """
    if not files:
        raise InputError("There is no picture yet.", hint="Send one, or take the example.")
    return [workspace.own(path) for path in files]


def _window(zoom: str, across: float, down: float) -> Window:
    return Window(ZOOMS.get(zoom, 0), across / 100, down / 100)


def _seconds(results: Sequence[Restored]) -> float:
    return sum(each.seconds for each in results)

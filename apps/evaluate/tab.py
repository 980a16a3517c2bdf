"""The tab "Evaluate": methods scored on benchmark pictures by the papers' protocol."""

from __future__ import annotations

from collections.abc import AsyncIterator
from html import escape
from typing import Any

import gradio as gr

from apps.evaluate.run import BICUBIC, MINI, SCALES, TASKS, Asked, Evaluated, evaluate, methods_for, read_levels, sets_for
from apps.serving.context import AppContext
from apps.serving.jobs import Report
from apps.serving.running import run_told
from apps.serving.words import download_links, plain_table, said
from apps.serving.workspace import Workspace, serve, workspace_of

START = "Choose data sets and methods. The set mini comes with the package and takes seconds with the small networks."
EMPTY = '<div class="empty"><p>Table and plots will stand here.</p></div>'
PLOTS = {"psnr_parameters": "PSNR against parameters", "psnr_seconds": "PSNR against time"}
TEXTS = ("set", "method", "note", "published")
LEVELS = {"denoising": "Noise levels, in 1/255", "jpeg": "JPEG qualities"}


def evaluate_tab(context: AppContext) -> None:
    """Build the tab inside the current `gr.Blocks`."""
    EvaluateTab(context)


class EvaluateTab:
    """The components of the tab and what happens when."""

    def __init__(self, context: AppContext) -> None:
        self.context = context
        first = next(iter(TASKS))
        sets, methods = sets_for(TASKS[first], context.data), methods_for(TASKS[first], SCALES[-1])
        with gr.Row(elem_classes="split"):
            with gr.Column(scale=2, min_width=320):
                self.task = gr.Radio(list(TASKS), value=first, label="Task", elem_id="evaluate-task")
                self.scale = gr.Radio(list(SCALES), value=SCALES[-1], label="Enlargement", elem_id="evaluate-scale")
                self.levels = gr.Textbox(label="Levels", placeholder="those of the set", visible=False, elem_id="evaluate-levels")
                self.sets = gr.CheckboxGroup(sets, value=[MINI], label="Data sets", elem_id="evaluate-sets")
                self.methods = gr.CheckboxGroup(methods, value=_usual(methods), label="Methods", elem_id="evaluate-methods")
                gr.HTML(_where(context))
            with gr.Column(scale=5, min_width=420):
                with gr.Row():
                    self.start = gr.Button("Evaluate", variant="primary", elem_id="evaluate-run", size="md", min_width=90)
                    self.stop = gr.Button("Cancel", variant="stop", elem_id="evaluate-cancel", size="md", min_width=90)
                self.status = gr.HTML(said(START), elem_id="evaluate-status")
                self.links = gr.HTML(elem_id="evaluate-links")
                self.table = gr.HTML(EMPTY, elem_id="evaluate-table")
                self.plots = gr.HTML(elem_id="evaluate-plots")
        self._listen()

    def _listen(self) -> None:
        quick: dict[str, Any] = {"show_progress": "hidden"}
        self.task.change(self.task_chosen, [self.task, self.scale], [self.scale, self.levels, self.sets, self.methods], **quick)
        self.scale.change(self.scale_chosen, [self.task, self.scale], self.methods, **quick)
        self.start.click(
            self.run,
            [self.task, self.scale, self.levels, self.sets, self.methods],
            [self.status, self.links, self.table, self.plots],
            concurrency_limit=None,  # the device has a line of its own
            show_progress_on=self.status,
            trigger_mode="multiple",  # a click is else lost while the page winds up the run before
        )
        self.stop.click(self.cancel, queue=False, **quick)

    def task_chosen(self, task: str, scale: int) -> tuple[Any, Any, Any, Any]:
        """What there is for a task."""
        kind = TASKS[task]
        methods = methods_for(kind, int(scale))
        return (
            gr.update(visible=kind == "super-resolution"),
            gr.update(visible=kind in LEVELS, label=LEVELS.get(kind, "Levels"), value=""),
            gr.update(choices=sets_for(kind, self.context.data), value=[MINI]),
            gr.update(choices=methods, value=_usual(methods)),
        )

    def scale_chosen(self, task: str, scale: int) -> Any:
        """The methods of another scale."""
        methods = methods_for(TASKS[task], int(scale))
        return gr.update(choices=methods, value=_usual(methods))

    async def run(
        self, request: gr.Request, task: str, scale: int, levels: str, sets: list[str], methods: list[str]
    ) -> AsyncIterator[dict[Any, Any]]:
        """Score, and show what came of it."""
        workspace, kind = workspace_of(request), TASKS[task]

        def work(report: Report) -> Evaluated:
            asked = Asked(
                kind, tuple(sets), tuple(methods), int(scale), read_levels(levels, kind), self.context.data, self.context.device
            )
            return evaluate(asked, workspace.new_folder("benchmark"), report)

        facts: dict[str, str | int] = {"task": task, "model": " ".join(methods), "files": len(sets)}
        async for step in run_told(self.context, workspace, "evaluate", work, "Scoring", facts):
            yield {self.status: step} if isinstance(step, str) else self._results(step.result, workspace)

    def cancel(self, request: gr.Request) -> None:
        """End what runs, and what waits; the run itself says so."""
        self.context.jobs.cancel(workspace_of(request))

    def _results(self, found: Evaluated, workspace: Workspace) -> dict[Any, Any]:
        failed = f" {found.failures} pictures have no score: see the report." if found.failures else ""
        kept = [place for place in range(len(found.header)) if any(row[place] for row in found.rows)]
        header = [found.header[place] for place in kept]
        numbers = [place for place, title in enumerate(header) if title not in TEXTS]
        files = [
            (str(found.archive), "Everything"),
            (str(found.csv), "Scores of each picture"),
            (str(found.json), "All as JSON"),
            (str(found.report), "Report"),
        ]
        files += [(str(path), _title(path.stem)) for path in found.plots]
        return {
            self.status: said(f"Done.{failed}", "failed" if failed else "good"),
            self.links: download_links(workspace, files),
            self.table: plain_table(header, [[row[place] for place in kept] for row in found.rows], numbers=numbers),
            self.plots: _figures(found, workspace),
        }


def _usual(methods: list[tuple[str, str]]) -> list[str]:
    """What is ticked at first: the quick networks and the plain baseline."""
    names = [name for _, name in methods]
    baseline = BICUBIC if BICUBIC in names else next((name for name in names if name in ("noisy", "blurred", "jpeg")), None)
    return [name for name in names if name.endswith("-compact")] + ([baseline] if baseline else [])


def _where(context: AppContext) -> str:
    place = "in the folder given with --data" if context.data else "the shipped ones; start with --data FOLDER for more"
    protocol = "PSNR in dB and SSIM by the protocol of each set."
    return f'<p class="quiet">Sets are listed whose pictures are here: {escape(place)}. {protocol}</p>'


def _figures(found: Evaluated, workspace: Workspace) -> str:
    """The plots side by side, and below them the excerpts."""
    ordered = sorted(found.plots, key=lambda path: path.stem not in PLOTS)
    shown = "".join(
        f"<figure{'' if path.stem in PLOTS else ' class=wide'}>"
        f'<img src="{escape(serve(workspace, path), quote=True)}" alt="{escape(_title(path.stem), quote=True)}"></figure>'
        for path in ordered
    )
    return f'<div class="plots">{shown}</div>'


def _title(stem: str) -> str:
    return PLOTS.get(stem, f"Excerpts, {stem}")

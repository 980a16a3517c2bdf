"""What is seen of the picture tab: its components, left what is asked for, right what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from apps.pictures.models import TASKS, facts, offer
from apps.pictures.view import ZOOMS
from apps.serving.words import said
from restore.restoration.inputs import FORMAT_SUFFIX, SUFFIXES
from restore.tasks import SR

START = "Send a picture, or take the example; then try a part of it, or restore the whole."
SAME = "as the input"
EMPTY = '<div class="empty"><p>Before and after will stand here, one over the other.</p></div>'


@dataclass(frozen=True)
class Asked:
    """The components that say what is wanted, in the order in which a handler gets their values."""

    task: gr.Radio
    model: gr.Dropdown
    scale: gr.Slider
    format: gr.Dropdown
    quality: gr.Slider
    several: gr.Checkbox
    main: gr.Dropdown
    ensemble: gr.Checkbox
    fidelity: gr.Slider
    deidentify: gr.Checkbox

    @property
    def all(self) -> list[Any]:
        """As the inputs of an event."""
        return [
            self.task,
            self.model,
            self.scale,
            self.format,
            self.quality,
            self.several,
            self.main,
            self.ensemble,
            self.fidelity,
            self.deidentify,
        ]


@dataclass(frozen=True)
class Inputs:
    """The left side."""

    files: gr.File
    example: gr.Button
    about: gr.HTML
    asked: Asked
    model_facts: gr.HTML


@dataclass(frozen=True)
class Buttons:
    """What starts and ends a run."""

    trial: gr.Button
    run: gr.Button
    cancel: gr.Button


@dataclass(frozen=True)
class Results:
    """The right side."""

    looked: gr.State
    small: gr.State
    status: gr.HTML
    picture: gr.Dropdown
    shown: gr.Dropdown
    pair: gr.HTML
    zoom: gr.Radio
    across: gr.Slider
    down: gr.Slider
    place: gr.Image
    links: gr.HTML
    table: gr.HTML

    @property
    def window(self) -> list[Any]:
        """What says where to look."""
        return [self.zoom, self.across, self.down]

    @property
    def after_a_run(self) -> list[Any]:
        """What a run changes."""
        return [self.status, self.looked, self.picture, self.shown, self.pair, self.links, self.table]


def make_inputs() -> Inputs:
    """Build the left side."""
    files = gr.File(
        label="Pictures: PNG, JPEG, TIFF, WebP, AVIF",
        file_count="multiple",
        file_types=list(SUFFIXES),
        height=130,
        elem_id="pictures",
    )
    example = gr.Button("Take the example", size="sm", elem_id="picture-example")
    about = gr.HTML(elem_id="picture-about")
    task = gr.Radio(list(TASKS), value=next(iter(TASKS)), label="Task", elem_id="picture-task")
    choices = offer(SR).choices(SR)
    name = choices[0][1] if choices else None
    model = gr.Dropdown(choices, value=name, label="Model", elem_id="picture-model")
    scale = gr.Slider(1, 8, value=4, step=0.5, label="Enlargement", elem_id="picture-scale")
    fidelity = gr.Slider(0, 1, value=0, step=0.05, label="As the face was, from 0 to 1", visible=False)
    model_facts = gr.HTML(facts(SR, name))
    with gr.Accordion("More", open=False):
        asked = Asked(
            task,
            model,
            scale,
            gr.Dropdown([SAME, *FORMAT_SUFFIX], value=SAME, label="Format of the result"),
            gr.Slider(50, 100, value=95, step=1, label="Quality of JPEG, WebP and AVIF"),
            gr.Checkbox(True, label="All outputs, and where they differ", info="Of networks with several outputs."),
            gr.Dropdown(["best", "mean"], value="best", label="Result of several outputs"),
            gr.Checkbox(False, label="Average over turns and mirror images", info="Eight times as long, a little better."),
            fidelity,
            gr.Checkbox(
                False,
                label="Without names, places and devices (--deidentify)",
                info="Leaves out EXIF, XMP, IPTC and the names in colour profiles.",
                elem_id="picture-deidentify",
            ),
        )
    return Inputs(files, example, about, asked, model_facts)


def make_buttons() -> Buttons:
    """Build the row above the results."""
    with gr.Row():
        return Buttons(
            gr.Button("Try a part", elem_id="picture-try", size="md", min_width=90),
            gr.Button("Restore", variant="primary", elem_id="picture-run", size="md", min_width=90),
            gr.Button("Cancel", variant="stop", elem_id="picture-cancel", size="md", min_width=90),
        )


def make_results() -> Results:
    """Build the right side."""
    looked = gr.State(None, time_to_live=6 * 3600)
    small = gr.State((1, 1))  # width and height of the small view
    status = gr.HTML(said(START), elem_id="picture-status")
    pair = gr.HTML(EMPTY, elem_id="picture-pair")
    links = gr.HTML(elem_id="picture-links")
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            with gr.Row():
                picture = gr.Dropdown([], label="Picture", visible=False, elem_id="picture-which")
                shown = gr.Dropdown([], label="Compared with the input", visible=False, elem_id="picture-shown")
            zoom = gr.Radio(list(ZOOMS), value="Whole", label="Zoom", elem_id="picture-zoom")
            with gr.Row():
                across = gr.Slider(0, 100, value=50, step=1, label="Across (%)", min_width=140)
                down = gr.Slider(0, 100, value=50, step=1, label="Down (%)", min_width=140)
        with gr.Column(scale=1, min_width=200):
            place = gr.Image(
                label="The whole picture, small",
                show_label=False,
                type="filepath",
                format="png",
                interactive=False,
                height=170,
                buttons=[],
                elem_id="picture-place",
            )
            gr.HTML('<p class="under">Click where to look, or to try.</p>')
    table = gr.HTML(elem_id="picture-table")
    return Results(looked, small, status, picture, shown, pair, zoom, across, down, place, links, table)

"""What `restore deblur`, `denoise` and `dejpeg` do with their requests."""

from __future__ import annotations

from dataclasses import replace

from hybrid.batch.place import open_place, output_folder
from hybrid.batch.telling import raise_failures
from hybrid.console import messages
from hybrid.errors import RequestError
from hybrid.remote import Mirror, localised
from restore.cli.batch import work
from restore.cli.road import Request, check_inputs, check_targets, load, name_outputs, work_of
from restore.restoration.inputs import SUFFIXES
from restore.restoration.one_output import Main
from restore.restoration.passed_over import passed_over


def run(request: Request) -> None:
    """Restore every picture of a request at its own size, or plan it. One that fails does not stop the others.

    Raises:
        HybridError: The request cannot be met at all, or pictures failed: the picture's own error if there was only
            one, else a list of all.
    """
    with localised(request.inputs, request.output, SUFFIXES) as places:
        _run(replace(request, inputs=places.inputs, output=places.output), places.mirror)


def _run(request: Request, mirror: Mirror | None) -> None:
    settings = request.settings()
    talk = messages(quiet=request.quiet)
    check_inputs(request, settings, mirror)
    request.check_model()
    jobs = name_outputs(request, request.command.tag)
    folder = output_folder(request.inputs, request.output, [(job.source, job.target) for job in jobs])
    with open_place(folder, mirror, retry_failed=request.batch.retry_failed) as place:
        check_targets(jobs, settings, talk, place=place)
        loaded = load(request, (None,), talk, work=work_of(jobs))
        check_targets(jobs, settings, talk, outputs=loaded[0].card.outputs, place=place)
        failures = work(request, settings, loaded, jobs, talk, many=len(jobs) > 1, place=place)
    if passed := passed_over(request.inputs, request.output):
        talk.print(passed)
    raise_failures(failures, len(jobs), "picture", place.path)


def asked_main(text: str) -> Main:
    """Read --select.

    >>> asked_main("best"), asked_main("3")
    ('best', 3)

    Raises:
        RequestError: It is none of what can be selected.
    """
    if text == "best":
        return "best"
    if text == "mean":
        return "mean"
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    raise RequestError(f"--select {text} is not understood.", hint="Give best, mean or the number of an output, from 1.")

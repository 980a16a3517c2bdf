"""Long work: progress, cancelling, one run at a time on the device."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from apps.serving.jobs import Cancelled, Done, Jobs, Progress, Report, watch_job
from apps.serving.workspace import Workspace

SOON = 30.0


def finish(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run it in a thread of its own: another test's browser may have its event loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result(SOON)


def run(work: Callable[[Report], Any], cancel: threading.Event, told: Callable[[Any], None] = lambda step: None) -> Any:
    """The result of a job; `told` is called with its steps."""

    async def watch() -> list[Any]:
        steps = []
        async for step in watch_job(work, cancel):
            told(step)
            steps.append(step)
        return steps

    last = finish(watch())[-1]
    assert isinstance(last, Done)
    return last.result


def test_a_job_tells_its_progress_and_then_its_result() -> None:
    shown, told = threading.Event(), []

    def work(report: Report) -> str:
        report(1, 4)
        assert shown.wait(SOON)
        return "result"

    def tell(step: Any) -> None:
        told.append(step)
        shown.set()

    run(work, threading.Event(), tell)
    assert isinstance(told[0], Progress) and told[0].share == 0.25 and told[0].seconds_left is not None
    assert isinstance(told[-1], Done) and told[-1].result == "result"


def test_the_error_of_the_work_comes_out() -> None:
    def work(report: Report) -> None:
        raise ValueError("of the work")

    with pytest.raises(ValueError, match="of the work"):
        run(work, threading.Event())


def test_cancelling_ends_the_work_at_its_next_report_and_frees_the_device() -> None:
    cancel, reports = threading.Event(), []

    def endless(report: Report) -> None:
        while True:
            reports.append(1)
            report(1, 2)
            cancel.set()

    with pytest.raises(Cancelled):
        run(endless, cancel)
    assert len(reports) == 2
    assert run(lambda report: "free again", threading.Event()) == "free again"


def test_closing_the_iterator_cancels() -> None:
    ended = threading.Event()

    def endless(report: Report) -> None:
        try:
            while True:
                report(1, 2)
        except Cancelled:
            ended.set()
            raise

    async def look_once() -> None:
        steps = watch_job(endless, threading.Event())
        await anext(steps)
        await steps.aclose()  # type: ignore[attr-defined]

    finish(look_once())
    assert ended.wait(SOON)


def test_two_jobs_never_run_at_once() -> None:
    running, most, lock = [0], [0], threading.Lock()

    def work(report: Report) -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        for step in range(50):
            report(step, 50)
        with lock:
            running[0] -= 1

    threads = [threading.Thread(target=lambda: run(work, threading.Event())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert most[0] == 1 and running[0] == 0


def test_a_waiting_job_can_be_cancelled() -> None:
    first, second, started = threading.Event(), threading.Event(), threading.Event()

    def endless(report: Report) -> None:
        started.set()
        while True:
            report(1, 2)

    async def wait_behind() -> None:
        holder = watch_job(endless, first)
        await anext(holder)
        assert started.wait(SOON)
        second.set()
        with pytest.raises(Cancelled):
            async for _ in watch_job(lambda report: None, second):
                pass
        await holder.aclose()  # type: ignore[attr-defined]

    finish(wait_behind())


def test_those_who_wait_know_their_place_and_are_served_in_turn() -> None:
    release, order, told = threading.Event(), [], [[] for _ in range(3)]  # type: ignore[var-annotated]

    def work(number: int) -> None:
        order.append(number)
        assert release.wait(SOON)

    async def use(number: int) -> None:
        async for step in watch_job(lambda report: work(number), threading.Event()):
            told[number].append(step)
            if all(told) and told[2][0].before == 2:
                release.set()

    async def all_of_them() -> None:
        tasks = []
        for number in range(3):
            tasks.append(asyncio.create_task(use(number)))
            while not told[number]:  # in line before the next one comes
                await asyncio.sleep(0.01)
        await asyncio.gather(*tasks)

    finish(all_of_them())
    assert order == [0, 1, 2]
    assert [steps[0].before for steps in told] == [0, 1, 2]


def test_who_watches_is_told_at_once_while_the_work_winds_up() -> None:
    cancel, held, ended = threading.Event(), threading.Event(), threading.Event()

    def stubborn(report: Report) -> None:
        assert held.wait(SOON)  # a tile that takes long
        ended.set()
        report(1, 2)

    async def watch() -> None:
        with pytest.raises(Cancelled):
            async for _ in watch_job(stubborn, cancel):
                cancel.set()

    finish(watch())
    assert not ended.is_set()
    held.set()
    assert run(lambda report: ended.is_set(), threading.Event()) is True


def test_a_user_cancels_the_own_jobs_alone(tmp_path: Path) -> None:
    jobs = Jobs()
    ann, ben = (Workspace(name, tmp_path, "/files") for name in ("ann", "ben"))
    mine, other = jobs.start(ann), jobs.start(ben)
    jobs.cancel(ann)
    assert mine.is_set() and not other.is_set()
    jobs.cancel_all()
    assert other.is_set()

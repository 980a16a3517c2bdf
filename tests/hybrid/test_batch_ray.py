"""Batches on Ray: one small Ray of two workers for all tests, with the plain worker of the local tests."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybrid.batch.cluster import OnRay
from hybrid.batch.engine import Batch, Engine, Local, answers, run_batch
from hybrid.batch.journal import JOURNAL
from hybrid.batch.options import BatchOptions
from hybrid.batch.place import open_place
from hybrid.errors import InputError, RequestError, ResourceError, WeightsError
from tests.hybrid.batch_stubs import COUNTED, Capitals, Recipe, Watching, items_below

ray = pytest.importorskip("ray", reason="needs ray: pip install 'hybrid-imaging[cluster]'")


@pytest.fixture(scope="module")
def engine() -> Iterator[OnRay]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield OnRay(Recipe(), BatchOptions("ray", workers=2), threads=1)
    ray.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for number in range(6):
        (tmp_path / "in" / ("sub" if number % 2 else "") / f"{number}.txt").write_text(f"text {number}")
    return tmp_path / "in"


def run(folder: Path, out: Path, engine: Engine, **more: object) -> Watching:
    watching = Watching()
    with open_place(out) as place:
        run_batch(items_below(folder, out), engine, Batch(out, place.journal, "w", "o", **more), watching)  # type: ignore[arg-type]
    return watching


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != JOURNAL}


def statuses(out: Path) -> dict[str, tuple[str, int]]:
    lines = [json.loads(line) for line in (out / JOURNAL).read_text().splitlines()]
    assert len({line["output"] for line in lines}) == len(lines)
    return {line["input"]: (line["status"], line["attempt"]) for line in lines}


def test_the_outputs_are_those_of_the_local_engine_and_are_made_once(folder: Path, tmp_path: Path, engine: OnRay) -> None:
    here = run(folder, tmp_path / "here", Local(Capitals()))
    there = run(folder, tmp_path / "there", engine)
    assert there.made == here.made and contents(tmp_path / "there") == contents(tmp_path / "here")
    assert statuses(tmp_path / "there") == statuses(tmp_path / "here")
    again = run(folder, tmp_path / "there", engine)
    assert len(again.passed) == 6 and not again.made
    assert len(run(folder, tmp_path / "here", engine).passed) == 6  # whatever engine made them


def test_failures_and_faults_stop_nobody(folder: Path, tmp_path: Path, engine: OnRay) -> None:
    (folder / "0.txt").write_text("why?")
    (folder / "2.txt").write_text("bug of Jane Doe")
    said = run(folder, tmp_path / "out", engine)
    assert len(said.made) == 4 and "asks a question" in str(said.errors["0.txt"])
    assert "IndexError in batch_stubs.py" in str(said.errors["2.txt"]) and "Jane" not in str(said.errors["2.txt"])
    assert said.errors["0.txt"].hint == "Answer it." and said.errors["0.txt"].exit_code == 3


def test_the_task_of_a_worker_that_dies_is_done_again(folder: Path, tmp_path: Path, engine: OnRay) -> None:
    (folder / "2.txt").write_text("die")
    (folder / "2.grave").touch()
    said = run(folder, tmp_path / "out", engine)
    assert len(said.made) == 6 and not said.errors and (tmp_path / "out" / "2.txt").read_text() == "DIE"
    assert statuses(tmp_path / "out")["2.txt"] == ("done", 2)
    assert not list((tmp_path / "out").rglob(".*"))


def test_an_input_that_is_waited_for_holds_up_no_other(folder: Path, tmp_path: Path, engine: OnRay) -> None:
    (folder / "2.txt").write_text("wait")
    os.mkfifo(folder / "2.pipe")

    class Releasing(Watching):
        def done(self, item, made):  # type: ignore[no-untyped-def]
            super().done(item, made)
            if len(self.made) == 5:
                (folder / "2.pipe").write_text("go on")

    watching = Releasing()
    with open_place(tmp_path / "out") as place:
        run_batch(items_below(folder, tmp_path / "out"), engine, Batch(tmp_path / "out", place.journal, "w", "o"), watching)
    assert len(watching.made) == 6 and list(watching.made)[-1] == "2.txt" and not watching.errors


def test_an_input_that_kills_every_worker_fails_alone(folder: Path, tmp_path: Path, engine: OnRay) -> None:
    (folder / "2.txt").write_text("deadly")
    said = run(folder, tmp_path / "out", engine)
    assert len(said.made) == 5 and "Workers died 3 times over it" in str(said.errors["2.txt"])
    assert f"2.txt{COUNTED}" not in contents(tmp_path / "out")


def test_an_output_of_somebody_else_is_not_replaced(folder: Path, tmp_path: Path, engine: OnRay) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "0.txt").write_text("precious")
    said = run(folder, tmp_path / "out", engine)
    assert said.errors.keys() == {"0.txt"} and (tmp_path / "out" / "0.txt").read_text() == "precious"


def test_a_stop_in_the_middle_is_gone_on_from(folder: Path, tmp_path: Path, engine: OnRay) -> None:
    class Enough(BaseException):
        pass

    class Impatient(Watching):
        def done(self, item, made):  # type: ignore[no-untyped-def]
            super().done(item, made)
            if len(self.made) == 2:
                raise Enough

    with open_place(tmp_path / "out") as place, pytest.raises(Enough):
        run_batch(items_below(folder, tmp_path / "out"), engine, Batch(tmp_path / "out", place.journal, "w", "o"), Impatient())
    assert not list((tmp_path / "out").rglob(".*"))
    again = run(folder, tmp_path / "out", engine)
    assert len(again.passed) + len(again.made) == 6 and len(again.passed) >= 2 and not again.errors


def test_a_network_that_cannot_be_loaded_ends_the_batch(folder: Path, tmp_path: Path, engine: OnRay) -> None:
    broken = OnRay(Recipe("no network"), BatchOptions("ray", workers=1), threads=1)
    with pytest.raises(WeightsError, match="no network"):
        run(folder, tmp_path / "out", broken)


def test_a_worker_that_no_node_has_room_for_is_refused(folder: Path, tmp_path: Path, engine: OnRay) -> None:
    with pytest.raises(ResourceError, match="No node of the cluster has 64 CPUs"):
        run(folder, tmp_path / "out", OnRay(Recipe(), BatchOptions("ray"), threads=64))


def test_options_of_ray_need_it() -> None:
    with pytest.raises(RequestError, match="--engine ray"):
        BatchOptions(workers=2)


def test_answers_come_back_to_their_questions(folder: Path, tmp_path: Path, engine: OnRay) -> None:
    (folder / "7.txt").write_text("why?")
    (folder / "8.txt").write_text("bug")
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    sources = sorted(folder.rglob("*.txt"), key=lambda path: path.name)
    there = dict(answers([(source, tmp_path / "there" / source.name) for source in sources], engine))
    here = dict(answers([(source, tmp_path / "here" / source.name) for source in sources[:-1]], Local(Capitals())))
    lengths = [len(source.read_text()) for source in sources]
    assert [there[place] for place in range(6)] == [here[place] for place in range(6)] == lengths[:6]
    assert isinstance(here[6], InputError) and str(there[6]) == str(here[6]) and "asks a question" in str(here[6])
    assert "A fault of the program: IndexError" in str(there[7])
    with pytest.raises(IndexError):
        list(answers([(sources[7], tmp_path / "here" / "8.txt")], Local(Capitals())))

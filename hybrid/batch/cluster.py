"""The tasks of a batch on Ray: the same workers, each in an actor, as many as the cluster has room for.

A worker gets the next task when it has done the last, so that no list of inputs is too long, and keeps its network. A worker
that dies, with its node or by its own fault, is replaced, and its task is done again elsewhere; since outputs appear whole and
are the same each time, none is there twice or in part. Each worker computes with the same number of threads, whatever their
number, so that results do not depend on it.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hybrid.batch.engine import Watcher
from hybrid.batch.options import BatchOptions
from hybrid.batch.work import Finished, Recipe, Task, Tell, perform
from hybrid.errors import HybridError, RequestError, ResourceError
from hybrid.leftovers import remove_leftovers

log = logging.getLogger(__name__)

TRIES = 3
"""How often a task is given to a worker that dies over it."""
GRACE = 20.0
"""Seconds that workers get to tidy up after Ctrl-C."""
LOOK = 10.0
"""Seconds without news after which it is asked whether there is still a node to wait for."""
SHARE_OF_MEMORY = 0.5
"""Part of a node's free memory that its workers share where the user has set no bound."""


@dataclass(frozen=True)
class OnRay:
    """Tasks on the workers of a Ray cluster.

    Attributes:
        recipe: What each worker is made of.
        options: The cluster, and how many workers.
        threads: Of each worker, which are as many CPUs as it takes of a node.
        device: As asked for; a worker on a GPU has it for itself.
    """

    recipe: Recipe
    options: BatchOptions
    threads: int
    device: str = "cpu"

    def run(self, tasks: Iterator[Task], watcher: Watcher) -> Iterator[tuple[Task, Finished]]:
        """Do tasks as workers come free, and give what came of them in the order in which they are done.

        Raises:
            RequestError: Ray is not installed.
            ResourceError: The cluster has, or has left, no room for a worker.
            WeightsError: A worker cannot load its network.
        """
        with _connected(self.options.address) as ray:
            pool = _Pool(ray, self)
            try:
                for task, finished, said in pool.run(tasks):
                    with watcher.watching(task.item) as tell:
                        for text, style in said:
                            tell.say(text, style)
                    yield task, finished
            finally:
                pool.stop()
                remove_leftovers(pool.touched, before=time.time())


class Stopped(BaseException):
    """The batch was stopped while a worker was at work."""


@dataclass
class _Said(Tell):
    """Collects what a worker says, and stops it at its next step once it is told to."""

    stop: threading.Event
    said: list[tuple[str, str]] = field(default_factory=list)

    def progress(self, done: int, total: int) -> None:
        if self.stop.is_set():
            raise Stopped

    def say(self, text: str, style: str = "") -> None:
        self.said.append((text, style))


class _Actor:
    """A worker on a node. Errors that a user can act on are values here: Ray would wrap exceptions."""

    def __init__(self, recipe: Recipe, share: float, folder: str) -> None:
        with suppress(OSError):  # not there on this machine, where only whole paths and addresses can be meant then
            os.chdir(folder)
        self._recipe, self._share = recipe, share
        self._stop = threading.Event()

    def make(self) -> HybridError | None:
        """Load the network."""
        from hybrid.memory import available_bytes

        try:
            self._worker = self._recipe.make(int(available_bytes() * SHARE_OF_MEMORY * self._share))
        except HybridError as error:
            return error
        return None

    def do(self, task: Task) -> tuple[Finished, list[tuple[str, str]]] | None:
        """Do a task; None if it was stopped."""
        tell = _Said(self._stop)
        try:
            return perform(self._worker, replace(task, alone=False), tell), tell.said
        except Stopped:
            return None

    def stop(self) -> None:
        """Break off what is under way; it runs beside `do`."""
        self._stop.set()


class _Pool:
    """The actors of a batch."""

    def __init__(self, ray: Any, engine: OnRay) -> None:
        self.ray, self.engine = ray, engine
        gpus = ray.cluster_resources().get("GPU", 0) if engine.device == "auto" or engine.device.startswith("cuda") else 0
        self.needs = {"num_cpus": engine.threads, "num_gpus": 1 if gpus else 0}
        room = self._room()
        if room == 0:
            needed = f"{engine.threads} CPUs" + (" and a GPU" if gpus else "")
            raise ResourceError(f"No node of the cluster has {needed} for a worker.", hint="Give fewer --threads.")
        self.starting: dict[Any, Any] = {}
        self.idle: list[Any] = []
        self.busy: dict[Any, tuple[Any, Task, int]] = {}
        self.again: deque[tuple[Task, int]] = deque()
        self.touched: set[Path] = set()
        self.deaths_at_start = 0
        for _ in range(min(room, engine.options.workers or room)):
            self._start()

    def run(self, tasks: Iterator[Task]) -> Iterator[tuple[Task, Finished, list[tuple[str, str]]]]:
        """Hand out tasks until all are done."""
        more = True
        while True:
            while self.idle and (more or self.again):
                given = self.again.popleft() if self.again else ((task, 1) if (task := next(tasks, None)) is not None else None)
                if given is None:
                    more = False
                else:
                    self._give(*given)
            if not more and not self.busy and not self.again:
                return
            ready, _ = self.ray.wait([*self.busy, *self.starting], num_returns=1, timeout=LOOK)
            if not ready:
                self._check_nodes()
            for ref in ready:
                if ref in self.starting:
                    self._started(ref)
                elif (ended := self._ended(ref)) is not None:
                    yield ended

    def stop(self) -> None:
        """End the actors; those at work are asked first, so that they leave nothing half-written."""
        if self.busy:
            for actor, _, _ in self.busy.values():
                actor.stop.remote()
            self.ray.wait([*self.busy], num_returns=len(self.busy), timeout=GRACE)
        for actor in (*self.idle, *self.starting.values(), *(actor for actor, _, _ in self.busy.values())):
            self.ray.kill(actor)

    def _start(self) -> None:
        cpus = max((node["Resources"].get("CPU", 0) for node in self._nodes()), default=1)
        kind = self.ray.remote(max_concurrency=2, **self.needs)(_Actor)
        actor = kind.remote(self.engine.recipe, min(1.0, self.engine.threads / max(1, cpus)), os.getcwd())
        self.starting[actor.make.remote()] = actor

    def _started(self, ref: Any) -> None:
        actor = self.starting.pop(ref)
        try:
            error = self.ray.get(ref)
        except self.ray.exceptions.RayError as death:
            self.deaths_at_start += 1
            if self.deaths_at_start >= TRIES:
                raise ResourceError(
                    f"Workers die while they start: {type(death).__name__}.",
                    hint="See the logs of Ray, or give fewer --workers.",
                ) from death
            self._start()
            return
        if error is not None:
            raise error
        self.idle.append(actor)

    def _give(self, task: Task, tries: int) -> None:
        actor = self.idle.pop()
        self.busy[actor.do.remote(task)] = actor, task, tries

    def _ended(self, ref: Any) -> tuple[Task, Finished, list[tuple[str, str]]] | None:
        """What came of a task; None if it is to be done again, since its worker died."""
        actor, task, tries = self.busy.pop(ref)
        try:
            finished, said = self.ray.get(ref)
        except self.ray.exceptions.RayError as death:
            log.warning("a worker died over %s: %s", task.item.name, type(death).__name__)
            self.ray.kill(actor)
            self._start()
            self.touched.update(path.parent for path in task.item.outputs)
            # What the dead one may have written is ours to replace; what was there before it is not.
            task = replace(task, replace=task.replace or task.ours, attempt=task.attempt + 1)
            if tries < TRIES:
                self.again.append((task, tries + 1))
                return None
            fault = ResourceError(
                f"Workers died {TRIES} times over it: {type(death).__name__}.",
                hint="It may need more memory than they have: give fewer --workers, or run it alone.",
            )
            return task, Finished(error=fault), []
        self.idle.append(actor)
        return task, finished, said

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self.ray.nodes() if node["Alive"]]

    def _room(self) -> int:
        """How many workers the nodes that are alive could hold, if they did nothing else."""
        rooms = []
        for node in self._nodes():
            has = node["Resources"]
            cpus = int(has.get("CPU", 0) // self.needs["num_cpus"])
            rooms.append(min(cpus, int(has.get("GPU", 0))) if self.needs["num_gpus"] else cpus)
        return sum(rooms)

    def _check_nodes(self) -> None:
        if not self.busy and self._room() == 0:
            raise ResourceError("The cluster has lost all nodes that have room for a worker.", hint="The same command goes on.")


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Ray, connected to a cluster or started on this machine; one that was there before is left as it was."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anybody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise RequestError("Ray is not installed.", hint="Type: pip install 'hybrid-imaging[cluster]'") from error
    if ray.is_initialized():
        yield ray
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **_where(address))
    except Exception as error:  # Ray raises plain ones, of a start that takes too long for instance
        raise ResourceError(
            f"Ray cannot be reached or started: {(str(error).splitlines() or [''])[0].rstrip('.')}.",
            hint="Check --address, or leave --engine ray out.",
        ) from error
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray has set one of its own, after which nothing would be tidied up
        yield ray
    finally:
        ray.shutdown()


def _where(address: str | None) -> dict[str, Any]:
    """The cluster of an address or of RAY_ADDRESS, or one that is started here; never one that happens to be found."""
    if address is None and "RAY_ADDRESS" not in os.environ:
        return {"address": "local", "include_dashboard": False}
    return {"address": address}

"""Jobs on a cluster of Dask: one on this machine, or one that stands; with one worker here, one after the other."""

import contextlib
import functools
import hashlib
import logging
import math
import os
import pickle
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tools.bundles import BUNDLES
from tools.io.files import InputError, RunError, first_line, held, read_json, write_text
from tools.workflows.run import end_runs, versions

if TYPE_CHECKING:
    from distributed import Client

HERE = "127.0.0.1"  # nobody else may reach a scheduler, which runs whatever it is sent
CONNECT_S, WORKERS_S = 30, 60  # until a scheduler must have answered, and have a worker
PART = 32  # cases that one process paints or labels at most; what is lost when its worker dies
ASK_S, GONE_S = 10, 300  # between two looks for living workers; without any for so long, they are gone
LOOK_S = 0.5  # between two looks whether a job is still wanted
SOURCES = (("tools", "*.py"), ("bundles", "*.py"), ("bundles", "*.json"), ("bundles", "*.yaml"))
SETTINGS = {  # of the workers of this machine
    "distributed.deploy.lost-worker-timeout": "1h",  # a dead worker comes back, however slowly
    "distributed.worker.profile.enabled": False,  # its work is done by other processes; do not take their time
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "5s",
}
# Ctrl-C of a terminal reaches all that runs in it; a worker, and what it starts, is ended by the command instead.
DEAF = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
START = "OMP_NUM_THREADS=1 python -m dask worker ADDRESS --nthreads 1 --memory-limit 0, in the folder of the repository"
TELL: ContextVar[Callable[[str], None] | None] = ContextVar("tell", default=None)  # of a job on a worker


@dataclass(frozen=True)
class Job:
    """A piece of work that finds its input, and leaves its results, in files.

    Attributes:
        title: What it is called; each has its own.
        do: Does it. A RuntimeError costs this job, any other error ends them all. It must not mind being done twice.
        after: Titles of the jobs that must have ended before, well or not.
    """

    title: str
    do: Callable[[], object]
    after: tuple[str, ...] = ()


def say(line: str) -> None:
    """Print a line at once and whole; of a job on a worker it is printed where the command was given."""
    tell = TELL.get()
    if tell is None:
        print(f"{line}\n", end="", flush=True)
    else:
        tell(line)


@contextlib.contextmanager
def cluster(
    workers: int, scheduler: str | None, folder: Path, needed: Iterable[Path | None] = ()
) -> Iterator["Client | None"]:
    """Give what ``perform`` needs: a client of a cluster, or None where one worker, this process, does it all.

    Args:
        workers: Number of processes on this machine, which end with the block.
        scheduler: Address of a scheduler that stands, or the file that says it; its workers are checked.
        folder: Folder of the results, which all workers must have.
        needed: Further files and folders that all must have; None is passed over.

    Raises:
        InputError: if the scheduler cannot be reached, has no worker, or a worker is not as it must be.
    """
    if scheduler is None and workers == 1:
        yield None
        return
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(_local(workers) if scheduler is None else _standing(workers, scheduler))
        if scheduler:
            check_workers(client, folder, needed)
        say(f"{len(workers_of(client))} workers; dashboard: {client.dashboard_link}")
        yield client


def check_cluster(workers: int, scheduler: str | None, folder: Path) -> None:
    """Check that a scheduler that is asked for stands and has a worker, before a new folder of results is made.

    Raises:
        InputError: as ``cluster`` does.
    """
    if scheduler is not None and not Path(folder).exists():
        with _standing(workers, scheduler):
            pass


def everywhere(*paths: Path | str | None) -> list[Path | None]:
    """Return paths as workers with another current folder find them; None stays."""
    return [None if path is None else Path(path).absolute() for path in paths]


def workers_of(client: "Client | None") -> dict[str, dict]:
    """Return address to what is known of each worker of a cluster; one without a name where there is no cluster."""
    return {"": {}} if client is None else client.scheduler_info(n_workers=-1)["workers"]


def environment(place: int, places: int) -> dict[str, str]:
    """Return the environment of one of several workers of a machine: a GPU of its own, or its share of the cores.

    A number of threads that the user set stays: sums round by it, so results then do not depend on the places.
    """
    import torch

    gpus = torch.cuda.device_count()
    if places == 1:
        return {}
    if gpus > 1:
        return {"CUDA_VISIBLE_DEVICES": str(place % gpus)}
    return {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // places))}


@contextlib.contextmanager
def _local(workers: int) -> Iterator["Client"]:
    """Start a scheduler in this process, and workers in processes that end with it, however it ends."""
    import dask
    import torch
    from distributed import Client, Nanny, Scheduler, SpecCluster

    # this module is loaded at the start, since later it would stop a worker's heartbeat for a while
    preload = [DEAF, __name__, *dask.config.get("distributed.worker.preload")]
    resources = {"GPU": 1} if torch.cuda.is_available() else {}
    places = {
        place: {
            "cls": Nanny,
            "options": {"nthreads": 1, "memory_limit": 0, "host": HERE, "resources": resources,
                        "env": environment(place, workers), "silence_logs": logging.CRITICAL,
                        "preload": preload},
        }
        for place in range(workers)
    }  # fmt: skip
    head = {"cls": Scheduler, "options": {"host": HERE, "dashboard": True, "dashboard_address": f"{HERE}:0"}}
    variables = dict(os.environ)
    threads = {name: value for name, value in environment(0, workers).items() if name == "OMP_NUM_THREADS"}
    # threads are set before a worker's process starts, since numpy looks only then; by default Dask asks for one
    with dask.config.set(SETTINGS | {"distributed.nanny.pre-spawn-environ": threads}):
        try:
            with SpecCluster(workers=places, scheduler=head, silence_logs=logging.CRITICAL) as started:
                with Client(started) as client:
                    yield client
        finally:
            os.environ.clear()  # what Dask sets for its workers is not for this process
            os.environ.update(variables)


@contextlib.contextmanager
def _standing(workers: int, scheduler: str) -> Iterator["Client"]:
    """Connect with a scheduler that stands, where no workers here are asked for too."""
    from distributed import Client

    if workers != 1:
        raise InputError(f"--workers {workers} starts workers here, --scheduler {scheduler} has its own; give one")
    address = read_json(Path(scheduler)).get("address") if scheduler.endswith(".json") else scheduler
    try:
        client = Client(address, timeout=CONNECT_S)
    except (OSError, ValueError, TimeoutError, TypeError) as error:
        raise InputError(
            f"scheduler {scheduler} cannot be reached ({first_line(error)}); start one by python -m dask scheduler, "
            "or leave --scheduler out"
        ) from None
    with client:
        try:
            client.wait_for_workers(1, timeout=WORKERS_S)
        except TimeoutError:
            raise InputError(f"scheduler {scheduler} has no worker after {WORKERS_S} s; start some: {START}") from None
        yield client


@functools.cache
def facts() -> dict[str, str]:
    """Return what must be the same on all machines, that results may be: versions, sources, threads."""
    import distributed
    import torch

    digest = hashlib.sha256()
    root = BUNDLES.parent
    for folder, pattern in SOURCES:
        for path in sorted((root / folder).rglob(pattern)):
            digest.update(f"{path.relative_to(root).as_posix()} {path.stat().st_size} ".encode() + path.read_bytes())
    about = versions() | {"distributed": distributed.__version__, "sources": digest.hexdigest()[:12]}
    return about | {"threads": str(torch.get_num_threads())}


def _look(token: str, told: str, needed: list[str]) -> dict:
    """Return, on a worker, its facts and which of the paths it lacks; ``token`` is a file that holds ``told``."""
    lacks = [path for path in needed if not Path(path).exists()]
    path = Path(token)
    if not (path.is_file() and path.read_text(encoding="utf-8") == told and os.access(path.parent, os.W_OK)):
        lacks.insert(0, str(path.parent))
    return {"facts": facts(), "lacks": lacks}


def check_workers(client: "Client", folder: Path, needed: Iterable[Path | None] = ()) -> None:
    """Check that every worker has this machine's versions and sources, one thread of Dask, and the shared files.

    Raises:
        InputError: naming the first worker that has not, and what it lacks.
    """
    own, told = facts(), uuid.uuid4().hex
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as name:
        token = Path(name, "told").absolute()
        write_text(token, told)
        paths = [str(Path(path).absolute()) for path in needed if path is not None]
        found = client.run(_look, str(token), told, paths, on_error="return")
        lacked = {str(token.parent): str(Path(folder).absolute())}
    for address, worker in workers_of(client).items():
        seen = found.get(address)
        if isinstance(seen, BaseException):
            raise InputError(f"worker {address} cannot run this project ({first_line(seen)}); start it by {START}")
        if worker["nthreads"] != 1:
            raise InputError(f"worker {address} does {worker['nthreads']} jobs at a time, not 1; start it by {START}")
        if seen is None:  # it came a moment ago; jobs on it find their files, or fail with a sentence
            continue
        _refuse_other(address, seen["facts"], own)
        if seen["lacks"]:
            named = ", ".join(lacked.get(path, path) for path in seen["lacks"])
            raise InputError(f"worker {address} cannot read and write {named}; all machines must share these")


def _refuse_other(address: str, its: dict[str, str], own: dict[str, str]) -> None:
    """Raise InputError if the facts of a worker are not those of the command."""
    differing = [f"{name} {its.get(name)}, not {value}" for name, value in own.items() if its.get(name) != value]
    if differing:
        remedy = "; OMP_NUM_THREADS is to be the same for worker and command" * (its["threads"] != own["threads"])
        raise InputError(f"worker {address} has {', '.join(differing)}{remedy}")


def perform(jobs: list[Job], client: "Client | None") -> tuple[dict[str, object], dict[str, str]]:
    """Do some jobs; one whose worker dies is begun again on another.

    Args:
        jobs: The jobs, each after those that it waits for; the earlier, the more urgent.
        client: From ``cluster``.

    Returns:
        Title to what a job returned, and title to the error of those that failed, which is printed too.

    Raises:
        InputError: as soon as a job raises one, such as a leak; no further job begins.
    """
    if client is None:
        outcomes = [_attempt(job) for job in jobs]
    else:
        outcomes = list(_on_workers(jobs, client))
    failed = {title: error for title, error, _ in outcomes if error is not None}
    return {title: found for title, error, found in outcomes if error is None}, failed


def perform_one(title: str, do: Callable[[], object], client: "Client | None") -> object:
    """Do one thing, on a worker where there is a cluster, and return what it returned; RunError if it fails."""
    if client is None:
        return do()
    found, failed = perform([Job(title, do)], client)
    if failed:
        raise RunError(failed[title])
    return found[title]


def parts(names: list, client: "Client | None") -> list[list]:
    """Divide what is to be done into parts: at most ``PART`` things each, and fewer where workers would stand idle.

    Example:
        >>> [len(part) for part in parts(list(range(40)), None)]
        [32, 8]
    """
    workers = len(getattr(client and client.cluster, "worker_spec", None) or workers_of(client))  # dead ones come back
    size = max(1, min(PART, math.ceil(len(names) / max(1, workers))))
    return [names[start : start + size] for start in range(0, len(names), size)]


def threads_on(client: "Client | None", threads: int) -> dict[str, str]:
    """Return the environment of a bundle's process that is to have so many threads, whatever its worker has."""
    return {} if client is None else {"OMP_NUM_THREADS": str(threads)}


def _attempt(job: Job) -> tuple[str, str | None, object]:
    """Do a job; return title, error and result."""
    try:
        return job.title, None, job.do()
    except RuntimeError as error:  # one job that dies must not cost the others
        say(f"{job.title} FAILED: {error}")
        return job.title, str(error), None


def _on_workers(jobs: list[Job], client: "Client") -> Iterator[tuple[str, str | None, object]]:
    from concurrent.futures import CancelledError

    from distributed import KilledWorker, wait

    topic = f"told-{uuid.uuid4().hex}"
    client.subscribe_topic(topic, lambda event: say(event[1]))
    expected = facts() if client.cluster is None else None
    with_gpu = any("GPU" in worker.get("resources", {}) for worker in workers_of(client).values())
    futures, titles = {}, {}
    try:
        for number, job in enumerate(jobs):
            after = [futures[title] for title in job.after if title in futures]
            future = client.submit(
                _work, pickle.dumps(job), topic, expected, after, key=f"{job.title} {topic}", priority=-number,
                pure=False, resources={"GPU": 1} if with_gpu else None,
            )  # fmt: skip
            futures[job.title], titles[future.key] = future, job.title
        waiting, alone_since = set(futures.values()), time.monotonic()
        while waiting:
            if workers_of(client):
                alone_since = time.monotonic()
            elif client.cluster is not None and time.monotonic() - alone_since > GONE_S:
                raise RunError("all workers ended and do not come back; start the same command again to go on")
            try:
                done, waiting = wait(waiting, timeout=ASK_S, return_when="FIRST_COMPLETED")
            except TimeoutError:
                continue
            for future in done:
                try:
                    yield future.result()
                except KilledWorker as error:
                    title = titles[future.key]
                    say(f"{title} FAILED: {first_line(error)}")
                    yield title, first_line(error), None
    except CancelledError:
        raise RunError("the cluster's scheduler was lost; start the same command again to go on") from None
    finally:
        client.cancel([future for future in futures.values() if not future.done()])
        client.unsubscribe_topic(topic)


def _work(packed: bytes, topic: str, expected: dict | None, after: list) -> tuple[str, str | None, object]:
    """Do a job on a worker, as long as it is wanted; of one that came later, refuse other facts than expected.

    The job comes packed, since Dask would open it where a module that is missing ends the worker.
    """
    from distributed import get_worker

    worker = get_worker()
    if expected is not None:
        _refuse_other(worker.address, facts(), expected)
    ended = threading.Event()
    watch = threading.Thread(target=_end_unwanted, args=(worker, worker.get_current_task(), ended), daemon=True)
    watch.start()
    before = TELL.set(lambda line: worker.log_event(topic, line))
    try:
        with held():  # folders are let go, since the process lives on
            return _attempt(pickle.loads(packed))
    finally:
        TELL.reset(before)
        ended.set()
        watch.join()


def _end_unwanted(worker: object, key: str, ended: threading.Event) -> None:
    """End the bundles' processes of a job whose command was interrupted or killed; Dask lets its thread go on."""
    while not ended.wait(LOOK_S):
        task = worker.state.tasks.get(key)
        if task is None or task.state == "cancelled":
            end_runs()

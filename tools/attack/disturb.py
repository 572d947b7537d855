"""Faults, and the bench on which they come over a command: what happened, and how the same command ended afterwards."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tools.attack.jobs import RESULTS, STATE, Job, content, draw_cohort, finished
from tools.attack.processes import Running, changes

ENOUGH_BYTES = 2**28  # of the small file system, once the disk is no longer full
LINES = 6  # that a refusal may have
LAUNCHER = re.compile(
    r'Traceback \(most recent call last\):\n(?:  File "<frozen runpy>".*\n(?: +[~^]+\n)?)+'
    r'  File "[^"]+torch/distributed/run\.py"'
)  # how torchrun's own report begins
SOON_S = 60  # after Ctrl-C, on a machine that has other work too


class FindingError(Exception):
    """A trial ended as none may: its kind, a column of the table, and what was told."""

    def __init__(self, kind: str, told: str) -> None:
        super().__init__(f"{kind}: {told}")
        self.kind = kind


@dataclass
class Undisturbed:
    """How a command ends by itself: its files' digests, how often its output changed, seconds, size in bytes."""

    content: dict[str, str]
    changes: int
    seconds: float
    size: int


class Bench:
    """A cohort, an output folder and the commands that run there, one after the other.

    Args:
        root: Scratch folder.
    """

    def __init__(self, root: Path) -> None:
        self.datalist, self.output, self.told = draw_cohort(root / "cohort"), root / "out", root / "told"
        self._undisturbed: dict[str, Undisturbed] = {}
        self._running: list[Running] = []

    def start(self, job: Job, different: dict | None = None) -> Running:
        """Start a command, with what is to be different this time."""
        running = Running(job.words(self.datalist, self.output, different or {}), self.told / str(len(self._running)))
        self._running.append(running)
        return running

    def clear(self) -> None:
        """End what runs and empty the output."""
        for running in self._running:
            running.end()
        self._running.clear()
        if self.output.is_mount():
            subprocess.run(["umount", self.output], check=True)
        for folder in [*self.output.parent.glob(f"{self.output.name}*"), self.told]:
            shutil.rmtree(folder, ignore_errors=True) if folder.is_dir() else folder.unlink(missing_ok=True)

    def undisturbed(self, job: Job) -> Undisturbed:
        """Return how a command ends by itself; FindingError if it does not."""
        if job.name not in self._undisturbed:
            running = self.start(job)
            seen = changes(self.output, running)
            if running.wait():
                raise FindingError("fails", f"undisturbed: {running.told[-2000:]}")
            size = sum(path.stat().st_size for path in self.output.rglob("*") if path.is_file())
            seconds = time.monotonic() - running.begun
            self._undisturbed[job.name] = Undisturbed(content(self.output), seen, seconds, size)
            self.clear()
        return self._undisturbed[job.name]

    def moment(self, job: Job, running: Running, rng: np.random.Generator, first: int = 0) -> bool:
        """Wait for a moment drawn between the output's first change and its last; False if the command ended before.

        Args:
            job: The command.
            running: It, just started.
            rng: Draws the moment.
            first: The least number of changes to wait for.
        """
        base = self.undisturbed(job)
        changes(self.output, running, int(rng.integers(first, max(first + 1, base.changes))))
        pause = float(rng.uniform(0, base.seconds / max(1, base.changes)))
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.process.wait(pause)
        return not running.is_over()

    def again(self, job: Job) -> None:
        """Run the same command to its end; FindingError unless that is the undisturbed one, with nothing done twice."""
        before, epoch = finished(job, self.output), _epoch(self.output)
        running = self.start(job)
        if running.wait():
            raise FindingError("fails", running.told[-2000:])
        if "Traceback" in running.told:
            raise FindingError("traceback", running.told[-2000:])
        self.compare(job, "once more")
        after = finished(job, self.output)
        if any(after.get(name) != written for name, written in before.items()):
            raise FindingError("twice", f"{[name for name in before if after.get(name) != before[name]]} made again")
        if epoch and f"going on after epoch {epoch} " not in running.out.read_text(encoding="utf-8"):
            raise FindingError("twice", f"the training does not go on after epoch {epoch}")

    def compare(self, job: Job, when: str, patterns: tuple[str, ...] = ("*",)) -> None:
        """Raise FindingError unless the output is the undisturbed one."""
        base, now = self.undisturbed(job).content, content(self.output, patterns)
        if patterns != ("*",):
            base = {name: digest for name, digest in base.items() if any(Path(name).match(one) for one in patterns)}
        differing = sorted(name for name in base.keys() | now.keys() if base.get(name) != now.get(name))
        if differing or not base:
            raise FindingError("differs", f"{when}: {', '.join(differing[:6])} of {len(base)}")

    def refused(self, job: Job, running: Running, by: int | None = None) -> None:
        """Wait for a command's end; FindingError unless it failed with a sentence, or by a signal without a word.

        A Python that has nothing left to do but to end leaves signals to the system. What torchrun adds of its own, a
        traceback and a table of the processes that failed, is looked through for the signal alone.
        """
        try:
            code = running.wait()
        except subprocess.TimeoutExpired:
            raise FindingError("hangs", running.told[-500:]) from None
        told, of_launcher = running.told, ""
        if begun := LAUNCHER.search(told):
            told, of_launcher = told[: begun.start()], told[begun.start() :]
        if code == 0:
            raise FindingError("mute", f"exit code 0: {told[-500:]}")
        if "Traceback" in told:
            raise FindingError("traceback", told[-2500:])
        if by is not None and (code == -by or f"{signal.Signals(by).name}) received" in of_launcher):
            return
        last = told.strip().rpartition("\n" + job.begins)[2] or "nothing"
        if not told.strip() or len(last.splitlines()) > LINES or f"\n{job.begins}" not in f"\n{told}":
            raise FindingError("mute", f"exit code {code}: {told[-500:]}")


def _epoch(output: Path) -> int:
    """Return after which epoch a training's state was saved; 0 where there is none."""
    state = output / STATE
    return torch.load(state, weights_only=True)["epoch"] if state.is_file() else 0


def killed(bench: Bench, job: Job, rng: np.random.Generator) -> bool:
    """Kill the command as the system does when memory is short; what it started must end too."""
    running = bench.start(job)
    if not bench.moment(job, running, rng):
        return False
    running.process.kill()
    running.process.wait()
    if running.left():
        raise FindingError("orphan", f"{len(running.left())} processes of the killed command live on")
    return True


def interrupted(bench: Bench, job: Job, rng: np.random.Generator) -> bool:
    """Send SIGINT, to the command alone or as a terminal does to all that it started."""
    running = bench.start(job)
    alone = rng.random() < 0.5
    if not bench.moment(job, running, rng, first=1):
        return False
    before = time.monotonic()
    (os.kill if alone else os.killpg)(running.process.pid, signal.SIGINT)
    bench.refused(job, running, by=signal.SIGINT)
    _over(running, time.monotonic() - before, "SIGINT")
    return True


def _over(running: Running, seconds: float, disturbed: str) -> None:
    """Raise FindingError unless a command ended soon after it was disturbed, and all that it had started with it."""
    if seconds > SOON_S:
        raise FindingError("hangs", f"{seconds:.0f} s from {disturbed} to the end")
    if running.left():
        raise FindingError("orphan", f"{len(running.left())} processes of the command live on")


def two_at_once(bench: Bench, job: Job, rng: np.random.Generator) -> bool:
    """Start the same command beside itself; one of them must be refused, the other not be disturbed."""
    one = bench.start(job)
    time.sleep(float(rng.uniform(0, 1)))
    other = bench.start(job)
    first = one.wait(), other.wait()
    if sum(code != 0 for code in first) > 1 or any("Traceback" in running.told for running in (one, other)):
        raise FindingError("fails", f"{one.told[-800:]}\n---\n{other.told[-800:]}")
    for code, running in zip(first, (one, other)):
        if code:
            bench.refused(job, running)
    bench.compare(job, "two at once")
    return sum(first) > 0  # else the other came when the one had ended


def worker_dies(bench: Bench, job: Job, rng: np.random.Generator) -> bool:
    """Kill one of the processes that load cases, as the system does when shared memory is short."""
    running = bench.start(job, {"num_workers": 2})
    if not bench.moment(job, running, rng, first=1):
        return False
    while not running.is_over():
        workers = running.children()
        if workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(workers[int(rng.integers(len(workers)))], signal.SIGKILL)
                break
    if not running.wait():  # it had given all it had to give
        return False
    bench.refused(job, running)
    return True


def rank_dies(bench: Bench, job: Job, rng: np.random.Generator) -> bool:
    """Kill one of the processes that train together; the others must end soon, and torchrun name the one that died."""
    running = bench.start(job)
    if not bench.moment(job, running, rng, first=1):
        return False
    ranks = sorted(running.children())
    if len(ranks) < job.ranks:  # one has ended by itself
        return False
    before = time.monotonic()
    os.kill(ranks[int(rng.integers(job.ranks))], signal.SIGKILL)
    if not running.wait():
        return False
    bench.refused(job, running, by=signal.SIGKILL)
    _over(running, time.monotonic() - before, "the death of a process")
    return True


def read_only(bench: Bench, job: Job, rng: np.random.Generator) -> bool:
    """Give an output folder that cannot be written."""
    with _small_disk(bench.output, 2**20, "ro"):
        bench.refused(job, bench.start(job))
        subprocess.run(["mount", "-o", f"remount,rw,size={ENOUGH_BYTES}", bench.output], check=True)
        bench.again(job)
    return True


def disk_full(bench: Bench, job: Job, rng: np.random.Generator) -> bool:
    """Let the disk be full after a share of what the command writes; then make room."""
    size = max(2**13, int(bench.undisturbed(job).size * rng.uniform(0.05, 0.9)))
    with _small_disk(bench.output, size, "rw"):
        bench.refused(job, bench.start(job))
        subprocess.run(["mount", "-o", f"remount,size={ENOUGH_BYTES}", bench.output], check=True)
        bench.again(job)
    return True


@contextlib.contextmanager
def _small_disk(folder: Path, size: int, mode: str) -> Iterator[None]:
    """Mount a file system in memory, of some bytes, while a block runs."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"{mode},size={size}", "tmpfs", folder], check=True)
    yield  # the bench takes it away, whatever happens


def can_mount(folder: Path) -> bool:
    """Return whether this process may mount a file system in memory."""
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", folder], capture_output=True).returncode
    if not made:
        subprocess.run(["umount", folder], check=True)
    folder.rmdir()
    return not made


def otherwise(different: dict) -> Callable[[Bench, Job, np.random.Generator], bool]:
    """Return what runs the command with something different that must not change its results."""

    def run(bench: Bench, job: Job, rng: np.random.Generator) -> bool:
        running = bench.start(job, different)
        if running.wait():
            raise FindingError("fails", running.told[-2000:])
        bench.compare(job, f"with {different}", RESULTS)
        return True

    return run

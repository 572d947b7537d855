"""A command in a process of its own that can be watched, disturbed and looked at afterwards (Linux)."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

POLL_S = 0.01
GRACE_S = 15
HANG_S = 1800  # a tiny run that takes longer hangs, on a machine that has other work too
THREAD_CUT = re.compile(
    r"Exception ignored in thread started by: .*\nTraceback .*\n(?:  .*\n)+KeyError: <Thread\(QueueFeederThread.*\n"
)  # a worker of a loader that is forked while a queue's thread begins; nothing is lost by it
PASSED_OVER = (".log", ".partial")  # a log grows all the time; half a file is no result


def _hear_sigint() -> None:
    """Have a process end by SIGINT even where this one was started in the background, whose children ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Running:
    """A command that runs, its session its own, so that what it starts can be found.

    Args:
        words: The words after ``python``.
        scratch: Folder for what it prints.

    Attributes:
        process: The process.
        out: File of what it prints.
        err: File of what it prints to its error stream.
        begun: When it was started, of the monotonic clock in s.
    """

    def __init__(self, words: list[str], scratch: Path) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        self.out, self.err = scratch / "stdout", scratch / "stderr"
        self.begun = time.monotonic()
        with open(self.out, "wb") as out, open(self.err, "wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, *words], stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                start_new_session=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}, preexec_fn=_hear_sigint,
            )  # fmt: skip

    @property
    def told(self) -> str:
        """What it has printed to its error stream, without what Python 3.11 says of a thread that a fork cut short."""
        return THREAD_CUT.sub("", self.err.read_text(encoding="utf-8", errors="replace"))

    def wait(self) -> int:
        """Return the exit code; TimeoutExpired, and everything it started is gone, if it hangs."""
        try:
            return self.process.wait(max(1.0, HANG_S - (time.monotonic() - self.begun)))
        except subprocess.TimeoutExpired:
            self.end()
            raise

    def is_over(self) -> bool:
        """Return whether the process has ended by itself."""
        return self.process.poll() is not None

    def left(self) -> list[int]:
        """Return which processes of the session live, itself left out, after some time in which they may end.

        Workers of loaders and pools look for their parent every few seconds.
        """
        until = time.monotonic() + GRACE_S
        while True:
            found = [pid for pid, _, session in _table() if session == self.process.pid and pid != self.process.pid]
            if not found or time.monotonic() > until:
                return found
            time.sleep(0.1)

    def children(self) -> list[int]:
        """Return the children of the process: the workers that load a training's cases, or what torchrun started."""
        return [pid for pid, parent, _ in _table() if parent == self.process.pid]

    def end(self) -> None:
        """Kill it and everything it started."""
        for pid in [pid for pid, _, session in _table() if session == self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def _table() -> Iterator[tuple[int, int, int]]:
    """Yield each living process of this machine with its parent and its session."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                about = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(") ")[2]
                state, parent, _, session = about.split()[:4]
                if state not in "ZX":
                    yield int(folder.name), int(parent), int(session)


def changes(folder: Path, running: Running, until: int | None = None) -> int:
    """Watch a folder while a command runs, and return how often what lies in it changed, logs left out.

    Args:
        folder: The command's output.
        running: The command.
        until: Number of changes after which to stop watching; to the end if None.
    """
    seen, before = 0, _state(folder)
    while not running.is_over() and (until is None or seen < until):
        time.sleep(POLL_S)
        now = _state(folder)
        if now != before:
            seen, before = seen + 1, now
    return seen


def _state(folder: Path) -> frozenset:
    found = set()
    for place, folders, files in os.walk(folder):  # passes over a folder that vanishes meanwhile, as rglob does not
        for path in (os.path.join(place, name) for name in folders + files if not name.endswith(PASSED_OVER)):
            with contextlib.suppress(OSError):
                about = os.lstat(path)
                found.add((path, about.st_mtime_ns, about.st_size))
    return frozenset(found)

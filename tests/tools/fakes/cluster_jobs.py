"""Jobs for a cluster's workers, and a stand-in for the bundles in them (Dask loads this file into each worker)."""

import os
import signal
import sys
import time
import types
from pathlib import Path

from tools.io.files import HELD, InputError, hold
from tools.workflows.cluster import say


def dask_setup(worker: object) -> None:
    """Put the stand-in where compare finds the bundles and augment; it kills a worker once, in mid-run, if asked to."""
    from standin import Standin

    import tools.comparison.experiment  # noqa: F401 - it wants what the stand-in lacks

    standin = Standin()

    def run_bundle(bundle, config_files, overrides, log, variables=None):
        doomed = Path(os.environ.get("DOOMED", "/nowhere"))  # a file that names the run
        if doomed.is_file() and log.parent.match(doomed.read_text()):
            doomed.unlink()
            (log.parent / "half").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
        standin.run_bundle(bundle, config_files, overrides, log, variables)

    bundle = types.SimpleNamespace(run_bundle=run_bundle, check_overrides=lambda *_: None)
    sys.modules["tools.workflows.run"] = bundle
    sys.modules["tools.painting.augment"] = types.SimpleNamespace(augment=standin.augment)


def note(folder: Path, name: str) -> str:
    """Write down that a job was done, by whom, and say so."""
    with open(folder / "done", "a") as stream:
        stream.write(f"{name}\n")
    say(f"{name} is done")
    return name.upper()


def note_and_kill(folder: Path, name: str) -> str:
    """Kill the worker the first time, while it holds the folder; be done the second time."""
    hold(folder)
    if not (folder / "killed").exists():
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return note(folder, name)


def kill(folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(folder: Path) -> None:
    raise RuntimeError("out of memory")


def leak(folder: Path) -> None:
    raise InputError("a leak")


def holding(folder: Path) -> int:
    """Return how many folders this worker's process holds from earlier jobs; then hold one more."""
    before = len(HELD)
    hold(folder)
    return before


def wait_in_a_run(folder: Path) -> None:
    """Wait for a bundle's process that would take a minute."""
    from tools.workflows import run

    run.check_overrides = lambda *_: None
    run.bound_command = lambda words: [sys.executable, "-c", "import time; time.sleep(60)"]
    try:
        (folder / "begun").write_text(str(os.getpid()))
        run.run_bundle("lung_tissue_seg", ["train.json"], {}, folder / "run.log")
    finally:
        (folder / "ended").touch()


def wait_for(path: Path, seconds: float = 60) -> None:
    """Wait until a file is there."""
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, path
        time.sleep(0.05)

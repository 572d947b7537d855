"""What the tests of other people's programs share: where those programs are, and trained bundles to give them."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

import pytest

from tools.bundles import BUNDLES

ROOT = Path(__file__).resolve().parents[2]
# markers of tests, and names of what they need
ENVIRONMENTS = ("label", "deploy", "triton", "federated", "nnunet", "mlflow", "ohif", "cluster")
START_SECONDS = 180


def python_of(name: str) -> Path:
    """Return the Python of a consumer's environment; tests with its marker are skipped where it is missing."""
    return ROOT / f".venv-{name}/bin/python"


def run(*command: object, cwd: Path | None = None, check: bool = True, **variables: str) -> subprocess.CompletedProcess:
    """Run a program and return what it printed; a failure fails the test with the end of its output."""
    line = [str(word) for word in command]
    done = subprocess.run(line, cwd=cwd, capture_output=True, text=True, env=os.environ | variables)
    assert not check or done.returncode == 0, f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done


def free_port() -> int:
    """Return a port of the loopback address on which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def serving(command: list, log: Path, url: str, cwd: Path, **variables: str) -> Iterator[None]:
    """Start a server, wait until an address answers, and end it with all that it started.

    Args:
        command: Words of the command.
        log: File that receives what the server prints; its end is the failure if the server does not start.
        url: Address that answers once the server runs.
        cwd: Folder to start it in.
        variables: Environment variables beside those of this process.
    """
    with log.open("w") as output:
        streams = {"stdout": output, "stderr": subprocess.STDOUT, "start_new_session": True}
        words = [str(word) for word in command]
        process = subprocess.Popen(words, cwd=cwd, env=os.environ | variables, **streams)
    try:
        for _ in range(START_SECONDS):
            try:
                urlopen(url, timeout=60).close()
                break
            except OSError:
                time.sleep(1)
            if process.poll() is not None:
                pytest.fail(f"{words} ended:\n{log.read_text()[-6000:]}")
        else:
            pytest.fail(f"{url} does not answer:\n{log.read_text()[-6000:]}")
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def trained(name: str, folder: Path, dataset_dir: Path, **overrides: object) -> Path:
    """Return a copy of a bundle with the weights of a short training on a data set."""
    root = folder / name
    shutil.copytree(BUNDLES / name, root, ignore=shutil.ignore_patterns("__pycache__", "eval", "*.pt"))
    run_workflow(root, ["train.json"], dataset_dir=dataset_dir, **overrides)
    shutil.rmtree(root / "eval", ignore_errors=True)
    (root / "models/training.pt").unlink(missing_ok=True)
    return root


def run_workflow(root: Path, configs: list[str], **overrides: object) -> subprocess.CompletedProcess:
    """Run a workflow of a bundle as its page says, in a process of its own, on the CPU."""
    files = [str(root / "configs" / name) for name in configs]
    words = ["--bundle_root", root, "--config_file", files[0] if len(files) == 1 else files, "--device", "cpu"]
    for key, value in overrides.items():
        words += [f"--{key}", value]
    return run(sys.executable, "-m", "monai.bundle", "run", *words, PYTHONWARNINGS="ignore")

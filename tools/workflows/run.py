"""Running a bundle: its workflow in a process of its own, or its components in this one."""

import ctypes
import importlib.metadata
import multiprocessing
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from monai.bundle import ConfigParser

from tools.bundles import BUNDLES, import_scripts, rename_targets
from tools.io.files import InputError, RunError, read_json

FINE_TUNE = "fine_tune.yaml"  # overlay on train.json, in both bundles
# A bundle's process dies with the one that started it, where the system is Linux: prctl with PR_SET_PDEATHSIG, SIGKILL.
BOUND = (
    "import ctypes, os, runpy, sys; parent = int(sys.argv.pop(1)); "
    "sys.platform.startswith('linux') and ctypes.CDLL(None).prctl(1, 9); "
    "os.getppid() == parent or os._exit(1); "
    "runpy.run_module('monai.bundle', run_name='__main__', alter_sys=True)"
)
STARTED: set[subprocess.Popen] = set()  # bundles' processes that this one waits for
LOG_PREFIX = re.compile(r"^[-0-9]+ [:,0-9]+ - [A-Z]+ - ", re.MULTILINE)  # of lines that NVFlare logs


def check_overrides(
    bundle: str, config_files: list[str], overrides: dict, reserved: Iterable[str] = (), command: str = ""
) -> None:
    """Raise InputError for an override that ``command`` sets itself, or whose id the configs lack: MONAI is silent."""
    parser = read_bundle(bundle, *config_files)
    for key in overrides:
        if key in reserved:
            raise InputError(f"overrides may not hold {key!r}: {command} sets it")
        try:
            parser[key]
        except (KeyError, ValueError, IndexError, TypeError):
            raise InputError(f"{bundle}/{'+'.join(config_files)} has no id {key!r} to override") from None


def read_bundle(bundle: str, *config_files: str) -> ConfigParser:
    """Return a bundle's config, from which this process can build components, beside those of other bundles."""
    root = BUNDLES / bundle
    config = ConfigParser.load_config_files([str(root / "configs" / name) for name in config_files])
    parser = ConfigParser()
    parser.read_config(rename_targets(config, import_scripts(root)))
    parser["bundle_root"] = str(root)
    return parser


def run_bundle(
    bundle: str, config_files: list[str], overrides: dict, log: Path, variables: dict[str, str] | None = None
) -> None:
    """Run ``python -m monai.bundle run`` on one of our bundles and wait for it; its progress bar shows on a terminal.

    Args:
        bundle: Folder name below ``bundles/``.
        config_files: Names below the bundle's ``configs/``; a later one overlays the earlier ones.
        overrides: Config id to value.
        log: File that receives everything the run prints.
        variables: Environment variables of the run, beside those of this process.

    Raises:
        InputError: if an override names an id that the configs do not have.
        RunError: if the run fails; the message holds the error it began with.
    """
    check_overrides(bundle, config_files, overrides)
    shown = sys.stderr.isatty()
    words = run_words(BUNDLES / bundle, config_files, {"progress_bar": shown} | overrides)
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    # idle OpenMP threads sleep instead of spinning: as fast alone, and far faster beside other work
    environment = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ | (variables or {}) | {"PYTHONUNBUFFERED": "1"}
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            bound_command(["run", *words]), stdout=stream, stderr=subprocess.PIPE, env=environment
        )
        STARTED.add(process)
        try:
            for chunk in iter(lambda: process.stderr.read1(4096), b""):
                if shown and b"\r" in chunk:  # a progress bar
                    sys.stderr.buffer.write(b"\r" + chunk.rsplit(b"\r")[-1])
                    sys.stderr.flush()
                else:
                    stream.write(chunk)
                    stream.flush()
        except BaseException:  # Ctrl-C, or a full disk: do not leave the process behind
            process.terminate()
            process.wait()
            raise
        finally:
            STARTED.discard(process)
        returncode = process.wait()
    if returncode:
        cause = first_error(Path(log).read_text(encoding="utf-8", errors="replace"))
        raise RunError(f"{bundle}/{config_files[0]} failed (exit {returncode}): {cause}; its log is {log}")


def bound_command(words: list[str]) -> list[str]:
    """Return the command ``python -m monai.bundle WORDS`` as a process that does not outlive this one."""
    return [sys.executable, "-c", BOUND, str(os.getpid()), *words]


def end_with_parent(parent: int) -> None:
    """Have this process end when the one that started it does, or has by now, where the system is Linux."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def end_runs() -> None:
    """End the bundles' processes that other threads wait for, which then raise RunError."""
    for process in list(STARTED):
        process.terminate()


def run_words(root: Path, config_files: list[str], overrides: dict) -> list[str]:
    """Return the words after ``python -m monai.bundle run`` for a bundle in a folder; see :func:`run_bundle`."""
    files = [str(root / "configs" / name) for name in config_files]
    words = ["--bundle_root", str(root), "--config_file", files[0] if len(files) == 1 else str(files)]
    words += ["--meta_file", str(root / "configs/metadata.json"), "--logging_file", str(root / "configs/logging.conf")]
    for key, value in overrides.items():
        words += [f"--{key}", str(value) if isinstance(value, str | Path) else repr(value)]
    return words


def run_measured(bundle: str, overrides: dict, log: Path) -> tuple[float, float]:
    """Run a bundle's inference and return the seconds it took, start included, and the largest memory it held in GB.

    Raises:
        RunError: if the run fails.
    """
    # a small process in between: the system counts as a child's memory what its parent held when it started
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with_parent, (os.getpid(),)) as pool:
        return pool.submit(_run_alone, bundle, overrides, log).result()


def _run_alone(bundle: str, overrides: dict, log: Path) -> tuple[float, float]:
    start = time.perf_counter()
    run_bundle(bundle, ["inference.json"], overrides, log)
    seconds = time.perf_counter() - start
    unit = 1 if sys.platform == "darwin" else 1024
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 1e9


def first_error(log: str) -> str:
    """Return the error that began a chain of tracebacks, or the last line where there is no traceback.

    Example:
        >>> first_error("KeyError: 'fold'\\n\\nThe above exception ...\\nRuntimeError: Failed to evaluate")
        "KeyError: 'fold'"
    """
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[A-Za-z_.]*(Error|Exception|Interrupt)\b", line)]
    return (errors or lines[-1:] or ["no output"])[0]


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    found = {name: importlib.metadata.version(name) for name in ("monai", "torch", "numpy")}
    found |= {"python": platform.python_version()}
    for bundle in sorted(path.name for path in BUNDLES.iterdir() if (path / "configs/metadata.json").is_file()):
        found[bundle] = read_json(BUNDLES / bundle / "configs/metadata.json")["version"]
    return found


def clean_environment() -> dict[str, str]:
    """Return the environment without this project's packages, and with threads that sleep while they wait."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {"OMP_WAIT_POLICY": "PASSIVE"} | kept


def check_python(flag: str, python: Path, modules: str, remedy: str) -> None:
    """Raise InputError, with the remedy, unless the interpreter that a flag named can import modules, with commas."""
    name = modules.partition(",")[0]
    words = [python, "-c", f"import {modules}"]
    try:
        subprocess.run(
            words, check=True, capture_output=True, encoding="utf-8", errors="replace", env=clean_environment()
        )
    except OSError as error:
        raise InputError(f"{flag} {python} cannot be started ({error}); name the Python in which {name} is") from None
    except subprocess.CalledProcessError as error:
        cause = (error.stderr.splitlines() or [""])[-1]
        raise InputError(f"{python} cannot import {modules} ({cause}); {remedy}") from None


def run_worker(what: str, python: Path, worker: Path, job: Path, log: Path) -> None:
    """Run one of our scripts that import nothing of this project in another environment; RunError if it fails."""
    with open(log, "w", encoding="utf-8") as stream:
        words = [python, str(worker), str(job)]
        failed = subprocess.run(words, stdout=stream, stderr=subprocess.STDOUT, env=clean_environment()).returncode
    if failed:
        cause = first_error(LOG_PREFIX.sub("", log.read_text(encoding="utf-8", errors="replace")))
        raise RunError(f"{what} failed: {cause}; its log is {log}")

"""The commands that faults come over, tiny: how they are called, and what of their output must be the same again."""

import contextlib
import csv
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tools.bundles import BUNDLES
from tools.data.dataset import dataset
from tools.phantom.phantom import phantom
from tools.workflows.run import run_words
from tools.workflows.segmenter import SEGMENTER
from tools.workflows.synthesizer import SYNTHESIZER

SIZE, PATIENTS, FOLDS = (64, 64, 6), 4, 2
SMALL_SEGMENTER = {"batch_size": 4, "patch_size": 32, "device": "cpu", "network_channels": [4, 8]}
SMALL_SYNTHESIZER = {
    "batch_size": 2, "patches_per_case": 2, "patch_size": [32, 32, 1], "network_channels": [8, 16, 16],
    "warmup_steps": 1, "measured_patches": 64, "device": "cpu",
}  # fmt: skip
EPOCHS = {"max_epochs": 6, "epoch_length": 2, "save_interval": 1}
STATE = "training.pt"
# What differs between two runs that end alike: when, how long, and what was told on the way.
UNLIKE_FILES = ("*.log", "events.out.tfevents.*", "*_seconds.json", STATE)
UNLIKE_KEYS = ("seconds",)
RESULTS = ("*.pt", "*.nii.gz", "*.csv")  # what does not say with which settings it was made
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node")
CONFIG_IDS = ("num_workers",)  # what is to be different is one of these, or a flag


@dataclass(frozen=True)
class Job:
    """A command under faults.

    Attributes:
        name: What the table calls it.
        words: Makes the words after ``python`` of the datalist, the output and what is to be different this time.
        finished: Patterns of files that say that a piece of work is finished, and must not be made again.
        own: Whether it is a command of the tools; else it is a bundle's training.
        ranks: Number of processes that train together, started by torchrun where there are several.
    """

    name: str
    words: Callable[[Path, Path, dict], list[str]]
    finished: tuple[str, ...] = ()
    own: bool = True
    ranks: int = 1

    @property
    def begins(self) -> str:
        """How its refusals begin."""
        return f"{self.name}: " if self.own else "Error: "


def _training(bundle: str, settings: dict, ranks: int = 1) -> Callable[[Path, Path, dict], list[str]]:
    def words(datalist: Path, output: Path, different: dict) -> list[str]:
        places = {"dataset_dir": datalist.parent, "model_dir": output, "output_dir": output / "eval"}
        resume = {"resume": True} if (output / STATE).is_file() else {}  # as the bundles' pages say
        configs = ["train.json"] + ["multi_gpu_train.json"] * (ranks > 1)
        given = run_words(BUNDLES / bundle, configs, places | settings | EPOCHS | resume | different)
        launcher = (*TORCHRUN, str(ranks)) if ranks > 1 else ()
        return [*launcher, "-m", "monai.bundle", "run", "training", *given]

    return words


def _tool(name: str, *flags: str, overrides: dict) -> Callable[[Path, Path, dict], list[str]]:
    def words(datalist: Path, output: Path, different: dict) -> list[str]:
        inner = overrides | {key: value for key, value in different.items() if key in CONFIG_IDS}
        more = [word for key, value in different.items() if key not in CONFIG_IDS for word in (f"--{key}", str(value))]
        given = ["--datalist", str(datalist), "--output", str(output), "--overrides", json.dumps(inner)]
        return ["-m", "tools", name, *given, *flags, *more]

    return words


def _package(datalist: Path, output: Path, different: dict) -> list[str]:
    return ["-m", "tools", "package", "--bundle", SEGMENTER, "--output", str(output)]


AUGMENT = ("--fold", "0", "--steps", "1", "--max_cases", "2")
COMPARE = ("--folds", "0", "--seeds", "0", "--iterations", "3", "--max_cases", "2", "--arms", "real,copy_paste")
JOBS = {
    job.name: job
    for job in (
        Job("train_segmenter", _training(SEGMENTER, SMALL_SEGMENTER | {"val_interval": 3}), own=False),
        Job("train_synthesizer", _training(SYNTHESIZER, SMALL_SYNTHESIZER | {"val_interval": 3}), own=False),
        Job("segmenter_ranks", _training(SEGMENTER, SMALL_SEGMENTER | {"val_interval": 3}, 2), own=False, ranks=2),
        Job(
            "synthesizer_ranks", _training(SYNTHESIZER, SMALL_SYNTHESIZER | {"val_interval": 3}, 2), own=False, ranks=2
        ),
        Job(
            "augment",
            _tool("augment", *AUGMENT, overrides=SMALL_SYNTHESIZER | EPOCHS),
            ("synthesizer/model.pt", "datalist.json"),
        ),
        Job(
            "compare",
            _tool("compare", *COMPARE, overrides=SMALL_SEGMENTER),
            ("fold*/seed*/*/result.json", "fold*/augment_*/datalist.json"),
        ),
        Job("package", _package, ("*.zip",)),
    )
}


def draw_cohort(folder: Path) -> Path:
    """Draw a few small patients and return their datalist."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        phantom(folder / "phantom", patients=PATIENTS, size=SIZE)
        drawn = folder / "phantom"
        dataset(drawn / "images", drawn / "labels", folder / "dataset", patients=drawn / "patients.csv", folds=FOLDS)
    return folder / "dataset/datalist.json"


def content(folder: Path, patterns: tuple[str, ...] = ("*",)) -> dict[str, str]:
    """Return a digest of each file of a command's output that two runs make alike; of JSON and CSV without seconds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or any(path.match(pattern) for pattern in UNLIKE_FILES):
            continue
        if any(path.match(pattern) for pattern in patterns):
            found[path.relative_to(folder).as_posix()] = hashlib.sha256(_comparable(path)).hexdigest()
    return found


def _comparable(path: Path) -> bytes:
    if path.suffix == ".json":
        return json.dumps(_without_seconds(json.loads(path.read_text(encoding="utf-8")))).encode()
    if path.suffix == ".csv":
        with open(path, encoding="utf-8", newline="") as stream:
            rows = [
                {key: value for key, value in row.items() if key not in UNLIKE_KEYS} for row in csv.DictReader(stream)
            ]
        return json.dumps(rows).encode()
    return path.read_bytes()


def _without_seconds(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_seconds(entry) for key, entry in value.items() if key not in UNLIKE_KEYS}
    return [_without_seconds(entry) for entry in value] if isinstance(value, list) else value


def finished(job: Job, folder: Path) -> dict[str, int]:
    """Return what is finished in a command's output, with the time at which it was written in ns."""
    paths = [path for pattern in job.finished for path in folder.glob(pattern)]
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in paths}

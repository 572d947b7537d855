"""Running an unpacked bundle as its user would: other paths, another working directory, none of this repository."""

import contextlib
import io
import os
import shutil
import site
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from tools.data.dataset import dataset
from tools.io.files import RunError, sha256
from tools.phantom.phantom import phantom
from tools.serving import exports
from tools.tissues import tissue_labels
from tools.workflows.run import bound_command, first_error, run_words
from tools.workflows.segmenter import SEGMENTER
from tools.workflows.synthesizer import SYNTHESIZER

# Two iterations, and what makes them cheap.
TRAINING = {
    SEGMENTER: {"max_epochs": 1, "epoch_length": 2},
    SYNTHESIZER: {"max_epochs": 1, "epoch_length": 2, "val_interval": 2, "measured_patches": 64},
}
EVALUATION = {SEGMENTER: {}, SYNTHESIZER: {"samples": 1}}


def draw_patients(folder: Path, bundle: str) -> tuple[Path, Path]:
    """Draw four small patients; return the folder of their datalist, and that of a case for the bundle's inference."""
    drawn, paint = folder / "phantom", folder / "paint"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # of no use here
        phantom(drawn, patients=4, size=(64, 64, 6))
        dataset(drawn / "images", drawn / "labels", folder / "dataset", patients=drawn / "patients.csv", folds=2)
    first = sorted((drawn / "images").glob("*.nii.gz"))[0].name
    for name in ("images", "labels"):
        (paint / name).mkdir(parents=True)
        shutil.copyfile(drawn / name / first, paint / name / first)
    label = nib.load(drawn / "labels" / first)
    target, labels = np.asarray(label.dataobj).copy(), tissue_labels()
    left = target[: target.shape[0] // 2]
    left[left == labels["healthy"]] = labels["ground_glass"]
    (paint / "targets").mkdir()
    nib.save(nib.Nifti1Image(target, label.affine), paint / "targets" / first)
    return folder / "dataset", paint / "images" if bundle == SEGMENTER else paint


def trained_size(weights: Path) -> dict:
    """Return the override that brings CTs to the coarsest voxels the weights have seen; empty if they do not say."""
    size = float(torch.load(weights, map_location="cpu", weights_only=True).get("voxel_mm", torch.zeros(2))[1])
    return {"spacing_mm": [size, size, -1]} if size else {}


class Proof:
    """The commands of a bundle's page, run from its unpacked zip.

    Training and evaluation read ``dataset_dir``, inference ``cases_dir``; all that the runs write goes into ``work``,
    and what a failed step printed into ``log``. ``steps`` has name, command, seconds and result (ok) of every command.
    """

    def __init__(self, root: Path, work: Path, dataset_dir: Path, cases_dir: Path, log: Path) -> None:
        self.root, self.work, self.dataset_dir, self.cases_dir, self.log = root, work, dataset_dir, cases_dir, log
        self.steps: list[dict] = []
        (work / "exported").mkdir(parents=True)
        self.files = {path: sha256(path) for path in root.rglob("*") if path.is_file()}
        self.sizes = trained_size(root / "models/model.pt")

    def workflows(self) -> None:
        """Train two iterations into a folder of its own, evaluate and infer with the shipped weights."""
        name, work = self.root.name, self.work
        training = {"dataset_dir": self.dataset_dir, "model_dir": work / "models", "output_dir": work / "training"}
        self.run("train", "training", ["train.json"], training | TRAINING[name], work / "models/model.pt")
        scoring = {"dataset_dir": self.dataset_dir, "output_dir": work / "evaluation"} | EVALUATION[name] | self.sizes
        self.run("evaluate", "evaluating", ["train.json", "evaluate.json"], scoring, work / "evaluation/metrics.csv")
        self.infer("inference", [], **self.sizes)

    def infer(self, name: str, overlays: list[str], **overrides: object) -> None:
        """Run inference into a folder of the step's name; the answers with overlays must be those without."""
        output = self.work / name
        places = {"dataset_dir": self.cases_dir, "output_dir": output}
        self.run(name, "inferring", ["inference.json", *overlays], places | overrides, output)
        answers = sorted(path.name for path in output.glob("*.nii.gz"))
        if not answers:
            raise RunError(f"{name} of {self.root.name} wrote no .nii.gz file")
        for answer in answers if overlays else []:
            one, other = (np.asarray(nib.load(self.work / kind / answer).dataobj) for kind in ("inference", name))
            if not np.array_equal(one, other):
                raise RunError(
                    f"{name} of {self.root.name} answers otherwise than inference in {(one != other).sum()} voxels"
                )

    def zoo_checks(self) -> None:
        """Check the network as the Model Zoo does; the zoo's check of the schema needs a network connection."""
        configs = self.root / "configs"
        words = ["--meta_file", configs / "metadata.json", "--config_file", configs / "inference.json"]
        self.call("verify_net_in_out", ["verify_net_in_out", "network_def", *words, "--device", "cpu"])

    def export(self, kinds: list[str], stem: Path) -> None:
        """Export some of ``exports.KINDS`` to ``stem``; a network with an overlay for it must then answer as before."""
        folder = self.work / "exported"
        made = exports.export(self.root, folder, kinds, self.call)
        for kind in kinds:
            if (self.root / f"configs/inference_{kind}.json").is_file():
                self.infer(f"inference_{kind}", [f"inference_{kind}.json"], model_dir=folder)
            shutil.copyfile(made[kind], f"{stem}{made[kind].suffix}")

    def make(self, name: str, function: Callable[[Path, Path], None], output: Path) -> None:
        """Let a function of the tools make something of the unpacked bundle, and note it."""
        start = time.perf_counter()
        function(self.root, output)
        command = f"{function.__module__}.{function.__name__}"
        seconds = round(time.perf_counter() - start, 1)
        self.steps.append({"name": name, "command": command, "seconds": seconds, "result": "ok"})

    def check_untouched(self) -> None:
        """Raise RunError if a file of the unpacked bundle changed, vanished or came into being."""
        now = {path: sha256(path) for path in self.root.rglob("*") if path.is_file()}
        changed = sorted(path for path in now.keys() | self.files.keys() if now.get(path) != self.files.get(path))
        if changed:
            raise RunError(f"running {self.root.name} changed {changed[0].relative_to(self.root)} in its own folder")

    def run(self, name: str, run_id: str, configs: list[str], overrides: dict, makes: Path) -> None:
        """Run a workflow from a folder that is not the bundle's."""
        words = run_words(self.root, configs, {"device": "cpu"} | overrides)
        self.call(name, ["run", run_id, *words], makes, cwd=self.work)

    def call(self, name: str, words: Iterable, makes: Path | None = None, cwd: Path | None = None) -> None:
        """Run ``python -m monai.bundle`` and note how it went; RunError if it fails, or does not write what it must.

        It runs in the bundle's folder if ``cwd`` is None, for commands that look for ``scripts`` there.
        """
        words = [str(word) for word in words]
        start = time.perf_counter()
        done = subprocess.run(
            bound_command(words),
            cwd=cwd or self.root,
            env=self._environment(),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
        step = {"name": name, "command": self._readable(words), "seconds": round(time.perf_counter() - start, 1)}
        if done.returncode or not (makes is None or makes.exists()):
            self.log.parent.mkdir(parents=True, exist_ok=True)
            told = f"python -m monai.bundle {' '.join(words)}\n{done.stdout}\n{done.stderr}"
            self.log.write_text(told, encoding="utf-8")
            raise RunError(f"{name} of {self.root.name} failed: {_cause(done.stderr)}; its log is {self.log}")
        self.steps.append(step | {"result": "ok"})
        print(f"{name}: ok, {step['seconds']} s", flush=True)

    def _environment(self) -> dict[str, str]:
        """Return the environment of somebody else: another home, no way here, nothing written beside the sources."""
        own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        home = {"HOME": str(self.work), "PYTHONUSERBASE": site.getuserbase()}
        return own | home | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONWARNINGS": "ignore", "OMP_WAIT_POLICY": "PASSIVE"}

    def _readable(self, words: list[str]) -> str:
        """Return a command with names for the folders of this one run."""
        folders = {"DATA": self.dataset_dir, "CASES": self.cases_dir, "BUNDLE": self.root, "WORK": self.work}
        line = " ".join(["python -m monai.bundle", *words])
        for name, folder in folders.items():
            line = line.replace(str(folder), name)
        return line


def _cause(log: str) -> str:
    """Return the error that began a failure, with its second line where the first says nothing."""
    error = first_error(log)
    more = log.partition(error)[2].split("\n") if error.endswith(":") else []
    return " ".join([error, *[line.strip() for line in more if line.strip()][:1]])

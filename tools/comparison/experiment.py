"""All runs of a comparison and what they wait for: numbers of steps, the gate's segmenters, painted cases."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tools.comparison.arms import REFERENCE, arm_of, is_painted
from tools.comparison.leaks import check_augmented
from tools.comparison.plateau import find_plateau
from tools.comparison.run import Recipe, Run, share_folder, train
from tools.data.datalist import Case, split, subset
from tools.io.files import RunError, read_json, write_json
from tools.painting.manifest import FREE_METHODS
from tools.workflows.cluster import Job, perform, say

if TYPE_CHECKING:
    from distributed import Client


def clock(folder: Path) -> Path:
    """Return the file beside a folder that says how many seconds it took to fill."""
    return folder.with_name(f"{folder.name}_seconds.json")


@contextlib.contextmanager
def timed(path: Path) -> Iterator[None]:
    """Add the seconds that a block takes to those in a JSON file, also where the block fails."""
    start = time.monotonic()
    try:
        yield
    finally:
        before = read_json(path)["seconds"] if path.is_file() else 0.0
        write_json(path, {"seconds": round(before + time.monotonic() - start, 1)})


def titles(runs: list[Run]) -> dict[Run, str]:
    """Return what the job of each run is called."""
    return {run: f"run {number} of {len(runs)}: {run}" for number, run in enumerate(runs, 1)}


def _plateau_title(fold: int) -> str:
    return f"plateau of fold {fold}"


def _augment_title(folder: Path) -> str:
    return f"augment in {folder}"


@dataclass
class Experiment:
    """The runs of a comparison, and what they share: each fold's augmented cases and the segmenter that filters them.

    Attributes:
        datalist: Datalist of the real cases.
        real: Its content.
        output: Folder of the comparison.
        first_seed: Seed of the segmenter that the quality gate asks.
        iterations: Optimizer steps of every segmenter; with ``plateau`` the most of them.
        recipe: How the segmenters of all arms are trained.
        augmentation: Arguments of ``augment``.
        external: Content of a second datalist to test on, or None.
        paint_per_seed: Whether each seed of a segmenter has painted cases of its own.
        plateau: Whether each fold's number of steps is found on its training patients.
        longer: Steps of the arm longer over those of the others; None for what the painted cases cost.
        held_back: Real cases that the arm more_real trains on too.
        by_error: Whether training cases that the fold's inner segmenter finds hard are followed more often.
        look_alikes: Whether those are that show what it takes for another tissue, and lack that one.
        counts: Share of the training patients to their number, where a number was asked for.
    """

    datalist: Path
    real: dict
    output: Path
    first_seed: int
    iterations: int
    recipe: Recipe
    augmentation: dict
    external: dict | None
    paint_per_seed: bool = False
    plateau: bool = False
    longer: float | None = None
    held_back: list[Case] = field(default_factory=list)
    by_error: bool = False
    look_alikes: bool = False
    counts: dict[float, int] = field(default_factory=dict)

    def run_all(self, runs: list[Run], client: "Client | None") -> list[str]:
        """Make every run that is not finished, on the workers of a cluster, and return which failed.

        An InputError, such as a leak, ends the whole comparison.
        """
        self.shares = {(run.fold, run.fraction): self._share(run) for run in runs}
        self.paid = {run: self._augmented_folder(run) for run in runs if is_painted(run.key)}
        _, failed = perform(self.jobs(runs), client)
        return [str(run) for run, title in titles(runs).items() if title in failed]

    def jobs(self, runs: list[Run]) -> list[Job]:
        """Return all that is to do, the most urgent first: numbers of steps, judges, painted cases, remaining runs."""
        named = titles(runs)
        unfinished = [run for run in runs if not self._is_finished(run)]
        waiting = [run for run in unfinished if arm_of(run.key)[0].method]
        judges = {self._judge(run) for run in waiting if arm_of(run.key)[0].method not in FREE_METHODS}
        judges |= {self._judge(run) for run in unfinished if arm_of(run.key)[0].longer}
        folds = sorted({run.fold for run in unfinished}) if self.plateau else []
        jobs = [Job(_plateau_title(fold), partial(self._plateau, fold)) for fold in folds]
        jobs += [self._job(run, runs, named) for run in runs if run in judges]
        for folder, run in {self._augmented_folder(run): run for run in waiting}.items():
            after = (_plateau_title(run.fold), named.get(self._judge(run), ""))
            jobs.append(Job(_augment_title(folder), partial(self._augment, run), after))
        return jobs + [self._job(run, runs, named) for run in runs if run not in judges]

    def _job(self, run: Run, runs: list[Run], named: dict[Run, str]) -> Job:
        """Return the job that makes a run, after all that it may read."""
        arm, ratio = arm_of(run.key)
        after = [_plateau_title(run.fold)]
        if arm.method:
            after.append(_augment_title(self._augmented_folder(run)))
        if arm.longer:
            after += [named.get(self._judge(run), "")]
            after += [_augment_title(folder) for other, folder in self.paid.items() if other.group == run.group]
        for other in runs[: runs.index(run)]:  # which may turn out to be the same training, and is not repeated then
            theirs, at = arm_of(other.key)
            if other.group == run.group and (other.key == REFERENCE or (theirs.method, at) == (arm.method, ratio)):
                after.append(named[other])
        return Job(named[run], partial(self._make, run, named[run]), tuple(after))

    def _share(self, run: Run) -> tuple[Path, dict]:
        """Return the datalist of the run's share of the training patients, and its content."""
        if run.fraction == 1:
            return self.datalist, self.real
        path = share_folder(self.output, run.fold, run.fraction) / "datalist.json"
        content = subset(self.real, run.fold, run.fraction, count=self.counts.get(run.fraction))
        if not path.is_file():
            write_json(path, content | {"training": [case.item(path.parent) for case in content["training"]]})
        return path, content

    def _plateau(self, fold: int) -> None:
        """Find how many steps a fold's segmenters take, on its training patients; nothing if that is known."""
        folder = self._plateau_folder(fold)
        known = (folder / "plateau.json").is_file()
        training, _ = split(self.real, fold)
        found = find_plateau(training, self.real["labels"], folder, self.iterations, self.first_seed, self.recipe)
        say(f"fold {fold}: {found['sentence']}{' (found earlier)' * known}")

    def _plateau_folder(self, fold: int) -> Path:
        return share_folder(self.output, fold, 1) / "plateau"

    def _fold_steps(self, fold: int) -> int:
        """Return the steps of a fold's segmenters but those of the arm longer."""
        if not self.plateau:
            return self.iterations
        found = self._plateau_folder(fold) / "plateau.json"
        if not found.is_file():
            raise RunError(f"how many steps fold {fold} takes could not be found")
        return read_json(found)["iterations"]

    def _steps(self, run: Run) -> int:
        """Return the optimizer steps of a run.

        The arm longer takes as many more as the seconds would have been enough for that ``augment`` took for the
        dearest painted arm of its fold, share and seed.
        """
        steps = self._fold_steps(run.fold)
        if not arm_of(run.key)[0].longer:
            return steps
        if self.longer is not None:
            return max(1, round(self.longer * steps))
        alike = [folder for other, folder in self.paid.items() if other.group == run.group]
        seconds = [read_json(clock(folder))["seconds"] for folder in alike if clock(folder).is_file()]
        judge = self._judge(run).folder(self.output) / "result.json"
        if not seconds or not judge.is_file():
            raise RunError("what the painted cases cost is not known; give the arm longer its steps, as --longer 2")
        per_step = read_json(judge)["seconds"] / steps
        more = max(seconds) / per_step
        say(f"{run}: {steps} steps and {more:.0f} more, for {max(seconds) / 60:.1f} minutes of painting")
        return steps + round(more)

    def _is_finished(self, run: Run) -> bool:
        return (run.folder(self.output) / "result.json").is_file()

    def _judge(self, run: Run) -> Run:
        """Return the run whose segmenter the quality gate asks; it is one of the comparison's own."""
        return Run(run.fold, run.fraction, self.first_seed, REFERENCE)

    def _augmented_folder(self, run: Run) -> Path:
        folder = share_folder(self.output, run.fold, run.fraction)
        name = f"augment_{arm_of(run.key)[0].method}"
        return folder / f"seed{run.seed}" / name if self.paint_per_seed else folder / name

    def _augment(self, run: Run) -> None:
        """Make the painted cases that a run trains on; nothing if they are there."""
        from tools.painting.augment import augment

        method, judge, folder = arm_of(run.key)[0].method, self._judge(run), self._augmented_folder(run)
        if (folder / "datalist.json").is_file():
            return
        if method not in FREE_METHODS and not self._is_finished(judge):
            raise RunError(f"{judge}, which the quality gate asks, is not finished")
        own = {"seed": self.augmentation["seed"] + run.seed} if self.paint_per_seed else {}
        own |= {"candidates": 1, "tune_steps": 0} if method in FREE_METHODS else {}
        asked = {"dice": self.by_error, "look_alikes": self.look_alikes}
        own |= {name: self._plateau_folder(run.fold) / "plateau.json" for name, wanted in asked.items() if wanted}
        with timed(clock(folder)):
            augment(
                datalist=self.shares[run.fold, run.fraction][0],
                fold=run.fold,
                output=folder,
                method=method,
                segmenter=None if method in FREE_METHODS else judge.folder(self.output) / "model.pt",
                **self.augmentation | own,
            )
        minutes = read_json(clock(folder))["seconds"] / 60
        say(f"augment ({method}) for fold {run.fold} took {minutes:.1f} minutes")

    def _make(self, run: Run, title: str) -> None:
        """Make one run; nothing if it is finished."""
        if self._is_finished(run):
            say(f"{title} (finished earlier)")
            return
        say(title)
        _, real = self.shares[run.fold, run.fraction]
        steps = self._steps(run)
        source, fitted = self._augmented(run, real) if arm_of(run.key)[0].method else (real, {})
        if self.plateau:
            found = read_json(self._plateau_folder(run.fold) / "plateau.json")
            fitted = fitted | {"number of steps": found["patients"]}
        train(run, source, fitted, real, run.folder(self.output), steps, self.recipe, self.external, self.held_back)

    def _augmented(self, run: Run, real: dict) -> tuple[dict, dict]:
        """Read the augmented cases of the run's fold and check that they were made without its patients."""
        (arm, _), directory = arm_of(run.key), self._augmented_folder(run)
        if not (directory / "datalist.json").is_file():
            raise RunError(f"its painted cases could not be made in {directory}")
        made, fitted = check_augmented(directory, arm.method, real, run.fold, unfiltered=not arm.filtered)
        if not any(case.synthetic for case in made["training"]):
            if arm.alone:
                raise RunError(
                    f"no case was accepted, so there is nothing to train on; {directory}/manifest.jsonl says why"
                )
            say(f"arm {run.key} equals {REFERENCE} in fold {run.fold}: no case was accepted")
        return made, fitted

"""All runs of a comparison in three phases: the gate's segmenters, the painted cases, then the remaining runs."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tools.comparison.arms import REFERENCE, arm_of
from tools.comparison.leaks import check_augmented
from tools.comparison.run import Run, environment, share_folder, train
from tools.data.datalist import subset
from tools.io.files import RunError, write_json


def say(line: str) -> None:
    """Print a line at once and whole, though runs side by side print too."""
    print(f"{line}\n", end="", flush=True)


def side_by_side(jobs: dict[str, Callable[[dict], None]], workers: int) -> list[str]:
    """Do some jobs at the same time, and return the titles of those that failed.

    Args:
        jobs: Title to job, which gets the environment variables of its place.
        workers: Number of jobs at a time.

    Raises:
        InputError: as soon as a job raises one, such as a leak; no further job begins.
    """
    failed, stopped, places = [], threading.Event(), queue.SimpleQueue()
    for place in range(workers):
        places.put(place)

    def work(title: str, job: Callable[[dict], None]) -> None:
        if stopped.is_set():
            return
        place = places.get()
        try:
            job(environment(place, workers))
        except RuntimeError as error:  # one job that dies must not cost the others
            say(f"{title} FAILED: {error}")
            failed.append(title)
        except BaseException:
            stopped.set()
            raise
        finally:
            places.put(place)

    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(work, title, job) for title, job in jobs.items()]
        try:
            for future in futures:
                future.result()
        except BaseException:
            stopped.set()
            raise
    return failed


@dataclass
class Experiment:
    """The runs of a comparison, and what they share: each fold's augmented cases and the segmenter that filters them.

    Attributes:
        datalist: Datalist of the real cases.
        real: Its content.
        output: Folder of the comparison.
        first_seed: Seed of the segmenter that the quality gate asks.
        iterations: Optimizer steps of every segmenter.
        overrides: Config ids of the segmenter and their values.
        augmentation: Arguments of ``augment``.
        external: Content of a second datalist to test on, or None.
        paint_per_seed: Whether each seed of a segmenter has painted cases of its own.
    """

    datalist: Path
    real: dict
    output: Path
    first_seed: int
    iterations: int
    overrides: dict
    augmentation: dict
    external: dict | None
    paint_per_seed: bool = False

    def run_all(self, runs: list[Run], workers: int) -> list[str]:
        """Make every run that is not finished, some side by side, and return which failed.

        An InputError, such as a leak, ends the whole comparison.
        """
        titles = {run: f"run {number} of {len(runs)}: {run}" for number, run in enumerate(runs, 1)}
        self.shares = {(run.fold, run.fraction): self._share(run) for run in runs}
        waiting = [run for run in runs if arm_of(run.key)[0].method and not self._is_finished(run)]
        painted = {self._augmented_folder(run): run for run in waiting}
        judges = {self._judge(run) for run in waiting if arm_of(run.key)[0].method != "copy_paste"}
        jobs = {title: partial(self._make, run, title) for run, title in titles.items()}
        failed = side_by_side({titles[run]: jobs.pop(titles[run]) for run in runs if run in judges}, workers)
        side_by_side({f"augment in {folder}": partial(self._augment, run) for folder, run in painted.items()}, workers)
        failed += side_by_side(jobs, workers)
        return [str(run) for run, title in titles.items() if title in failed]

    def _share(self, run: Run) -> tuple[Path, dict]:
        """Return the datalist of the run's share of the training patients, and its content."""
        if run.fraction == 1:
            return self.datalist, self.real
        path = share_folder(self.output, run.fold, run.fraction) / "datalist.json"
        content = subset(self.real, run.fold, run.fraction)
        if not path.is_file():
            write_json(path, content | {"training": [case.item() for case in content["training"]]})
        return path, content

    def _is_finished(self, run: Run) -> bool:
        return (run.folder(self.output) / "result.json").is_file()

    def _judge(self, run: Run) -> Run:
        """Return the run whose segmenter the quality gate asks; it is one of the comparison's own."""
        return Run(run.fold, run.fraction, self.first_seed, REFERENCE)

    def _augmented_folder(self, run: Run) -> Path:
        folder = share_folder(self.output, run.fold, run.fraction)
        name = f"augment_{arm_of(run.key)[0].method}"
        return folder / f"seed{run.seed}" / name if self.paint_per_seed else folder / name

    def _augment(self, run: Run, _: dict) -> None:
        """Make the painted cases that a run trains on; nothing if they are there."""
        from tools.painting.augment import augment

        method, judge, folder = arm_of(run.key)[0].method, self._judge(run), self._augmented_folder(run)
        if (folder / "datalist.json").is_file():
            return
        if method != "copy_paste" and not self._is_finished(judge):
            raise RunError(f"{judge}, which the quality gate asks, is not finished")
        start = time.monotonic()
        own = {"seed": self.augmentation["seed"] + run.seed} if self.paint_per_seed else {}
        augment(
            datalist=self.shares[run.fold, run.fraction][0],
            fold=run.fold,
            output=folder,
            method=method,
            segmenter=None if method == "copy_paste" else judge.folder(self.output) / "model.pt",
            **self.augmentation | own,
        )
        say(f"augment ({method}) for fold {run.fold} took {(time.monotonic() - start) / 60:.1f} minutes")

    def _make(self, run: Run, title: str, place: dict) -> None:
        """Make one run; nothing if it is finished."""
        if self._is_finished(run):
            say(f"{title} (finished earlier)")
            return
        say(title)
        _, real = self.shares[run.fold, run.fraction]
        source, fitted = self._augmented(run, real) if arm_of(run.key)[0].method else (real, {})
        folder = run.folder(self.output)
        train(run, source, fitted, real, folder, self.iterations, self.overrides, self.external, place)

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

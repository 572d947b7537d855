"""All runs of a comparison, some side by side, and what they share: painted cases and the gate's segmenter."""

import collections
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools.comparison.arms import REFERENCE, arm_of
from tools.comparison.leaks import check_augmented
from tools.comparison.run import Run, environment, share_folder, train
from tools.data.datalist import subset
from tools.io.files import RunError, write_json


def say(line: str) -> None:
    """Print a line at once and whole, though runs side by side print too."""
    print(f"{line}\n", end="", flush=True)


class Experiment:
    """The runs of a comparison, and what they share: each fold's augmented cases and the segmenter that filters them.

    Args:
        datalist: of the real cases.
        real: its content.
        output: folder of the comparison.
        first_seed: of the segmenter that the quality gate asks.
        iterations: optimizer steps of every segmenter.
        overrides: config ids of the segmenter.
        augmentation: arguments of ``augment``.
        external: content of a second datalist to test on, or None.
    """

    def __init__(
        self,
        datalist: Path,
        real: dict,
        output: Path,
        first_seed: int,
        iterations: int,
        overrides: dict,
        augmentation: dict,
        external: dict | None,
    ) -> None:
        self.datalist, self.real, self.output, self.first_seed = datalist, real, output, first_seed
        self.iterations, self.overrides = iterations, overrides
        self.augmentation, self.external = augmentation, external
        self.locks: dict = collections.defaultdict(threading.Lock)  # a key per folder
        self.guard = threading.Lock()
        self.stopped = False

    def run_all(self, runs: list[Run], workers: int) -> list[str]:
        """Make every run that is not finished, some side by side, and return which failed.

        An InputError, such as a leak, ends the whole comparison.
        """
        failed = []
        places = list(range(workers))
        with ThreadPoolExecutor(workers) as pool:

            def work(number: int, run: Run) -> None:
                if self.stopped:
                    return
                with self.guard:
                    place = places.pop()
                try:
                    self.make(run, f"run {number} of {len(runs)}: {run}", environment(place, workers))
                except RuntimeError as error:  # one run that dies must not cost the others
                    say(f"run {number} of {len(runs)}: {run} FAILED: {error}")
                    failed.append(str(run))
                except BaseException:
                    self.stopped = True  # no further run begins, though some may wait their turn
                    raise
                finally:
                    with self.guard:
                        places.append(place)

            futures = [pool.submit(work, number, run) for number, run in enumerate(runs, 1)]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                self.stopped = True
                raise
        return failed

    def make(self, run: Run, title: str, place: dict) -> None:
        """Make one run, and before it what it needs; nothing if it is finished."""
        directory = run.folder(self.output)
        with self._lock(directory):
            if (directory / "result.json").is_file():
                say(f"{title} (finished earlier)")
                return
            say(title)
            datalist, real = self._share(run)
            source, fitted = real, {}
            if arm_of(run.key)[0].method:
                source, fitted = self._augmented(run, datalist, real, place)
            train(run, source, fitted, real, directory, self.iterations, self.overrides, self.external, place)

    def _lock(self, key: object) -> threading.Lock:
        with self.guard:
            return self.locks[key]

    def _share(self, run: Run) -> tuple[Path, dict]:
        """Return the datalist of the run's share of the training patients, and its content."""
        if run.fraction == 1:
            return self.datalist, self.real
        path = share_folder(self.output, run.fold, run.fraction) / "datalist.json"
        content = subset(self.real, run.fold, run.fraction)
        with self._lock(path):
            if not path.is_file():
                write_json(path, content | {"training": [case.item() for case in content["training"]]})
        return path, content

    def _augmented(self, run: Run, datalist: Path, real: dict, place: dict) -> tuple[dict, dict]:
        """Make (or find) the augmented cases of the run's fold and check that they were made without its patients."""
        from tools.painting.augment import augment

        arm, _ = arm_of(run.key)
        directory = share_folder(self.output, run.fold, run.fraction) / f"augment_{arm.method}"
        segmenter = None
        if arm.method != "copy_paste":
            judge = Run(run.fold, run.fraction, self.first_seed, REFERENCE)
            segmenter = judge.folder(self.output) / "model.pt"
            if not (segmenter.with_name("result.json")).is_file():
                self.make(judge, f"{judge}, which the quality gate asks", place)
        with self._lock(directory):
            if not (directory / "datalist.json").is_file():
                start = time.monotonic()
                augment(
                    datalist=datalist,
                    fold=run.fold,
                    output=directory,
                    method=arm.method,
                    segmenter=segmenter,
                    **self.augmentation,
                )
                minutes = (time.monotonic() - start) / 60
                say(f"augment ({arm.method}) for fold {run.fold} took {minutes:.1f} minutes")
        made, fitted = check_augmented(directory, arm.method, real, run.fold, unfiltered=not arm.filtered)
        if not any(case.synthetic for case in made["training"]):
            if arm.alone:
                raise RunError(
                    f"no case was accepted, so there is nothing to train on; {directory}/manifest.jsonl says why"
                )
            say(f"arm {run.key} equals {REFERENCE} in fold {run.fold}: no case was accepted")
        return made, fitted

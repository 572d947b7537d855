"""How many steps a segmenter needs: found on a fold's training patients, before anything is compared."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas

from tools.comparison.arms import REFERENCE
from tools.comparison.run import Recipe, Run, train
from tools.data.datalist import Case, patients, tissues_in
from tools.data.folds import assign_folds
from tools.io.files import InputError, read_json, write_json

GAIN = 0.005  # mean Dice; a doubling that gains less is not worth its steps
FEWEST = 250  # steps of the smallest budget; below, rare tissue is not found yet and two budgets are alike
INNER_FOLDS = 3  # a third of the training patients is held out


def budgets(most: int) -> list[int]:
    """Return the numbers of steps to try, each about twice the one before, the last of them ``most``.

    Example:
        >>> budgets(2000), budgets(300)
        ([250, 500, 1000, 2000], [300])
    """
    ladder = [most]
    while ladder[0] // 2 >= FEWEST:
        ladder.insert(0, ladder[0] // 2)
    return ladder


def inner_split(training: list[Case], labels: dict[str, int], folds: int = INNER_FOLDS) -> list[Case]:
    """Return training cases divided into folds of their own, whole patients each; the folds they had are gone.

    Args:
        training: Training cases of an outer fold.
        labels: Tissue name to value.
        folds: Number of inner folds; no more than there are patients.

    Raises:
        InputError: if there are fewer than two patients.
    """
    names = patients(training)
    if len(names) < 2:
        raise InputError(f"{len(names)} training patient cannot be divided once more; give --iterations alone")
    tissues: dict[str, set[str]] = {name: set() for name in names}
    for case in training:
        tissues[case.patient] |= set(tissues_in(case, labels)) - {"healthy"}
    cases = {name: sum(case.patient == name for case in training) for name in names}
    fold_of = assign_folds(tissues, min(folds, len(names)), 0, cases)
    return [replace(case, fold=fold_of[case.patient]) for case in training]


def mean_dice(scores: dict[str, dict[str, dict]]) -> float:
    """Return the mean over the pathological tissues of the mean Dice of the patients who have the tissue.

    ``scores`` are those of ``results.read_scores``: patient to tissue to measures.
    """
    means = [dice for tissue, dice in tissue_dice(scores).items() if tissue != "healthy"]
    if not means:
        raise InputError("no patient of the inner split has a pathological tissue; give --iterations alone")
    return float(np.mean(means))


def settle(scores: dict[int, float]) -> int | None:
    """Return the smallest budget after which doubling gains less than ``GAIN``, or None if none is that good.

    Args:
        scores: Number of steps to mean Dice, for budgets of which each is about twice the one before.

    Example:
        >>> settle({250: 0.4, 500: 0.6, 1000: 0.602}), settle({250: 0.4, 500: 0.6})
        (500, None)
    """
    ladder = sorted(scores)
    return next((few for few, more in zip(ladder, ladder[1:]) if scores[more] - scores[few] < GAIN), None)


def find_plateau(
    training: list[Case], labels: dict[str, int], folder: Path, most: int, seed: int, recipe: Recipe
) -> dict:
    """Train real-only segmenters on an inner split with more and more steps until more of them gain nothing.

    Args:
        training: Training cases of the outer fold; no other is read.
        labels: Tissue name to value.
        folder: Folder for the runs and plateau.json; a run that is finished is not repeated.
        most: Largest number of steps.
        seed: Seed of the trainings.
        recipe: How the segmenters are trained.

    Returns:
        Content of plateau.json: ``iterations`` to train every arm with, ``reached``, ``scores`` (steps to mean Dice of
        the inner held-out patients), ``dice`` per tissue and ``look_alikes`` at that budget, ``patients`` and
        ``sentence``.
    """
    found = folder / "plateau.json"
    if found.is_file():
        return read_json(found)
    inner = {"labels": labels, "training": inner_split(training, labels)}
    scores, tissues = {}, {}
    for steps in budgets(most):
        directory = folder / f"steps{steps}"
        if not (directory / "result.json").is_file():
            train(Run(0, 1, seed, REFERENCE), inner, {}, inner, directory, steps, recipe)
        own = read_json(directory / "result.json")["scores"]["own"]
        scores[steps], tissues[steps] = mean_dice(own), tissue_dice(own)
        if settle(scores):
            break
    settled = settle(scores)
    steps = settled or most
    row = {"iterations": steps, "reached": settled is not None, "scores": scores, "dice": tissues[steps]}
    row |= {"look_alikes": look_alikes(folder / f"steps{steps}/confusion.csv")}
    row |= {"patients": patients(training), "sentence": sentence(scores)}
    write_json(found, row)
    return read_json(found)


def tissue_dice(scores: dict[str, dict[str, dict]]) -> dict[str, float]:
    """Return tissue to the mean Dice of the patients who have it; tissues that nobody has are absent."""
    found: dict[str, list[float]] = {}
    for row in scores.values():
        for tissue, measures in row.items():
            if measures["dice"] is not None:
                found.setdefault(tissue, []).append(measures["dice"])
    return {tissue: float(np.mean(values)) for tissue, values in found.items()}


def look_alikes(path: Path) -> dict[str, dict[str, float]]:
    """Return tissue to the tissues that it was taken for, each with the Dice that it lost by that.

    Of the voxels of all cases together the Dice of x is 2 TP / (A + T), so 1 - Dice is (FP + FN) / (A + T), with A
    voxels called x and T voxels of x. The part of it that voxels of tissue t make is their number among FP / (A + T).

    Args:
        path: confusion.csv of the segmenter, a row per true label, a column per answer.
    """
    table = pandas.read_csv(path, index_col="true")
    names = [name for name in table.columns if name not in ("background", "healthy")]
    size = {name: max(1, int(table[name].sum() + table.loc[name].sum())) for name in names}
    return {
        name: {other: round(float(table.loc[name, other] / size[other]), 4) for other in names if other != name}
        for name in names
        if table.loc[name].sum()
    }


def sentence(scores: dict[int, float]) -> str:
    """Return what was found, in words.

    Example:
        >>> sentence({250: 0.4, 500: 0.6, 1000: 0.602})
        'plateau at 500 steps: mean Dice 0.600, and 0.602 with 1000 steps'
        >>> sentence({250: 0.4, 500: 0.6})
        'no plateau within 500 steps: mean Dice 0.600, and the last doubling still gained 0.200; more --iterations'
    """
    ladder, settled = sorted(scores), settle(scores)
    if settled:
        more = next(steps for steps in ladder if steps > settled)
        return f"plateau at {settled} steps: mean Dice {scores[settled]:.3f}, and {scores[more]:.3f} with {more} steps"
    *_, few, most = ladder
    return (
        f"no plateau within {most} steps: mean Dice {scores[most]:.3f}, and the last doubling still gained "
        f"{scores[most] - scores[few]:.3f}; more --iterations"
    )

"""Made-up comparisons with known patients, noise, luck and gain: what the verdict says of them is its calibration."""

import numpy as np

from tools.comparison.arms import REFERENCE
from tools.comparison.intervals import estimate
from tools.comparison.verdicts import decide


def experiment(
    rng: np.random.Generator,
    patients: int,
    folds: int,
    seeds: int,
    arms: int = 2,
    patient: float = 0.0,
    noise: float = 0.03,
    luck: float = 0.03,
    gain: float = 0.0,
    fold: float = 0.0,
    skewed: bool = False,
    external: bool = False,
    lucky: float = 1.0,
    tissues: tuple[str, ...] = ("fibrosis",),
) -> list[dict]:
    """Draw the Dice of one comparison; patients differ widely in difficulty, folds and seeds in what all arms share.

    Args:
        rng: Source of the draws.
        patients: Patients to test on, divided evenly among the folds.
        folds: Number of folds.
        seeds: Number of seeds.
        arms: Number of arms, the reference real among them; the others are arm1, arm2 and so on.
        patient: Standard deviation of what an arm does to a patient, in all its runs.
        noise: Standard deviation of one patient in one run.
        luck: Standard deviation of what a run does to all its patients.
        gain: True gain of every arm but real.
        fold: Standard deviation of what a fold's painted set does to all its seeds and patients, in every arm but real.
        skewed: Whether the patients' Dice are from a beta distribution with a tail to 0 and kept in [0, 1].
        external: Whether every fold's runs are tested on all patients.
        lucky: Factor of the luck of arm1.
        tissues: Names of the tissues, which are drawn independently.

    Returns:
        Records as ``verdicts.summarise`` takes them, the value under ``dice_all``.
    """
    fold_of = np.arange(patients) % folds
    records = []
    for tissue in tissues:
        level = rng.beta(3, 1, patients) if skewed else rng.normal(0.6, 0.15, patients)
        common = rng.normal(0, luck, (folds, seeds))
        for arm in range(arms):
            effect = gain + rng.normal(0, patient, patients) if arm else np.zeros(patients)
            for at in range(folds):
                drawn = rng.normal(0, fold) if arm else 0.0
                for seed in range(seeds):
                    shift = common[at, seed] + drawn + rng.normal(0, luck * (lucky if arm == 1 else 1))
                    dice = level + effect + shift + rng.normal(0, noise, patients)
                    dice = np.clip(dice, 0, 1) if skewed else dice
                    records += [
                        {"fold": at, "seed": seed, "arm": f"arm{arm}" if arm else REFERENCE, "patient": f"p{index}"}
                        | {"tissue": tissue, "dice_all": float(dice[index])}
                        for index in range(patients)
                        if external or fold_of[index] == at
                    ]
    return records


def draw(rng: np.random.Generator, patients: int, folds: int, seeds: int, spread, experiments: int) -> np.ndarray:
    """Draw the folds' mean differences of many comparisons without a gain, shape (experiments, folds).

    Args:
        rng: Source of the draws.
        patients: Patients with the tissue, divided evenly among the folds; a fold without any does not count.
        folds: Number of folds.
        seeds: Number of seeds.
        spread: Deviations ``fold``, ``patient``, ``run`` and ``noise`` of a paired difference, as in ``power.Spread``.
        experiments: Number of comparisons.
    """
    sizes = [size for size in np.bincount(np.arange(patients) % folds, minlength=folds) if size]
    means = rng.normal(0, spread.fold, (experiments, len(sizes)))
    means += rng.normal(0, spread.run, (experiments, len(sizes), seeds)).mean(2)
    for column, size in enumerate(sizes):
        means[:, column] += rng.normal(0, spread.patient, (experiments, size)).mean(1)
        means[:, column] += rng.normal(0, spread.noise, (experiments, seeds, size)).mean((1, 2))
    return means


def share_found(means: np.ndarray, gain: float, questions: int = 1) -> float:
    """Return how often the verdict is "gain" if the true gain is ``gain``.

    Args:
        means: Folds' mean differences drawn without a gain, from ``draw``.
        gain: True gain.
        questions: Verdicts in the family; with several it is the first step of Holm's correction that is asked.

    Example:
        >>> share_found(np.array([[-0.01, 0.0, 0.01], [-0.1, 0.0, 0.1]]), 0.05)
        0.5
    """
    found = [estimate(row + gain) for row in means]
    return float(np.mean([decide(one.mean, questions * one.p) == "gain" for one in found]))

"""Made-up experiments with known patients, noise, luck of the runs and gain, for the tests of the statistics."""

import numpy as np


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
    skewed: bool = False,
    external: bool = False,
    lucky: float = 1.0,
) -> list[dict]:
    """Draw the Dice of one comparison; patients differ widely in difficulty, folds and seeds in what all arms share.

    Args:
        rng: source of the draws.
        patients: to test on, divided evenly among the folds.
        folds: how many.
        seeds: how many.
        arms: how many, the reference real among them; the others are arm1, arm2 and so on.
        patient: standard deviation of what an arm does to a patient, in all its runs.
        noise: standard deviation of one patient in one run.
        luck: standard deviation of what a run does to all its patients.
        gain: true gain of every arm but real.
        skewed: patients' Dice from a beta distribution with a tail to 0; all values kept in [0, 1].
        external: every fold's runs are tested on all patients.
        lucky: factor of the luck of arm1.
    """
    level = rng.beta(3, 1, patients) if skewed else rng.normal(0.6, 0.15, patients)
    fold_of = np.arange(patients) % folds
    common = rng.normal(0, luck, (folds, seeds))
    records = []
    for arm in range(arms):
        effect = gain + rng.normal(0, patient, patients) if arm else np.zeros(patients)
        for fold in range(folds):
            for seed in range(seeds):
                shift = common[fold, seed] + rng.normal(0, luck * (lucky if arm == 1 else 1))
                dice = level + effect + shift + rng.normal(0, noise, patients)
                dice = np.clip(dice, 0, 1) if skewed else dice
                records += [
                    {"fold": fold, "seed": seed, "arm": f"arm{arm}" if arm else "real", "patient": f"p{index}"}
                    | {"tissue": "fibrosis", "dice": float(dice[index])}
                    for index in range(patients)
                    if external or fold_of[index] == fold
                ]
    return records

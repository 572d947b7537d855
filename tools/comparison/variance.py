"""What makes the scores of two arms differ besides the arms: the patients, and the luck of single training runs.

All patients that a run is tested on share its luck, so more patients do not average it out; only more runs (seeds,
folds) do. Both are random factors. The score of a patient p in a run r (a fold and a seed) of an arm a is taken as

    patient_p + run_r + arm_a + (patient x arm)_pa + luck_ra + noise_pra

and the difference of two arms, averaged over patients and runs, varies by the last three.
"""

from typing import NamedTuple

import numpy as np

Values = dict[str, dict[tuple, float]]  # patient -> run (fold, seed) -> score


class Variance(NamedTuple):
    """A variance estimated as a mean square, and its degrees of freedom."""

    value: float
    freedom: float


def gather(records: list[dict], measure: str) -> dict[tuple[str, str], Values]:
    """Return (tissue, arm) -> patient -> run -> measure, where the measure is defined."""
    found: dict[tuple[str, str], Values] = {}
    for record in records:
        if record[measure] is not None:
            patients = found.setdefault((record["tissue"], record["arm"]), {})
            patients.setdefault(record["patient"], {})[record["fold"], record["seed"]] = record[measure]
    return found


def pair(own: Values, reference: Values) -> Values:
    """Return own minus reference for every patient and run that both have."""
    common = {patient: own[patient].keys() & reference[patient].keys() for patient in sorted(own.keys() & reference)}
    return {
        patient: {run: own[patient][run] - reference[patient][run] for run in sorted(runs)}
        for patient, runs in common.items()
        if runs
    }


def run_variance(arms: list[Values]) -> Variance:
    """Estimate the variance of a run's mean over its patients that is left when fold, seed and arm are accounted for.

    In each fold, an additive model arm + seed is fitted to the runs' means by least squares; what is left is the error
    term of a repeated-measures analysis of variance. Folds count by their number of patients, since the mean of few
    patients is noisier and matters less. Runs that are missing are not fitted. The value holds the luck of a run and
    the noise of its patients: luck^2 + noise^2 / patients of the fold; it is 0 with 0 degrees of freedom if no fold has
    two arms with two seeds in common. ``arms`` holds the values of one tissue per arm.
    """
    square = freedom = weight = 0.0
    folds = sorted({fold for arm in arms for runs in arm.values() for fold, _ in runs})
    for fold in folds:
        cells: dict[tuple, list[float]] = {}
        for index, arm in enumerate(arms):
            for runs in arm.values():
                for run, value in runs.items():
                    if run[0] == fold:
                        cells.setdefault((index, run[1]), []).append(value)
        means = np.array([np.mean(values) for values in cells.values()])
        rows, columns = ([cell[axis] for cell in cells] for axis in (0, 1))
        design = np.hstack([np.equal.outer(names, sorted(set(names))) for names in (rows, columns)]).astype(float)
        solution, _, rank, _ = np.linalg.lstsq(design, means, rcond=None)
        left = len(means) - rank
        patients = np.mean([len(values) for values in cells.values()])
        if left:
            square += patients * np.sum((means - design @ solution) ** 2)
            freedom += patients * left
            weight += patients**2 * left
    return Variance(float(square / freedom), float(freedom**2 / weight)) if freedom else Variance(0.0, 0.0)


def patient_variance(paired: Values) -> tuple[np.ndarray, Variance, Variance]:
    """Estimate how much patients differ from each other in their mean difference of two arms, and how much is noise.

    Patients with the same runs share the runs' luck, so they are compared with each other only.

    Returns:
        Residual of each patient, shape (patients,), sorted; variance of the patients' means over runs, with 0 degrees
        of freedom if no patients share their runs; the part of it that is noise of single runs.
    """
    groups: dict[tuple, list[list[float]]] = {}
    for runs in paired.values():
        groups.setdefault(tuple(sorted(runs)), []).append([runs[run] for run in sorted(runs)])
    residuals, noise, noise_freedom = [], 0.0, 0
    for group in (np.array(rows) for rows in groups.values()):
        means = group.mean(axis=1)
        residuals.append(means - means.mean())
        number, runs = group.shape
        left = group - means[:, None] - group.mean(axis=0) + means.mean()
        noise += np.sum(left**2) / runs
        noise_freedom += (number - 1) * (runs - 1)
    residuals = np.sort(np.concatenate(residuals))
    freedom = len(residuals) - len(groups)
    between = Variance(float(np.sum(residuals**2) / freedom), freedom) if freedom else Variance(0.0, 0)
    return residuals, between, Variance(noise / noise_freedom if noise_freedom else 0.0, noise_freedom)

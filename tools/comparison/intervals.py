"""The interval of a difference of two arms, with the fold as the unit that is repeated.

The score of a patient p in fold f and seed s of an arm a is taken as

    patient_p + run_fs + arm_a + (patient x arm)_pa + (fold x arm)_fa + luck_fsa + noise_pfsa

(fold x arm) is the luck of one draw of training patients, of the synthesizer and of the set of painted cases made from
it. All seeds and patients of the fold share it, so neither more seeds nor more patients average it out. Every term but
the arm's is in the differences of the folds' means, which are independent of each other. So these means alone give the
interval, by Student's t with one degree of freedom less than folds.

Folds of different sizes have means of different variance. The t test of such means errs no more often than stated, at
levels up to 8 % (Bakirov and Szekely, "Student's t-test for Gaussian scale mixtures", 2006; Ibragimov and Mueller,
"t-statistic based correlation and heterogeneity robust inference", J. Business and Economic Statistics, 2010).

Why no mixed model: with three to five folds a restricted maximum likelihood estimate of (fold x arm) is often 0, and
its intervals are normal. ``python -m tools trust`` counts how often that errs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

CONFIDENCE = 0.95

Values = dict[str, dict[tuple, float]]  # patient -> run (fold, seed) -> score


class Estimate(NamedTuple):
    """A mean difference, its 95 % interval, and the two-sided p of no difference; NaN where folds are too few."""

    mean: float
    low: float
    high: float
    p: float


def gather(records: list[dict], measure: str) -> dict[tuple[str, str], Values]:
    """Return (tissue, arm) -> patient -> run -> measure, where the measure is defined."""
    found: dict[tuple[str, str], Values] = {}
    for record in records:
        if record.get(measure) is not None:
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


def by_fold(values: Values) -> dict[int, dict[str, float]]:
    """Return fold -> patient -> mean over the fold's seeds.

    Example:
        >>> by_fold({"p": {(0, 0): 0.25, (0, 1): 0.75}, "q": {(1, 0): 1.0}})
        {0: {'p': 0.5}, 1: {'q': 1.0}}
    """
    seeds: dict[int, dict[str, list[float]]] = {}
    for patient, runs in values.items():
        for (fold, _), value in runs.items():
            seeds.setdefault(fold, {}).setdefault(patient, []).append(value)
    return {fold: {name: float(np.mean(own)) for name, own in seeds[fold].items()} for fold in sorted(seeds)}


def fold_means(values: Values) -> list[float]:
    """Return the mean over the patients of each fold, of the means over seeds."""
    return [float(np.mean(list(patients.values()))) for patients in by_fold(values).values()]


def estimate(folds: Sequence[float], patients: Sequence[float] | None = None) -> Estimate:
    """Return the mean of the folds' mean differences and its interval by Student's t.

    Args:
        folds: Mean difference of each fold, in the unit of the measure; each fold counts alike.
        patients: Where every fold is tested on the same patients, their mean difference over folds. What an arm does to
            these patients is in every fold's mean, so its variance is added, with Satterthwaite's degrees of freedom
            ("An approximate distribution of estimates of variance components", 1946).

    Example:
        >>> [round(value, 3) for value in estimate([0.1, 0.2, 0.3])]
        [0.2, -0.048, 0.448, 0.074]
    """
    mean = float(np.mean(folds)) if len(folds) else float("nan")
    parts = [
        (float(np.var(values, ddof=1)) / len(values), len(values) - 1)
        for values in (folds, patients)
        if values is not None and len(values) > 1
    ]
    if len(folds) < 2:
        return Estimate(mean, *[float("nan")] * 3)
    variance = sum(part for part, _ in parts)
    if not variance:
        return Estimate(mean, mean, mean, float(mean == 0))
    freedom = variance**2 / sum(part**2 / own for part, own in parts)
    error = float(np.sqrt(variance))
    half_width = float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
    return Estimate(mean, mean - half_width, mean + half_width, 2 * float(special.stdtr(freedom, -abs(mean) / error)))


def difference(paired: Values) -> Estimate:
    """Return the estimate of paired differences, whether each patient is tested in one fold or in several."""
    folds = by_fold(paired)
    shared = len(paired) < sum(map(len, folds.values()))
    patients = [np.mean([own[name] for own in folds.values() if name in own]) for name in paired] if shared else None
    return estimate(fold_means(paired), patients)

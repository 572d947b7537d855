"""Paired statistics: is an arm better than training on real patients only, and how sure is that?"""

import functools
import itertools

import numpy as np

from tools.comparison.arms import REFERENCE
from tools.comparison.variance import Values, Variance, gather, pair, patient_variance, run_variance
from tools.io.files import InputError

MEASURES = {"dice": 1, "surface_dice": 1, "volume_error": -1}  # 1: higher is better, -1: lower is better
CONFIDENCE = 0.95
RESAMPLES = 10_000
# With fewer patients an interval says next to nothing; with fewer than six no signed-rank p can fall below 0.05.
PATIENTS_FOR_VERDICT = 5
PATIENTS_FOR_TEST = 6
# Degrees of freedom from which the two arms compared tell their own run variance; below, all arms are taken together.
OWN_RUN_FREEDOM = 8
WITHIN_RUNS_FREEDOM = 4  # below, patients are compared across folds too, the luck of their runs included


@functools.lru_cache(maxsize=32)
def _resampled(patients: int, resamples: int, seed: int) -> np.ndarray:
    """Return how often each patient is drawn, over the number of patients, shape (resamples, patients)."""
    draws = np.random.default_rng(seed).multinomial(patients, np.full(patients, 1 / patients), size=resamples)
    return draws.astype(np.float32) / patients


def _pivot(variance: Variance, rng: np.random.Generator) -> np.ndarray | float:
    """Return draws of what the true variance may be: the estimate over a chi-squared variate per degree of freedom."""
    if not variance.freedom:
        return 0.0
    return variance.value * variance.freedom / rng.chisquare(variance.freedom, RESAMPLES)


def _patient_part(paired: Values, runs: Variance | None) -> tuple[np.ndarray, Variance, Variance]:
    """Return the patients' residuals, sorted, their variance, and the part of it that is also in the runs' variance."""
    residuals, between, noise = patient_variance(paired)
    if runs is not None and between.freedom >= WITHIN_RUNS_FREEDOM:
        return residuals, between, noise
    means = np.sort([np.mean(list(row.values())) for row in paired.values()])
    shared = Variance(0.0, 0)
    if runs is not None:  # almost every patient has runs of his own, whose luck is part of what patients differ by
        shared = Variance(2 * runs.value * np.mean([1 / len(row) for row in paired.values()]), runs.freedom)
    return means - means.mean(), Variance(float(means.var(ddof=1)), len(means) - 1), shared


def difference_interval(paired: Values, runs: Variance | None, seed: int = 0) -> tuple[float, float]:
    """Return the confidence interval of the mean of paired differences, with patients and runs as random factors.

    The sum of two independent parts is drawn, and its quantiles are the interval (as for the Behrens-Fisher problem):

    - patients: bootstrap means of the patients' residuals, scaled to the variance of (patient x arm), which is the
      variance between patients less the noise of single runs (that noise is in the runs' variance already). Both
      variances are drawn too, as the estimate over a chi-squared variate per degree of freedom (generalised pivots;
      Weerahandi, "Generalized confidence intervals", 1993), which widens the interval for few patients;
    - runs: Student's t times ``sqrt(2 variance sum_r w_r^2)``, w_r being the weight of run r in the mean difference;
      the variance is that of ``run_variance``, None to leave the luck of runs out (one seed).

    Both bounds are the mean itself if nothing varies, NaN for fewer than two patients.

    Example:
        >>> difference_interval({"a": {(0, 0): 0.5}, "b": {(0, 0): 0.5}, "c": {(0, 0): 0.5}}, None)
        (0.5, 0.5)
    """
    from scipy import stats

    number = len(paired)
    if number < 2:
        return float("nan"), float("nan")
    residuals, between, noise = _patient_part(paired, runs)
    size = np.sqrt(np.mean(residuals**2)) or 1.0
    rng = np.random.default_rng((seed, number))
    spread = np.sqrt(np.maximum(_pivot(between, rng) - _pivot(noise, rng), 0))
    draws = spread * (_resampled(number, RESAMPLES, seed) @ (residuals / size))
    if runs is not None:
        weights: dict[tuple, float] = {}
        for row in paired.values():
            for run in row:
                weights[run] = weights.get(run, 0.0) + 1 / (number * len(row))
        scale = np.sqrt(2 * runs.value * np.sum(np.square(list(weights.values()))))
        draws += scale * rng.permutation(stats.t.ppf((np.arange(RESAMPLES) + 0.5) / RESAMPLES, runs.freedom))
    tail = (1 - CONFIDENCE) / 2
    middle = np.mean([np.mean(list(row.values())) for row in paired.values()])
    low, high = middle + np.quantile(draws, [tail, 1 - tail], method="hazen")  # unbiased for the even steps of t
    return float(low), float(high)


def signed_rank_p(differences: list[float]) -> float | None:
    """Return the two-sided p of Wilcoxon's signed-rank test, or None with too few patients for any p below 0.05.

    Example:
        >>> signed_rank_p([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
        0.03125
        >>> signed_rank_p([0.1, 0.2, 0.3]) is None
        True
    """
    from scipy import stats

    if len(differences) < PATIENTS_FOR_TEST:
        return None
    if not np.any(differences):
        return 1.0
    return float(stats.wilcoxon(differences).pvalue)


def holm(p_values: list[float | None]) -> list[float | None]:
    """Return Holm's corrected p values (Holm 1979); None stays None and does not count as a test.

    Example:
        >>> [p and round(p, 4) for p in holm([0.01, None, 0.04, 0.03])]
        [0.03, None, 0.06, 0.06]
    """
    from statsmodels.stats.multitest import multipletests

    tested = [p for p in p_values if p is not None]
    corrected = iter(multipletests(tested, method="holm")[1] if tested else [])
    return [None if p is None else float(next(corrected)) for p in p_values]


def verdict(interval: tuple[float, float], patients: int, seeds: int, better: int = 1) -> str:
    """Return "gain", "loss" or "no gain", if there are enough patients with the tissue and seeds to tell.

    ``better`` is 1 where higher is better, -1 where lower is.

    Example:
        >>> verdict((0.01, 0.05), 12, 2), verdict((0.01, 0.05), 12, 2, better=-1), verdict((-0.01, 0.05), 12, 2)
        ('gain', 'loss', 'no gain')
        >>> verdict((0.1, 0.2), 3, 2), verdict((0.1, 0.2), 12, 1)
        ('too few patients (3)', 'one seed only')
    """
    if patients < PATIENTS_FOR_VERDICT:
        return f"too few patients ({patients})"
    if seeds < 2:
        return "one seed only"
    low, high = sorted(better * bound for bound in interval)
    return "gain" if low > 0 else "loss" if high < 0 else "no gain"


def _seed_means(per_patient: Values) -> dict[int, float]:
    """Return seed -> mean over patients."""
    by_seed: dict[int, list[float]] = {}
    for runs in per_patient.values():
        for (_, seed), value in runs.items():
            by_seed.setdefault(seed, []).append(value)
    return {seed: float(np.mean(values)) for seed, values in sorted(by_seed.items())}


def _spread(values: list[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def summarise(
    records: list[dict], tissues: list[str], arms: list[str], measure: str = "dice", seed: int = 0
) -> list[dict]:
    """Compare every arm with the reference arm, tissue by tissue; patients and training runs are random factors.

    An arm is paired with the reference within the same fold, seed and patient; a run without a partner does not count
    towards the difference. Holm's correction runs over all tissues and arms that could be tested.

    Args:
        records: One per fold, seed, arm, patient and tissue, as in results.csv; the measure is None where it is not
            defined, as Dice where the patient's reference map does not hold the tissue.
        tissues: Tissues in the order of the rows wanted.
        arms: Arms in the order wanted; ``real`` among them.
        measure: One of ``MEASURES``, else InputError. A gain of ``volume_error`` is a decrease, a difference below 0.
        seed: Seed for the bootstrap.

    Returns:
        One row per tissue and arm: ``patients`` (number with the tissue), ``mean`` (over patients of the mean over
        seeds), ``mean_per_seed``, ``seed_sd`` (standard deviation of those), and for all but the reference
        ``difference`` (arm minus reference), ``interval``, ``effect_size`` (the difference over the standard deviation
        of the patients' differences, Cohen's d_z), ``difference_per_patient``, ``difference_per_seed``, ``p`` (over
        patients: unlike the interval, it knows nothing of the runs' luck), ``p_holm`` and ``verdict``. What cannot be
        computed is None.
    """
    if measure not in MEASURES:
        raise InputError(f"there is no measure {measure!r}; there are {', '.join(MEASURES)}")
    found, rows = gather(records, measure), []
    for tissue in tissues:
        present = {arm: found.get((tissue, arm), {}) for arm in arms}
        all_runs = run_variance(list(present.values()))
        for arm, own in present.items():
            seed_means = _seed_means(own)
            row = {
                "tissue": tissue,
                "arm": arm,
                "patients": len(own),
                "mean": float(np.mean([np.mean(list(runs.values())) for runs in own.values()])) if own else None,
                "mean_per_seed": seed_means,
                "seed_sd": _spread(list(seed_means.values())),
            }
            if arm != REFERENCE:
                row |= _compared(own, present.get(REFERENCE, {}), all_runs, MEASURES[measure], seed)
            rows.append(row)
    compared = [row for row in rows if row["arm"] != REFERENCE]
    for row, p in zip(compared, holm([row["p"] for row in compared])):
        row["p_holm"] = p
    return rows


def _compared(own: Values, reference: Values, all_runs: Variance, better: int, seed: int) -> dict:
    """Return the part of a row that compares an arm with the reference."""
    paired = pair(own, reference)
    per_patient = {patient: float(np.mean(list(runs.values()))) for patient, runs in paired.items()}
    differences, per_seed = list(per_patient.values()), _seed_means(paired)
    own_runs = run_variance([own, reference])
    runs = own_runs if own_runs.freedom >= OWN_RUN_FREEDOM else all_runs
    interval = difference_interval(paired, runs if len(per_seed) > 1 else None, seed)
    mean, spread = float(np.mean(differences)) if differences else None, _spread(differences)
    return {
        "difference": mean,
        "interval": list(interval) if np.isfinite(interval).all() else None,
        "effect_size": mean / spread if spread else None,
        "difference_per_patient": per_patient,
        "difference_per_seed": per_seed,
        "p": signed_rank_p(differences),
        "verdict": verdict(interval, len(differences), len(per_seed), better),
    }


def format_table(rows: list[dict]) -> str:
    """Return the rows of ``summarise`` as a table for the terminal."""
    head = ("tissue", "arm", "n", "mean", "difference", "95 % interval", "p (Holm)", "seed sd", "verdict")
    lines = [head]
    for row in rows:
        mean = "-" if row["mean"] is None else f"{row['mean']:.3f}"
        formats = {"difference": "{:+.3f}", "interval": "{0[0]:+.3f} .. {0[1]:+.3f}", "p_holm": "{:.3f}"}
        cells = [
            "" if row.get(key) is None else text.format(row[key])
            for key, text in (formats | {"seed_sd": "{:.3f}", "verdict": "{}"}).items()
        ]
        lines.append((row["tissue"], row["arm"], str(row["patients"]), mean, *cells))
    blocks = itertools.groupby(zip(lines, columns(lines)), key=lambda pair: pair[0][0])
    return "\n\n".join("\n".join(text for _, text in block) for _, block in blocks)


def columns(lines: list[tuple[str, ...]]) -> list[str]:
    """Return lines of cells as texts in which the cells of a column begin below each other."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]

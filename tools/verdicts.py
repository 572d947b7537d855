"""Paired statistics: does an arm segment a tissue better than training on real patients only, and how sure is that?"""

import numpy as np

REFERENCE = "real"
CONFIDENCE = 0.95
RESAMPLES = 10_000
# With fewer patients an interval says next to nothing; with fewer than six no signed-rank p can fall below 0.05.
PATIENTS_FOR_VERDICT = 5
PATIENTS_FOR_TEST = 6


def bootstrap_interval(differences: list[float], seed: int = 0) -> tuple[float, float]:
    """Return the patient-bootstrap confidence interval of a mean, widened for small samples.

    Plain percentile intervals are too narrow for few patients. This is the expanded percentile interval (Hesterberg,
    "What teachers should know about the bootstrap", 2015, section 4.3): the quantiles are taken at
    ``Phi(-sqrt(n / (n - 1)) t)`` instead of 2.5 %, where t is Student's 97.5 % quantile with n - 1 degrees of freedom.

    Args:
        differences: one number per patient, in any order (the order does not matter to the result).
        seed: of the resampling.

    Returns:
        Lower and upper bound; both are the number itself for identical differences, and NaN for fewer than two.

    Example:
        >>> bootstrap_interval([0.1, 0.1, 0.1])
        (0.1, 0.1)
    """
    from scipy import stats

    values = np.sort(np.asarray(differences, float))  # sorted, so that the order of the patients cannot matter
    n = len(values)
    if n < 2:
        return float("nan"), float("nan")
    if values[0] == values[-1]:
        return float(values[0]), float(values[0])
    picks = np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))
    means = values[picks].mean(axis=1)
    tail = stats.norm.cdf(-np.sqrt(n / (n - 1)) * stats.t.ppf((1 + CONFIDENCE) / 2, n - 1))
    low, high = np.quantile(means, [tail, 1 - tail])
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
        >>> holm([0.01, None, 0.04, 0.03])
        [0.03, None, 0.06, 0.06]
    """
    order = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, index) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        corrected[index] = highest
    return corrected


def verdict(interval: tuple[float, float], patients: int, per_seed: list[float]) -> str:
    """Return "gain", "loss" or "no gain", if there are enough patients to tell.

    A gain needs an interval above 0 and a difference above 0 for every seed; a loss both below. The second condition is
    there because the interval is over patients, who all share the same few trained networks: two runs that differ in
    nothing but luck differ on every patient alike.

    Args:
        interval: of the difference.
        patients: number of patients with the tissue.
        per_seed: mean difference of each seed.

    Example:
        >>> verdict((0.01, 0.05), 12, [0.03, 0.02]), verdict((-0.05, -0.01), 12, [-0.03])
        ('gain', 'loss')
        >>> verdict((-0.01, 0.05), 12, [0.02]), verdict((0.01, 0.05), 12, [0.08, -0.02]), verdict((0.1, 0.2), 3, [0.15])
        ('no gain', 'no gain', 'too few patients (3)')
    """
    if patients < PATIENTS_FOR_VERDICT:
        return f"too few patients ({patients})"
    low, high = interval
    if low > 0 and min(per_seed) > 0:
        return "gain"
    return "loss" if high < 0 and max(per_seed) < 0 else "no gain"


def _per_seed(records: list[dict], arm: str, tissue: str) -> dict[str, dict[tuple, float]]:
    """Return patient -> (fold, seed) -> Dice, for the patients who have the tissue."""
    found: dict[str, dict[tuple, float]] = {}
    for record in records:
        if record["arm"] == arm and record["tissue"] == tissue and record["dice"] is not None:
            found.setdefault(record["patient"], {})[record["fold"], record["seed"]] = record["dice"]
    return found


def _seed_means(per_patient: dict[str, dict[tuple, float]]) -> dict[int, float]:
    """Return seed -> mean over patients."""
    by_seed: dict[int, list[float]] = {}
    for runs in per_patient.values():
        for (_, seed), value in runs.items():
            by_seed.setdefault(seed, []).append(value)
    return {seed: float(np.mean(values)) for seed, values in sorted(by_seed.items())}


def _spread(seed_means: dict[int, float]) -> float | None:
    return float(np.std(list(seed_means.values()), ddof=1)) if len(seed_means) > 1 else None


def summarise(records: list[dict], tissues: list[str], arms: list[str], seed: int = 0) -> list[dict]:
    """Compare every arm with the reference arm, tissue by tissue; the unit is the patient, seeds are averaged first.

    An arm is paired with the reference within the same fold, seed and patient; a run without a partner does not count
    towards the difference. Holm's correction runs over all tissues and arms that could be tested.

    Args:
        records: one per fold, seed, arm, patient and tissue, as in results.csv; ``dice`` is None where the patient's
            reference map does not hold the tissue.
        tissues: in the order of the rows wanted.
        arms: in the order wanted; ``real`` among them.
        seed: of the bootstrap.

    Returns:
        One row per tissue and arm: ``patients`` (number with the tissue), ``dice`` (mean over patients of the mean
        over seeds), ``dice_per_seed``, ``seed_sd`` (standard deviation of those), and for all but the reference
        ``difference``, ``interval``, ``difference_per_patient``, ``difference_per_seed``, ``p``, ``p_holm`` and
        ``verdict``. What cannot be computed is None.
    """
    rows = []
    for tissue in tissues:
        reference = _per_seed(records, REFERENCE, tissue)
        for arm in arms:
            own = _per_seed(records, arm, tissue)
            seed_means = _seed_means(own)
            row = {
                "tissue": tissue,
                "arm": arm,
                "patients": len(own),
                "dice": float(np.mean([np.mean(list(runs.values())) for runs in own.values()])) if own else None,
                "dice_per_seed": seed_means,
                "seed_sd": _spread(seed_means),
            }
            if arm != REFERENCE:
                row |= _paired(own, reference, seed)
            rows.append(row)
    compared = [row for row in rows if row["arm"] != REFERENCE]
    for row, p in zip(compared, holm([row["p"] for row in compared])):
        row["p_holm"] = p
    return rows


def _paired(own: dict[str, dict[tuple, float]], reference: dict[str, dict[tuple, float]], seed: int) -> dict:
    """Return the part of a row that compares an arm with the reference."""
    paired = {
        patient: {
            run: value - reference[patient][run] for run, value in runs.items() if run in reference.get(patient, {})
        }
        for patient, runs in own.items()
    }
    paired = {patient: runs for patient, runs in sorted(paired.items()) if runs}
    per_patient = {patient: float(np.mean(list(runs.values()))) for patient, runs in paired.items()}
    differences = list(per_patient.values())
    interval = bootstrap_interval(differences, seed)
    per_seed = _seed_means(paired)
    return {
        "difference": float(np.mean(differences)) if differences else None,
        "interval": list(interval) if np.isfinite(interval).all() else None,
        "difference_per_patient": per_patient,
        "difference_per_seed": per_seed,
        "p": signed_rank_p(differences),
        "verdict": verdict(interval, len(differences), list(per_seed.values())),
    }


def format_table(rows: list[dict]) -> str:
    """Return the rows of ``summarise`` as a table for the terminal."""
    head = ("tissue", "arm", "n", "Dice", "difference", "95 % interval", "p (Holm)", "seed sd", "verdict")
    lines = [head]
    for row in rows:
        interval, p, spread = row.get("interval"), row.get("p_holm"), row["seed_sd"]
        lines.append(
            (
                row["tissue"],
                row["arm"],
                str(row["patients"]),
                "-" if row["dice"] is None else f"{row['dice']:.3f}",
                "" if row.get("difference") is None else f"{row['difference']:+.3f}",
                f"{interval[0]:+.3f} .. {interval[1]:+.3f}" if interval else "",
                "" if p is None else f"{p:.3f}",
                "" if spread is None else f"{spread:.3f}",
                row.get("verdict", ""),
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text, previous = [], None
    for line in lines:
        if previous not in (None, line[0]):
            text.append("")
        previous = line[0]
        text.append("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
    return "\n".join(text)

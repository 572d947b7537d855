"""Is an arm better than training on real patients only, and how sure is that? Paired statistics and their verdicts."""

import itertools

import numpy as np

from tools.comparison.arms import HEADROOM, REFERENCE
from tools.comparison.intervals import CONFIDENCE, Estimate, Values, difference, fold_means, gather, pair
from tools.io.files import InputError

# 1: higher is better, -1: lower is better. The first decides; the docstring of read_scores in results.py explains each.
MEASURES = {
    "dice_all": 1, "dice": 1, "surface_dice": 1, "volume_error": -1, "false_ml": -1,
    "dice_all_lung_known": 1, "dice_lung_known": 1,
}  # fmt: skip
HEADLINE = "dice_all"
LEAST_TO_SHARE = 0.01  # gain of more real patients below which a share of it means nothing
MEAN = "mean"  # in place of a tissue: the mean over the pathological tissues
HEALTHY = "healthy"
PATIENTS_FOR_VERDICT = 5
FOLDS_FOR_VERDICT = 3  # with fewer, the luck of a draw of training patients and of its painted set cannot be told


def holm(p_values: list[float | None]) -> list[float | None]:
    """Return Holm's corrected p values (Holm 1979); None stays None and does not count as a test.

    statsmodels' ``multipletests`` collects garbage at each call, a quarter of a second, too slow for simulations.

    Example:
        >>> [p and round(p, 4) for p in holm([0.01, None, 0.04, 0.03])]
        [0.03, None, 0.06, 0.06]
    """
    order = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for step, (p, place) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - step)))
        corrected[place] = highest
    return corrected


def lacking(patients: int, folds: int, seeds: int) -> str | None:
    """Return what is too little for a verdict, or None.

    Example:
        >>> lacking(3, 5, 2), lacking(12, 1, 2), lacking(12, 5, 1), lacking(12, 5, 2)
        ('too few patients (3)', 'too few folds (1)', 'one seed only', None)
    """
    if patients < PATIENTS_FOR_VERDICT:
        return f"too few patients ({patients})"
    if folds < FOLDS_FOR_VERDICT:
        return f"too few folds ({folds})"
    return "one seed only" if seeds < 2 else None


def decide(mean: float, p: float, better: int = 1) -> str:
    """Return "gain", "loss" or "no gain" from a mean difference and its p, which is corrected for the family.

    ``better`` is 1 where higher is better, -1 where lower is.

    Example:
        >>> decide(0.03, 0.01), decide(0.03, 0.01, better=-1), decide(0.03, 0.2)
        ('gain', 'loss', 'no gain')
    """
    if p > 1 - CONFIDENCE:
        return "no gain"
    return "gain" if better * mean > 0 else "loss"


def parse_primary(text: str | tuple | list | None, arms: list[str], tissues: list[str]) -> tuple[str, str] | None:
    """Return arm and tissue of the question named beforehand, None if there is none.

    Args:
        text: ``ARM,TISSUE``, the tissue ``mean`` for the mean over the pathological tissues.
        arms: Keys of the arms compared.
        tissues: Names of the tissues.

    Raises:
        InputError: if the arm or the tissue does not exist, or the arm is the reference itself.
    """
    if text is None:
        return None
    parts = [str(part).strip() for part in (text.split(",") if isinstance(text, str) else text)]
    if len(parts) != 2:
        raise InputError(f"primary is ARM,TISSUE such as cbmat_filter,mean; not {','.join(parts)!r}")
    arm, tissue = parts[0], parts[1].lower() if parts[1].lower() == MEAN else parts[1]
    others = [key for key in arms if key != REFERENCE]
    if arm not in others:
        raise InputError(f"primary names arm {arm!r}; compared with {REFERENCE} are {', '.join(others) or 'none'}")
    if tissue not in (*tissues, MEAN):
        raise InputError(f"primary names tissue {tissue!r}; there are {', '.join(tissues)} and {MEAN}")
    return arm, tissue


def with_means(records: list[dict], tissues: list[str], measures: list[str]) -> list[dict]:
    """Return the records and, per run and patient, one whose tissue is ``MEAN``: over the pathological tissues.

    A measure that is not defined for a tissue of the patient is left out of the mean.
    """
    ill = [name for name in tissues if name != HEALTHY]
    groups: dict[tuple, list[dict]] = {}
    for record in records:
        if record["tissue"] in ill:
            groups.setdefault((record["arm"], record["fold"], record["seed"], record["patient"]), []).append(record)
    added = []
    for own in groups.values():
        known = {name: [record[name] for record in own if record.get(name) is not None] for name in measures}
        means = {name: float(np.mean(values)) if values else None for name, values in known.items()}
        added.append(own[0] | {"tissue": MEAN} | means)
    return records + added


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
    records: list[dict],
    tissues: list[str],
    arms: list[str],
    measure: str = HEADLINE,
    primary: tuple[str, str] | None = None,
) -> list[dict]:
    """Compare every arm with the reference arm, tissue by tissue and in the mean over the pathological tissues.

    An arm is paired with the reference within the same fold, seed and patient; a run without a partner does not count
    towards the difference. The verdicts of all rows are one family: Holm's correction keeps the chance of any false one
    at 5 %. The primary question, named beforehand, and the arm of more real patients stand outside the family.

    Args:
        records: One per fold, seed, arm, patient and tissue, as in results.csv; the measure is None where it is not
            defined, as Dice where the patient's reference map does not hold the tissue.
        tissues: Tissues in the order of the rows wanted; ``MEAN`` follows if there are two pathological ones.
        arms: Arms in the order wanted; ``real`` among them.
        measure: One of ``MEASURES``, else InputError. A gain of an error is a decrease, a difference below 0.
        primary: Arm and tissue of the primary question, or None.

    Returns:
        One row per tissue and arm: ``patients`` (number of those who have the tissue, as far as the records tell by
        their ``dice``; in the mean row and else those for whom the measure is defined), ``folds``, ``mean`` (over folds
        of the mean over patients of the mean over seeds), ``mean_per_seed``, ``seed_sd`` (standard deviation of those),
        and for all but the reference ``difference`` (arm minus reference), ``interval`` (95 %, of this question alone),
        ``effect_size`` (the difference over the standard deviation of the patients' differences, Cohen's d_z),
        ``difference_per_patient``, ``difference_per_seed``, ``p`` (of the interval), ``p_holm``, ``primary`` and
        ``verdict``, and ``headroom_share``, the difference over that of more real patients where there is such an arm
        and it gains (``LEAST_TO_SHARE``). What cannot be computed is None.
    """
    if measure not in MEASURES:
        raise InputError(f"there is no measure {measure!r}; there are {', '.join(MEASURES)}")
    several = len([name for name in tissues if name != HEALTHY]) > 1
    having = gather(records, "dice") if any("dice" in record for record in records) else None
    found, rows = gather(with_means(records, tissues, [measure]) if several else records, measure), []
    for tissue in [*tissues, *[MEAN] * several]:
        reference = found.get((tissue, REFERENCE), {})
        for arm in arms:
            own = found.get((tissue, arm), {})
            seed_means = _seed_means(own)
            row = {
                "tissue": tissue,
                "arm": arm,
                "patients": len(
                    own if having is None or tissue == MEAN else own.keys() & having.get((tissue, arm), {})
                ),
                "folds": len({fold for runs in own.values() for fold, _ in runs}),
                "mean": float(np.mean(fold_means(own))) if own else None,
                "mean_per_seed": seed_means,
                "seed_sd": _spread(list(seed_means.values())),
            }
            if arm != REFERENCE:
                row |= _compared(pair(own, reference), row["patients"]) | {"primary": (arm, tissue) == primary}
            rows.append(row)
    judge([row for row in rows if row["arm"] != REFERENCE], MEASURES[measure])
    better = MEASURES[measure]
    gains = {row["tissue"]: row["difference"] for row in rows if row["arm"] == HEADROOM}
    for row in rows if HEADROOM in arms else ():
        gain, own = gains.get(row["tissue"]), row.get("difference")
        shared = row["arm"] != HEADROOM and own is not None and gain is not None and better * gain >= LEAST_TO_SHARE
        row["headroom_share"] = own / gain if shared else None
    return rows


def headroom(rows: list[dict]) -> float | None:
    """Return what more real patients gain in the mean over the tissues, or in the one there is; None if unknown."""
    found = [row["difference"] for row in rows if row["arm"] == HEADROOM and row["tissue"] != HEALTHY]
    return found[-1] if found else None


def judge(rows: list[dict], better: int) -> None:
    """Give the compared rows their corrected p and their verdict; ``better`` as for ``decide``."""
    family = [row for row in rows if not (row["primary"] or row["arm"] == HEADROOM)]
    for row, p in zip(family, holm([None if row["lacking"] else row["p"] for row in family])):
        row["p_holm"] = p
    for row in rows:
        if row["primary"] or row["arm"] == HEADROOM:
            row["p_holm"] = None if row["lacking"] else row["p"]
        row["verdict"] = row.pop("lacking") or decide(row["difference"], row["p_holm"], better)


def _compared(paired: Values, patients: int) -> dict:
    """Return the part of a row that compares an arm with the reference; ``patients`` have the tissue."""
    found: Estimate = difference(paired)
    per_patient = {patient: float(np.mean(list(runs.values()))) for patient, runs in paired.items()}
    per_seed, spread = _seed_means(paired), _spread(list(per_patient.values()))
    known, folds = np.isfinite(found.low), len({fold for runs in paired.values() for fold, _ in runs})
    return {
        "difference": found.mean if paired else None,
        "interval": [found.low, found.high] if known else None,
        "effect_size": found.mean / spread if spread else None,
        "difference_per_patient": per_patient,
        "difference_per_seed": per_seed,
        "p": found.p if known else None,
        "lacking": lacking(min(patients, len(paired)), folds, len(per_seed)),
    }


def format_table(rows: list[dict]) -> str:
    """Return the rows of ``summarise`` as a table for the terminal."""
    shared = any("headroom_share" in row for row in rows)
    head = (
        "tissue",
        "arm",
        "n",
        "mean",
        "difference",
        "95 % interval",
        "p (Holm)",
        "seed sd",
        *["of headroom"] * shared,
    )
    lines = [(*head, "verdict")]
    shares = {"headroom_share": "{:.0%}"} if shared else {}
    for row in rows:
        mean = "-" if row["mean"] is None else f"{row['mean']:.3f}"
        formats = {"difference": "{:+.3f}", "interval": "{0[0]:+.3f} .. {0[1]:+.3f}", "p_holm": "{:.3f}"}
        cells = [
            "" if row.get(key) is None else text.format(row[key])
            for key, text in (formats | {"seed_sd": "{:.3f}"} | shares | {"verdict": "{}"}).items()
        ]
        cells[-1] += " (primary)" * bool(row.get("primary"))
        lines.append((row["tissue"], row["arm"], str(row["patients"]), mean, *cells))
    blocks = itertools.groupby(zip(lines, columns(lines)), key=lambda pair: pair[0][0])
    return "\n\n".join("\n".join(text for _, text in block) for _, block in blocks)


def columns(lines: list[tuple[str, ...]]) -> list[str]:
    """Return lines of cells as texts in which the cells of a column begin below each other."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]

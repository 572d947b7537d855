"""What a comparison can be expected to find, before it is run: power for a number of patients, folds and seeds."""

import bisect
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tools.comparison.arms import REFERENCE
from tools.comparison.variance import gather, pair, patient_variance, run_variance
from tools.comparison.verdicts import (
    CONFIDENCE,
    OWN_RUN_FREEDOM,
    PATIENTS_FOR_VERDICT,
    WITHIN_RUNS_FREEDOM,
    columns,
)
from tools.io.files import InputError

GAINS = (0.01, 0.03, 0.05)  # of which the plan states the power: +1, +3 and +5 Dice points
PLANNED_GAIN, POWER = 0.03, 0.8  # for which the plan states the numbers needed
MOST_PATIENTS, MOST_SEEDS = 10_000, 30  # beyond these, none suffices


class Spread(NamedTuple):
    """Standard deviations, in the measure's unit, of the terms of the model in ``variance``."""

    patient: float  # of (patient x arm), in the difference of two arms
    noise: float  # of one patient in one run
    luck: float  # of a run, shared by all its patients


def variances(records: list[dict], tissue: str, measure: str = "dice") -> Spread:
    """Estimate from the records of finished runs, over all their arms, how much patients and runs vary for a tissue.

    A variance estimated as negative counts as 0.

    Raises:
        InputError: with fewer than five patients, two arms or two seeds, or where no two patients share their runs.
    """
    arms = {arm: values for (name, arm), values in gather(records, measure).items() if name == tissue}
    reference = arms.get(REFERENCE, {})
    runs = run_variance(list(arms.values()))
    if len(reference) < PATIENTS_FOR_VERDICT or not runs.freedom:
        raise InputError(
            f"the pilot has {len(reference)} patients with {tissue}, {len(arms)} arms and "
            f"{len({run[1] for row in reference.values() for run in row})} seeds; to plan from it takes at least "
            f"{PATIENTS_FOR_VERDICT} patients, {REFERENCE} and one more arm, and 2 seeds of each"
        )
    between, noise, single = [], [], []
    for arm, own in arms.items():
        paired = pair(own, reference)
        if arm == REFERENCE or not paired:
            continue
        _, means, part = patient_variance(paired)
        if not part.freedom:
            raise InputError(f"no two patients with {tissue} share two runs of arm {arm} in the pilot")
        between.append(means.value)
        noise.append(part.value)
        single.append(part.value * np.mean([len(row) for row in paired.values()]) / 2)
    folds = {run[0] for row in reference.values() for run in row}
    per_fold = sum(len({run[0] for run in row}) for row in reference.values()) / len(folds)
    squares = (
        np.mean(between) - np.mean(noise),
        np.mean(single),
        runs.value - np.mean(single) / per_fold,
    )
    return Spread(*(float(np.sqrt(max(0.0, square))) for square in squares))


def _error(patients: int, folds: int, seeds: int, arms: int, spread: Spread) -> tuple[float, float, float]:
    """Return what ``verdicts.difference_interval`` is expected to be: its standard error, half width, and freedom.

    The squared error is a sum of mean squares, the noise subtracted once since patients and runs both hold it; its
    degrees of freedom are those of Satterthwaite ("An approximate distribution of estimates of variance components",
    1946). The half width weights the squared quantiles of Student's t of both parts by their variances (Cochran 1964);
    the estimate of (patient x arm) is taken as normal, cut off at 0.
    """
    from scipy import stats

    folds = min(folds, patients)
    run = spread.luck**2 + spread.noise**2 * folds / patients  # variance of a run's mean
    own, pooled = folds * (seeds - 1), folds * (seeds - 1) * (arms - 1)
    shares = np.bincount(np.arange(patients) % folds) / patients
    runs = (2 * run * np.sum(shares**2) / seeds, own if own >= OWN_RUN_FREEDOM else pooled)
    single = 2 * spread.noise**2 / seeds
    if patients - folds >= WITHIN_RUNS_FREEDOM:
        between = ((spread.patient**2 + single) / patients, patients - folds)
        shared = (single / patients, (patients - folds) * (seeds - 1))
    else:
        between = ((spread.patient**2 + single + 2 * spread.luck**2 / seeds) / patients, patients - 1)
        shared = (2 * run / seeds / patients, runs[1])
    patient = max(0.0, between[0] - shared[0])
    doubt = np.sqrt(sum(2 * part**2 / freedom for part, freedom in (between, shared)))
    estimate = patient
    if doubt:
        estimate = patient * stats.norm.cdf(patient / doubt) + doubt * stats.norm.pdf(patient / doubt)
    square = patient + runs[0]
    wide = [stats.t.ppf((1 + CONFIDENCE) / 2, freedom) ** 2 for freedom in (between[1], runs[1])]
    freedom = sum(part**2 / freedom for part, freedom in (between, shared, runs))
    half_width = np.sqrt(wide[0] * estimate + wide[1] * runs[0])
    return float(np.sqrt(square)), float(half_width), square**2 / freedom if freedom else float("inf")


def power(difference: float, patients: int, folds: int, seeds: int, arms: int, spread: Spread) -> float:
    """Return the expected probability of the verdict "gain" (noncentral t distribution).

    Args:
        difference: True gain, in the unit of ``spread``.
        patients: Number of test patients who have the tissue, in all folds together.
        folds: Number of folds, held out one after the other, at least 1 (else InputError).
        seeds: Number of seeds per fold and arm, at least 1.
        arms: Number of arms, the reference among them, at least 2.
        spread: Spread of patients and runs.

    Example:
        >>> spread = Spread(patient=0.05, noise=0.05, luck=0.02)
        >>> round(power(0.03, 40, 5, 3, 4, spread), 2), power(0.03, 40, 5, 1, 4, spread)
        (0.6, 0.0)
    """
    from scipy import stats

    for name, value, least in (("folds", folds, 1), ("seeds", seeds, 1), ("arms", arms, 2)):
        if value < least:
            raise InputError(f"a comparison has at least {least} {name}, not {value}")
    if patients < PATIENTS_FOR_VERDICT or seeds < 2:
        return 0.0
    error, half_width, freedom = _error(patients, folds, seeds, arms, spread)
    if error == 0:
        return float(difference > 0)
    return float(np.clip(stats.nct.sf(half_width / error, freedom, difference / error), 0, 1))


def _least(sufficient: Callable[[int], bool], first: int, most: int) -> int | None:
    """Return the smallest number that suffices, from first to most, if more is never worse; None if most does not."""
    if not sufficient(most):
        return None
    return first + bisect.bisect_left(range(first, most), True, key=sufficient)


def patients_needed(
    difference: float, folds: int, seeds: int, arms: int, spread: Spread, chance: float = POWER
) -> int | None:
    """Return how many test patients with the tissue, in all folds together, find a true gain with the power asked for.

    None if the luck of so few runs hides the gain from any number.
    """
    return _least(
        lambda patients: power(difference, patients, folds, seeds, arms, spread) >= chance,
        PATIENTS_FOR_VERDICT,
        MOST_PATIENTS,
    )


def smallest_gain(
    patients: int, folds: int, seeds: int, arms: int, spread: Spread, chance: float = POWER
) -> float | None:
    """Return the smallest gain, rounded up to 0.001, that is found with the power asked for; None if none up to 1."""
    thousandths = _least(lambda gain: power(gain / 1000, patients, folds, seeds, arms, spread) >= chance, 1, 1000)
    return None if thousandths is None else thousandths / 1000


def plan(patients_with: dict[str, int], folds: int, seeds: int, arms: int, pilot: list[dict]) -> list[dict]:
    """Say per tissue what a comparison will find, in Dice; arguments as for ``power``.

    Args:
        patients_with: Tissue to number of test patients who have it, in all folds together.
        folds: Number of folds.
        seeds: Number of seeds.
        arms: Number of arms.
        pilot: Records of finished runs on like data, from which the spread is estimated.

    Returns:
        One row per tissue: ``tissue``, ``patients``, ``spread`` (patient, noise, luck), ``power`` (gain to
        probability), ``smallest_gain`` (found with 80 % power), ``patients_needed`` and ``seeds_needed`` (each for
        +0.03 with 80 % power, the other held), None where no number suffices. A tissue of which the pilot holds too
        little has ``tissue`` and ``unknown``, the reason.

    Raises:
        InputError: if there is no tissue, or the pilot cannot tell the spread of any.
    """
    if not patients_with:
        raise InputError("there is no tissue to plan for")
    rows = []
    for tissue, patients in patients_with.items():
        try:
            spread = variances(pilot, tissue)
        except InputError as error:
            rows.append({"tissue": tissue, "unknown": str(error)})
            continue
        design = (folds, seeds, arms, spread)
        rows.append(
            {
                "tissue": tissue,
                "patients": patients,
                "spread": spread._asdict(),
                "power": {gain: power(gain, patients, *design) for gain in GAINS},
                "smallest_gain": smallest_gain(patients, *design),
                "patients_needed": patients_needed(PLANNED_GAIN, *design),
                "seeds_needed": _least(
                    lambda number, n=patients, s=spread: power(PLANNED_GAIN, n, folds, number, arms, s) >= POWER,
                    2,
                    MOST_SEEDS,
                ),
            }
        )
    if all("unknown" in row for row in rows):
        raise InputError(rows[0]["unknown"])
    return rows


def format_plan(rows: list[dict]) -> str:
    """Return the rows of ``plan`` as a table for the terminal, with a line on how to read it."""
    head = ("tissue", "patients", *(f"power {gain:+.2f}" for gain in GAINS), "80 % power from")
    lines = [(*head, "patients for +0.03", "seeds for +0.03")]
    for row in rows:
        if "unknown" in row:
            continue
        chances = [f"{chance:.2f}" for chance in row["power"].values()]
        gain = "-" if row["smallest_gain"] is None else f"+{row['smallest_gain']:.3f}"
        needed = str(row["patients_needed"] or "add seeds"), str(row["seeds_needed"] or "add patients")
        lines.append((row["tissue"], str(row["patients"]), *chances, gain, *needed))
    notes = ["power: probability of the verdict gain, if the true gain in Dice is so large, by the pilot's spread"]
    notes += [f"{row['tissue']} is not planned: {row['unknown']}" for row in rows if "unknown" in row]
    return "\n".join([*columns(lines), "", *notes])

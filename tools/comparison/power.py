"""What a comparison can be expected to find, before it is run: simulated comparisons, judged by the verdict itself."""

import bisect
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tools.comparison.arms import REFERENCE
from tools.comparison.intervals import Values, by_fold, gather, pair
from tools.comparison.simulate import draw, share_found
from tools.comparison.verdicts import HEADLINE, HEALTHY, MEAN, PATIENTS_FOR_VERDICT, columns, lacking, with_means
from tools.io.files import InputError

GAINS = (0.01, 0.03, 0.05)  # of which the plan states the power: +1, +3 and +5 Dice points
PLANNED_GAIN, POWER = 0.03, 0.8  # for which the plan states the numbers needed
EXPERIMENTS = 400  # simulated comparisons; a power of 80 % is then known to 2 points
PATIENTS = (10, 20, 40, 80, 160, 320, 640)
FOLDS = (3, 5, 7, 10, 15, 20)


class Spread(NamedTuple):
    """Standard deviations of the terms of a paired difference, in the measure's unit."""

    fold: float  # shared by all seeds and patients of a fold: its training patients, synthesizer and painted set
    patient: float  # of a patient, in all runs
    run: float  # of a run, shared by all its patients
    noise: float  # of one patient in one run


def spread_of(records: list[dict], tissue: str, measure: str = HEADLINE) -> Spread:
    """Estimate from the records of finished runs, over all their arms, how the differences vary for a tissue.

    The terms are the moments of a nested analysis of variance: patients by seeds within the fold, then folds. A
    variance estimated as negative counts as 0.

    Raises:
        InputError: with fewer than five patients, two arms, two folds or two seeds, or where no fold has two patients.
    """
    arms = {arm: values for (name, arm), values in gather(records, measure).items() if name == tissue}
    reference = arms.pop(REFERENCE, {})
    runs = {run for row in reference.values() for run in row}
    folds, seeds = ({run[axis] for run in runs} for axis in (0, 1))
    if len(reference) < PATIENTS_FOR_VERDICT or not arms or len(folds) < 2 or len(seeds) < 2:
        raise InputError(
            f"the pilot has {len(reference)} patients with {tissue}, {len(arms) + 1} arms, {len(folds)} folds and "
            f"{len(seeds)} seeds; to plan from it takes at least "
            f"{PATIENTS_FOR_VERDICT} patients, {REFERENCE} and one more arm, 2 folds and 2 seeds"
        )
    every = [found for found in (_variances(pair(own, reference)) for own in arms.values()) if found]
    if not every:
        raise InputError(f"no two patients with {tissue} share two runs of an arm in the pilot")
    return Spread(*(float(np.sqrt(max(0.0, value))) for value in np.mean(every, axis=0)))


def _variances(paired: Values) -> tuple[float, float, float, float] | None:
    """Return the variances of one arm's differences in the order of ``Spread``; None where they cannot be told."""
    blocks = []  # per fold: differences, patients by seeds
    for fold in by_fold(paired):
        rows = [{run: value for run, value in row.items() if run[0] == fold} for row in paired.values()]
        rows = [row for row in rows if row]
        shared = sorted(set.intersection(*(set(row) for row in rows)))
        if shared:
            blocks.append(np.array([[row[run] for run in shared] for row in rows]))
    full = [block for block in blocks if min(block.shape) > 1]
    if len(blocks) < 2 or not full:
        return None
    noise = run = patient = freedom = patients_freedom = runs_freedom = 0.0
    for block in full:
        (number, seeds), rows, columns_ = block.shape, block.mean(1), block.mean(0)
        left = block - rows[:, None] - columns_ + block.mean()
        noise, freedom = noise + np.sum(left**2), freedom + (number - 1) * (seeds - 1)
    noise /= freedom
    for block in full:
        number, seeds = block.shape
        patient += (number - 1) * (block.mean(1).var(ddof=1) - noise / seeds)
        run += (seeds - 1) * (block.mean(0).var(ddof=1) - noise / number)
        patients_freedom, runs_freedom = patients_freedom + number - 1, runs_freedom + seeds - 1
    patient, run = max(0.0, patient / patients_freedom), max(0.0, run / runs_freedom)
    within = [patient / number + run / seeds + noise / number / seeds for number, seeds in (b.shape for b in blocks)]
    return np.var([block.mean() for block in blocks], ddof=1) - np.mean(within), patient, run, noise


def power(
    difference: float, patients: int, folds: int, seeds: int, spread: Spread, questions: int = 1, seed: int = 0
) -> float:
    """Return how often the verdict is "gain" in simulated comparisons.

    Args:
        difference: True gain, in the unit of ``spread``.
        patients: Number of test patients who have the tissue, in all folds together.
        folds: Number of folds, held out one after the other, at least 1 (else InputError).
        seeds: Number of seeds per fold and arm, at least 1.
        spread: Spread of the differences.
        questions: Verdicts that are corrected for each other; 1 for the primary question.
        seed: Seed for the simulation.

    Example:
        >>> spread = Spread(fold=0.01, patient=0.05, run=0.02, noise=0.05)
        >>> power(0.1, 40, 5, 3, spread) > 0.95, power(0.1, 40, 1, 3, spread)
        (True, 0.0)
    """
    for name, value in (("folds", folds), ("seeds", seeds)):
        if value < 1:
            raise InputError(f"a comparison has at least 1 {name}, not {value}")
    if lacking(patients, min(folds, patients), seeds):
        return 0.0
    means = draw(np.random.default_rng(seed), patients, folds, seeds, spread, EXPERIMENTS)
    return share_found(means, difference, questions)


def smallest_gain(
    patients: int, folds: int, seeds: int, spread: Spread, questions: int = 1, chance: float = POWER
) -> float | None:
    """Return the smallest gain, rounded up to 0.001, that is found with the power asked for; None if none up to 1."""
    if lacking(patients, min(folds, patients), seeds):
        return None
    means = draw(np.random.default_rng(0), patients, folds, seeds, spread, EXPERIMENTS)
    found = bisect.bisect_left(range(1, 1001), True, key=lambda n: share_found(means, n / 1000, questions) >= chance)
    return None if found == 1000 else (found + 1) / 1000


def _first(numbers: tuple[int, ...], sufficient: Callable[[int], bool]) -> int | None:
    """Return the first number that suffices, None if none does."""
    return next((number for number in numbers if sufficient(number)), None)


def plan(having: dict[str, int], patients: int, folds: int, seeds: int, arms: int, pilot: list[dict]) -> list[dict]:
    """Say per tissue what a comparison will find, in Dice over all patients.

    Args:
        having: Tissue to number of test patients who have it, in all folds together.
        patients: Number of all test patients.
        folds: Number of folds.
        seeds: Number of seeds.
        arms: Number of arms, the reference among them.
        pilot: Records of finished runs on like data, from which the spread is estimated.

    Returns:
        One row per tissue, and one for the mean over the pathological ones: ``tissue``, ``having``, ``spread`` (by the
        names of ``Spread``), ``power`` (gain to probability) and ``smallest_gain`` (with 80 % power), each for the
        primary question, ``family_gain`` (the same gain if the question is one of all), and ``patients_needed`` and
        ``folds_needed`` (the first of ``PATIENTS`` and ``FOLDS`` that finds +0.03 with 80 % power, the other held; None
        where none does). A tissue of which the pilot holds too little has ``tissue`` and ``unknown``, the reason.

    Raises:
        InputError: if there is no tissue, or the pilot cannot tell the spread of any.
    """
    if not having:
        raise InputError("there is no tissue to plan for")
    pilot = with_means(pilot, list(having), [HEADLINE])
    every = having | ({MEAN: patients} if len([name for name in having if name != HEALTHY]) > 1 else {})
    questions = max(1, (arms - 1) * len(every))
    rows = []
    for tissue, count in every.items():
        try:
            spread = spread_of(pilot, tissue)
        except InputError as error:
            rows.append({"tissue": tissue, "unknown": str(error)})
            continue
        known = count >= PATIENTS_FOR_VERDICT

        def chance(gain: float, number: int = patients, parts: int = folds, spread: Spread = spread) -> float:
            return power(gain, number, parts, seeds, spread)

        rows.append(
            {
                "tissue": tissue,
                "having": count,
                "spread": spread._asdict(),
                "power": {gain: chance(gain) if known else 0.0 for gain in GAINS},
                "smallest_gain": smallest_gain(patients, folds, seeds, spread) if known else None,
                "family_gain": smallest_gain(patients, folds, seeds, spread, questions) if known else None,
                "patients_needed": _first(PATIENTS, lambda n: chance(PLANNED_GAIN, number=n) >= POWER),  # noqa: B023
                "folds_needed": _first(FOLDS, lambda n: chance(PLANNED_GAIN, parts=n) >= POWER),  # noqa: B023
            }
        )
    if all("unknown" in row for row in rows):
        raise InputError(rows[0]["unknown"])
    return rows


def format_plan(rows: list[dict]) -> str:
    """Return the rows of ``plan`` as a table for the terminal, with lines on how to read it."""
    head = ("tissue", "have it", *(f"power {gain:+.2f}" for gain in GAINS), "80 % from", "as one of all")
    lines = [(*head, "patients for +0.03", "folds for +0.03")]
    for row in rows:
        if "unknown" in row:
            continue
        chances = [f"{chance:.2f}" for chance in row["power"].values()]
        gains = ["-" if row[name] is None else f"+{row[name]:.3f}" for name in ("smallest_gain", "family_gain")]
        needed = str(row["patients_needed"] or "add folds"), str(row["folds_needed"] or "add patients")
        lines.append((row["tissue"], str(row["having"]), *chances, *gains, *needed))
    notes = [f"power: share of {EXPERIMENTS} simulated comparisons with the verdict gain for the primary question"]
    notes += [f"{row['tissue']} is not planned: {row['unknown']}" for row in rows if "unknown" in row]
    return "\n".join([*columns(lines), "", *notes])

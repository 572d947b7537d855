"""Dividing patients into folds so that every fold gets its share of the rare tissues."""

from collections import Counter

import numpy as np


def assign_folds(
    tissues: dict[str, set[str]], folds: int, seed: int = 0, cases: dict[str, int] | None = None
) -> dict[str, int]:
    """Assign whole patients to folds, 0 to ``folds - 1``, by iterative stratification, the rarest tissue first.

    After Sechidis et al. 2011, "On the stratification of multi-label data": take the tissue that the fewest unassigned
    patients have, and give each of these patients to the fold that lacks most of it; a tie goes to the fold that lacks
    most of the patient's other tissues, then to the one with fewest cases, then with fewest patients, then to chance.
    Unlike theirs, the folds' sizes differ by one patient at most, patients with many cases come first, and a tissue
    that every patient has plays no part.

    ``tissues`` are those of each patient, ``cases`` the number of his cases, one each by default; the seed draws the
    order of the patients and the last tie.

    Example:
        >>> folds = assign_folds({"p1": {"fibrosis"}, "p2": {"fibrosis"}, "p3": set(), "p4": set()}, folds=2)
        >>> folds["p1"] != folds["p2"], folds["p3"] != folds["p4"]
        (True, True)
    """
    rng = np.random.default_rng(seed)
    cases = cases or {}
    waiting = sorted((str(patient) for patient in rng.permutation(sorted(tissues))), key=lambda p: -cases.get(p, 1))
    counts = Counter(tissue for names in tissues.values() for tissue in names)
    tissues = {patient: {name for name in names if counts[name] < len(tissues)} for patient, names in tissues.items()}
    lacking = {tissue: [count] * folds for tissue, count in counts.items()}  # folds times the share still missing
    smallest, larger_folds = divmod(len(waiting), folds)
    size, load = [0] * folds, [0] * folds
    fold_of: dict[str, int] = {}

    def is_open(fold: int) -> bool:
        return size[fold] < smallest or (
            size[fold] == smallest and sum(number > smallest for number in size) < larger_folds
        )

    while waiting:
        left = Counter(tissue for patient in waiting for tissue in tissues[patient])
        rarest = min(left, key=lambda tissue: (left[tissue], tissue)) if left else None
        for patient in [patient for patient in waiting if rarest is None or rarest in tissues[patient]]:
            names = sorted(tissues[patient], key=lambda tissue: (tissue != rarest, counts[tissue], tissue))

            def need(fold: int, names: list[str] = names) -> tuple:
                return (*(lacking[name][fold] for name in names), -load[fold], -size[fold], rng.random())

            fold = max(filter(is_open, range(folds)), key=need)
            for name in names:
                lacking[name][fold] -= folds
            size[fold] += 1
            load[fold] += cases.get(patient, 1)
            fold_of[patient] = fold
            waiting.remove(patient)
    return fold_of


def scarce_tissues(tissues: dict[str, set[str]], fold_of: dict[str, int], folds: int) -> list[str]:
    """Return a sentence for each tissue that some patient has but that is missing from some fold."""
    sentences = []
    for tissue in dict.fromkeys(name for patient in sorted(tissues) for name in sorted(tissues[patient])):
        holders = [patient for patient, names in tissues.items() if tissue in names]
        without = sorted(set(range(folds)) - {fold_of[patient] for patient in holders})
        if without:
            few = f"fewer than the {folds} folds" if len(holders) < folds else f"yet not in each of the {folds} folds"
            counted = f"{len(holders)} patient{'s' * (len(holders) != 1)}"
            where = f"fold{'s' * (len(without) != 1)} {', '.join(map(str, without))}"
            sentences.append(f"{tissue} occurs in {counted}, {few}: none in {where}")
    return sentences

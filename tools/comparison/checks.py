"""What a comparison is asked for, checked before anything runs, and what is said of its data beforehand."""

from tools.bundles import BUNDLES
from tools.comparison.arms import ARMS, HEADROOM, REFERENCE, is_painted, no_arm
from tools.comparison.plateau import FEWEST, budgets, inner_split
from tools.comparison.run import SCORES, Recipe
from tools.comparison.verdicts import PATIENTS_FOR_VERDICT, headroom
from tools.data.datalist import Case, check_folds, check_real, patients, read_datalist, split, tissues_in
from tools.data.provenance import cases_read, check_disjoint, check_twins, read_card
from tools.flags import check_numbers
from tools.io.files import InputError, read_json
from tools.tissues import tissue_labels
from tools.workflows.run import FINE_TUNE
from tools.workflows.segmenter import SEGMENTER

# What compare itself decides; an override of these would break the equality of the arms.
RESERVED = (
    *("dataset_dir", "datalist", "fold", "seed", "model_dir", "output_dir"),
    *("max_epochs", "epoch_length", "val_interval", "extra_ratio", "extra_schedule", "real_share"),
    "norm_apart",
)


def check(real, path, arms, folds, seeds, ratios, fractions, counted, overrides, overlays) -> None:
    """Raise InputError for what cannot be compared."""
    for arm in arms:
        if arm not in ARMS:
            raise InputError(no_arm(arm))
    if REFERENCE not in arms:
        raise InputError(f"arms {', '.join(arms) or '(none)'} lack {REFERENCE}, with which the others are compared")
    for name, values in (("folds", folds), ("seeds", seeds)):
        if not values or not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
            raise InputError(f"{name} must be integers such as 0,1, not {values}")
    for name, values, most in (("ratios", ratios, float("inf")), ("fractions", fractions, 1)):
        numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
        if not values or numbers != values or not all(0 < value <= most for value in numbers):
            raise InputError(f"{name} must be numbers above 0{' and at most 1' if most == 1 else ''}, not {values}")
    check_numbers(counted)
    for key in overrides:
        if key in RESERVED:
            raise InputError(f"overrides may not hold {key!r}: compare sets it equally for every arm")
    if real["labels"] != tissue_labels():
        raise InputError(f"{path} has labels {real['labels']}, but the segmenter has {tissue_labels()}")
    check_real(real, path, folds)
    check_twins(real, path)
    from tools.workflows.run import check_overrides

    there = {file.name for file in (BUNDLES / SEGMENTER / "configs").glob("*.yaml")} - {FINE_TUNE, SCORES}
    for name in overlays:
        if name not in there:
            raise InputError(f"overlays may be {', '.join(sorted(there))}, not {name}")
    check_overrides(SEGMENTER, ["train.json", *overlays], overrides)


def share_counts(real, folds, fractions, numbers) -> dict[float, int]:
    """Return the share of the training patients that each number is, and the number itself; empty without numbers.

    The share is that of the fold with the fewest training patients; all of them are the share 1.

    Raises:
        InputError: for what is no number of patients, or more than a fold has.
    """
    if not numbers:
        return {}
    if fractions != [1]:
        raise InputError("give either fractions or patients")
    fewest = min(len(patients(split(real, fold)[0])) for fold in folds)
    counts = {}
    for number in (int(one) if str(one).isdigit() else one for one in numbers):
        whole = number == "all"
        if not whole and (not isinstance(number, int) or isinstance(number, bool) or number < 1):
            raise InputError(f"patients must be whole numbers of at least 1, or all, not {number}")
        if not whole and number > fewest:
            raise InputError(f"patients asks for {number}, but a fold has {fewest} training patients; ask for all")
        counts[1.0 if whole or number == fewest else round(number / fewest, 4)] = fewest if whole else number
    return counts


def shared_recipe(real, arms, folds, start, overlays, overrides, mixing) -> Recipe:
    """Return how every segmenter is trained; InputError for start weights that are missing, unfit or know a patient."""
    started = [arm for arm in arms if ARMS[arm].started]
    if bool(started) != bool(start):
        raise InputError(
            f"{started[0]} needs --start WEIGHTS"
            if started
            else "--start needs an arm that uses it, such as real_started"
        )
    if not start:
        return Recipe(overrides, overlays, mixing=mixing)
    card = read_card(start, [case for case in real["training"] if case.fold in folds], "start weights")
    config = read_json(BUNDLES / SEGMENTER / "configs/train.json")
    theirs, ours = ((config | own)["network_channels"] for own in (card.get("overrides") or {}, overrides))
    if theirs != ours:
        raise InputError(f"start weights {start} have network_channels {theirs}, but the arms have {ours}")
    return Recipe(overrides, overlays, start, card.get("spacing_mm"), mixing)


def check_norm_apart(arms, overrides) -> None:
    """Raise InputError where batch norm cannot take painted cases apart: there are none, or no batch norm."""
    if not any(ARMS[arm].method and not ARMS[arm].alone for arm in arms):
        raise InputError("norm_apart takes painted cases apart from real ones, but no arm mixes them; add cbmat")
    norm = {key.replace("#", "::"): value for key, value in overrides.items()}.get("network_def::norm", "batch")
    if "batch" not in str(norm).lower():
        raise InputError(f"norm_apart needs batch norm, but overrides give network_def::norm {norm}")


def check_steps(real, arms, folds, iterations, until, longer) -> None:
    """Raise InputError for a number of steps that cannot be found."""
    if until not in (None, "plateau"):
        raise InputError(f"until may be plateau, not {until!r}; --iterations N sets the number of steps")
    if until and len(budgets(iterations)) < 2:
        raise InputError(
            f"--until plateau tries {FEWEST} steps and the double, again and again; --iterations {iterations} is the "
            f"most it may take, so give {2 * FEWEST} or more"
        )
    if until:
        for fold in folds:
            inner_split(split(real, fold)[0], real["labels"])
    if longer is not None and (isinstance(longer, bool) or not isinstance(longer, int | float) or longer <= 0):
        raise InputError(f"longer must be a number above 0, not {longer}")
    if "longer" in arms and longer is None and not any(is_painted(arm) for arm in arms):
        raise InputError(
            "the arm longer spends what painting costs, and no arm is painted; add one, or give --longer 2"
        )


def patients_with(real: dict, folds: list[int]) -> dict[str, int]:
    """Return tissue name to the number of test patients who have it; tissues that nobody has are absent."""
    holders: dict[str, set] = {}
    for case in real["training"]:
        if case.fold in folds:
            for name in tissues_in(case, real["labels"]):
                holders.setdefault(name, set()).add(case.patient)
    return {name: len(holders[name]) for name in real["labels"] if name in holders}


def warnings(real: dict, folds: list[int], tested: dict[str, int]) -> list[str]:
    """Return a sentence for each tissue of which the comparison will be able to say little or nothing."""
    sentences = []
    for name, count in tested.items():
        if count < PATIENTS_FOR_VERDICT:
            sentences.append(
                f"{name} lies in {count} test patient{'s' * (count != 1)}: a verdict needs {PATIENTS_FOR_VERDICT} "
                "or more; --plan says how many a gain of 3 points needs"
            )
    for fold in folds:
        training, test = split(real, fold)
        known = {name for case in training for name in tissues_in(case, real["labels"])}
        asked = {name for case in test for name in tissues_in(case, real["labels"])}
        for name in sorted(asked - known):
            sentences.append(f"fold {fold}: no training patient has {name}, so no arm can learn it there")
        for name in sorted(known - asked):
            sentences.append(f"fold {fold}: no test patient has {name}; the verdict on it rests on the other folds")
    return sentences


def held_back_cases(path, real, external, arms, least) -> list[Case]:
    """Return the cases of the datalist that is held back, an empty list if there is none.

    Raises:
        InputError: if one of its patients or CTs is among those compared, or the arms need it and it is absent.
    """
    if isinstance(least, bool) or not isinstance(least, int | float) or not 0 <= least < 1:
        raise InputError(f"least_headroom is a difference of Dice, from 0 to below 1, not {least}")
    if path is None:
        if any(ARMS[arm].more for arm in arms):
            raise InputError(f"the arm {HEADROOM} needs --held_back, a datalist.json of further labelled patients")
        return []
    content = read_datalist(path)
    if content["labels"] != real["labels"]:
        raise InputError(f"{path} has labels {content['labels']}, but the datalist compared has {real['labels']}")
    cases = content["training"]
    compared = [*real["training"], *(external["training"] if external else [])]
    check_disjoint(str(path), "patients held back", cases_read(cases), cases_read(compared))
    return cases


def check_headroom(rows, least) -> None:
    """Say what a perfect generator could give, by rows of ``summarise``; InputError if that is too little."""
    gain = headroom(rows)
    if gain is None:
        raise InputError("no test patient has a pathological tissue, so nothing can be gained")
    print(
        f"headroom: more real patients gain {gain:+.3f} of mean Dice, the most that a generator could give", flush=True
    )
    if gain < least:
        raise InputError(
            f"more real patients gain less than {least:g}, so no arm could be told from real; train on fewer patients, "
            "or run it all the same with --least_headroom 0"
        )


def inner_datalist(real, path, fold) -> dict:
    """Return the datalist of a fold's training patients, divided into folds of their own."""
    check_folds(real, path, [fold])
    return real | {"training": inner_split(split(real, fold)[0], real["labels"])}

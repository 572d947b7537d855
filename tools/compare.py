"""Does painted tissue help? Train the segmenter once per arm, with everything but the training cases held equal."""

import importlib.metadata
import platform
import shutil
import time
from pathlib import Path

import numpy as np

from tools import arms as arm_module
from tools.arms import ARMS, AUGMENTED
from tools.files import InputError, RunError, open_run, sha256, write_json
from tools.nifti import spacing_mm
from tools.results import DICE_FILE, collect, read_dice
from tools.scheme import tissue_labels
from tools.verdicts import REFERENCE, format_table

STEPS_PER_EPOCH_AT_LEAST = 50
# What compare itself decides; an override of these would break the equality of the arms.
RESERVED = (
    *("dataset_dir", "datalist", "fold", "seed", "model_dir", "output_dir"),
    *("max_epochs", "epoch_length", "val_interval"),
)


def compare(
    datalist: Path,
    output: Path,
    arms: tuple = ("real", "oversampled", "copy_paste", "synthetic"),
    folds: tuple | None = None,
    seeds: tuple = (0, 1),
    iterations: int = 2000,
    balance: float = 1.0,
    steps: int = 8,
    max_cases: int | None = None,
    augmentation_seed: int = 0,
    overrides: dict | None = None,
    synthesis_overrides: dict | None = None,
) -> None:
    """Train the segmenter per arm (real, oversampled, copy-pasted, painted), test on real patients, print the verdicts.

    Every arm gets the same number of optimizer steps, the same classical augmentation and the same real cases; nothing
    is fitted outside the training fold. A run that is finished is not repeated: start the command again to go on, or
    with more arms, folds or seeds to add them.

    Args:
        datalist: datalist.json of the real cases.
        output: folder for the runs, results.csv and summary.json; new, or begun with the same settings.
        arms: of real, oversampled, copy_paste, synthetic, synthetic_oversampled; real must be among them.
        folds: to hold out, one after the other; default all.
        seeds: of the segmenter; each is a training run of its own.
        iterations: optimizer steps of every segmenter.
        balance: of augment, how far the rare tissues are filled up.
        steps: of augment, sampling steps of the synthesizer.
        max_cases: of augment, at most so many new cases.
        augmentation_seed: of augment; one synthesizer per fold serves all seeds.
        overrides: config ids of the segmenter's train.json, for example {"device": "cpu", "batch_size": 2}.
        synthesis_overrides: config ids of the synthesizer, passed to augment.

    Raises:
        InputError: for an argument or datalist that cannot be compared, or if any stage has seen a test patient.
        RunError: if runs failed; the others are finished and kept.
    """
    datalist, output = Path(datalist), Path(output)
    overrides, synthesis_overrides = dict(overrides or {}), dict(synthesis_overrides or {})
    arms = [str(arm) for arm in listed(arms)]
    real = arm_module.read_datalist(datalist)
    folds = listed(folds) or sorted({item["fold"] for item in real["training"] if item["fold"] >= 0})
    seeds = listed(seeds)
    _check(real, datalist, arms, folds, seeds, iterations, overrides)
    open_run(
        output,
        {
            "command": "compare",
            "datalist_sha256": sha256(datalist),
            "iterations": iterations,
            "balance": balance,
            "steps": steps,
            "max_cases": max_cases,
            "augmentation_seed": augmentation_seed,
            "overrides": overrides,
            "synthesis_overrides": synthesis_overrides,
        },
    )
    augmentation = {"balance": balance, "steps": steps, "max_cases": max_cases, "seed": augmentation_seed}
    augmentation["overrides"] = synthesis_overrides
    runs = [(fold, seed, arm) for fold in folds for seed in seeds for arm in arms]
    failed = []
    for number, (fold, seed, arm) in enumerate(runs, 1):
        title = f"run {number} of {len(runs)}: fold {fold}, seed {seed}, arm {arm}"
        directory = output / f"fold{fold}" / f"seed{seed}" / arm
        if (directory / "result.json").is_file():
            print(f"{title} (finished earlier)", flush=True)
            continue
        print(title, flush=True)
        source = real if ARMS[arm].method is None else _augmented(datalist, real, fold, arm, output, augmentation)
        try:
            _train(source, real, fold, seed, arm, directory, iterations, overrides)
        except RuntimeError as error:  # one run that dies must not cost the others
            print(f"{title} FAILED: {error}", flush=True)
            failed.append(f"fold {fold} seed {seed} {arm}")
    if failed:
        raise RunError(
            f"{len(failed)} of {len(runs)} runs failed ({'; '.join(failed)}), so there is no result yet; "
            "the others are kept: start the same command again to repeat only these"
        )
    summary = collect(output, real)
    print(f"\n{format_table(summary['rows'])}\n")
    print(f"difference: Dice minus that of arm {REFERENCE} per patient, seeds averaged")
    print("gain or loss: the whole interval lies on one side of 0, and so does the mean of every seed")
    if len(summary["seeds"]) == 1:
        print("one seed only: the interval does not hold the chance of training; add --seeds before any claim")
    print(f"wrote results.csv and summary.json in {output}; next: python -m tools report --directory {output}")


def listed(value: object) -> list:
    """Return a flag's value as a list without repetitions: ``a,b`` and ``0,1`` may arrive as text, number or tuple.

    Example:
        >>> listed("real,synthetic"), listed(0), listed((0, 1, 1)), listed(None)
        (['real', 'synthetic'], [0], [0, 1], [])
    """
    if value is None:
        return []
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    return list(dict.fromkeys(value if isinstance(value, list | tuple) else [value]))


def _check(real: dict, path: Path, arms: list, folds: list, seeds: list, iterations: int, overrides: dict) -> None:
    """Raise InputError for what cannot be compared."""
    for arm in arms:
        if arm not in ARMS:
            raise InputError(f"there is no arm {arm!r}; there are {', '.join(ARMS)}")
    if REFERENCE not in arms:
        raise InputError(f"arms {', '.join(arms) or '(none)'} lack {REFERENCE}, with which the others are compared")
    for name, values in (("folds", folds), ("seeds", seeds)):
        if not values or not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
            raise InputError(f"{name} must be integers such as 0,1, not {values}")
    if not isinstance(iterations, int) or iterations < 1:
        raise InputError(f"iterations must be a whole number of at least 1, not {iterations!r}")
    for key in overrides:
        if key in RESERVED:
            raise InputError(f"overrides may not hold {key!r}: compare sets it equally for every arm")
    if real["labels"] != tissue_labels():
        raise InputError(f"{path} has labels {real['labels']}, but the segmenter has {tissue_labels()}")
    arm_module.check_real(real, path, folds)
    from tools.bundle import check_overrides

    check_overrides("lung_tissue_seg", ["train.json"], overrides)


def _augmented(datalist: Path, real: dict, fold: int, arm: str, output: Path, settings: dict) -> dict:
    """Make (or find) the augmented datalist of a fold and check that it was made without the fold's patients."""
    from tools.augment import augment

    method = ARMS[arm].method
    directory = output / f"fold{fold}" / AUGMENTED[method]
    start, complete = time.monotonic(), (directory / "datalist.json").is_file()
    augment(datalist=datalist, fold=fold, output=directory, method=method, **settings)
    if not complete:
        print(f"augment ({method}) for fold {fold} took {(time.monotonic() - start) / 60:.1f} minutes", flush=True)
    made = arm_module.augmented(directory, real, fold)
    if not any(item.get("synthetic") for item in made["training"]):
        print(f"arm {arm} equals {REFERENCE} in fold {fold}: no case was accepted; {directory}/manifest.jsonl says why")
    return made


def epochs(iterations: int) -> tuple[int, int]:
    """Split a number of optimizer steps exactly into epochs of at least 50 steps, as many epochs as possible.

    Returns:
        Number of epochs and steps per epoch.

    Example:
        >>> epochs(2000), epochs(120), epochs(7)
        ((40, 50), (2, 60), (1, 7))
    """
    most = max(1, iterations // STEPS_PER_EPOCH_AT_LEAST)
    number = next(number for number in range(most, 0, -1) if iterations % number == 0)
    return number, iterations // number


def median_spacing_mm(items: list[dict]) -> list[float]:
    """Return [s, s, -1]: the median in-plane voxel size of some items, and slices left as they are."""
    import nibabel as nib

    sizes = [size for item in items for size in spacing_mm(nib.load(item["image"]))[:2]]
    size = round(float(np.median(sizes)), 4)
    return [size, size, -1]


def _train(
    source: dict, real: dict, fold: int, seed: int, arm: str, directory: Path, iterations: int, overrides: dict
) -> None:
    """Train and evaluate one segmenter; result.json is written last and marks the run as finished."""
    from tools.bundle import run_bundle

    fitted = arm_module.check_leak(source, real, fold, arm)
    real_training, test = arm_module.split(real, fold)
    shutil.rmtree(directory, ignore_errors=True)  # what a killed run left
    directory = directory.resolve()
    own = arm_module.arm_datalist(source, fold, directory, ARMS[arm].repeat)
    write_json(directory / "datalist.json", own)
    number, length = epochs(iterations)
    settings = {
        "dataset_dir": str(directory),
        "datalist": str(directory / "datalist.json"),
        "fold": fold,
        "seed": seed,
        "model_dir": str(directory),
        "output_dir": str(directory),
        "max_epochs": number,
        "epoch_length": length,
        "val_interval": number,  # once, at the end: no checkpoint is chosen on test patients
        "spacing_mm": median_spacing_mm(real_training),
    } | overrides
    start = time.monotonic()
    run_bundle("lung_tissue_seg", ["train.json"], settings, log=directory / "run.log")
    seconds = time.monotonic() - start
    tissues = [name for name in real["labels"] if name != "background"]
    training, _ = arm_module.split(own, fold)
    write_json(
        directory / "result.json",
        {
            "arm": arm,
            "fold": fold,
            "seed": seed,
            "iterations": iterations,
            "training_items": len(training),
            "synthetic_items": sum(bool(item.get("synthetic")) for item in training),
            "train_patients": arm_module.patients(training),
            "test_patients": arm_module.patients(test),
            "fitted_on": fitted,
            "spacing_mm": settings["spacing_mm"],
            "seconds": round(seconds, 1),
            "versions": {name: importlib.metadata.version(name) for name in ("monai", "torch", "numpy")}
            | {"python": platform.python_version()},
            "dice": read_dice(directory / DICE_FILE, test, tissues),
        },
    )

"""How well the segmenter, a plain U-Net and nnU-Net label the same folds after the same number of optimizer steps."""

import shutil
import time
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from tools.bench import nnunet_runs
from tools.bench.machine import choose_device, machine
from tools.bench.nnunet_worker import STEPS_PER_EPOCH
from tools.bundles import BUNDLES
from tools.data.datalist import Case, check_real, read_datalist, split
from tools.data.nnunet import case_numbers
from tools.flags import listed
from tools.io.files import InputError, RunError, check_writable, open_run, read_json, sha256, write_json
from tools.tissues import pathological_tissues, tissue_labels, unlabelled_value
from tools.workflows.run import run_bundle
from tools.workflows.segmenter import SEGMENTER, dice, epochs, label_cts, median_spacing_mm, of_inference

RESAMPLES = 10_000
OURS, PLAIN, NNUNET = METHODS = ("segmenter", "plain U-Net", "nnU-Net")
# the paper's baseline: MONAI's U-Net as it comes, all tissues alike
PLAIN_SETTINGS = {
    "network_def::num_res_units": 0,
    "network_def::norm": "instance",
    "tissue_ratios": [1] * 6,
    "tissue_weights": [1.0] * 6,
}


def bench_accuracy(
    datalist: Path,
    nnunet: Path,
    output: Path,
    folds: object = None,
    steps: int = 600,
    seed: int = 0,
    device: str | None = None,
) -> None:
    """Compare the accuracy of the segmenter, a plain U-Net and nnU-Net v2 on the same folds and steps.

    Per fold the segmenter, MONAI's U-Net as it comes and nnU-Net v2 (Isensee et al. 2021, 2D, planned for as many
    voxels a step as the segmenter sees) are trained for the same number of steps, label the fold's patients, mirrored,
    and are compared by Dice per patient. The trainings lie in a folder beside ``output``, named as it is; started
    again, it goes on.

    Args:
        datalist: The datalist.json as `dataset` writes it.
        nnunet: Python of an environment with nnunetv2 (pip install nnunetv2==2.8.1), apart from this one.
        output: JSON file to write.
        folds: Folds to hold out one after another, as 0,1,2; all of the datalist by default.
        steps: Optimizer steps of each training, a multiple of 25.
        seed: Seed of each training.
        device: The device, cpu or cuda; the GPU if there is one by default.

    Raises:
        InputError: if the device or datalist cannot be used, nnunetv2 is missing, or the file cannot be written.
        RunError: if a training fails.
    """
    chosen = choose_device(device)
    output, python = Path(output), Path(nnunet)
    check_writable(output.parent)
    real = read_datalist(datalist)
    every = sorted({case.fold for case in real["training"]})
    folds = listed(folds) or every
    check_real(real, datalist, folds)
    if real["labels"] != tissue_labels():
        raise InputError(f"{datalist} has labels {real['labels']}, but the segmenter has {tissue_labels()}")
    nnunet_runs.check(python)
    if steps < 1 or steps % STEPS_PER_EPOCH:
        raise InputError(f"steps must be a multiple of {STEPS_PER_EPOCH}, nnU-Net's epoch here, not {steps}")
    config = read_json(BUNDLES / SEGMENTER / "configs/train.json")
    voxels = config["batch_size"] * config["patch_size"] ** 2
    settings = {"steps": steps, "voxels_per_step": voxels, "seed": seed}
    folder = open_run(output.with_suffix(""), settings | {"datalist_sha256": sha256(datalist)}).resolve()
    plan = nnunet_runs.prepare(folder, python, real, every, voxels)
    rows, seconds = [], {method: [] for method in METHODS}
    for fold in folds:
        training, test = split(real, fold)
        for method in METHODS:
            directory = folder / f"fold{fold}" / method.replace(" ", "_")
            if not (directory / "result.json").is_file():
                print(f"fold {fold}: {method}", flush=True)
                shutil.rmtree(directory, ignore_errors=True)  # what a killed run left
                start = time.monotonic()
                common = {"seed": seed, "device": chosen.type}
                if method == NNUNET:
                    job = {"task": "train", "folder": str(folder), "fold": every.index(fold), "steps": steps}
                    nnunet_runs.run_job(python, directory, job | common)
                else:
                    own = common | {"fold": fold} | (PLAIN_SETTINGS if method == PLAIN else {})
                    run_segmenter(directory, datalist, median_spacing_mm(training), steps, test, own)
                spent = time.monotonic() - start
                names = case_numbers(real) if method == NNUNET else {}
                scored = score(test, directory / "labels", names, real["labels"])
                write_json(directory / "result.json", {"seconds": spent, "dice": scored})
            found = read_json(directory / "result.json")
            seconds[method].append(found["seconds"])
            rows += [{"method": method, "fold": fold} | row for row in found["dice"]]
    result = {
        "machine": machine(chosen),
        "settings": settings | {"folds": folds},
        "nnunet_plan": plan,
        "seconds": {method: float(np.mean(values)) for method, values in seconds.items()},
        "tissues": summarise(rows),
        "rows": rows,
    }
    print(lines(result))
    write_json(output, result)
    print(f"wrote {output}")


def run_segmenter(
    directory: Path, datalist: Path, spacing: list[float], steps: int, test: list[Case], settings: dict
) -> None:
    """Train the segmenter's bundle, and label the held-out cases with mirroring, as nnU-Net does."""
    number, length = epochs(steps)
    training = {"datalist": str(Path(datalist).resolve()), "dataset_dir": str(directory), "max_epochs": number}
    training |= {"epoch_length": length, "val_interval": number, "spacing_mm": spacing} | settings
    places = {"model_dir": str(directory), "output_dir": str(directory)}
    run_bundle(SEGMENTER, ["train.json"], training | places, directory / "train.log")
    labelling = of_inference(settings) | {"spacing_mm": spacing, "displayable_configs::mirror": True}
    images = {f"{number:04d}": case.image for number, case in enumerate(test)}
    label_cts(images, directory / "model.pt", directory / "labels", labelling, directory / "label.log")


def score(test: list[Case], folder: Path, names: dict[Path, str], labels: dict[str, int]) -> list[dict]:
    """Return patient, tissue and mean Dice of the cases that hold it; RunError for a missing or misshapen map."""
    found: dict[tuple[str, str], list[float]] = {}
    for number, case in enumerate(test):  # a map is named by its place where it has no name
        name = names.get(case.image, f"{number:04d}_tissues")
        if not (folder / f"{name}.nii.gz").is_file():
            raise RunError(f"{folder} lacks {name}.nii.gz, the labels of {case.image}")
        answer, truth = (np.asarray(nib.load(path).dataobj) for path in (folder / f"{name}.nii.gz", case.label))
        if answer.shape != truth.shape:
            raise RunError(f"{folder / name}.nii.gz has shape {answer.shape}, its label {truth.shape}")
        known = truth != unlabelled_value()
        for tissue, value in labels.items():
            wanted, given = (truth == value) & known, (answer == value) & known
            if tissue != "background" and wanted.any():
                found.setdefault((case.patient, tissue), []).append(dice([(wanted, given)]))
    return [{"patient": key[0], "tissue": key[1], "dice": float(np.mean(values))} for key, values in found.items()]


def summarise(rows: list[dict]) -> list[dict]:
    """Return a row per tissue, and one for the mean over the pathological tissues.

    Each holds ``patients``, ``dice`` (method to mean over patients) and ``difference`` (other method to the mean of
    segmenter minus that method, and its 95 % interval when patients are resampled).
    """
    table = pd.DataFrame(rows).pivot(index="patient", columns=["method", "tissue"], values="dice")
    tissues = [tissue for tissue in tissue_labels() if tissue in table.columns.get_level_values("tissue")]
    ill = [tissue for tissue in tissues if tissue in pathological_tissues()]
    result = []
    for name, group in [(tissue, [tissue]) for tissue in tissues] + [("mean of the pathological", ill)]:
        parts = {method: table[method][group].dropna(how="all") for method in METHODS}
        differences = {other: interval((parts[OURS] - parts[other]).to_numpy()) for other in (PLAIN, NNUNET)}
        means = {method: float(part.mean().mean()) for method, part in parts.items()}
        result.append({"tissue": name, "patients": len(parts[OURS]), "dice": means, "difference": differences})
    return result


def interval(values: np.ndarray, seed: int = 0) -> list[float]:
    """Return the mean over tissues of the means over patients, and its 95 % percentile interval.

    Patients are resampled with all their tissues. A single one has no interval: its ends are the mean. ``values`` has
    the shape (patients, tissues), NaN where a patient lacks a tissue.

    Example:
        >>> interval(np.array([[0.1, np.nan], [0.1, 0.3]]))[0]
        0.2
    """

    def over_tissues(picks: np.ndarray, axis: int = -1) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a sample may hold no patient with a rare tissue
            return np.nanmean(np.nanmean(values[picks], axis=axis - 1), axis=-1)

    patients, rng = np.arange(len(values)), np.random.default_rng(seed)
    mean = float(np.nanmean(values, axis=0).mean())
    if len(values) == 1:
        return [mean] * 3
    drawn = bootstrap((patients,), over_tissues, n_resamples=RESAMPLES, method="percentile", rng=rng)
    return [mean, *map(float, drawn.confidence_interval)]


def lines(result: dict) -> str:
    """Return the comparison as a table."""
    head = f"{'tissue':26s}{'patients':>9s}" + "".join(f"{method:>13s}" for method in METHODS)
    text = [head + "".join(f"{f'minus {other}':>30s}" for other in (PLAIN, NNUNET))]
    for row in result["tissues"]:
        line = f"{row['tissue']:26s}{row['patients']:9d}" + "".join(f"{row['dice'][name]:13.3f}" for name in METHODS)
        for mean, low, high in row["difference"].values():
            line += f"{f'{mean:+.3f} ({low:+.3f}, {high:+.3f})':>30s}"
        text.append(line)
    text.append("seconds a fold: " + ", ".join(f"{name} {seconds:.0f}" for name, seconds in result["seconds"].items()))
    return "\n".join(text)

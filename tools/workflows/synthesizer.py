"""The synthesizer's bundle as `augment` uses it: train it on some cases, tell it of the patients, paint."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas
import torch

from tools.bundles import BUNDLES, load_script
from tools.data.datalist import Case, patients
from tools.data.provenance import SYNTHESIZER_CARD, cases_read, read_card
from tools.io.files import InputError, read_json, sha256, write_json, write_text
from tools.io.volume import axial_axis
from tools.workflows.run import FINE_TUNE, run_bundle
from tools.workflows.segmenter import epochs

SYNTHESIZER, DENSITY = "difflung_synthesis", "density_"  # and the prefix of conditions that hold a tissue's HU
# Way of training to the overlays of train.json that define it.
CONFIGS = {
    "cbmat": ["train.json"],
    "konz": ["train.json", "konz_ablation.yaml"],
    "no_ablation": ["train.json", "no_ablation.yaml"],
}


def card_settings(checkpoint: Path, held_out: list[Case]) -> dict:
    """Return the config ids and values that weights were trained with, or nothing where they have no card.

    Args:
        checkpoint: Weights of the synthesizer.
        held_out: Cases that it must not know.

    Raises:
        InputError: if there are no such weights, or the card names a held-out patient or CT.
    """
    if not Path(checkpoint).is_file():
        raise InputError(f"checkpoint {checkpoint} does not exist")
    if not Path(checkpoint).with_name("card.json").is_file():
        return {}
    return read_card(checkpoint, held_out, "synthesizer").get("overrides", {})


def known_attributes(training: list[Case], synthesizer: Path | None, overrides: dict) -> dict[str, list]:
    """Return the attributes the synthesizer is told and their ranges, as ``attributes`` in its config.

    Those of existing weights stand on their card; else they span what the training patients have.
    """
    if "attributes" in overrides:
        return overrides["attributes"]
    if synthesizer:
        return read_json(Path(synthesizer).with_name("card.json"))["attributes"]
    ranges: dict[str, list] = {}
    for name in ("severity", "age"):
        values = [float(case.attributes[name]) for case in training if name in case.attributes]
        if len(set(values)) > 1:
            ranges[name] = [min(values), max(values)]
    histories = sorted({case.attributes["history"] for case in training if case.attributes.get("history")})
    return ranges | ({"history": histories} if len(histories) > 1 else {})


def write_conditions(conditions: dict[str, dict], attributes: dict[str, list], path: Path) -> None:
    """Write what the synthesizer is told, case by case, as the ``conditions.csv`` of its inference."""
    densities = sorted({name for told in conditions.values() for name in told if name.startswith(DENSITY)})
    columns = [*attributes, *densities]
    rows = [{"case": case} | {name: told.get(name, "") for name in columns} for case, told in conditions.items()]
    write_text(path, pandas.DataFrame(rows, columns=["case", *columns]).to_csv(index=False))


def check_tuning(steps: int, synthesizer: Path | None) -> None:
    """Raise InputError if there are steps to go on with, but no weights, or fewer steps than none."""
    if steps < 0 or (steps and synthesizer is None):
        raise InputError(f"tune_steps {steps} is how long the weights of --synthesizer are trained on; give both")


def train_synthesizer(
    training: list[Case], output: Path, seed: int, method: str, overrides: dict, start: Path | None = None,
    steps: int = 0, variables: dict | None = None,
) -> Path:  # fmt: skip
    """Train the synthesizer on the training cases alone and return its weights; a card names what was read.

    Args:
        training: Cases that are trained on.
        output: Folder of ``augment``; the weights go into ``synthesizer/`` below it.
        seed: Seed for the training.
        method: A key of ``CONFIGS``.
        overrides: Config ids and values, ``attributes`` among them.
        start: Weights with their card.json to go on from, instead of from scratch; their patients stay on the card.
        steps: Number of optimizer steps with which it goes on.
        variables: Environment variables of the run.
    """
    folder = output / Path(SYNTHESIZER_CARD).parent
    if (folder / "model.pt").is_file() and (folder / "card.json").is_file():
        return folder / "model.pt"
    partial = output / "synthesizer.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    keys = ("image", "label", *overrides["attributes"])
    items = [case.item(partial) for case in training]
    items = [{key: item[key] for key in keys if item.get(key) is not None} | {"fold": -1} for item in items]
    write_json(partial / "datalist.json", {"training": items})  # the held-out files are not even named
    cases = cases_read(training)
    print(f"training the synthesizer on {len(training)} cases; its log is {partial / 'train.log'}", flush=True)
    run = {
        "dataset_dir": str(partial), "model_dir": str(partial), "output_dir": str(partial), "fold": 0, "seed": seed,
        "val_interval": 1000000,
    }  # fmt: skip
    configs, known = CONFIGS[method], {}
    if start:
        number, length = epochs(steps)
        run |= {"start": str(start.resolve()), "max_epochs": number, "epoch_length": length}
        configs, known = [*configs, FINE_TUNE], read_json(start.with_name("card.json"))
    before = known.get("cases", [])
    run_bundle(SYNTHESIZER, configs, run | overrides, partial / "train.log", variables)
    (partial / "datalist.json").unlink()
    card = {
        "patients": sorted({*patients(training), *known.get("patients", []), *(row["patient"] for row in before)}),
        "cases": cases + before,
        "method": method,
        "seed": seed,
        "overrides": overrides,
        "attributes": overrides["attributes"],
        "sha256": sha256(partial / "model.pt"),
    }
    write_json(partial / "card.json", card)
    partial.rename(folder)
    return folder / "model.pt"


def smallest_region(overrides: dict) -> int:
    """Return the voxels of the network's size that a region needs: one cell of the coarsest level, as painting does.

    Args:
        overrides: Config ids of the synthesizer and their values.
    """
    config = read_json(BUNDLES / SYNTHESIZER / "configs/train.json") | overrides
    dims = 2 if config["patch_size"][2] == 1 else 3
    return (2 ** (len(config["network_channels"]) - 1)) ** dims


def region_margin(settings: Mapping) -> int:
    """Return by how many in-plane voxels painting with some settings grows its region."""
    return (read_json(BUNDLES / SYNTHESIZER / "configs/inference.json") | dict(settings))["region_margin"]


def painted_region(label: np.ndarray, target: np.ndarray, affine: np.ndarray, margin: int) -> np.ndarray:
    """Return where painting may change a CT: where its target map differs, and a margin in the lung around.

    Args:
        label: The CT's tissue map, shape (W, H, D).
        target: The map wanted, the same shape.
        affine: From voxels to RAS in mm.
        margin: In-plane voxels, see ``region_margin``.

    Returns:
        Bool, the same shape.
    """
    where, lung = (torch.from_numpy(np.ascontiguousarray(part)) for part in (target != label, label != 0))
    return load_script(SYNTHESIZER, "region").grow(where[None], lung[None], margin, axial_axis(affine))[0].numpy()


def painting_overrides(overrides: dict, steps: int, seed: int) -> dict:
    """Return the config ids of a painting: what inference shares with training, the steps and the seed."""
    shared = read_json(BUNDLES / SYNTHESIZER / "configs/inference.json")
    return {key: value for key, value in overrides.items() if key in shared} | {"num_steps": steps, "seed": seed}


def paint(work: Path, weights: Path, settings: dict, threads: int, log: Path) -> None:
    """Run the synthesizer's inference over ``work``, from which ``work/painted`` is made.

    Args:
        work: Folder with ``images``, ``labels``, ``targets`` and ``conditions.csv``.
        weights: Weights of the synthesizer.
        settings: From ``painting_overrides``.
        threads: Threads of the CPU; sums in another order round differently, so a replay needs as many.
        log: File for the log of the run.
    """
    shutil.rmtree(work / "painted", ignore_errors=True)
    run = {"dataset_dir": str(work), "output_dir": str(work / "painted"), "checkpoint": str(weights)}
    run_bundle(SYNTHESIZER, ["inference.json"], run | settings, log, {"OMP_NUM_THREADS": str(threads)})

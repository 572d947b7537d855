"""The synthesizer's bundle as `augment` uses it: train it on some cases, tell it of the patients, paint."""

import shutil
from pathlib import Path

import pandas

from tools.bundles import BUNDLES
from tools.data.provenance import SYNTHESIZER_CARD, cases_read
from tools.io.files import InputError, read_json, sha256, write_json, write_text
from tools.workflows.run import run_bundle

SYNTHESIZER = "difflung_synthesis"
# Way of training to the overlays of train.json that define it.
CONFIGS = {
    "cbmat": ["train.json"],
    "konz": ["train.json", "konz_ablation.yaml"],
    "no_ablation": ["train.json", "no_ablation.yaml"],
}


def existing_weights(weights: Path, held_out: list[dict], what: str = "synthesizer") -> Path:
    """Return the weights if the card beside them shows that no held-out patient was trained on."""
    weights = Path(weights)
    if not weights.is_file():
        raise InputError(f"{what} {weights} does not exist")
    card = read_json(weights.with_name("card.json"))
    trained_on = {row["patient"] for row in card.get("cases", [])} | set(card.get("patients", []))
    if not trained_on:
        raise InputError(f"{weights.with_name('card.json')} does not say whom {what} {weights} was trained on")
    seen = trained_on & {item["patient"] for item in held_out}
    if seen:
        raise InputError(f"{what} {weights} was trained on held-out patient {sorted(seen)[0]}")
    return weights


def known_attributes(training: list[dict], synthesizer: Path | None, overrides: dict) -> dict[str, list]:
    """Return the attributes the synthesizer is told and their ranges, as ``attributes`` in its config.

    Those of existing weights stand on their card; else they span what the training patients have.
    """
    if "attributes" in overrides:
        return overrides["attributes"]
    if synthesizer:
        return read_json(Path(synthesizer).with_name("card.json"))["attributes"]
    ranges: dict[str, list] = {}
    for name in ("severity", "age"):
        values = [float(item[name]) for item in training if item.get(name) is not None]
        if len(set(values)) > 1:
            ranges[name] = [min(values), max(values)]
    histories = sorted({item["history"] for item in training if item.get("history")})
    return ranges | ({"history": histories} if len(histories) > 1 else {})


def known_conditions(item: dict, attributes: dict[str, list]) -> dict[str, object]:
    """Return what the synthesizer is told of an item's patient; what lies outside its ranges is left out."""
    known = {}
    for name, allowed in attributes.items():
        value = item.get(name)
        if value is None:
            continue
        if value in allowed if isinstance(allowed[0], str) else allowed[0] <= float(value) <= allowed[1]:
            known[name] = value
    return known


def write_conditions(conditions: dict[str, dict], attributes: dict[str, list], path: Path) -> None:
    """Write what the synthesizer is told, case by case, as the ``conditions.csv`` of its inference."""
    rows = [{"case": case} | {name: told.get(name, "") for name in attributes} for case, told in conditions.items()]
    write_text(path, pandas.DataFrame(rows, columns=["case", *attributes]).to_csv(index=False))


def train_synthesizer(training: list[dict], output: Path, seed: int, method: str, overrides: dict) -> Path:
    """Train the synthesizer on the training items alone and return its weights; a card names what was read.

    Args:
        training: items with absolute paths.
        output: folder of ``augment``; the weights go into ``synthesizer/`` below it.
        seed: of the training.
        method: of ``CONFIGS``.
        overrides: config ids and values, ``attributes`` among them.
    """
    folder = output / Path(SYNTHESIZER_CARD).parent
    if (folder / "model.pt").is_file() and (folder / "card.json").is_file():
        return folder / "model.pt"
    partial = output / "synthesizer.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    keys = ("image", "label", *overrides["attributes"])
    items = [{key: item[key] for key in keys if item.get(key) is not None} | {"fold": -1} for item in training]
    write_json(partial / "datalist.json", {"training": items})  # the held-out files are not even named
    cases = cases_read(training)
    print(f"training the synthesizer on {len(training)} cases; its log is {partial / 'train.log'}", flush=True)
    run = {
        "dataset_dir": str(partial), "model_dir": str(partial), "output_dir": str(partial), "fold": 0, "seed": seed,
        "val_interval": 1000000,
    }  # fmt: skip
    run_bundle(SYNTHESIZER, CONFIGS[method], run | overrides, partial / "train.log")
    (partial / "datalist.json").unlink()
    card = {
        "patients": sorted({item["patient"] for item in training}),
        "cases": cases,
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
        overrides: config ids of the synthesizer.
    """
    config = read_json(BUNDLES / SYNTHESIZER / "configs/train.json") | overrides
    dims = 2 if config["patch_size"][2] == 1 else 3
    return (2 ** (len(config["network_channels"]) - 1)) ** dims


def painting_overrides(overrides: dict, steps: int, seed: int) -> dict:
    """Return the config ids of a painting: what inference shares with training, the steps and the seed."""
    shared = read_json(BUNDLES / SYNTHESIZER / "configs/inference.json")
    return {key: value for key, value in overrides.items() if key in shared} | {"num_steps": steps, "seed": seed}


def paint(work: Path, weights: Path, settings: dict, threads: int, log: Path) -> None:
    """Run the synthesizer's inference over ``work``, from which ``work/painted`` is made.

    Args:
        work: folder with ``images``, ``labels``, ``targets`` and ``conditions.csv``.
        weights: of the synthesizer.
        settings: from ``painting_overrides``.
        threads: of the CPU; sums in another order round differently, so a replay needs as many.
        log: of the run.
    """
    shutil.rmtree(work / "painted", ignore_errors=True)
    run = {"dataset_dir": str(work), "output_dir": str(work / "painted"), "checkpoint": str(weights)}
    run_bundle(SYNTHESIZER, ["inference.json"], run | settings, log, {"OMP_NUM_THREADS": str(threads)})

"""Make synthetic cases for one fold: train the synthesizer on the fold's training patients, draw maps, paint, check."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas
from tqdm import tqdm

from tools.bundle import check_overrides, run_bundle
from tools.files import InputError, RunError, open_run, read_json, sha256, write_json, write_text
from tools.masks import Host, Lesion, canonical, canonical_spacing, find_lesions, original
from tools.nifti import (
    SYNTHETIC_MARK,
    case_name,
    check_same_geometry,
    load_ct,
    load_labels,
    relative,
    save_nifti,
)
from tools.scheme import BUNDLES, pathological_tissues, tissue_labels

METHODS = ("diffusion", "copy_paste")
SYNTHESIZER = "difflung_synthesis"
# Checks on a painted region against the same tissue of the training patients.
HU_QUANTILES = (0.02, 0.98)  # the region's median HU must lie between these of the tissue's voxels
SPREAD_RATIO = (0.3, 3.0)  # the region's standard deviation in HU over the tissue's
MIN_VOXELS = 24


def augment(
    datalist: Path,
    fold: int,
    output: Path,
    balance: float = 1.0,
    steps: int = 8,
    seed: int = 0,
    method: str = "diffusion",
    synthesizer: Path | None = None,
    max_cases: int | None = None,
    overrides: dict | None = None,
) -> None:
    """Paint synthetic cases for one fold until its rare tissues are balanced.

    Only the fold's training patients are read: the synthesizer is trained on them, the lesions that give the new maps
    their shapes are theirs, and so are the CTs that are painted. Started again with the same settings it goes on.

    Args:
        datalist: datalist.json as `dataset` writes it.
        fold: the fold that is held out.
        output: new folder for images, labels, datalist.json, manifest.jsonl and the synthesizer.
        balance: volume that each pathological tissue shall reach, as a share of the most frequent one's.
        steps: network evaluations per painted window.
        seed: of the maps, the training and the painting.
        method: diffusion, or copy_paste to fill the same maps with the donors' own HU (the free rival).
        synthesizer: weights made by an earlier `augment`, to use instead of training new ones.
        max_cases: at most so many cases are painted; as many as there are training cases if not given.
        overrides: ids of the synthesizer's train.json and their values, such as "{max_epochs: 4}".

    Raises:
        InputError: if the input is unusable, a patient is on both sides, or the output holds something else.
    """
    if method not in METHODS:
        raise InputError(f"method must be one of {', '.join(METHODS)}, not {method}")
    if not 0 < balance <= 1:
        raise InputError(f"balance must be above 0 and at most 1, not {balance}")
    if not isinstance(steps, int) or steps < 1:
        raise InputError(f"steps must be a whole number of at least 1, not {steps}")
    if max_cases is not None and (not isinstance(max_cases, int) or max_cases < 1):
        raise InputError(f"max_cases must be a whole number of at least 1, not {max_cases}")
    overrides = dict(overrides or {})
    check_overrides(SYNTHESIZER, ["train.json"], overrides)
    training, held_out = split_fold(Path(datalist), fold)
    settings = {
        "command": "augment", "datalist_sha256": sha256(datalist), "fold": fold, "balance": balance, "steps": steps,
        "seed": seed, "method": method, "max_cases": max_cases, "overrides": overrides,
        "synthesizer": sha256(existing_weights(synthesizer, held_out)) if synthesizer else None,
    }  # fmt: skip
    output = open_run(output, settings)
    if (output / "datalist.json").is_file():
        print(f"{output} is complete already")
        return
    plan, statistics = draw_maps(training, output, balance, seed, max_cases or len(training), method)
    weights = None
    if plan and method == "diffusion":
        overrides |= {"attributes": known_attributes(training, synthesizer, overrides)}
        weights = Path(synthesizer) if synthesizer else train_synthesizer(training, output, seed, overrides)
        write_conditions(plan, training, overrides["attributes"], output / "work/conditions.csv")
        paint(output, weights, steps, seed, overrides)
    rows = collect(plan, statistics, output, steps, seed, method, weights)
    write_datalist(Path(datalist), training, held_out, rows, fold, output)
    shutil.rmtree(output / "work", ignore_errors=True)
    if not plan:
        print("the tissues are balanced already, so nothing was painted")
    accepted = sum(row["accepted"] for row in rows)
    print(
        f"wrote {accepted} of {len(rows)} painted cases to {output} (manifest.jsonl says why any was dropped); "
        f"next: python -m tools compare --datalist {datalist} --output COMPARISON, or train on {output}/datalist.json"
    )


def split_fold(datalist: Path, fold: int) -> tuple[list[dict], list[dict]]:
    """Return the training items and the held-out items of a datalist, with absolute paths.

    Raises:
        InputError: if an item lacks something, the fold holds no case or all, or a patient is on both sides.
    """
    content = read_json(datalist)
    items = []
    for number, item in enumerate(content.get("training", [])):
        lacking = [key for key in ("image", "label", "fold", "patient") if key not in item]
        if lacking:
            raise InputError(f"{datalist}: training item {number} has no {lacking[0]}; make it with tools dataset")
        folder = Path(datalist).absolute().parent
        items.append(item | {"image": str(folder / item["image"]), "label": str(folder / item["label"])})
    training = [item for item in items if item["fold"] != fold]
    held_out = [item for item in items if item["fold"] == fold]
    if not held_out or not training:
        folds = sorted({item["fold"] for item in items})
        raise InputError(f"{datalist} has folds {folds}; holding out fold {fold} leaves one side empty")
    both = {item["patient"] for item in training} & {item["patient"] for item in held_out}
    if both:
        raise InputError(f"patient {sorted(both)[0]} is in fold {fold} and in another; folds must keep patients whole")
    return training, held_out


def existing_weights(synthesizer: Path, held_out: list[dict]) -> Path:
    """Return the weights if the card beside them shows that no held-out patient was trained on."""
    synthesizer = Path(synthesizer)
    if not synthesizer.is_file():
        raise InputError(f"synthesizer {synthesizer} does not exist")
    card = read_json(synthesizer.with_name("card.json"))
    seen = set(card["patients"]) & {item["patient"] for item in held_out}
    if seen:
        raise InputError(f"synthesizer {synthesizer} was trained on held-out patient {sorted(seen)[0]}")
    return synthesizer


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


def write_conditions(plan: list[dict], training: list[dict], attributes: dict[str, list], path: Path) -> None:
    """Tell the synthesizer about the patient of each case; what lies outside its ranges stays unknown."""
    items = {item["image"]: item for item in training}
    table = pandas.DataFrame({"case": [row["case"] for row in plan]})
    for name, allowed in attributes.items():
        values = pandas.Series([items[row["image"]].get(name) for row in plan], dtype=object)
        known = values.isin(allowed) if isinstance(allowed[0], str) else values.astype(float).between(*allowed)
        table[name] = values.where(known, "")
    write_text(path, table.to_csv(index=False))


def train_synthesizer(training: list[dict], output: Path, seed: int, overrides: dict) -> Path:
    """Train the synthesizer on the training items alone and return its weights; a card names the patients."""
    folder = output / "synthesizer"
    if (folder / "model.pt").is_file() and (folder / "card.json").is_file():
        return folder / "model.pt"
    partial = output / "synthesizer.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    keys = ("image", "label", *overrides["attributes"])
    items = [{key: item[key] for key in keys if item.get(key) is not None} | {"fold": -1} for item in training]
    write_json(partial / "datalist.json", {"training": items})  # the held-out files are not even named
    print(f"training the synthesizer on {len(training)} cases; its log is {partial / 'train.log'}", flush=True)
    run = {
        "dataset_dir": str(partial), "model_dir": str(partial), "output_dir": str(partial), "fold": 0, "seed": seed,
        "val_interval": 1000000,
    }  # fmt: skip
    run_bundle(SYNTHESIZER, ["train.json"], run | overrides, partial / "train.log")
    (partial / "datalist.json").unlink()
    card = {"patients": sorted({item["patient"] for item in training}), "seed": seed, "overrides": overrides}
    card["attributes"] = overrides["attributes"]
    write_json(partial / "card.json", card | {"sha256": sha256(partial / "model.pt")})
    partial.rename(folder)
    return folder / "model.pt"


def draw_maps(
    training: list[dict], output: Path, balance: float, seed: int, max_cases: int, method: str
) -> tuple[list[dict], dict]:
    """Draw target maps until the tissues are balanced, and lay everything out for painting in ``output/work``.

    Returns:
        One row per case (case, source, patient, donors, voxels), and HU statistics per tissue of the training cases.

    Raises:
        InputError: if the training cases hold no pathological tissue or no map could be drawn.
    """
    labels = tissue_labels()
    tissues = {name: labels[name] for name in pathological_tissues()}
    work = output / "work"
    shutil.rmtree(work, ignore_errors=True)
    bank, volumes, statistics = lesion_bank(training, tissues)
    total = {tissue: sum(amounts) for tissue, amounts in volumes.items() if sum(amounts) > 0}
    if not bank:
        raise InputError("the training cases hold no pathological tissue, so there are no shapes to draw from")
    wanted = balance * max(total.values())
    rng = np.random.default_rng(seed)
    hosts: list[int] = []
    plan: list[dict] = []
    progress = tqdm(desc="drawing maps", unit="case", total=max_cases)
    for _ in range(3 * max_cases):
        short = {tissue: total[tissue] / wanted for tissue in total if total[tissue] < wanted and tissue in bank}
        if not short or len(plan) == max_cases:
            break
        hosts = hosts or list(rng.permutation(len(training)))
        item = training[hosts.pop()]
        rarest = sorted(short, key=short.get)
        chosen = rarest[: 1 + int(len(rarest) > 1 and rng.random() < 0.5)]
        case = f"{case_name(item['image'])}_s{len(plan):03d}"
        host, painted = draw_case(item, chosen, labels, bank, volumes, rng)
        if not painted:
            continue
        for tissue, volume_ml in painted.items():
            total[tissue] += volume_ml
        lay_out(case, item, host, work, method)
        plan.append({"case": case, "source": case_name(item["image"]), "patient": item["patient"],
                     "tissues": sorted(painted), "volume_ml": {t: round(v, 2) for t, v in painted.items()},
                     "donors": host.donors, "image": item["image"], "label": item["label"]})  # fmt: skip
        progress.update()
    progress.close()
    if not plan and any(amount < wanted for amount in total.values()):
        raise InputError("no new map could be drawn: the training lungs have too little healthy room for the lesions")
    return plan, statistics


def lesion_bank(training: list[dict], tissues: dict[str, int]) -> tuple[dict[str, list[Lesion]], dict, dict]:
    """Return the lesions per tissue, the volume in ml per tissue and case that has it, and HU statistics per tissue."""
    bank: dict[str, list[Lesion]] = {}
    volumes: dict[str, list[float]] = {tissue: [] for tissue in tissues}
    samples: dict[str, list[np.ndarray]] = {tissue: [] for tissue in tissues}
    for item in tqdm(training, desc="collecting lesions", unit="case"):
        label, hu, spacing = load_case(item)
        for lesion in find_lesions(case_name(item["image"]), label, hu, spacing, tissues):
            bank.setdefault(lesion.tissue, []).append(lesion)
        for tissue, value in tissues.items():
            inside = hu[label == value]
            if len(inside):
                volumes[tissue].append(len(inside) * float(np.prod(spacing)) / 1000)
                samples[tissue].append(inside[:: max(1, len(inside) // 20000)])
    statistics = {}
    for tissue, parts in samples.items():
        if parts:
            voxels = np.concatenate(parts)
            low, high = np.quantile(voxels, HU_QUANTILES)
            statistics[tissue] = {"low": float(low), "high": float(high), "spread": float(voxels.std())}
    return bank, volumes, statistics


def load_case(item: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return tissue map, HU and spacing in mm of a datalist item, in canonical orientation."""
    hu, image = load_ct(item["image"])
    label, label_image = load_labels(item["label"], tissue_labels())
    check_same_geometry(image, label_image, item["image"], item["label"])
    return canonical(label, image.affine), canonical(hu, image.affine), canonical_spacing(image)


def draw_case(item, tissues, labels, bank, volumes, rng) -> tuple[Host, dict[str, float]]:
    """Place lesions of some tissues in one CT until each has the volume it has in a random case that holds it."""
    label, hu, spacing = load_case(item)
    host = Host(label, hu, spacing, labels["healthy"])
    voxel_ml = float(np.prod(spacing)) / 1000
    painted: dict[str, float] = {}
    for tissue in tissues:
        amount, failures = rng.choice(volumes[tissue]), 0
        while painted.get(tissue, 0.0) < amount and failures < 6:
            voxels = host.place(bank[tissue][rng.integers(len(bank[tissue]))], labels[tissue], rng)
            failures += voxels == 0
            if voxels:
                painted[tissue] = painted.get(tissue, 0.0) + voxels * voxel_ml
    return host, painted


def lay_out(case: str, item: dict, host: Host, work: Path, method: str) -> None:
    """Write what painting a case needs: links to its CT and map, the target map, and for copy-paste the result."""
    image = nib.load(item["image"])
    for kind in ("image", "label"):
        folder = work / f"{kind}s"
        folder.mkdir(parents=True, exist_ok=True)
        suffix = ".nii.gz" if item[kind].endswith(".gz") else ".nii"
        (folder / (case + suffix)).symlink_to(Path(item[kind]).absolute())
    save_nifti(original(host.target, image.affine).astype(np.uint8), image, work / "targets" / f"{case}.nii.gz")
    if method == "copy_paste":
        pasted = original(host.pasted, image.affine)
        if np.array_equal(host.hu, np.round(host.hu)):
            pasted = np.round(pasted)
        save_nifti(pasted.astype(np.float32), image, work / "painted" / f"{case}.nii.gz")


def paint(output: Path, weights: Path, steps: int, seed: int, overrides: dict) -> None:
    """Run the synthesizer's inference over ``output/work``; overrides that inference shares with training are kept."""
    work = output / "work"
    shutil.rmtree(work / "painted", ignore_errors=True)
    shared = read_json(BUNDLES / SYNTHESIZER / "configs/inference.json")
    run = {key: value for key, value in overrides.items() if key in shared}
    run |= {"dataset_dir": str(work), "output_dir": str(work / "painted"), "checkpoint": str(weights)}
    run |= {"num_steps": steps, "seed": seed}
    print(f"painting; the log is {output / 'paint.log'}", flush=True)
    run_bundle(SYNTHESIZER, ["inference.json"], run, output / "paint.log")


def check_painting(hu: np.ndarray, target: np.ndarray, region: np.ndarray, tissues: list[str], statistics: dict) -> str:
    """Return why a painted case is dropped, or an empty string.

    Args:
        hu: painted CT in HU.
        target: its tissue map.
        region: where it was painted.
        tissues: names of the painted tissues.
        statistics: per tissue, bounds of the median and the spread in HU, of the training cases.
    """
    if not np.isfinite(hu).all():
        return "voxels that are not finite"
    labels = tissue_labels()
    for tissue in tissues:
        inside, known = hu[region & (target == labels[tissue])], statistics[tissue]
        if len(inside) < MIN_VOXELS:
            return f"{tissue}: only {len(inside)} voxels"
        median, ratio = float(np.median(inside)), float(inside.std() / max(known["spread"], 1.0))
        if not known["low"] <= median <= known["high"]:
            return f"{tissue}: median {median:.0f} HU, outside {known['low']:.0f} to {known['high']:.0f}"
        if not SPREAD_RATIO[0] <= ratio <= SPREAD_RATIO[1]:
            return f"{tissue}: spread {ratio:.2f} times that of real tissue"
    return ""


def collect(
    plan: list[dict], statistics: dict, output: Path, steps: int, seed: int, method: str, weights: Path | None
) -> list[dict]:
    """Check each painted case, write the accepted ones and the manifest, and return the manifest's rows."""
    checkpoint = sha256(weights) if weights else None
    rows = []
    for row in tqdm(plan, desc="checking", unit="case"):
        source, image = load_ct(row["image"])
        label, _ = load_labels(row["label"], tissue_labels())
        target, _ = load_labels(output / "work/targets" / f"{row['case']}.nii.gz", tissue_labels())
        painted = nib.load(output / "work/painted" / f"{row['case']}.nii.gz").get_fdata(dtype=np.float32)
        region = target != label
        reason = check_painting(painted, target, region, row["tissues"], statistics)
        if not np.array_equal(painted[~region], source[~region]):
            raise RunError(f"{row['case']} changed outside its painted region")
        rows.append(
            {key: row[key] for key in ("case", "source", "patient", "tissues", "volume_ml", "donors")}
            | {"source_sha256": sha256(row["image"]), "method": method, "seed": seed, "steps": steps,
               "checkpoint_sha256": checkpoint, "accepted": not reason, "reason": reason}
        )  # fmt: skip
        if not reason:
            whole = np.issubdtype(image.get_data_dtype(), np.integer) and np.array_equal(painted, np.round(painted))
            voxels = painted.astype(np.int16) if whole and np.abs(painted).max() < 32767 else painted
            mark = f"{SYNTHETIC_MARK} {method} of {row['source']}"
            save_nifti(voxels, image, output / "images" / f"{row['case']}.nii.gz", mark)
            save_nifti(target.astype(np.uint8), image, output / "labels" / f"{row['case']}.nii.gz", mark)
    write_text(output / "manifest.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def write_datalist(
    datalist: Path, training: list[dict], held_out: list[dict], rows: list[dict], fold: int, output: Path
) -> None:
    """Write the fold's datalist: held-out cases keep their fold, all that may be trained on has fold -1."""
    items = []
    for item in training + held_out:
        paths = {key: relative(item[key], output) for key in ("image", "label")}
        items.append(item | paths | {"fold": fold if item in held_out else -1})
    for row in rows:
        if row["accepted"]:
            name = f"{row['case']}.nii.gz"
            items.append({"image": f"images/{name}", "label": f"labels/{name}", "fold": -1,
                          "patient": row["patient"], "synthetic": True, "source": row["source"]})  # fmt: skip
    patients = sorted({item["patient"] for item in training})
    content = {key: value for key, value in read_json(datalist).items() if key not in ("training", "numTraining")}
    fitted_on = {stage: patients for stage in ("synthesizer", "masks", "tissue_frequencies", "checks")}
    content |= {"held_out_fold": fold, "fitted_on": fitted_on, "numTraining": len(items), "training": items}
    write_json(output / "datalist.json", content)

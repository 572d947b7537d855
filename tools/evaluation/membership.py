"""``python -m tools membership``: can a synthesizer's training patients be told from others? Two attacks, two AUCs."""

import shutil
from pathlib import Path

import numpy as np
import torch
from monai.data import list_data_collate
from monai.transforms import Compose
from scipy import stats
from tqdm import tqdm

from tools.bundles import load_script
from tools.data.card import auc_text, card_text
from tools.data.datalist import SYNTHETIC, Case, read_datalist, within
from tools.data.provenance import cases_read, find_twin
from tools.flags import check_numbers
from tools.gate.copies import TileBank
from tools.gate.gate import REGION
from tools.gate.tissue import none_for_nan
from tools.io.files import InputError, check_settings, open_run, read_json, sha256, write_json, write_text
from tools.io.volume import canonical, load_ct, save_nifti
from tools.tissues import pathological_tissues, tissue_labels
from tools.workflows.origin import named_weights, read_state
from tools.workflows.run import read_bundle
from tools.workflows.synthesizer import SYNTHESIZER, paint, painting_overrides, smallest_region, write_conditions

FEWEST = 3  # patients on either side
RESAMPLES = 2000
ATTACKS = {
    "loss": "loss threshold: a patient whose training loss is low was trained on",
    "nearest": "nearest neighbour: a patient whose disease is near what the synthesizer paints was trained on",
}


def membership(datalist: Path, synthesizer: Path, output: Path, draws: int = 16, steps: int = 8, seed: int = 0) -> None:
    """Try to tell a synthesizer's training patients from others, by its loss and by what it paints.

    Loss threshold: the mean loss of the training's own objective over so many draws of patches, the same noise for
    every case. Nearest neighbour: the disease of every case is painted anew in its place; then the real disease of each
    is looked for among all that was painted. An area under the curve of .5 is chance, 1 tells every patient. Both
    attacks are simple; stronger ones may tell more. The results go into membership.json and, where `dataset` left
    data_card.json beside the datalist, into that card.

    Args:
        datalist: The datalist.json of training patients and others.
        synthesizer: Weights with their card.json, which names the cases that were trained on; shipped for the bundle's.
        output: New folder for membership.json and the paintings; started again it goes on.
        draws: Draws of patches, noise and time per case for the loss.
        steps: Network evaluations per painted window.
        seed: Seed for all random draws.

    Raises:
        InputError: if the card names no case, fewer than three patients are on either side, or the output holds
            something else.
        RunError: if painting fails.
    """
    check_numbers({"draws": draws, "steps": steps})
    synthesizer, real = named_weights(SYNTHESIZER, synthesizer), read_datalist(Path(datalist))
    card = read_json(synthesizer.with_name("card.json"))
    check_settings([card.get("overrides"), card.get("attributes")], synthesizer.with_name("card.json"))
    overrides = dict(card.get("overrides") or {}) | ({"attributes": card["attributes"]} if "attributes" in card else {})
    members, others = sides([case for case in real["training"] if case.fold >= 0], card.get("cases") or [])
    for side, cases in (("trained on", members), ("not trained on", others)):
        if len({case.patient for case in cases}) < FEWEST:
            raise InputError(f"{datalist} has fewer than {FEWEST} patients that {synthesizer} was {side}")
    settings = {"command": "membership", "datalist_sha256": sha256(datalist), "synthesizer_sha256": sha256(synthesizer)}
    output = open_run(Path(output), settings | {"draws": draws, "steps": steps, "seed": seed})
    cases = members + others
    scores = {"loss": losses(cases, synthesizer, overrides, draws, seed, output)}
    painted = paintings(cases, synthesizer, overrides, painting_overrides(overrides, steps, seed), output)
    scores["nearest"] = distances(cases, painted)
    found = {
        attack: judge(by_patient(members, values), by_patient(others, values), seed)
        for attack, values in scores.items()
    }
    result = {"synthesizer_sha256": settings["synthesizer_sha256"], "draws": draws, "steps": steps, "seed": seed}
    result |= {"attacks": found}
    write_json(output / "membership.json", none_for_nan(result | {"scores": scores}))
    told = _into_data_card(Path(datalist).with_name("data_card.json"), result)
    for attack, one in found.items():
        print(f"{ATTACKS[attack].partition(':')[0]}: {auc_text(one)}")
    print(f"wrote {output / 'membership.json'}{told}; .5 is chance, 1 tells every training patient")


def sides(cases: list[Case], rows: list[dict]) -> tuple[list[Case], list[Case]]:
    """Return the cases that weights were trained on by the rows of their card, and those of other patients.

    A case of a training patient that was not trained on is on neither side.
    """
    if not rows:
        raise InputError("the card beside the weights names no case that was trained on, so nobody can be told apart")
    trained = {str(row["patient"]) for row in rows}
    read = {row["case"]: row for row in cases_read(cases)}
    members = [case for case in cases if find_twin(read[case.name], rows)]
    trained |= {case.patient for case in members}
    return members, [case for case in cases if case.patient not in trained]


def losses(cases: list[Case], weights: Path, overrides: dict, draws: int, seed: int, folder: Path) -> dict[str, float]:
    """Return case to its mean loss by the training's own patches, objective and loss; the noise is the same for all.

    Args:
        cases: Whom to measure.
        weights: Weights of the synthesizer.
        overrides: Config ids of the training that made them, and their values.
        draws: Draws per case.
        seed: Seed of the first draw; each draw has one of its own.
        folder: Folder for the datalist that the bundle reads.
    """
    parser = read_bundle(SYNTHESIZER, "train.json")
    for key, value in overrides.items():
        parser[key] = value
    known = dict(parser["attributes"])
    write_json(
        folder / "datalist.json", {"training": [case.told(known).item() | {"fold": SYNTHETIC} for case in cases]}
    )
    items = load_script(SYNTHESIZER, "cases").datalist_cases(str(folder / "datalist.json"), 0, False, known)
    state = read_state(weights)
    if not state["tissue_presence"].any():
        raise InputError(f"{weights} do not say which tissues they were trained on, so their loss cannot be repeated")
    names = ("network", "train::prepare_batch", "train::inferer", "train::loss", "train::preprocessing", "ablation")
    network, prepare, objective, loss, preprocessing, ablation = (parser.get_parsed_content(name) for name in names)
    network.load_state_dict(state)
    network.eval()
    ablation.fit(state["tissue_presence"].cpu())
    *fixed, cut = preprocessing.transforms
    found = {}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for case, item in tqdm([*zip(cases, items)], desc="losses", unit="case", disable=None):
            whole, values = Compose(fixed)(item), []
            for number in range(draws):
                torch.manual_seed(seed + number)
                cut.set_random_state(seed + number)
                x_0, weight, _, given = prepare(list_data_collate([cut(dict(whole))]), parser["device"])
                values.append(float(loss(objective(x_0, network, **given), weight)))
            found[case.name] = float(np.mean(values))
    return found


def paintings(cases: list[Case], weights: Path, overrides: dict, settings: dict, output: Path) -> dict[str, Path]:
    """Paint the disease of every case anew in its place, and return case to painted CT; those without any are left out.

    Args:
        cases: Whose disease.
        weights: Weights of the synthesizer.
        overrides: Config ids of their training and their values.
        settings: Config ids of the painting and their values.
        output: Folder for ``work`` and the log.
    """
    work, labels = output / "work", tissue_labels()
    shutil.rmtree(work, ignore_errors=True)
    attributes, told = overrides.get("attributes", {}), {}
    for case in tqdm(cases, desc="maps", unit="case", disable=None):
        _, label, image = case.stored()
        disease = np.isin(label, [labels[name] for name in pathological_tissues()])
        if disease.sum() < smallest_region(overrides):
            continue
        told[case.name] = within(case.attributes, attributes)
        (work / "images").mkdir(parents=True, exist_ok=True)
        (work / f"images/{case.name}{'.nii.gz' if case.image.name.endswith('.gz') else '.nii'}").symlink_to(case.image)
        (work / "labels").mkdir(exist_ok=True), (work / "targets").mkdir(exist_ok=True)
        bare = np.where(disease, labels["healthy"], label).astype(np.uint8)
        save_nifti(bare, image, work / f"labels/{case.name}.nii.gz")
        save_nifti(label.astype(np.uint8), image, work / f"targets/{case.name}.nii.gz")
    write_conditions(told, attributes, work / "conditions.csv")
    print(f"painting {len(told)} cases; the log is {output / 'paint.log'}", flush=True)
    paint(work, weights, settings, torch.get_num_threads(), output / "paint.log")
    return {name: work / f"painted/{name}.nii.gz" for name in told}


def distances(cases: list[Case], painted: dict[str, Path]) -> dict[str, float]:
    """Return case to how far its real disease lies from the nearest that was painted, 1 - r, NaN where there is none.

    It is the mean over its tissues of ``copies.TileBank.nearest``: painted tissue of all cases is looked through.
    """
    banks = {tissue_labels()[name]: TileBank(REGION) for name in pathological_tissues()}
    for case in tqdm(cases, desc="what was painted", unit="case", disable=None):
        if case.name in painted:
            label, _, _ = case.volumes()
            hu, image = load_ct(painted[case.name])
            for value, bank in banks.items():
                bank.add(case.name, case.patient, canonical(hu, image.affine), label == value)
    found = {}
    for case in tqdm(cases, desc="nearest", unit="case", disable=None):
        label, hu, _ = case.volumes()
        own = [bank.nearest(bank.ask(hu, label == value)).distance for value, bank in banks.items()]
        own = [distance for distance in own if np.isfinite(distance)]
        found[case.name] = float(np.mean(own)) if own else float("nan")
    return found


def by_patient(cases: list[Case], values: dict[str, float]) -> list[float]:
    """Return each patient's mean over the cases that have a value, in the order of the names."""
    own: dict[str, list[float]] = {}
    for case in cases:
        if np.isfinite(values[case.name]):
            own.setdefault(case.patient, []).append(values[case.name])
    return [float(np.mean(own[patient])) for patient in sorted(own)]


def judge(members: list[float], others: list[float], seed: int) -> dict:
    """Return the area under the curve of "low means member", and its 95 % interval by a bootstrap of the patients.

    Where all members lie below all others no resample differs, and the interval says nothing.

    Example:
        >>> judge([0.1, 0.2, 0.6], [0.4, 0.5, 0.7], 0)["auc"]
        0.7777777777777778
    """
    counted = {"patients": len(members), "other_patients": len(others)}
    if min(len(members), len(others)) < FEWEST:
        return counted | {"auc": None, "low": None, "high": None}

    def auc(low: np.ndarray, high: np.ndarray, axis: int = -1) -> np.ndarray:
        found = stats.mannwhitneyu(high, low, axis=axis, method="asymptotic")
        return found.statistic / (low.shape[axis] * high.shape[axis])

    groups = np.array(members), np.array(others)
    resampled = stats.bootstrap(
        groups, auc, n_resamples=RESAMPLES, vectorized=True, method="percentile", rng=np.random.default_rng(seed)
    )
    low, high = resampled.confidence_interval
    return counted | {"auc": float(auc(*groups)), "low": float(low), "high": float(high)}


def _into_data_card(path: Path, row: dict) -> str:
    """Write a result into the data card beside a datalist, in place of an earlier one of the same weights."""
    if not path.is_file():
        return ""
    card = read_json(path)
    same = "synthesizer_sha256"
    card["membership"] = [one for one in card.get("membership", []) if one[same] != row[same]] + [row]
    write_json(path, card)
    write_text(path.with_suffix(".md"), card_text(card))
    return f" and {path}"

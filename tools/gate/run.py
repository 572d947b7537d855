"""Putting painted cases through the quality gate: what it reads, and what it writes down."""

import pickle
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
import torch
from tqdm import tqdm

from tools.bundles import load_script
from tools.data.datalist import Case
from tools.data.provenance import GATE_CARD, cases_read
from tools.gate.gate import Gate
from tools.io.files import RunError, read_json, sha256, write_bytes, write_json
from tools.io.volume import canonical
from tools.maps.bank import PlannedCase
from tools.tissues import pathological_tissues, tissue_labels
from tools.workflows.cluster import Job, parts, perform
from tools.workflows.segmenter import segment
from tools.workflows.synthesizer import SYNTHESIZER

if TYPE_CHECKING:
    from distributed import Client


def check_painted(
    plan: list[PlannedCase], training: list[Case], output: Path, work: Path, segmenter: Path | None,
    candidates: int = 1, client: "Client | None" = None,
) -> tuple[dict[str, dict], dict[str, list[dict]]]:  # fmt: skip
    """Put every painted case of a plan through the quality gate, write gate.json and quality.json into ``output``.

    Args:
        plan: What was painted.
        training: Training cases, by which it is judged.
        output: Folder for gate.json and quality.json.
        work: Folder with ``painted``, and with ``painted1``, ``painted2`` and so on where there are several candidates;
            it receives what the segmenter answers, and ``painted`` the candidates that are kept.
        segmenter: Weights with their card, or None to ask none; several candidates need them.
        candidates: Number of paintings of each map. The one is kept that the gate accepts and of which the segmenter
            finds least; the first if none is accepted.
        client: From ``cluster``; its workers ask the segmenter and measure each case by itself. This process learns
            what is real, and compares the painted cases with each other, in their order.

    Returns:
        Case to tissue to ``accepted``, ``reasons`` and measures; and case to its candidates, each with ``accepted`` and
        ``recall``, ``kept`` in one of them, empty if there are not several.
    """
    labels = {name: tissue_labels()[name] for name in pathological_tissues()}
    gate = Gate(training, labels)
    gate.owners |= {planned.source.name: planned.source.patient for planned in plan}
    several: list[Mapping[str, np.ndarray]] = [{}]
    if segmenter:
        card = read_json(Path(segmenter).with_name("card.json"))
        real = {case.name: case.image for case in training}
        threads = torch.get_num_threads()
        gate.measure_real_recall(segment(real, segmenter, card, work / "real", client, threads).items())
        several = []
        for number in range(candidates):
            folder = candidate_folder(work, number)
            painted = {planned.name: folder / f"{planned.name}.nii.gz" for planned in plan}
            several.append(segment(painted, segmenter, card, work / f"judged{number}", client, threads))
    else:
        print("no segmenter was given, so how well one finds what was painted is not measured")
    _look_at_all(gate, plan, work, several, client)
    found = _keep_hardest(gate, plan, work, candidates) if candidates > 1 else {}
    checks = {}
    for planned in plan:
        rows = found.get(planned.name, [{"kept": True}])
        checks[planned.name] = _judge(gate, planned, work, [row["kept"] for row in rows].index(True))
    accepted = {
        name: {case for case, tissues in checks.items() if name in tissues and tissues[name]["accepted"]}
        for name in labels
    }
    judge = {"sha256": sha256(segmenter), "cases": card["cases"]} if segmenter else None
    write_json(output / GATE_CARD, {"cases": cases_read(training), "limits": gate.limits, "segmenter": judge})
    cards = {"tissues": gate.card(accepted), "unfiltered": gate.card()}
    quality = {kind: {name: quality_measures(card) for name, card in some.items()} for kind, some in cards.items()}
    write_json(output / "quality.json", {"schema": 1} | quality)
    return checks, found


def candidate_folder(work: Path, number: int) -> Path:
    """Return the folder of one painting of all maps, numbered from 0."""
    return work / (f"painted{number}" if number else "painted")


def _look_at_all(
    gate: Gate, plan: list[PlannedCase], work: Path, several: list[Mapping[str, np.ndarray]], client: "Client | None"
) -> None:
    """Measure every painting of every map by itself, on workers where there are some; ``several`` are the answers."""
    given: Gate | Path = gate
    if client is not None:
        given = work / "gate.pickle"
        write_bytes(given, pickle.dumps(gate))
    jobs = []
    for number, answers in enumerate(several):
        for part in parts(plan, client):
            do = partial(look_at, part, given, candidate_folder(work, number), answers, _looked(work, number))
            jobs.append(Job(f"checking {part[0].name} and {len(part) - 1} more, candidate {number}", do))
    _, failed = perform(jobs, client)
    if failed:
        raise RunError(next(iter(failed.values())))


def look_at(
    part: list[PlannedCase], gate: Gate | Path, folder: Path, answers: Mapping[str, np.ndarray], looked: Path
) -> None:
    """Measure some painted cases by themselves, and leave what is known of each in a file.

    Args:
        part: What was painted.
        gate: The gate, or the file that holds it.
        folder: Folder of the painted CTs.
        answers: The segmenter's, by case; none where it was not asked.
        looked: Folder for the files.
    """
    hidden = isinstance(gate, Path) or None  # the bar; None hides it where nobody looks
    if isinstance(gate, Path):
        load_script(SYNTHESIZER, "classifier")  # whose class the file names
        gate = pickle.loads(gate.read_bytes())
    for planned in tqdm(part, desc="checking", unit="case", disable=hidden):
        case, image = planned.name, nib.load(folder / f"{planned.name}.nii.gz")
        arrays = image.get_fdata(dtype=np.float32), *planned.maps()
        hu, label, target = (canonical(array, image.affine) for array in arrays)
        found = gate.look(case, planned.source.name, hu, target, target != label, answers.get(case))
        write_bytes(looked / f"{case}.pickle", pickle.dumps(found))


def _looked(work: Path, number: int) -> Path:
    """Return the folder of what is known of one painting of all maps by itself."""
    return work / f"looked{number}"


def _judge(gate: Gate, planned: PlannedCase, work: Path, number: int) -> dict[str, dict]:
    """Judge one painting of a map, and remember it."""
    file = _looked(work, number) / f"{planned.name}.pickle"
    return gate.judge(gate.remember(pickle.loads(file.read_bytes())))


def _keep_hardest(gate: Gate, plan: list[PlannedCase], work: Path, candidates: int) -> dict[str, list[dict]]:
    """Move the candidates that are kept into ``painted``; return what was found of each."""
    found = {}
    for planned in plan:
        rows = []
        for number in range(candidates):
            checks = _judge(gate, planned, work, number).values()
            recalls = [check["recall"] for check in checks if check.get("recall") is not None]
            row = {"accepted": all(check["accepted"] for check in checks)}
            rows.append(row | {"recall": float(np.mean(recalls)) if recalls else None, "kept": False})
        number = hardest(rows)
        rows[number]["kept"] = True
        if number:
            name = f"{planned.name}.nii.gz"
            (candidate_folder(work, number) / name).replace(candidate_folder(work, 0) / name)
        found[planned.name] = rows
    gate.forget()
    return found


def hardest(rows: list[dict]) -> int:
    """Return the number of the accepted candidate of which the segmenter finds least, 0 if none is accepted.

    Example:
        >>> hardest([{"accepted": True, "recall": 0.9}, {"accepted": False, "recall": 0.1},
        ...          {"accepted": True, "recall": 0.5}])
        2
    """
    good = [number for number, row in enumerate(rows) if row["accepted"] and row["recall"] is not None]
    return min(good, key=lambda number: rows[number]["recall"], default=0)


def quality_measures(card: dict) -> dict:
    """Return a card of ``tissue.card`` measure by measure, painted beside what real tissue scores: its floor."""
    painted = {"texture_distance": card["texture_distance"], "auc": card["auc"]}
    painted |= {"hu_wasserstein": card["hu_wasserstein"]} | card["painted"]
    floors = {"texture_distance": card["texture_distance_floor"], "auc": 0.5}
    floors |= {"hu_wasserstein": card["hu_wasserstein_floor"]} | card["real"]
    return {"painted_cases": painted["cases"], "real_cases": floors["cases"]} | {
        name: {"painted": painted.get(name), "floor": floor, "unit": "HU" if "hu" in name.split("_") else ""}
        for name, floor in floors.items()
        if name not in ("cases", "voxels")
    }

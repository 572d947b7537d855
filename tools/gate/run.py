"""Putting painted cases through the quality gate: what it reads, and what it writes down."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
import torch
from tqdm import tqdm

from tools.data.datalist import Case
from tools.data.provenance import GATE_CARD, cases_read
from tools.gate.gate import Gate
from tools.io.files import read_json, sha256, write_json
from tools.io.volume import canonical
from tools.maps.bank import PlannedCase
from tools.tissues import pathological_tissues, tissue_labels
from tools.workflows.segmenter import Answers, segment

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
        client: From ``cluster``; its workers ask the segmenter, this process judges.

    Returns:
        Case to tissue to ``accepted``, ``reasons`` and measures; and case to its candidates, each with ``accepted`` and
        ``recall``, ``kept`` in one of them, empty if there are not several.
    """
    labels = {name: tissue_labels()[name] for name in pathological_tissues()}
    gate = Gate(training, labels)
    gate.owners |= {planned.source.name: planned.source.patient for planned in plan}
    answers: Mapping[str, np.ndarray] = {}
    found: dict[str, list[dict]] = {}
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
        answers = several[0]
        if candidates > 1:
            found, answers = _keep_hardest(gate, plan, work, several)
    else:
        print("no segmenter was given, so how well one finds what was painted is not measured")
    checks = {}
    for planned in tqdm(plan, desc="checking", unit="case", disable=None):
        checks[planned.name] = _judge(gate, planned, candidate_folder(work, 0), answers)
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


def _judge(gate: Gate, planned: PlannedCase, folder: Path, answers: Mapping[str, np.ndarray]) -> dict[str, dict]:
    """Measure and judge a painted case; ``answers`` holds the segmenter's, by case."""
    case, image = planned.name, nib.load(folder / f"{planned.name}.nii.gz")
    arrays = image.get_fdata(dtype=np.float32), *planned.maps()
    hu, label, target = (canonical(array, image.affine) for array in arrays)
    return gate.judge(gate.measure(case, planned.source.name, hu, target, target != label, answers.get(case)))


def _keep_hardest(
    gate: Gate, plan: list[PlannedCase], work: Path, answers: list[Answers]
) -> tuple[dict[str, list[dict]], Answers]:
    """Move the candidates that are kept into ``painted``; return what was found of each, and the answers to those kept.

    ``answers`` are the segmenter's, per candidate and case.
    """
    found, kept = {}, {}
    for planned in tqdm(plan, desc="choosing candidates", unit="case", disable=None):
        rows = []
        for number, own in enumerate(answers):
            checks = _judge(gate, planned, candidate_folder(work, number), own).values()
            recalls = [check["recall"] for check in checks if check.get("recall") is not None]
            row = {"accepted": all(check["accepted"] for check in checks)}
            rows.append(row | {"recall": float(np.mean(recalls)) if recalls else None, "kept": False})
        number = hardest(rows)
        rows[number]["kept"] = True
        if number:
            name = f"{planned.name}.nii.gz"
            (candidate_folder(work, number) / name).replace(candidate_folder(work, 0) / name)
        found[planned.name], kept[planned.name] = rows, answers[number].files[planned.name]
    gate.forget()
    return found, Answers(kept)


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

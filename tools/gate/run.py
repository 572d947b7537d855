"""Putting painted cases through the quality gate: what it reads, and what it writes down."""

from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

from tools.data.datalist import Case
from tools.data.provenance import GATE_CARD, cases_read
from tools.gate.gate import Gate
from tools.io.files import read_json, sha256, write_json
from tools.io.volume import canonical
from tools.maps.bank import PlannedCase
from tools.tissues import pathological_tissues, tissue_labels
from tools.workflows.segmenter import segment


def check_painted(
    plan: list[PlannedCase], training: list[Case], output: Path, work: Path, segmenter: Path | None
) -> dict[str, dict]:
    """Put every painted case of a plan through the quality gate, write gate.json and quality.json into ``output``.

    ``work`` holds ``painted``, and receives what the segmenter answers; its card lies beside its weights, and None asks
    none. Returns case to tissue to ``accepted``, ``reasons`` and measures.
    """
    labels = {name: tissue_labels()[name] for name in pathological_tissues()}
    gate = Gate(training, labels)
    gate.owners |= {planned.source.name: planned.source.patient for planned in plan}
    painted = {planned.name: work / "painted" / f"{planned.name}.nii.gz" for planned in plan}
    answers: dict[str, np.ndarray] = {}
    if segmenter:
        card = read_json(Path(segmenter).with_name("card.json"))
        real = {case.name: case.image for case in training}
        gate.measure_real_recall(segment(real, segmenter, card, work / "real"))
        answers = dict(segment(painted, segmenter, card, work / "judged"))
    else:
        print("no segmenter was given, so how well one finds what was painted is not measured")
    checks = {}
    for planned in tqdm(plan, desc="checking", unit="case", disable=None):
        case, image = planned.name, nib.load(painted[planned.name])
        arrays = image.get_fdata(dtype=np.float32), *planned.maps()
        hu, label, target = (canonical(array, image.affine) for array in arrays)
        measured = gate.measure(case, planned.source.name, hu, target, target != label, answers.get(case))
        checks[case] = gate.judge(measured)
    accepted = {
        name: {case for case, tissues in checks.items() if name in tissues and tissues[name]["accepted"]}
        for name in labels
    }
    judge = {"sha256": sha256(segmenter), "cases": card["cases"]} if segmenter else None
    write_json(output / GATE_CARD, {"cases": cases_read(training), "limits": gate.limits, "segmenter": judge})
    cards = {"tissues": gate.card(accepted), "unfiltered": gate.card()}
    quality = {kind: {name: quality_measures(card) for name, card in some.items()} for kind, some in cards.items()}
    write_json(output / "quality.json", {"schema": 1} | quality)
    return checks


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

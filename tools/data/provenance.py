"""Which CTs a stage has read, by file and by voxels, and whether a test patient is among them."""

import functools
from pathlib import Path

from tools.data.datalist import Case
from tools.data.twins import content_digest
from tools.io.files import InputError, check_settings, read_json, sha256

SYNTHESIZER_CARD, MAPS_CARD, GATE_CARD, HOSTS_CARD = "synthesizer/card.json", "maps.json", "gate.json", "hosts.json"


@functools.cache
def _digest(path: Path, modified: int) -> str:
    return sha256(path)


def digest(path: Path) -> str:
    """Return a file's SHA-256; remembered while the file stays as it is."""
    return _digest(Path(path), Path(path).stat().st_mtime_ns)


def cases_read(cases: list[Case]) -> list[dict]:
    """Return what a stage writes down about the cases it reads, sorted by case.

    Case, patient, the SHA-256 of the CT's file, and that of what it shows (``twins.content_digest``).
    """
    rows = [
        {"case": case.name, "patient": case.patient}
        | {"image_sha256": digest(case.image), "content_sha256": content_digest(case.image)}
        for case in cases
    ]
    return sorted(rows, key=lambda row: row["case"])


def find_twin(row: dict, others: list[dict]) -> dict | None:
    """Return the row among ``others`` that is the same CT, by content or, of cards without it, by file; or None."""
    for other in others:
        for key in ("content_sha256", "image_sha256"):
            if other.get(key) and other[key] == row.get(key):
                return other
    return None


def check_disjoint(where: str, stage: str, cases: list[dict], test: list[dict]) -> list[str]:
    """Return the patients that a stage has read, if none of them, under whatever name, is a test patient.

    ``cases`` (as the stage wrote them, perhaps without digests) and ``test`` are rows of ``cases_read``; ``where``
    begins the message.

    Raises:
        InputError: naming the test patients, or the test cases whose CT was read under another name.
    """
    read = {str(row["patient"]) for row in cases}
    shared = sorted(read & {row["patient"] for row in test})
    if shared:
        raise InputError(f"leak in {where}: stage {stage} was fitted on test patients {', '.join(shared)}")
    for row in test:
        twin = find_twin(row, cases)
        if twin:
            raise InputError(
                f"leak in {where}: stage {stage} was fitted on {twin['case']} of patient {twin['patient']}, "
                f"which is the same CT as test case {row['case']} of patient {row['patient']}"
            )
    return sorted(read)


def read_card(weights: Path, held_out: list[Case], stage: str) -> dict:
    """Return the card beside weights, if it shows that no held-out patient was trained on, under whatever name.

    Raises:
        InputError: if there are no such weights (named ``stage``), their card does not say whom they know, it names a
            held-out patient or CT, or holds an expression.
    """
    weights = Path(weights)
    if not weights.is_file():
        raise InputError(f"{stage} {weights} does not exist")
    card = read_json(weights.with_name("card.json"))
    check_settings(
        [card.get("overrides"), card.get("spacing_mm"), card.get("attributes")], weights.with_name("card.json")
    )
    known = card.get("cases", []) + [{"patient": name} for name in card.get("patients", [])]
    if not known:
        raise InputError(f"{weights.with_name('card.json')} does not say whom {stage} {weights} was trained on")
    check_disjoint(str(weights), stage, known, cases_read(held_out))
    return card


def check_twins(datalist: dict, path: Path) -> None:
    """Raise InputError if a datalist holds one CT under two patients, which could lie on both sides of a split."""
    seen: dict[str, Case] = {}
    for case in datalist["training"]:
        twin = seen.setdefault(content_digest(case.image), case)
        if twin.patient != case.patient:
            raise InputError(
                f"{path}: {twin.name} of patient {twin.patient} and {case.name} of patient {case.patient} "
                "are the same CT; a patient must have one name"
            )

"""Which CTs a stage has read, by their SHA-256, and whether a test patient is among them."""

import functools
from pathlib import Path

from tools.io.files import InputError, sha256
from tools.io.volume import case_name

SYNTHESIZER_CARD, MAPS_CARD, GATE_CARD = "synthesizer/card.json", "maps.json", "gate.json"


@functools.cache
def _digest(path: str, modified: int) -> str:
    return sha256(Path(path))


def digest(path: str) -> str:
    """Return a file's SHA-256; remembered while the file stays as it is."""
    return _digest(str(path), Path(path).stat().st_mtime_ns)


def cases_read(items: list[dict]) -> list[dict]:
    """Return what a stage writes down about the cases it reads: case, patient and the CT's SHA-256, sorted by case.

    Args:
        items: of a datalist, with absolute paths.
    """
    rows = [
        {"case": case_name(item["image"]), "patient": item["patient"], "image_sha256": digest(item["image"])}
        for item in items
    ]
    return sorted(rows, key=lambda row: row["case"])


def check_disjoint(where: str, stage: str, cases: list[dict], test: list[dict]) -> list[str]:
    """Return the patients that a stage has read, if none of them, under whatever name, is a test patient.

    Args:
        where: what the message begins with.
        stage: its name.
        cases: from ``cases_read``, as the stage wrote it; rows may lack the SHA-256.
        test: from ``cases_read``.

    Raises:
        InputError: naming the test patients, or the test cases whose CT was read under another name.
    """
    read = {str(row["patient"]) for row in cases}
    shared = sorted(read & {row["patient"] for row in test})
    if shared:
        raise InputError(f"leak in {where}: stage {stage} was fitted on test patients {', '.join(shared)}")
    digests = {row["image_sha256"]: row for row in cases if row.get("image_sha256")}
    for row in test:
        twin = digests.get(row["image_sha256"])
        if twin:
            raise InputError(
                f"leak in {where}: stage {stage} was fitted on {twin['case']} of patient {twin['patient']}, "
                f"which is the same CT as test case {row['case']} of patient {row['patient']}"
            )
    return sorted(read)


def check_twins(datalist: dict, path: Path) -> None:
    """Raise InputError if a datalist holds one CT under two patients, which could lie on both sides of a split."""
    seen: dict[str, dict] = {}
    for item in datalist["training"]:
        twin = seen.setdefault(digest(item["image"]), item)
        if twin["patient"] != item["patient"]:
            raise InputError(
                f"{path}: {case_name(twin['image'])} of patient {twin['patient']} and {case_name(item['image'])} of "
                f"patient {item['patient']} are the same CT; a patient must have one name"
            )

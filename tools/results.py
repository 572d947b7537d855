"""Reading the segmenter's Dice tables and gathering all runs of a comparison into results.csv and summary.json."""

import csv
from pathlib import Path

import numpy as np

from tools.arms import ARMS
from tools.files import InputError, RunError, atomic_file, read_json, write_json
from tools.nifti import case_name
from tools.verdicts import summarise

DICE_FILE = "val_mean_dice_raw.csv"
RESULT_COLUMNS = ("fold", "seed", "arm", "patient", "tissue", "dice")


def read_dice(path: Path, test: list[dict], tissues: list[str]) -> dict[str, dict[str, float | None]]:
    """Read the segmenter's Dice table and average the cases of each patient.

    Args:
        path: csv of MONAI's MetricsSaver: file name, one column per tissue, mean.
        test: items of the held-out fold, with absolute paths.
        tissues: names of the columns, in order.

    Returns:
        Patient to tissue to Dice; None where no case of the patient holds the tissue.

    Raises:
        RunError: if the table is missing, has other columns, or does not hold each test case once.
    """
    if not path.is_file():
        raise RunError(f"the run ended without {path}")
    with open(path, newline="") as stream:
        head, *rows = [row for row in csv.reader(stream) if row]
    if len(head) != len(tissues) + 2:
        raise RunError(f"{path} has columns {head}; expected filename, {', '.join(tissues)}, mean")
    by_file = {item[key]: item for item in test for key in ("image", "label")}
    by_name = {case_name(item["image"]): item for item in test}
    found: dict[str, dict] = {}
    values: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        item = by_file.get(str(Path(row[0]).resolve())) or by_name.get(case_name(row[0]))
        if item is None or item["image"] in found:
            raise RunError(f"{path} holds {row[0]} {'twice' if item else 'which is no test case'}")
        found[item["image"]] = item
        for tissue, value in zip(tissues, row[1:]):
            kept = values.setdefault(item["patient"], {}).setdefault(tissue, [])
            if np.isfinite(float(value)):
                kept.append(float(value))
    missing = [case_name(item["image"]) for item in test if item["image"] not in found]
    if missing:
        raise RunError(f"{path} lacks the test cases {', '.join(missing)}")
    return {
        patient: {tissue: float(np.mean(kept)) if kept else None for tissue, kept in row.items()}
        for patient, row in sorted(values.items())
    }


def collect(output: Path, real: dict) -> dict:
    """Gather all finished runs below a folder, write results.csv and summary.json, and return the summary.

    Args:
        output: folder of ``compare``.
        real: its datalist, from ``read_datalist``.

    Raises:
        InputError: if a run says that one of its stages saw one of its test patients.
    """
    output = Path(output)
    results = [read_json(path) for path in sorted(output.glob("fold*/seed*/*/result.json"))]
    results.sort(key=lambda result: (result["fold"], result["seed"], list(ARMS).index(result["arm"])))
    for result in results:
        for stage, names in result["fitted_on"].items():
            shared = sorted(set(names) & set(result["test_patients"]))
            if shared:
                raise InputError(
                    f"leak in arm {result['arm']}: {stage} was fitted on test patients {', '.join(shared)}"
                )
    records = [
        {"fold": result["fold"], "seed": result["seed"], "arm": result["arm"], "patient": patient}
        | {"tissue": tissue, "dice": dice}
        for result in results
        for patient, row in result["dice"].items()
        for tissue, dice in row.items()
    ]
    with atomic_file(output / "results.csv") as temporary, open(temporary, "w", newline="") as stream:
        writer = csv.DictWriter(stream, RESULT_COLUMNS)
        writer.writeheader()
        writer.writerows(records)
    tissues = [name for name in real["labels"] if name != "background"]
    arms = [arm for arm in ARMS if any(result["arm"] == arm for result in results)]
    summary = {
        "settings": read_json(output / "run.json"),
        "labels": real["labels"],
        "arms": arms,
        "folds": sorted({result["fold"] for result in results}),
        "seeds": sorted({result["seed"] for result in results}),
        "runs": [{key: value for key, value in result.items() if key != "dice"} for result in results],
        "rows": summarise(records, tissues, arms),
    }
    write_json(output / "summary.json", summary)
    return summary

"""``python -m tools report``: one HTML page: what was compared, how sure the answer is, what it looks like."""

import base64
import csv
import json
import re
from collections import Counter
from pathlib import Path

from tools import figures
from tools.arms import ARMS, AUGMENTED, read_manifest
from tools.figures import ARM_TITLES, words
from tools.files import InputError, check_writable, read_json, write_text
from tools.verdicts import REFERENCE

TEMPLATE = "report.html.j2"
SUMMARY_KEYS = ("settings", "labels", "arms", "folds", "seeds", "runs", "rows")


def report(directory: Path, output: Path | None = None) -> None:
    """Write the results of a comparison as one HTML page that needs nothing else: tables, figures, pictures, limits.

    Args:
        directory: output folder of ``compare``.
        output: HTML file to write; default report.html in that folder.

    Raises:
        InputError: if the folder is missing or its comparison is not finished, or the page cannot be written.
    """
    directory = Path(directory)
    output = directory / "report.html" if output is None else Path(output)
    page = render(directory)
    if output.is_dir():
        raise InputError(f"output {output} is a folder; name an HTML file")
    check_writable(output.parent)
    write_text(output, page)
    print(f"wrote {output} ({len(page) / 1e6:.1f} MB); open it in a browser")


def render(directory: Path) -> str:
    """Return the page for the output folder of ``compare``.

    Raises:
        InputError: if the folder is missing or its comparison is not finished.
    """
    import jinja2

    directory = Path(directory)
    summary, records = load(directory)
    labels, arms, rows = summary["labels"], summary["arms"], summary["rows"]
    colours = figures.tissue_colours(labels)
    pathological = [name for name in labels if name not in ("background", "healthy")]
    folders = augmented_folders(directory)
    compared = any(row.get("difference") is not None for row in rows)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {
        "words": words,
        "png": png,
        "minus": minus,
        "arm": lambda name: ARM_TITLES.get(name, words(name)),
    }
    return environment.get_template(TEMPLATE).render(
        answer=answers(rows, pathological),
        summary=summary,
        settings=settings_table(summary["settings"]),
        rows_by_tissue={
            name: [row for row in rows if row["tissue"] == name] for name in labels if name != "background"
        },
        colours=colours,
        forest=figures.forest(rows, labels) if compared else None,
        patient_figures=[
            (name, figures.patients(records, name, arms, colours[name]))
            for name in colours
            if any(record["tissue"] == name and record["dice"] is not None for record in records)
        ],
        examples=pictures(folders),
        window=figures.LUNG_WINDOW_HU,
        acceptance=acceptance(folders),
        runs=run_table(summary["runs"]),
        stages=stage_table(summary["runs"]),
        checkpoints=checkpoints(folders),
        versions=summary["runs"][0]["versions"],
        test_patients=len({patient for run in summary["runs"] for patient in run["test_patients"]}),
        hours=sum(run["seconds"] for run in summary["runs"]) / 3600,
    )


def load(directory: Path) -> tuple[dict, list[dict]]:
    """Read summary.json and results.csv of a finished comparison.

    Raises:
        InputError: if the folder or a file is missing or incomplete.
    """
    if not directory.is_dir():
        raise InputError(f"{directory} is not a folder; name the output folder of compare")
    for name in ("summary.json", "results.csv"):
        if not (directory / name).is_file():
            begun = " (its comparison was begun and not finished)" if (directory / "run.json").is_file() else ""
            raise InputError(f"{directory} holds no {name}{begun}; run compare first")
    summary = read_json(directory / "summary.json")
    missing = [key for key in SUMMARY_KEYS if not isinstance(summary, dict) or not summary.get(key)]
    if missing:
        raise InputError(f"{directory / 'summary.json'} lacks {', '.join(missing)}; run compare again")
    with open(directory / "results.csv", newline="") as stream:
        records = list(csv.DictReader(stream))
    try:
        for record in records:
            record["dice"] = float(record["dice"]) if record["dice"] else None
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{directory / 'results.csv'} is damaged ({error}); run compare again") from None
    return summary, records


def png(data: bytes) -> str:
    """Return a PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(data).decode()


def minus(text: str) -> str:
    """Return a number's text with the minus sign of the typographer."""
    return text.replace("-", "−")


def _join(names: list[str]) -> str:
    """Return "a", "a and b" or "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def answers(rows: list[dict], pathological: list[str]) -> list[tuple[str, str]]:
    """Return, for each arm but real, its name and one sentence with the verdicts; painted tissue comes first.

    Of the tissues that are not pathological only losses are told: what a gain elsewhere has cost.

    Example:
        >>> row = {"tissue": "fibrosis", "arm": "synthetic", "difference": 0.031, "verdict": "gain"}
        >>> answers([row], ["fibrosis"])
        [('synthetic', 'gain for fibrosis (+0.031).')]
    """
    arms = [arm for arm in dict.fromkeys(row["arm"] for row in rows) if arm != REFERENCE]
    arms.sort(key=lambda arm: ARMS[arm].method != "diffusion")
    sentences = []
    for arm in arms:
        groups: dict[str, list[str]] = {"gain": [], "loss": [], "no gain": [], "too few patients": []}
        for row in rows:
            if row["arm"] == arm and (row["tissue"] in pathological or row["verdict"] == "loss"):
                verdict = row["verdict"].split(" (")[0]
                figure = minus(f" ({row['difference']:+.3f})") if verdict in ("gain", "loss") else ""
                name = "healthy lung" if row["tissue"] == "healthy" else words(row["tissue"])
                groups[verdict].append(name + figure)
        titles = {"too few patients": "too few patients to tell for"}
        parts = [
            f"{titles.get(verdict, verdict + ' for')} {_join(names)}" for verdict, names in groups.items() if names
        ]
        sentences.append((arm, "; ".join(parts) + "."))
    return sentences


def settings_table(settings: dict) -> list[tuple[str, str]]:
    """Return name and value of each setting that every arm shared."""
    return [
        (words(name), json.dumps(value) if isinstance(value, dict) else str(value))
        for name, value in settings.items()
        if name not in ("command", "datalist_sha256") and value not in ({}, None)
    ]


def augmented_folders(directory: Path) -> list[dict]:
    """Find what ``augment`` wrote, fold by fold.

    Returns:
        One dict per folder with fold, method, path and manifest (its lines).

    Raises:
        InputError: if a folder lacks its manifest, or a line of it is damaged.
    """
    found = []
    for method, name in sorted(AUGMENTED.items(), key=lambda pair: pair[0] != "diffusion"):
        for path in sorted(directory.glob(f"fold*/{name}")):
            if not (path / "datalist.json").is_file():
                continue  # begun for an arm that was not finished; summary.json knows nothing of it
            manifest = read_manifest(path / "manifest.jsonl")
            fold = path.parent.name.removeprefix("fold")
            found.append({"fold": fold, "method": method, "path": path, "manifest": manifest})
    return found


def pictures(folders: list[dict]) -> list:
    """Return one example per tissue, from the first fold that has painted it."""
    from tools.pictures import examples

    found: dict[str, object] = {}
    for folder in folders:
        if folder["method"] != "diffusion":
            continue
        rivals = [
            other["path"] for other in folders if other["method"] == "copy_paste" and other["fold"] == folder["fold"]
        ]
        for example in examples(folder["path"], folder["manifest"], rivals[0] if rivals else None):
            found.setdefault(example.tissue, example)
    return list(found.values())


def acceptance(folders: list[dict]) -> list[dict]:
    """Return one row per method, fold and tissue: cases painted, cases accepted, and why not the others.

    Reasons that differ in their figures only are counted together; the manifest has the figures.
    """
    rows = []
    for folder in folders:
        for tissue in dict.fromkeys(tissue for line in folder["manifest"] for tissue in line["tissues"]):
            lines = [line for line in folder["manifest"] if tissue in line["tissues"]]
            rejected = [str(line.get("reason") or "no reason given") for line in lines if not line["accepted"]]
            reasons = Counter(re.sub(r"-?\d+(\.\d+)?", "…", words(reason)) for reason in rejected)
            rows.append(
                {
                    "method": "painted"
                    if folder["method"] == "diffusion"
                    else words(folder["method"]).replace(" ", "-"),
                    "fold": folder["fold"],
                    "tissue": tissue,
                    "cases": len(lines),
                    "accepted": sum(bool(line["accepted"]) for line in lines),
                    "reasons": "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common()),
                }
            )
    return rows


def run_table(runs: list[dict]) -> list[dict]:
    """Return one row per fold and arm, the seeds together."""
    groups: dict[tuple, list[dict]] = {}
    for run in runs:
        groups.setdefault((run["fold"], run["arm"]), []).append(run)
    return [
        {
            "fold": fold,
            "arm": arm,
            "seeds": ", ".join(str(run["seed"]) for run in group),
            "items": group[0]["training_items"],
            "synthetic": group[0]["synthetic_items"],
            "spacing": group[0]["spacing_mm"][0],
            "minutes": sum(run["seconds"] for run in group) / 60,
            "empty": ARMS[arm].method is not None and group[0]["synthetic_items"] == 0,
        }
        for (fold, arm), group in groups.items()
    ]


def stage_table(runs: list[dict]) -> list[dict]:
    """Return, for each fold and stage, how many patients it was fitted on and which of them are test patients."""
    rows: dict[tuple, dict] = {}
    for run in runs:
        for stage, names in run["fitted_on"].items():
            row = rows.setdefault((run["fold"], stage), {"fitted": set(), "test": set()})
            row["fitted"] |= set(names)
            row["test"] |= set(run["test_patients"])
    return [
        {
            "fold": fold,
            "stage": stage,
            "fitted": len(row["fitted"]),
            "test": sorted(row["test"]),
            "shared": sorted(row["fitted"] & row["test"]),
        }
        for (fold, stage), row in rows.items()
    ]


def checkpoints(folders: list[dict]) -> list[tuple[str, str]]:
    """Return fold and SHA-256 of every synthesizer that painted."""
    pairs = {
        (folder["fold"], str(line["checkpoint_sha256"]))
        for folder in folders
        for line in folder["manifest"]
        if line.get("checkpoint_sha256")
    }
    return sorted(pairs)

"""``python -m tools report``: one HTML page: what was compared, how sure the answer is, what it looks like."""

import base64
from pathlib import Path

from tools.comparison.arms import REFERENCE, arm_of, arm_title, is_painted
from tools.comparison.results import EARLIER, SCHEMA, collect, read_results
from tools.comparison.verdicts import FOLDS_FOR_VERDICT, HEADLINE, MEAN, decide, headroom, summarise
from tools.io.files import InputError, check_writable, read_json, write_text
from tools.painting.manifest import FREE_METHODS
from tools.plotting import LUNG_WINDOW_HU
from tools.report import figures, sweeps, tables
from tools.report.figures import sentence
from tools.report.tracking import track
from tools.tissues import tissue_colours, words

TEMPLATE = "report.html.j2"
SUMMARY_KEYS = ("settings", "labels", "arms", "folds", "seeds", "fractions", "runs", "rows")
TITLES = {
    HEADLINE: "Dice over all patients",
    "dice": "Dice of the patients who have the tissue",
    "surface_dice": "Normalised surface Dice",
    "volume_error": "Error of the volume fraction",
    "false_ml": "Volume found in patients without the tissue",
    "dice_all_lung_known": "Dice over all patients, the lung known",
    "dice_lung_known": "Dice of the patients who have the tissue, the lung known",
}
EXPLAINED = {
    "dice": "Overlap in the patients whose reference map holds the tissue; what is found in the others costs nothing.",
    "surface_dice": "Share of the tissue's surface within the tolerance of the true surface; higher is better.",
    "volume_error": "Size of the error of the tissue's share of the lung, in percentage points; lower is better, so a "
    "gain is a negative difference.",
    "false_ml": "In ml, per patient whose reference map lacks the tissue; lower is better, so a gain is a negative "
    "difference.",
    "dice_all_lung_known": "Of the likeliest tissue at each voxel of the reference lung: no error at the lung's border "
    "counts.",
    "dice_lung_known": "Of the likeliest tissue at each voxel of the reference lung: no error at the lung's border "
    "counts.",
}


def report(directory: Path, output: Path | None = None, mlflow: str | None = None) -> None:
    """Write the results of a comparison as one HTML page that needs nothing else: tables, figures, pictures, limits.

    Args:
        directory: Output folder of ``compare``.
        output: HTML file to write; default report.html in that folder.
        mlflow: Address of an MLflow server or database, such as http://localhost:5000 or sqlite:///mlruns.db, that gets
            the comparison run by run, the page and the figures.

    Raises:
        InputError: if the folder is missing, its comparison is not finished or of an older version, the page cannot be
            written, or MLflow does not answer.
    """
    directory = Path(directory)
    output = directory / "report.html" if output is None else Path(output)
    page = render(directory)
    if output.is_dir():
        raise InputError(f"output {output} is a folder; name an HTML file")
    check_writable(output.parent)
    write_text(output, page)
    print(f"wrote {output} ({len(page) / 1e6:.1f} MB); open it in a browser")
    if mlflow is not None:
        track(directory, mlflow, *load(directory), output)


def render(directory: Path) -> str:
    """Return the page for the output folder of ``compare``.

    Raises:
        InputError: if the folder is missing, or its comparison is not finished or of an older version.
    """
    import jinja2

    from tools.report.pictures import examples

    directory = Path(directory)
    summary, records = load(directory)
    labels, runs, rows = summary["labels"], summary["runs"], summary["rows"]
    pathological = [name for name in labels if name not in ("background", "healthy")]
    colours = tissue_colours(labels)
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    every = tables.augmented_folders(directory)
    folders = [folder for folder in every if abs(folder["percent"] - 100 * max(summary["fractions"])) < 0.01]
    painted = [folder for folder in folders if folder["method"] not in FREE_METHODS]
    shown = [folder for folder in painted if folder["method"] == painted[0]["method"]]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "words": words,
        "png": png,
        "minus": minus,
        "short": short,
        "arm": arm_title,
        "sentence": sentence,
    }
    compared = [name for name in colours if any(r.get("difference") is not None for r in rows if r["tissue"] == name)]
    return environment.get_template(TEMPLATE).render(
        summary=summary,
        overall=overall(records, rows, [name for name in labels if name != "background"]),
        explained=EXPLAINED,
        primary=next((row for row in rows if row.get("primary")), None),
        answers=answers(rows, pathological),
        external=answers(summary["external"], pathological),
        warnings=warnings(summary),
        tables=result_tables(summary),
        colours=colours,
        forests=[(name, figures.forest(rows, name, colours[name])) for name in compared],
        learning=sweeps.learning_curve(summary["curve"], pathological),
        sweep=sweeps.ratio_sweep(rows, pathological),
        patient_figures=[
            (name, figures.patients(records, name, arms, colours[name]))
            for name in colours
            if any(record["tissue"] == name and record["dice"] is not None for record in records)
        ],
        as_lines=len(arms) <= figures.ARMS_AS_LINES,
        shown_method=shown[0]["method"] if shown else None,
        examples=examples(shown, [folder for folder in folders if folder["method"] == "copy_paste"]),
        window=LUNG_WINDOW_HU,
        quality=tables.quality(folders),
        maps=tables.map_table(folders),
        acceptance=tables.acceptance(folders, labels),
        acceptance_by_fold=tables.acceptance(folders, labels, by_fold=True),
        runs=tables.run_table(runs),
        headroom=headroom(rows),
        steps=tables.steps(runs),
        stages=tables.stage_table(runs),
        settings=tables.settings_table(summary["settings"]),
        checksums=tables.checksums(every, summary["settings"]),
        versions=tables.versions(runs),
        test_patients=len({patient for run in runs for patient in run["test_patients"]}),
        hours=sum(run["seconds"] for run in runs) / 3600,
    )


def load(directory: Path) -> tuple[dict, list[dict]]:
    """Read summary.json, and of results.csv the scores of the own test patients at the largest share of patients.

    A comparison made under the statistics of the version before is computed anew from its scores first.

    Raises:
        InputError: if the folder or a file is missing, incomplete or of an older version.
    """
    if not directory.is_dir():
        raise InputError(f"{directory} is not a folder; name the output folder of compare")
    for name in ("summary.json", "results.csv"):
        if not (directory / name).is_file():
            begun = " (its comparison was begun and not finished)" if (directory / "run.json").is_file() else ""
            raise InputError(f"{directory} holds no {name}{begun}; run compare first")
    path = directory / "summary.json"
    summary = read_json(path)
    version = summary.get("schema", 1) if isinstance(summary, dict) else None
    if version == EARLIER and summary.get("labels"):
        print(f"{directory} was made under earlier statistics; it is computed anew from its scores")
        summary, version = collect(directory, summary), SCHEMA
    if version != SCHEMA:
        age = "an older" if isinstance(version, int) and version < SCHEMA else "another"
        raise InputError(f"{path} was made by {age} version (schema {version}, not {SCHEMA}); run compare again")
    missing = [key for key in SUMMARY_KEYS if not summary.get(key)]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}; run compare again")
    summary = {"measures": {}, "curve": [], "external": [], "plateaus": []} | summary
    return summary, read_results(directory, max(summary["fractions"]))


def png(data: bytes) -> str:
    """Return a PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(data).decode()


def minus(text: str) -> str:
    """Return a number's text with the minus sign of the typographer."""
    return text.replace("-", "−")


def short(value: float | None) -> str:
    """Return three digits of a number, more where there are more before the point; a dash for None.

    Example:
        >>> short(-0.01234), short(-1003.4), short(None)
        ('−0.0123', '−1003', '–')
    """
    if value is None:
        return "–"
    text = f"{value:.3g}"
    return minus(f"{value:.0f}" if "e+" in text else text)


def _join(names: list[str]) -> str:
    """Return "a", "a and b" or "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def overall(records: list[dict], rows: list[dict], tissues: list[str]) -> dict | None:
    """Compare the best painted arm with the best free rival, both by the mean over the pathological tissues.

    Both were picked after the fact, so p is multiplied by the number of pairs that they were picked from.

    Returns:
        ``painted``, ``rival`` and ``real`` (arm and mean; None if no such arm), ``pairs``, and if there are both
        ``difference``, ``interval`` and ``verdict`` of painted against rival (or against real if there is no rival).
        None if nothing but real was run.
    """
    pooled = MEAN if any(row["tissue"] == MEAN for row in rows) else tissues[-1]
    means = {row["arm"]: row["mean"] for row in rows if row["tissue"] == pooled and row["mean"] is not None}
    if set(means) <= {REFERENCE}:
        return None
    best = {"painted": [arm for arm in means if is_painted(arm)]}
    best["rival"] = [arm for arm in means if arm != REFERENCE and not (is_painted(arm) or arm_of(arm)[0].more)]
    found: dict = {name: max(arms, key=means.get) if arms else None for name, arms in best.items()}
    found |= {"real": REFERENCE, "means": means, "pairs": len(best["painted"]) * max(1, len(best["rival"]))}
    if found["painted"] is None:
        return found
    names = {found["rival"] or REFERENCE: REFERENCE, found["painted"]: found["painted"]}
    kept = [record | {"arm": names[record["arm"]]} for record in records if record["arm"] in names]
    every = summarise(kept, tissues, [REFERENCE, found["painted"]])
    row = next(row for row in every if row["tissue"] == pooled and row["arm"] == found["painted"])
    if row["p_holm"] is not None:
        row["verdict"] = decide(row["difference"], found["pairs"] * row["p"])
    return found | {key: row[key] for key in ("difference", "interval", "verdict")}


def answers(rows: list[dict], pathological: list[str]) -> list[tuple[str, str]]:
    """Return, for each arm but real, its name and one sentence with the verdicts; painted arms come first.

    Of other rows only losses are told: what a gain elsewhere has cost healthy lung.

    Example:
        >>> row = {"tissue": "fibrosis", "arm": "cbmat", "difference": 0.031, "verdict": "gain"}
        >>> answers([row], ["fibrosis"])
        [('cbmat', 'gain for fibrosis (+0.031).')]
    """
    arms = [arm for arm in dict.fromkeys(row["arm"] for row in rows) if arm != REFERENCE]
    arms.sort(key=lambda arm: not is_painted(arm))
    sentences = []
    for arm in arms:
        groups: dict[str, list[str]] = {"gain": [], "loss": [], "no gain": []}
        for row in rows:
            if row["arm"] == arm and (row["tissue"] in (*pathological, MEAN) or row["verdict"] == "loss"):
                verdict = row["verdict"].split(" (")[0]
                figure = minus(f" ({row['difference']:+.3f})") if verdict in ("gain", "loss") else ""
                names = {"healthy": "healthy lung", MEAN: "the mean of the tissues"}
                name = names.get(row["tissue"], words(row["tissue"]))
                groups.setdefault(verdict, []).append(name + figure)
        ends = {"too few patients": " to tell", "too few folds": ", so no verdict", "one seed only": ", so no verdict"}
        parts = [f"{verdict}{ends.get(verdict, '')} for {_join(names)}" for verdict, names in groups.items() if names]
        sentences.append((arm, "; ".join(parts) + "."))
    return sentences


def warnings(summary: dict) -> list[str]:
    """Return what a reader must know before he believes a verdict, in sentences."""
    told = []
    if summary.get("recomputed"):
        told.append(
            "The runs are of an earlier version. Their scores were read anew and judged by today's statistics; scores "
            "with the lung known do not exist."
        )
    if len(summary["folds"]) < FOLDS_FOR_VERDICT:
        told.append(
            f"{len(summary['folds'])} fold{'s' * (len(summary['folds']) > 1)} only: how much one draw of training "
            "patients and its painted cases differ from another cannot be told, so no verdict is given. Three folds "
            "are the least."
        )
    if len(summary["seeds"]) == 1:
        told.append(
            "One seed only: every arm was trained once, so luck in training cannot be told from the effect of an arm, "
            "and no verdict is given."
        )
    told += [f"{text.replace('fold', 'Fold', 1)}." for text in summary["plateaus"] if "no plateau" in text]
    few = {row["tissue"]: row["patients"] for row in summary["rows"] if "too few patients" in row.get("verdict", "")}
    if few:
        names = _join([f"{words(tissue)} ({count})" for tissue, count in few.items()])
        told.append(f"Too few test patients for a verdict: {names}. Five is the least.")
    for row in tables.run_table(summary["runs"]):
        if row["empty"]:
            share = "" if row["fraction"] == 1 else f" with {100 * row['fraction']:.0f} % of the patients"
            folds = f"fold{'s' * (len(row['empty']) > 1)} {_join([str(fold) for fold in row['empty']])}"
            told.append(
                f"In {folds}{share} the arm “{arm_title(row['arm'])}” had no synthetic case: there it equals real only."
            )
    return told


def result_tables(summary: dict) -> list[dict]:
    """Return the tables of results that there are: title, what is measured, and per tissue the rows.

    A row of the first table has ``known``: mean and difference of the same measure with the lung known, or None.
    """
    tissues = [name for name in summary["labels"] if name != "background"]
    known = {(row["tissue"], row["arm"]): row for row in summary["measures"].get("dice_all_lung_known") or []}
    first = [row | {"known": known.get((row["tissue"], row["arm"]))} for row in summary["rows"]]
    wanted = [(HEADLINE, TITLES[HEADLINE], first)]
    wanted += [(name, TITLES.get(name, words(name)), rows) for name, rows in summary["measures"].items()]
    wanted += [("external", TITLES[HEADLINE], summary["external"])]
    return [
        {
            "measure": measure,
            "title": title,
            "digits": 2 if measure in ("volume_error", "false_ml") else 3,
            "known": measure == HEADLINE and bool(known),
            "shared": measure == HEADLINE and any("headroom_share" in row for row in rows),
            "tissues": {name: [row for row in rows if row["tissue"] == name] for name in (*tissues, MEAN)},
        }
        for measure, title, rows in wanted
        if rows
    ]

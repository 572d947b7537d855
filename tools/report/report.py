"""``python -m tools report``: one HTML page: what was compared, how sure the answer is, what it looks like."""

import base64
from pathlib import Path

from tools.comparison.arms import REFERENCE, arm_title, is_painted
from tools.comparison.results import SCHEMA, read_results
from tools.comparison.verdicts import summarise
from tools.io.files import InputError, check_writable, read_json, write_text
from tools.plotting import LUNG_WINDOW_HU
from tools.report import figures, sweeps, tables
from tools.report.figures import sentence
from tools.report.sweeps import tissue_mean
from tools.tissues import tissue_colours, words

TEMPLATE = "report.html.j2"
SUMMARY_KEYS = ("settings", "labels", "arms", "folds", "seeds", "fractions", "runs", "rows")
MEASURE_TITLES = {"surface_dice": "Normalised surface Dice", "volume_error": "Error of the volume fraction"}


def report(directory: Path, output: Path | None = None) -> None:
    """Write the results of a comparison as one HTML page that needs nothing else: tables, figures, pictures, limits.

    Args:
        directory: Output folder of ``compare``.
        output: HTML file to write; default report.html in that folder.

    Raises:
        InputError: if the folder is missing, its comparison is not finished or of an older version, or the page cannot
            be written.
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
    painted = [folder for folder in folders if folder["method"] != "copy_paste"]
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
        overall=overall(records, rows, pathological),
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
        stages=tables.stage_table(runs),
        settings=tables.settings_table(summary["settings"]),
        checksums=tables.checksums(every, summary["settings"]),
        versions=tables.versions(runs),
        test_patients=len({patient for run in runs for patient in run["test_patients"]}),
        hours=sum(run["seconds"] for run in runs) / 3600,
    )


def load(directory: Path) -> tuple[dict, list[dict]]:
    """Read summary.json, and of results.csv the Dice of the own test patients at the largest share of patients.

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
    if version != SCHEMA:
        age = "an older" if isinstance(version, int) and version < SCHEMA else "another"
        raise InputError(f"{path} was made by {age} version (schema {version}, not {SCHEMA}); run compare again")
    missing = [key for key in SUMMARY_KEYS if not summary.get(key)]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}; run compare again")
    summary = {"measures": {}, "curve": [], "external": []} | summary
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


def overall(records: list[dict], rows: list[dict], pathological: list[str]) -> dict | None:
    """Compare the best painted arm with the best free rival, both by mean Dice over the pathological tissues.

    The interval is that of ``verdicts.summarise`` for the mean over tissues: patient p contributes
    ``(N / T) sum_t dice_pt / n_t`` (N patients, T tissues, n_t patients with tissue t), so that the mean over patients
    is the mean over tissues of the tissues' means.

    Returns:
        ``painted``, ``rival`` and ``real`` (arm and mean; None if no such arm), ``tissues``, and if there are both
        ``difference``, ``interval`` and ``verdict`` of painted against rival (or against real if there is no rival).
        None if nothing but real was run.
    """
    tissues = [name for name in pathological if any(row["tissue"] == name and row["patients"] for row in rows)]
    means = {arm: tissue_mean(rows, arm, tissues) for arm in dict.fromkeys(row["arm"] for row in rows)}
    means = {arm: mean for arm, mean in means.items() if mean is not None}
    if set(means) <= {REFERENCE}:
        return None
    best = {"painted": [arm for arm in means if is_painted(arm)]}
    best["rival"] = [arm for arm in means if arm != REFERENCE and not is_painted(arm)]
    found: dict = {name: max(arms, key=means.get) if arms else None for name, arms in best.items()}
    found |= {"real": REFERENCE, "means": means, "tissues": tissues}
    if found["painted"] is None:
        return found
    against = found["rival"] or REFERENCE
    pooled = _over_tissues(records, {against: REFERENCE, found["painted"]: found["painted"]}, tissues)
    row = summarise(pooled, ["all"], [REFERENCE, found["painted"]])[1]
    return found | {key: row[key] for key in ("difference", "interval", "verdict")}


def _over_tissues(records: list[dict], names: dict[str, str], tissues: list[str]) -> list[dict]:
    """Return one record per run and patient of some arms, renamed, with the contribution that ``overall`` defines."""
    kept = [r for r in records if r["arm"] in names and r["tissue"] in tissues and r["dice"] is not None]
    having = {tissue: len({r["patient"] for r in kept if r["tissue"] == tissue}) for tissue in tissues}
    number = len({record["patient"] for record in kept})
    sums: dict[tuple, float] = {}
    for record in kept:
        key = (names[record["arm"]], record["fold"], record["seed"], record["patient"])
        share = number / len(tissues) / having[record["tissue"]]
        sums[key] = sums.get(key, 0.0) + share * record["dice"]
    columns = ("arm", "fold", "seed", "patient")
    return [dict(zip(columns, key)) | {"tissue": "all", "dice": value} for key, value in sums.items()]


def answers(rows: list[dict], pathological: list[str]) -> list[tuple[str, str]]:
    """Return, for each arm but real, its name and one sentence with the verdicts; painted arms come first.

    Of the tissues that are not pathological only losses are told: what a gain elsewhere has cost.

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
            if row["arm"] == arm and (row["tissue"] in pathological or row["verdict"] == "loss"):
                verdict = row["verdict"].split(" (")[0]
                figure = minus(f" ({row['difference']:+.3f})") if verdict in ("gain", "loss") else ""
                name = "healthy lung" if row["tissue"] == "healthy" else words(row["tissue"])
                groups.setdefault(verdict, []).append(name + figure)
        ends = {"too few patients": " to tell", "one seed only": ", so no verdict"}
        parts = [f"{verdict}{ends.get(verdict, '')} for {_join(names)}" for verdict, names in groups.items() if names]
        sentences.append((arm, "; ".join(parts) + "."))
    return sentences


def warnings(summary: dict) -> list[str]:
    """Return what a reader must know before he believes a verdict, in sentences."""
    told = []
    if len(summary["seeds"]) == 1:
        told.append(
            "One seed only: every arm was trained once, so luck in training cannot be told from the effect of an arm, "
            "and no verdict is given."
        )
    few = {row["tissue"]: row["patients"] for row in summary["rows"] if "too few" in row.get("verdict", "")}
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
    """Return the tables of results that there are: title, what is measured, and per tissue the rows."""
    tissues = [name for name in summary["labels"] if name != "background"]
    wanted = [("dice", "Dice", summary["rows"])]
    wanted += [(name, MEASURE_TITLES.get(name, words(name)), rows) for name, rows in summary["measures"].items()]
    wanted += [("external", "Dice", summary["external"])]
    return [
        {
            "measure": measure,
            "title": title,
            "digits": 2 if measure == "volume_error" else 3,
            "tissues": {name: [row for row in rows if row["tissue"] == name] for name in tissues},
        }
        for measure, title, rows in wanted
        if rows
    ]

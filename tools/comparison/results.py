"""Reading the segmenter's scores and gathering all runs of a comparison into results.csv and summary.json."""

from pathlib import Path

import pandas

from tools.comparison.arms import ARMS, arm_name, arm_of
from tools.comparison.verdicts import HEADLINE, MEASURES, parse_primary, summarise
from tools.data.datalist import Case, read_datalist
from tools.io.files import InputError, RunError, atomic_file, read_json, write_json
from tools.io.volume import case_name

SCHEMA = 3  # of summary.json, results.csv and result.json
EARLIER = 2  # its runs are read anew from the tables of scores that the segmenter left beside them
SCORES_FILE = "scores.csv"
RESULT_COLUMNS = ("test", "fraction", "fold", "seed", "arm", "patient", "tissue", *MEASURES)


def read_scores(path: Path, test: list[Case], tissues: list[str]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Read the table of scores of the segmenter's evaluation and average the cases of each patient.

    Returns:
        Patient to tissue to measures. Where a patient's reference maps (label) hold the tissue: ``dice`` and
        ``surface_dice``, and None elsewhere. Always: ``dice_all``, which is 1 for a case without the tissue in which
        none was found and 0 where any was; ``volume_error``, the size of the error of the tissue's share of the lung,
        in points. Of the cases without the tissue: ``false_ml``, the volume found, in ml. ``dice_lung_known`` and
        ``dice_all_lung_known`` are of the answer with the lung known; None in a table of an earlier version.

    Raises:
        RunError: if the table is missing, or does not hold each test case and tissue once.
    """
    if not path.is_file():
        raise RunError(f"the run ended without {path}")
    table = pandas.read_csv(path, dtype={"case": str})
    patient = {case_name(case.label): case.patient for case in test}
    expected = sorted((case, tissue) for case in patient for tissue in tissues)
    found = sorted(zip(table["case"], table["tissue"]))
    if len(patient) != len(test) or found != expected:
        differing = sorted(set(found) ^ set(expected)) or [("a case", "twice")]
        raise RunError(f"{path} does not hold each test case and tissue once: {' '.join(differing[0])}")
    table["patient"] = table["case"].map(patient)
    table["volume_error"] = table["percent_error"].abs()
    lacked = table["state"].isin(("false", "absent"))
    table["dice_all"] = table["dice"].where(~lacked, (table["state"] == "absent").astype(float))
    table["false_ml"] = table["ml_predicted"].where(lacked)
    table = table.reindex(columns=["patient", "tissue", *MEASURES])
    means = table.groupby(["patient", "tissue"])[list(MEASURES)].mean()
    means = means.astype(object).where(means.notna(), None)
    return {name: means.loc[name].loc[tissues].to_dict("index") for name in sorted(set(patient.values()))}


def read_results(output: Path, fraction: float = 1) -> list[dict] | None:
    """Return the records of a folder's results.csv, of the own test patients and a share of the training patients.

    They are as ``verdicts.summarise`` takes them; None without the file, InputError if it is damaged.
    """
    path = Path(output) / "results.csv"
    if not path.is_file():
        return None
    kinds = {"fraction": float, "fold": int, "seed": int, "patient": str} | dict.fromkeys(MEASURES, float)
    empty = dict.fromkeys(MEASURES, [""])
    try:
        table = pandas.read_csv(path, dtype=kinds, keep_default_na=False, na_values=empty, float_precision="round_trip")
        table = table[(table["test"] == "own") & (table["fraction"] == fraction)]
        return table.astype(dict.fromkeys(MEASURES, object)).where(table.notna(), None).to_dict("records")
    except (KeyError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}); run compare again") from None


def find_results(output: Path, tissues: list[str]) -> list[dict]:
    """Return what all finished runs below a folder wrote, largest share of the patients first.

    Runs of the version before are read anew from the tables that the segmenter left; old and new are never mixed.

    Raises:
        InputError: if runs are of several versions or an unknown one, one lacks its table of scores, or says that one
            of its stages saw one of its test patients.
    """
    paths = sorted(Path(output).glob("fold*/**/seed*/*/result.json"))
    results = [read_json(path) for path in paths]
    schemas = {result.get("schema") for result in results}
    if not schemas <= {SCHEMA} and schemas != {EARLIER}:
        raise InputError(f"{output} holds runs of {'several versions' if len(schemas) > 1 else 'another version'}")
    for path, result in zip(paths, results):
        if result["schema"] == EARLIER:
            result["scores"] = _rescored(path.parent, result, tissues)
        for stage, names in result["fitted_on"].items():
            shared = sorted(set(names) & set(result["test_patients"]))
            if shared:
                raise InputError(
                    f"leak in arm {result['arm']}: {stage} was fitted on test patients {', '.join(shared)}"
                )
    results.sort(key=lambda run: (-run["fraction"], run["fold"], run["seed"], *_order(run["arm"])))
    return results


def _rescored(folder: Path, result: dict, tissues: list[str]) -> dict:
    """Return the scores of an earlier run, computed anew from its tables; InputError if they are gone."""
    folder = folder.with_name(result.get("same_as", result["arm"]))
    scores = {}
    for test in result["scores"]:
        place = folder if test == "own" else folder / test
        try:
            cases = read_datalist(place / "datalist.json")["training"]
            tested = [case for case in cases if case.fold == (result["fold"] if test == "own" else 0)]
            scores[test] = read_scores(place / SCORES_FILE, tested, tissues)
        except (InputError, RunError) as error:
            raise InputError(f"{folder} was made by an earlier version and cannot be scored anew: {error}") from None
    return scores


def _order(key: str) -> tuple[int, float]:
    return list(ARMS).index(arm_name(key)), arm_of(key)[1]


def collect(output: Path, real: dict) -> dict:
    """Gather all finished runs below a folder of ``compare``, write results.csv and summary.json; return the latter."""
    output = Path(output)
    tissues = [name for name in real["labels"] if name != "background"]
    results = find_results(output, tissues)
    records = [
        {"test": test, "patient": patient, "tissue": tissue}
        | {key: result[key] for key in ("fraction", "fold", "seed", "arm")}
        | measured
        for result in results
        for test, scores in result["scores"].items()
        for patient, row in scores.items()
        for tissue, measured in row.items()
    ]
    table = pandas.DataFrame(records, columns=RESULT_COLUMNS).to_csv(index=False, lineterminator="\r\n")
    with atomic_file(output / "results.csv") as temporary:
        temporary.write_text(table, newline="", encoding="utf-8")
    settings = read_json(output / "run.json")
    every = sorted({result["arm"] for result in results}, key=_order)
    named = settings.get("primary")  # its arm comes after those that show the headroom
    primary = parse_primary(named, every, tissues) if named and named.partition(",")[0] in every else None
    fractions = sorted({result["fraction"] for result in results})

    def rows(measure: str = HEADLINE, test: str = "own", fraction: float = fractions[-1]) -> list[dict]:
        kept = [record for record in records if record["test"] == test and record["fraction"] == fraction]
        arms = list(dict.fromkeys(sorted((record["arm"] for record in kept), key=_order)))
        known = any(record.get(measure) is not None for record in kept)  # an earlier version had fewer measures
        return summarise(kept, tissues, arms, measure, primary) if known else []

    summary = {
        "schema": SCHEMA,
        "settings": settings,
        "primary": list(primary) if primary else None,
        "recomputed": any(result["schema"] == EARLIER for result in results),
        "labels": real["labels"],
        "arms": every,
        "folds": sorted({result["fold"] for result in results}),
        "seeds": sorted({result["seed"] for result in results}),
        "fractions": fractions,
        "plateaus": [
            f"{path.parents[1].name.replace('fold', 'fold ')}: {read_json(path)['sentence']}"
            for path in sorted(output.glob("fold*/plateau/plateau.json"))
        ],
        "runs": [{key: value for key, value in result.items() if key != "scores"} for result in results],
        "rows": rows(),
        "measures": {measure: rows(measure) for measure in MEASURES if measure != HEADLINE},
        "curve": [row | {"fraction": fraction} for fraction in fractions for row in rows(fraction=fraction)]
        * (len(fractions) > 1),
        "external": rows(test="external"),
    }
    write_json(output / "summary.json", summary)
    return summary

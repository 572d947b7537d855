"""A finished comparison in MLflow: one run for each segmenter, and one for the verdict with its page and figures."""

import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from tools.comparison.verdicts import MEASURES
from tools.io.files import InputError, read_json
from tools.report import figures
from tools.tissues import tissue_colours

RUN, VERDICT = "difflung.run", "verdict"  # the tag by which a run is found again; its value for the comparison itself
CONSTANTS = ("arm", "fold", "seed", "fraction", "ratio", "iterations", "training_items", "synthetic_items")
MOST = 100  # parameters in one call
TRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"


def track(directory: Path, uri: str, summary: dict, records: list[dict], page: Path) -> None:
    """Write a finished comparison to MLflow, as the experiment ``comparison NAME``; what is there already stays.

    Args:
        directory: Output folder of ``compare``; its name becomes that of the experiment.
        uri: Address of a server, such as http://localhost:5000, or of a database, such as sqlite:///mlruns.db.
        summary: Content of its summary.json.
        records: Scores, as ``results.read_results`` returns them.
        page: The report, an HTML file.

    Raises:
        InputError: if MLflow is not installed, the address names a folder, or nothing answers there.
    """
    if "://" not in uri or uri.startswith("file:"):
        raise InputError(f"mlflow {uri} is a folder, which MLflow keeps no runs in; give sqlite:///FILE or a server")
    try:
        import mlflow
    except ImportError:
        raise InputError("MLflow is not installed; pip install mlflow, then give --mlflow again") from None
    os.environ.setdefault(TRIES, "2")  # else it tries for minutes
    name = f"comparison {Path(directory).resolve().name}"
    try:
        client = mlflow.MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else client.create_experiment(name)
        written = {
            run.data.tags.get(RUN)
            for run in client.search_runs([experiment], "attributes.status = 'FINISHED'", max_results=50_000)
        }
        for place, title, params, metrics, files in _runs(Path(directory), summary, records, page):
            if place not in written:
                _write(client, experiment, place, title, params, metrics, files)
    except mlflow.exceptions.MlflowException as error:
        raise InputError(f"MLflow at {uri} took no runs: {str(error).splitlines()[0]}") from None
    print(f"wrote the experiment {name!r} to MLflow at {uri}")


def _runs(directory: Path, summary: dict, records: list[dict], page: Path) -> Iterator[tuple]:
    """Yield what MLflow gets of each run: its place, title, parameters, metrics and files or folders."""
    for path in sorted(directory.glob("fold*/**/seed*/*/result.json")):
        result, folder = read_json(path), path.parent
        title = f"{result['arm']}, fold {result['fold']}, seed {result['seed']}"
        params = {key: result.get(key) for key in CONSTANTS} | result.get("versions", {})
        metrics = means(result["scores"]["own"]) | {"seconds": result["seconds"]}
        yield folder.relative_to(directory).as_posix(), title, params, metrics, [path, *sorted(folder.glob("*.png"))]
    told = {key: summary["settings"].get(key) for key in ("datalist_sha256", "iterations")}
    differences = {
        f"{key} {row['arm']} {row['tissue']}": row[key]
        for row in summary["rows"]
        for key in ("mean", "difference", "p_holm")
        if row.get(key) is not None
    }
    with tempfile.TemporaryDirectory() as folder:
        arms = list(dict.fromkeys(row["arm"] for row in summary["rows"]))
        for tissue, colour in tissue_colours(summary["labels"]).items():
            if any(row.get("difference") is not None for row in summary["rows"] if row["tissue"] == tissue):
                Path(folder, f"{tissue}.png").write_bytes(figures.forest(summary["rows"], tissue, colour))
            if any(record["tissue"] == tissue and record["dice"] is not None for record in records):
                picture = figures.patients(records, tissue, arms, colour)
                Path(folder, f"{tissue}_patients.png").write_bytes(picture)
        files = [directory / "summary.json", directory / "results.csv", page, *sorted(Path(folder).iterdir())]
        verdicts = {f"{row['arm']} {row['tissue']}": row["verdict"] for row in summary["rows"] if row.get("verdict")}
        yield VERDICT, VERDICT, told | verdicts, differences, files


def means(scores: dict) -> dict[str, float]:
    """Return each measure of each tissue, averaged over the patients that have it, under ``MEASURE TISSUE``.

    Example:
        >>> means({"a": {"fibrosis": {"dice": 0.5}}, "b": {"fibrosis": {"dice": 0.7}}, "c": {"fibrosis": {}}})
        {'dice fibrosis': 0.6}
    """
    found = {}
    for tissue in dict.fromkeys(tissue for patient in scores.values() for tissue in patient):
        for measure in MEASURES:
            values = [patient[tissue].get(measure) for patient in scores.values() if tissue in patient]
            values = [value for value in values if value is not None]
            if values:
                found[f"{measure} {tissue}"] = statistics.mean(values)
    return found


def batched(pairs: Iterable[tuple]) -> Iterator[tuple]:
    """Return as many pairs at a time as MLflow takes."""
    pairs = iter(pairs)
    return iter(lambda: tuple(itertools.islice(pairs, MOST)), ())


def _write(client, experiment: str, place: str, title: str, params: dict, metrics: dict, files: list[Path]) -> None:
    """Write one run; it is finished, and so found again, once all of it is there."""
    from mlflow.entities import Metric, Param

    run = client.create_run(experiment, run_name=title, tags={RUN: place}).info.run_id
    now = int(1000 * time.time())
    for some in batched(params.items()):
        client.log_batch(run, params=[Param(key, str(value)) for key, value in some])
    for some in batched(metrics.items()):
        client.log_batch(run, metrics=[Metric(key, value, now, 0) for key, value in some])
    for file in files:
        client.log_artifact(run, str(file))
    client.set_terminated(run)

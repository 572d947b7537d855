"""How good is painting with few network evaluations? Evaluate the held-out patients with each sampler and number."""

import math
import time
from pathlib import Path

import pandas

from tools.bundles import BUNDLES
from tools.data.datalist import read_fold
from tools.evaluation.figures import FLOORS, QUALITY_ROWS, draw_curve
from tools.flags import check_numbers, listed
from tools.io.files import InputError, RunError, open_run, read_json, sha256, write_bytes, write_json, write_table
from tools.tissues import tissue_labels
from tools.workflows.run import check_overrides, run_bundle
from tools.workflows.synthesizer import SYNTHESIZER, card_settings

# What the command itself decides.
RESERVED = ("dataset_dir", "datalist", "fold", "model_dir", "output_dir", "checkpoint", "num_steps", "sampler")


def curve(
    datalist: Path,
    fold: int,
    checkpoint: Path,
    output: Path,
    evaluations: tuple = (1, 2, 4, 8, 16, 50),
    samplers: tuple = ("dpm_solver_flow",),
    cases: int | None = None,
    variant: str | None = None,
    overrides: dict | None = None,
) -> None:
    """Score the synthesizer over the number of network evaluations, per sampler and tissue, beside the real floor.

    Each number is one run of the bundle's evaluation on the fold's held-out patients; its seconds hold its start.
    Start the command again to go on after the finished runs, or with more numbers or samplers to add them.

    Args:
        datalist: The datalist.json as `dataset` writes it.
        fold: Fold that is held out.
        checkpoint: Weights of the synthesizer, trained without that fold; settings on a card beside them are kept.
        output: Folder for the runs, curve.csv and curve.png; new, or begun with the same settings.
        evaluations: Numbers of evaluations of the network per window, such as 1,2,4.
        samplers: Names of samplers, such as dpm_solver_flow,euler; each needs a network of its objective.
        cases: Number of held-out cases that are painted, the first ones; all by default.
        variant: Overlay of the synthesizer's train.json that the weights were trained with, such as few_step.
        overrides: Ids of the synthesizer's train.json and evaluate.json and their values.

    Raises:
        InputError: if the input is unusable, a patient is on both sides, or the output holds something else.
        RunError: if a run fails; those before it are kept.
    """
    overrides, samplers = dict(overrides or {}), [str(name) for name in listed(samplers)]
    evaluations = listed(evaluations)
    configs = config_files(variant)
    whole = [value for value in evaluations if isinstance(value, int) and not isinstance(value, bool) and value > 0]
    if not evaluations or whole != evaluations:
        raise InputError(f"evaluations must be whole numbers of at least 1 such as 1,2,4, not {evaluations}")
    if not samplers:
        raise InputError("samplers must name at least one, such as euler")
    check_numbers({} if cases is None else {"cases": cases})
    check_overrides(SYNTHESIZER, configs, overrides, RESERVED, "curve")
    training, held_out = read_fold(datalist, fold)
    of_card = card_settings(checkpoint, held_out)
    settings = {
        "command": "curve", "datalist_sha256": sha256(datalist), "fold": fold, "cases": cases, "variant": variant,
        "checkpoint_sha256": sha256(checkpoint), "overrides": overrides,
    }  # fmt: skip
    output = open_run(output, settings)
    if cases is not None and cases < len(held_out):
        print(f"only the first {cases} of {len(held_out)} held-out cases are painted")
    config = read_json(BUNDLES / SYNTHESIZER / "configs/train.json")
    attributes = (config | of_card | overrides)["attributes"]
    kept = [case.told(attributes) for case in held_out[:cases]]
    if [case.item() for case in kept] != [case.item() for case in held_out]:
        datalist = output / "datalist.json"
        write_json(datalist, {"training": [case.item(output) for case in training + kept]})
    runs = [(sampler, number) for sampler in samplers for number in evaluations]
    for place, (sampler, number) in enumerate(runs, 1):
        folder, title = output / f"{sampler}_{number}", f"run {place} of {len(runs)}: {sampler}, {number} evaluations"
        if (folder / "result.json").is_file():
            print(f"{title} (finished earlier)", flush=True)
            continue
        print(title, flush=True)
        run = {"dataset_dir": str(Path(datalist).parent), "datalist": str(datalist), "fold": fold}
        run |= {"model_dir": str(Path(checkpoint).parent), "checkpoint": str(checkpoint), "output_dir": str(folder)}
        run |= {"num_steps": number, "sampler": sampler}
        start = time.monotonic()
        run_bundle(SYNTHESIZER, configs, of_card | run | overrides, folder / "evaluate.log")
        seconds = round(time.monotonic() - start, 1)
        result = {"sampler": sampler, "evaluations": number, "seconds": seconds, "tissues": read_quality(folder)}
        write_json(folder / "result.json", result)
    rows = gather(output)
    print(f"\n{format_table(rows)}\n\nwrote curve.csv and curve.png in {output}")


def config_files(variant: str | None) -> list[str]:
    """Return the configs of an evaluation, a variant's overlay among them; InputError if there is none."""
    overlays = sorted(path.stem for path in (BUNDLES / SYNTHESIZER / "configs").glob("*.yaml"))
    if variant is not None and variant not in overlays:
        raise InputError(f"there is no variant {variant!r}; there are {', '.join(overlays)}")
    return ["train.json", *([f"{variant}.yaml"] if variant else []), "evaluate.json"]


def read_quality(folder: Path) -> dict[str, dict[str, float | None]]:
    """Return tissue to measure to value from an evaluation's quality.csv; RunError if it says nothing."""
    if not (folder / "quality.csv").is_file():
        raise RunError(f"the evaluation ended without quality.csv in {folder}")
    table = pandas.read_csv(folder / "quality.csv", index_col="tissue", float_precision="round_trip").astype(float)
    if table.empty:
        raise RunError(f"the evaluation in {folder} measured no tissue")
    return {
        tissue: {name: value if math.isfinite(value) else None for name, value in row.items()}
        for tissue, row in table.to_dict("index").items()
    }


def gather(output: Path) -> list[dict]:
    """Write curve.csv and curve.png from all finished runs in a folder, and return the rows."""
    results = [read_json(path) for path in output.glob("*/result.json")]
    rows = [
        {key: result[key] for key in ("sampler", "evaluations")}
        | {"tissue": tissue} | measures | {"seconds": result["seconds"]}
        for result in sorted(results, key=lambda result: (result["sampler"], result["evaluations"]))
        for tissue, measures in result["tissues"].items()
    ]  # fmt: skip
    columns = dict.fromkeys(key for row in rows for key in row if key != "seconds")
    write_table(output / "curve.csv", pandas.DataFrame(rows, columns=[*columns, "seconds"], dtype=object))
    write_bytes(output / "curve.png", draw_curve(rows, tissue_labels()))
    return rows


def format_table(rows: list[dict]) -> str:
    """Return a table per measure: a line per sampler and number, a column per tissue, and the floor last."""
    tissues, parts = list(dict.fromkeys(row["tissue"] for row in rows)), []
    for measure, title in QUALITY_ROWS.items():
        runs: dict[tuple, dict] = {}
        for row in rows:
            run = runs.setdefault((row["sampler"], row["evaluations"]), {"seconds": f"{row['seconds']:.0f}"})
            run[row["tissue"]] = row.get(measure)
        runs["real tissue", ""] = {row["tissue"]: row.get(FLOORS[measure]) for row in rows} | {"seconds": ""}
        table = [dict(zip(("sampler", "evaluations"), place)) | run for place, run in runs.items()]
        columns = ["sampler", "evaluations", *tissues, "seconds"]
        digits = "{:.2f}".format if measure == "auc" else "{:.1f}".format
        text = pandas.DataFrame(table, columns=columns).to_string(index=False, na_rep="-", float_format=digits)
        parts.append(f"{title}: painted and real tissue of different patients\n{text}")
    return "\n\n".join(parts)

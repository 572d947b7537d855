"""Does the synthesizer obey its conditions? Paint held-out patients at several levels of each, and measure."""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas
from tqdm import tqdm

from tools.bundles import BUNDLES
from tools.data.datalist import read_fold
from tools.evaluation import measures
from tools.evaluation.figures import draw_conditions
from tools.evaluation.probes import LEVELS, MAP, TOLD, UNKNOWN, Probe, find_sites, lay_out, plan, unreadable
from tools.flags import check_numbers
from tools.io import files
from tools.tissues import tissue_labels
from tools.workflows.run import check_overrides, run_bundle
from tools.workflows.segmenter import SEGMENTER, label_cts
from tools.workflows.synthesizer import SYNTHESIZER, card_settings

SEGMENTED = ("severity", "history", MAP)  # the conditions of which the tissues in the painting tell
COLUMNS = ("condition", "tissue", "measure", "requested", "measured", "case", "painting")
# What the command itself decides.
RESERVED = ("dataset_dir", "output_dir", "model_dir", "checkpoint", "num_steps")


def conditions(
    datalist: Path,
    fold: int,
    checkpoint: Path,
    output: Path,
    segmenter: Path | None = None,
    steps: int = 8,
    cases: int = 6,
    slices: int = 3,
    overrides: dict | None = None,
    segmenter_overrides: dict | None = None,
) -> None:
    """Paint held-out patients at several levels of each condition, and measure whether the paintings obey.

    Density per tissue, severity, age and history are asked for one at a time, everything else unknown; the levels span
    what the fold's training patients have. Besides, lung of which nothing is told and lung of which all is told are
    compared with the real lung. Started again with the same settings it goes on.

    Args:
        datalist: The datalist.json as `dataset` writes it, with the patients' attributes.
        fold: Fold that is held out; its patients are painted, the others give levels and the real trends.
        checkpoint: Weights of the synthesizer, trained without that fold; settings on a card beside them are kept.
        output: New folder for conditions.csv, summary.json, summary.md, conditions.png and work/ with the paintings.
        segmenter: Weights of the tissue segmenter; with them the tissues in the paintings are measured too.
        steps: Network evaluations per painted window.
        cases: Held-out patients per condition, at most.
        slices: Axial slices of each, those with most of what is painted.
        overrides: Ids of the synthesizer's inference.json and their values, such as "{guidance: 2.0}".
        segmenter_overrides: Ids of the segmenter's inference.json and their values.

    Raises:
        InputError: if the input is unusable, a patient is on both sides, or the output holds something else.
        RunError: if painting or segmenting fails.
    """
    overrides, segmenter_overrides = dict(overrides or {}), dict(segmenter_overrides or {})
    training, held_out = read_fold(datalist, fold)
    check_numbers({"steps": steps, "cases": cases, "slices": slices})
    of_card = card_settings(checkpoint, held_out)
    if segmenter is not None and not Path(segmenter).is_file():
        raise files.InputError(f"segmenter {segmenter} does not exist")
    for bundle, given in ((SYNTHESIZER, overrides), (SEGMENTER, segmenter_overrides)):
        check_overrides(bundle, ["inference.json"], given, RESERVED, "conditions")
    settings = {
        "command": "conditions", "datalist_sha256": files.sha256(datalist), "fold": fold, "steps": steps,
        "cases": cases, "slices": slices, "checkpoint_sha256": files.sha256(checkpoint), "overrides": overrides,
        "segmenter_sha256": files.sha256(segmenter) if segmenter else None, "segmenter_overrides": segmenter_overrides,
    }  # fmt: skip
    output = files.open_run(output, settings)
    if (output / "summary.json").is_file():
        print(f"{format_table(files.read_json(output / 'summary.json'))}\n\n{output} is complete already")
        return
    config = files.read_json(BUNDLES / SYNTHESIZER / "configs/inference.json")
    config["attributes"] = config["attributes"]["otherwise"]
    told = {key: value for key, value in of_card.items() if key in config} | {"num_steps": steps} | overrides
    hu_window, attributes = ((config | told)[key] for key in ("hu_window", "attributes"))
    training, held_out = ([case.told(attributes) for case in cases] for cases in (training, held_out))
    surveyed = measures.survey(training, slices, hu_window)
    probes, skipped = plan(surveyed, find_sites(held_out, cases, slices), hu_window)
    voxels = sum(int(probe.scene.region.sum()) for probe in probes) / 1e6
    print(f"{len(probes)} paintings of {slices} slices at most, {voxels:.1f} million voxels, {steps} evaluations each")
    paint(probes, output, told | {"checkpoint": str(checkpoint)})
    if segmenter:
        segment(probes, output, Path(segmenter), segmenter_overrides)
    rows, summary = evaluate(probes, surveyed, output / "work", bool(segmenter), hu_window)
    summary = {"settings": settings, "paintings": len(probes), "skipped": skipped} | summary
    files.write_table(output / "conditions.csv", pandas.DataFrame(rows, columns=COLUMNS, dtype=object))
    files.write_bytes(output / "conditions.png", draw_conditions(rows, summary, tissue_labels()))
    table = format_table(summary)
    files.write_text(output / "summary.md", table + "\n")
    files.write_json(output / "summary.json", summary)  # the last one, since it marks the run as finished
    print(
        f"\n{table}\n\n"
        f"obeyed: the means of the {LEVELS} levels rank as asked (above {measures.OBEYED_ABOVE:g}, so without a swap;\n"
        "by chance 1 in 120), or each history lies on its real patients' side of the mean (four: by chance 1 in 14)\n"
        f"wrote conditions.csv, conditions.png, summary.json and summary.md in {output}; work/ holds the paintings"
    )


def paint(probes: list[Probe], output: Path, settings: dict) -> None:
    """Paint all probes in one run of the bundle; those that an earlier run finished are kept."""
    work = output / "work"
    missing = unreadable((probe.case for probe in probes), work / "painted")
    remaining = [probe for probe in probes if probe.case in missing]
    if not remaining:
        return
    if len(remaining) < len(probes):
        print(f"{len(probes) - len(remaining)} of them were painted earlier")
    for kind in ("scenes", "images", "labels", "targets"):
        shutil.rmtree(work / kind, ignore_errors=True)
    lay_out(remaining, work)
    print(f"painting; the log is {output / 'paint.log'}", flush=True)
    run = {"dataset_dir": str(work), "output_dir": str(work / "painted"), "region_margin": 0}
    run_bundle(SYNTHESIZER, ["inference.json"], run | settings, output / "paint.log")
    missing = unreadable(missing, work / "painted")
    if missing:
        raise files.RunError(f"painting ended without {missing[0]} in {work / 'painted'}")


def segment(probes: list[Probe], output: Path, weights: Path, overrides: dict) -> None:
    """Segment the paintings of which the tissues tell, and the real lung beside them, in one run of the bundle."""
    work = output / "work"
    wanted = {probe.case: work / f"painted/{probe.case}.nii.gz" for probe in probes if probe.condition in SEGMENTED}
    real = {f"real-{probe.case}": work / f"scenes/{probe.scene.name}-images.nii.gz"
            for probe in probes if probe.condition == MAP}  # fmt: skip
    if not unreadable(wanted | real, work / "segmented"):
        return
    shutil.rmtree(work / "segmented", ignore_errors=True)
    print(f"segmenting {len(wanted)} of them; the log is {output / 'segment.log'}", flush=True)
    settings = overrides | {"output_postfix": ""}
    label_cts(wanted | real, weights, work / "segmented", settings, output / "segment.log")
    missing = unreadable(wanted, work / "segmented")
    if missing:
        raise files.RunError(f"segmenting ended without {missing[0]} in {work / 'segmented'}")


def evaluate(probes: list[Probe], surveyed: list[dict], work: Path, segmented: bool, hu_window) -> tuple:
    """Return the rows of conditions.csv and the summary; RunError if a CT changed outside the painted region."""
    rows, lungs, maps = [], {UNKNOWN: [], TOLD: []}, []
    for probe in tqdm(probes, desc="measuring", unit="painting", disable=None):
        painted = np.clip(nib.load(work / f"painted/{probe.case}.nii.gz").get_fdata(dtype=np.float32), *hu_window)
        if not np.array_equal(painted[~probe.scene.region], probe.scene.hu[~probe.scene.region]):
            raise files.RunError(f"{probe.case} changed outside its painted region")
        tissues = None
        if segmented and probe.condition in SEGMENTED:
            tissues = np.asarray(nib.load(work / f"segmented/{probe.case}.nii.gz").dataobj)
        rows += measures.probe_rows(probe, painted, tissues)
        if segmented and probe.condition == MAP:
            of_real = np.asarray(nib.load(work / f"segmented/real-{probe.case}.nii.gz").dataobj)
            maps.append((probe.scene.truth, tissues, of_real))
        if probe.condition in lungs:
            lungs[probe.condition].append((probe.scene, painted))
    unknown = measures.judge_unknown(lungs, rows, hu_window)
    return rows, {"judgements": measures.judge(rows, surveyed), "unknown": unknown, "map": measures.judge_map(maps)}


def format_table(summary: dict) -> str:
    """Return the judgements as a Markdown table."""
    head = ("condition", "measure", "rank corr. of means", "within hosts", "slope", "real slope", "verdict")
    lines = [head, ("---",) * len(head)]
    for row in summary["judgements"]:
        verdict, name = row["verdict"], " ".join(filter(None, (row["condition"], row["tissue"])))
        if "same_side" in row:
            verdict += f" ({row['same_side']} of {row['histories']} on their side)"
        ranks = [_number(row[key], "+.2f") for key in ("rank_correlation", "rank_correlation_pairs")]
        slopes = [_number(row.get(key), "+.3g") for key in ("slope", "real_slope")]
        lines.append((name, row["measure"].replace("_", " "), *ranks, *slopes, verdict))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines]
    unknown = summary["unknown"]
    text += ["", "Wasserstein-1 in HU between painted and real lung of the same hosts:"]
    for kind, words in ((UNKNOWN, "nothing told"), (TOLD, "everything told as it is")):
        whole, alone = unknown[kind]["wasserstein_hu"], unknown[kind]["wasserstein_hu_per_host"]
        text.append(f"- {words}: {whole:.1f} all hosts together, {alone:.1f} host by host")
    text.append(f"- real lung of one host against another's: {_number(unknown['real_between_hosts'], '.1f')}")
    if summary["map"]:
        text += ["", "Dice of the segmenter's answer with the map, in painted lung (in real lung of the same slices):"]
    text += [f"- {name}: {found['painted']:.3f} ({found['real']:.3f})" for name, found in summary["map"].items()]
    text += [f"- not measured: {name}, {reason}" for name, reason in summary["skipped"].items()]
    return "\n".join(text)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"

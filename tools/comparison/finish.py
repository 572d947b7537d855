"""``python -m tools finish``: after a verdict, the model: a comparison's arm trained on all patients, and packaged."""

from pathlib import Path

from tools.comparison.arms import REFERENCE, arm_datalist, arm_of, is_painted
from tools.comparison.leaks import augmented_stages
from tools.comparison.mixing import Mixing
from tools.comparison.run import Recipe, Run, arm_settings, share_folder
from tools.data.datalist import SYNTHETIC, patients, read_datalist
from tools.data.provenance import cases_read
from tools.io.files import InputError, open_run, read_json, sha256, write_json
from tools.painting.augment import augment
from tools.serving.package import package
from tools.workflows.origin import named_weights
from tools.workflows.run import FINE_TUNE, run_bundle
from tools.workflows.segmenter import SEGMENTER, epochs
from tools.workflows.synthesizer import SYNTHESIZER

TOLD = ("tissue", "arm", "patients", "folds", "mean", "difference", "interval", "p_holm", "primary", "verdict")
CHOSEN = ("context", "densities")  # how augment made the cases, where it was told
PAINTED = ("candidates", "tune_steps")  # and how it painted
TRAINED, VALIDATED = 1, 0  # folds: all cases are trained on, and one of them is validated on too, for no choice


def finish(
    comparison: Path,
    arm: str,
    datalist: Path,
    output: Path,
    seed: int = 0,
    start: Path | None = None,
    synthesizer: Path | None = None,
    targets: str = "zoo",
    data_license: Path | None = None,
    device: str | None = None,
) -> None:
    """Train an arm of a finished comparison on all patients, and package the model with the comparison's verdict.

    The same settings, steps and ways as in the comparison, but no patient is held out: nothing is tested any more, and
    what is expected of the model is what the comparison measured. Writes ``augment/`` (for a painted arm),
    ``segmenter/`` and ``package/`` and, for an arm with a synthesizer of its own, ``package_synthesizer/``. The cards
    name every patient and stay in the output; the packages get the verdict (``docs/comparison.md``, ``data_source`` and
    ``eval_metrics`` of the metadata) without names. Started again it goes on.

    Args:
        comparison: Folder of `compare`, finished.
        arm: The arm, with its ratio where it has one, as the report names it; for example cbmat_filter.
        datalist: The datalist.json of the comparison.
        output: Folder to create, or one of an earlier start with the same settings.
        seed: Seed of maps, painting and training.
        start: Start weights of the comparison, for an arm that has some; shipped for those of the bundle.
        synthesizer: The comparison's weights to paint with, where it was given some; shipped for those of the bundle.
        targets: What to package for, as `package` takes it.
        data_license: Text for docs/data_license.txt, as `package` takes it.
        device: Device to train on, such as cpu or cuda; the bundles' own choice if absent.

    Raises:
        InputError: if the comparison has no verdict or lacks runs, the arm is none of it, files are not its own, or the
            gate accepts none of the painted cases.
        RunError: if training, painting or packaging fails.
    """
    summary = _read_summary(Path(comparison))
    settings = summary["settings"]
    synthesizer, start = named_weights(SYNTHESIZER, synthesizer), named_weights(SEGMENTER, start)
    _check(summary, Path(comparison), arm, datalist, start, synthesizer)
    about, ratio = arm_of(arm)
    output = open_run(
        output, {"command": "finish", "comparison_sha256": sha256(Path(comparison) / "summary.json"), "arm": arm,
                 "seed": seed, "device": device}
    )  # fmt: skip
    real = read_datalist(Path(datalist))
    source, stages = real, {}
    if about.method:
        folder = output / "augment"
        painting = {name: settings[name] for name in ("balance", "steps", "max_cases")}
        hosts = Path(comparison, settings["hosts"]) if settings.get("hosts") else None
        painting |= {"hosts": hosts, "mixture": settings.get("mixture") or "balanced"}
        chosen = CHOSEN + PAINTED * is_painted(arm)
        painting |= {name: settings[name] for name in chosen if settings.get(name)}
        asked = {"dice": settings.get("by_error"), "look_alikes": settings.get("look_alikes")}
        plateau = share_folder(comparison, summary["folds"][0], 1) / "plateau/plateau.json"  # of its first fold
        painting |= {name: plateau for name, wanted in asked.items() if wanted}
        own = dict(settings["synthesis_overrides"]) | ({} if device is None else {"device": device})
        if is_painted(arm):
            painting |= {"synthesizer": synthesizer, "overrides": own, "segmenter": _judge(Path(comparison), summary)}
        augment(datalist, None, folder, about.method, seed=seed, **painting)
        source = read_datalist(folder / ("datalist.json" if about.filtered else "datalist_unfiltered.json"))
        if not any(case.fold == SYNTHETIC for case in source["training"]):
            raise InputError(
                f"none of the cases of {folder} was accepted, so {arm} would be {REFERENCE}; manifest.jsonl there says "
                "why; choose another arm"
            )
        stages = {
            stage: sorted({str(row["patient"]) for row in cases})
            for stage, cases in augmented_stages(folder, about.method).items()
        }
    weights = _segmenter(output / "segmenter", summary, arm, source, real, start, seed, device)
    trained_on = f"{len(patients(real['training']))} labelled patients, arm {arm} of a comparison"
    rows = [
        {name: row[name] for name in TOLD if name in row} for row in summary["rows"] if row["arm"] in (REFERENCE, arm)
    ]
    told = {"trained_on": trained_on, "fitted_on": stages, "comparison": {"arm": arm, "rows": rows}}
    write_json(weights.with_name("card.json"), read_json(weights.with_name("card.json")) | told)
    if not (output / "package").exists():
        package(SEGMENTER, output / "package", weights, targets, data_license)
    own = output / "augment/synthesizer/model.pt"
    if own.is_file() and not (output / "package_synthesizer").exists():
        package(SYNTHESIZER, output / "package_synthesizer", own, "zoo", data_license)
    print(f"wrote {output / 'package'}: {trained_on}; what to expect of it stands in its docs/comparison.md")


def _read_summary(comparison: Path) -> dict:
    """Return summary.json of a comparison; InputError if there is none."""
    path = comparison / "summary.json"
    if not path.is_file():
        raise InputError(f"{comparison} holds no summary.json; let compare end first, with the same command again")
    return read_json(path)


def _check(summary: dict, comparison: Path, arm: str, datalist: Path, start, synthesizer) -> None:
    """Raise InputError for a comparison without a verdict or with missing runs, or files that are not its own."""
    settings = summary["settings"]
    if arm not in summary["arms"]:
        raise InputError(f"{comparison} has no arm {arm!r}; it has {', '.join(summary['arms'])}")
    if sha256(datalist) != settings["datalist_sha256"]:
        raise InputError(f"{datalist} is not the datalist of {comparison}; give the one that was compared")
    largest = summary["fractions"][-1]
    made = {(run["arm"], run["fold"], run["seed"]) for run in summary["runs"] if run["fraction"] == largest}
    missing = [
        str(Run(fold, 1, seed, key))
        for fold in summary["folds"] for seed in summary["seeds"] for key in dict.fromkeys((REFERENCE, arm))
        if (key, fold, seed) not in made
    ]  # fmt: skip
    if missing:
        raise InputError(f"{comparison} lacks runs ({'; '.join(missing)}); start compare again first")
    judged = [row for row in summary["rows"] if row.get("verdict") in ("gain", "loss", "no gain")]
    if not any(row["arm"] == arm or arm == REFERENCE for row in judged):
        raise InputError(
            f"{comparison} has no verdict on arm {arm}; a verdict needs three folds, two seeds and five patients"
        )
    for name, given in (("start", start), ("synthesizer", synthesizer)):
        wanted, needed = settings.get(f"{name}_sha256"), name == "synthesizer" and is_painted(arm)
        needed = needed or (name == "start" and arm_of(arm)[0].started)
        if needed and wanted != (sha256(given) if given else None):
            if wanted and not given:
                raise InputError(f"--{name} is needed: the weights that {comparison} used for arm {arm}, or shipped")
            told = "used other weights than the ones given" if wanted else "was made without such weights"
            raise InputError(f"--{name}: {comparison} {told} for arm {arm}")


def _judge(comparison: Path, summary: dict) -> Path:
    """Return weights that the comparison's quality gate asked, of its first fold."""
    return Run(summary["folds"][0], 1, summary["seeds"][0], REFERENCE).folder(comparison) / "model.pt"


def _segmenter(folder: Path, summary: dict, key: str, source: dict, real: dict, start, seed: int, device) -> Path:
    """Train the arm's segmenter on all cases and return its weights; finished ones are used again."""
    weights = folder / "model.pt"
    if weights.is_file() and (folder / "card.json").is_file():
        return weights
    settings, (arm, ratio) = summary["settings"], arm_of(key)
    runs = [run for run in summary["runs"] if run["arm"] == key]
    spacing = runs[0]["spacing_mm"] if settings.get("start_sha256") else None
    recipe = Recipe(
        settings["overrides"],
        tuple(settings.get("overlays") or ()),
        start,
        spacing,
        Mixing(**settings.get("mixing") or {}),
    )
    if arm.method:
        source, ratio = recipe.mixing.weigh(source, None, ratio)
    made = arm_datalist(source, None, folder.resolve(), arm)
    for item in made["training"]:
        item["fold"] = SYNTHETIC if item["fold"] == SYNTHETIC else TRAINED
    synthetic = sum(item["fold"] == SYNTHETIC for item in made["training"])
    made["training"].append(made["training"][0] | {"fold": VALIDATED, "patient": "validation"})
    write_json(folder / "datalist.json", made)
    number, length = epochs(sorted(run["iterations"] for run in runs)[len(runs) // 2])
    folder = folder.resolve()
    own = {"dataset_dir": str(folder), "fold": VALIDATED, "seed": seed, "model_dir": str(folder)}
    own |= {"output_dir": str(folder / "eval"), "max_epochs": number, "epoch_length": length, "val_interval": number}
    own |= arm_settings(arm, ratio, synthetic, real["training"], real["labels"], recipe)
    own |= {"start": str(start.resolve())} if arm.started else {}
    own |= {} if device is None else {"device": device}
    run_bundle(SEGMENTER, [*recipe.configs, *[FINE_TUNE] * arm.started], own, folder / "train.log")
    card = {"cases": cases_read(real["training"]), "spacing_mm": own["spacing_mm"], "overrides": recipe.overrides}
    write_json(folder / "card.json", card | {"configs": recipe.configs})
    return folder / "model.pt"

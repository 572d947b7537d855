"""One run of a comparison: train a segmenter for an arm, test it, write down what it was."""

import hashlib
import json
import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from monai.bundle import ConfigParser

from tools.bundles import BUNDLES
from tools.comparison.arms import Arm, arm_datalist, arm_of, tissue_weights
from tools.comparison.leaks import check_run
from tools.comparison.mixing import Mixing
from tools.comparison.results import SCHEMA, SCORES_FILE, read_scores
from tools.data.datalist import SYNTHETIC, Case, patients, read_datalist, split
from tools.data.provenance import cases_read, read_card
from tools.io.files import read_json, write_json
from tools.workflows.run import FINE_TUNE, versions
from tools.workflows.segmenter import SEGMENTER, epochs, median_spacing_mm

KERNELS, SCORES = "kernels.yaml", "scores.yaml"


@dataclass(frozen=True)
class Recipe:
    """How the segmenters of all arms are trained.

    Attributes:
        overrides: Config ids of train.json and their values.
        overlays: Files in the segmenter's configs that are laid over train.json.
        start: Weights that the started arms begin with, or None.
        spacing_mm: Voxel size of every segmenter; None for the median of the training patients.
        mixing: How painted cases are drawn among the real ones.
    """

    overrides: dict = field(default_factory=dict)
    overlays: tuple[str, ...] = ()
    start: Path | None = None
    spacing_mm: list[float] | None = None
    mixing: Mixing = field(default_factory=Mixing)

    @property
    def configs(self) -> list[str]:
        """Configs of the training of an arm that starts from scratch, the scores left out."""
        return ["train.json", *self.overlays]

    def tissue_weights(self) -> list[float]:
        """Weights of the labels in the loss."""
        files = [str(BUNDLES / SEGMENTER / "configs" / name) for name in self.configs]
        return (ConfigParser.load_config_files(files) | self.overrides)["tissue_weights"]


@dataclass(frozen=True)
class Run:
    """One segmenter of a comparison.

    Attributes:
        fold: The fold that is held out.
        fraction: Share of the training patients.
        seed: Seed of the training.
        key: Key of the arm.
    """

    fold: int
    fraction: float
    seed: int
    key: str

    def folder(self, output: Path) -> Path:
        """Return the run's own folder below that of the comparison."""
        return share_folder(output, self.fold, self.fraction) / f"seed{self.seed}" / self.key

    @property
    def group(self) -> tuple[int, float, int]:
        """Fold, share and seed, which the arms have in common."""
        return self.fold, self.fraction, self.seed

    def __str__(self) -> str:
        share = "" if self.fraction == 1 else f"{self.fraction:.0%} of the patients, "
        return f"fold {self.fold}, {share}seed {self.seed}, arm {self.key}"


def share_folder(output: Path, fold: int, fraction: float) -> Path:
    """Return the folder of a fold, and of a share of its training patients where that is not all of them."""
    folder = Path(output) / f"fold{fold}"
    return folder if fraction == 1 else folder / f"patients{100 * fraction:g}"


def train(
    run: Run,
    source: dict,
    fitted: dict,
    real: dict,
    directory: Path,
    iterations: int,
    recipe: Recipe,
    external: dict | None = None,
    more: list[Case] = (),
) -> None:
    """Train and test one segmenter; result.json is written last and marks the run as finished.

    Args:
        run: The run to make.
        source: The real datalist, or an augmented one, from ``read_datalist``.
        fitted: Stage to patients, of the augmented datalist.
        real: The datalist of the real cases in use.
        directory: The run's folder; what a killed run left in it is removed.
        iterations: Optimizer steps.
        recipe: How the segmenters are trained.
        external: A second datalist whose cases are all tested too.
        more: Real cases that were held back; the arm that is given them draws all cases alike.

    Raises:
        InputError: if any stage has seen a test patient.
        RunError: if training or testing fails.
    """
    from tools.workflows.run import run_bundle

    arm, ratio = arm_of(run.key)
    real_training, test = split(real, run.fold)
    shutil.rmtree(directory, ignore_errors=True)
    directory = Path(directory).resolve()
    if arm.more:
        source = source | {"training": source["training"] + [replace(case, fold=SYNTHETIC) for case in more]}
    if arm.method:
        source, ratio = recipe.mixing.weigh(source, run.fold, ratio)
    write_json(directory / "datalist.json", arm_datalist(source, run.fold, directory, arm))
    own = read_datalist(directory / "datalist.json")
    others = external["training"] if external else []
    if arm.started:
        card = read_card(recipe.start, [*test, *others], "start weights")
        names = [row["patient"] for row in card.get("cases", [])] + list(card.get("patients", []))
        fitted = fitted | {"start weights": sorted(set(map(str, names)))}
    fitted = check_run(own, fitted, real, run.fold, run.key, others, more if arm.more else [])
    training, _ = split(own, run.fold)
    synthetic = 0 if arm.more else sum(case.fold == SYNTHETIC for case in training)
    number, length = epochs(iterations)
    settings = {
        "dataset_dir": str(directory),
        "datalist": str(directory / "datalist.json"),
        "fold": run.fold,
        "seed": run.seed,
        "model_dir": str(directory),
        "output_dir": str(directory),
        "max_epochs": number,
        "epoch_length": length,
        "val_interval": number,  # once, at the end: no checkpoint is chosen on test patients
    } | arm_settings(arm, ratio, synthetic, real_training, real["labels"], recipe)
    started = {"start": str(Path(recipe.start).resolve())} if arm.started else {}
    arms_own = started | ({"overlay": KERNELS} if arm.augmented else {})
    fingerprint = _fingerprint(directory / "datalist.json", settings | arms_own)
    twin = _twin(directory, fingerprint)
    if twin:
        write_json(directory / "result.json", twin | {"arm": run.key, "fitted_on": fitted})
        return
    start = time.monotonic()
    configs = [*recipe.configs, *[KERNELS] * arm.augmented, *[FINE_TUNE] * arm.started, SCORES]
    run_bundle(SEGMENTER, configs, settings | started, directory / "run.log")
    seconds = time.monotonic() - start
    tissues = [name for name in real["labels"] if name != "background"]
    scores = {"own": read_scores(directory / SCORES_FILE, test, tissues)}
    if external:
        scores["external"] = _test_external(external, directory, settings, tissues)
    card = {"cases": cases_read(training), "spacing_mm": settings["spacing_mm"], "overrides": recipe.overrides}
    write_json(directory / "card.json", card | {"configs": recipe.configs})
    write_json(
        directory / "result.json",
        {
            "schema": SCHEMA,
            "arm": run.key,
            "fold": run.fold,
            "fraction": run.fraction,
            "seed": run.seed,
            "ratio": ratio if synthetic and not arm.alone else None,
            "iterations": iterations,
            "training_items": len(training),
            "synthetic_items": synthetic,
            "train_patients": patients(training),
            "test_patients": patients(test),
            "fitted_on": fitted,
            "spacing_mm": settings["spacing_mm"],
            "seconds": round(seconds, 1),
            "versions": versions(),
            "fingerprint": fingerprint,
            "scores": scores,
        },
    )


def arm_settings(
    arm: Arm, ratio: float, synthetic: int, real_training: list[Case], labels: dict[str, int], recipe: Recipe
) -> dict:
    """Return the ids of the segmenter's config, and their values, that depend on the arm and the recipe.

    Args:
        arm: The arm.
        ratio: Painted cases to draw per real one.
        synthetic: Number of painted cases.
        real_training: Real training cases.
        labels: Tissue name to value.
        recipe: How the segmenters are trained.
    """
    settings = {
        "spacing_mm": recipe.spacing_mm or median_spacing_mm(real_training),
        "extra_ratio": None if arm.alone or arm.more else ratio if synthetic else 0,
    } | recipe.overrides
    if synthetic and not arm.alone:
        settings |= recipe.mixing.settings()
    if arm.weighted:
        settings["tissue_weights"] = tissue_weights(real_training, labels, recipe.tissue_weights())
    return settings


def _fingerprint(datalist: Path, settings: dict) -> str:
    """Return a digest of all that decides how a run of one fold and seed ends: its cases in order, its settings."""
    folder = str(datalist.parent)
    kept = {key: value for key, value in settings.items() if not str(value).startswith(folder)}
    return hashlib.sha256(json.dumps([read_json(datalist), kept], sort_keys=True).encode()).hexdigest()


def _twin(directory: Path, fingerprint: str) -> dict | None:
    """Return the result of another arm's finished run that was trained on just the same, or None.

    Where the quality gate accepts every case, filtered and unfiltered arm are one.
    """
    for path in sorted(directory.parent.glob("*/result.json")):
        result = read_json(path)
        if result.get("fingerprint") == fingerprint and "same_as" not in result:
            return result | {"same_as": result["arm"]}
    return None


def _test_external(external: dict, directory: Path, settings: dict, tissues: list[str]) -> dict:
    """Test a trained segmenter on every case of a second datalist."""
    from tools.workflows.run import run_bundle

    folder = directory / "external"
    items = [replace(case, fold=0).item(folder) for case in external["training"]]
    write_json(folder / "datalist.json", {"labels": external["labels"], "training": items})
    given = settings | {"dataset_dir": str(folder), "datalist": str(folder / "datalist.json")}
    given |= {"fold": 0, "output_dir": str(folder)}
    run_bundle(SEGMENTER, ["train.json", "evaluate.json"], given, folder / "run.log")
    return read_scores(folder / SCORES_FILE, external["training"], tissues)

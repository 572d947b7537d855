"""How well tissues are found, per case and tissue: overlap, surfaces, volumes, and which tissue is taken for which."""

import csv
import os
from collections.abc import Callable, Mapping
from itertools import chain, zip_longest
from pathlib import Path

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine
from ignite.metrics import Metric
from monai.data import MetaTensor
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy.stats import bootstrap

from .report import write_report

RESAMPLES = 2000
MEASURES = (
    *("dice_all", "dice_all_lung_known", "dice", "dice_lung_known"),
    *("surface_dice", "hd95_mm", "percent_error", "false_ml"),
)  # fmt: skip


class TissueScores(Metric):
    """Scores the label map of each case in the geometry of its label file.

    ``<output_dir>/scores.csv`` has a row per case and tissue:

    - ``state``: present (in label and answer), missed (in the label alone), false (in the answer alone) or absent;
    - ``dice``; ``surface_dice``, the normalised surface Dice at ``tolerance_mm`` (Nikolov et al., JMIR 2021);
      ``hd95_mm``, the 95 % Hausdorff distance. The first two are 0 for a missed tissue, where the third is empty;
      all are empty for a tissue that the label lacks: what the answer adds there shows in the volumes;
    - ``dice_all``, the Dice which counts those cases too: 1 where none was found, 0 where any was; ``false_ml``, the
      volume found there, empty where the label holds the tissue;
    - ``dice_lung_known`` and ``dice_all_lung_known``, the same of the answer with the lung known, if there is one;
    - ``ml``, ``ml_predicted``; ``percent``, ``percent_predicted`` of the lung; ``percent_error``, their
      difference.

    ``scores_summary.csv`` has per tissue the mean over the cases whose label holds it (of ``percent_error`` the mean
    size over all cases) with the 95 % interval of a bootstrap over cases, and how many cases missed it or added it.
    ``confusion.csv`` counts voxels of all cases, a row per true label, a column per answer. ``report.md`` and
    ``report.png`` show all of it.

    The means go into the engine's metrics as ``<name>_<measure>_<tissue>``.

    Args:
        labels: Label values by name; 0 is background.
        output_dir: Folder of the files; None for no files.
        tolerance_mm: Tolerance of the surface Dice, mm.
        seed: Seed of the bootstrap.
        output_transform: As in ignite; must give a list of answers and a list of labels, each of shape (1, W, H, D), or
            a third too, of answers with the lung known (``scripts.lungs.LungKnownd``).

    Raises:
        ValueError: If ``tolerance_mm`` is not above 0; on update, if an answer and its label differ in shape, or hold a
            value that ``labels`` does not name.
    """

    def __init__(
        self,
        labels: Mapping[str, int],
        output_dir: str | None = None,
        tolerance_mm: float = 2.0,
        seed: int = 0,
        output_transform: Callable = lambda output: output,
    ) -> None:
        if not tolerance_mm > 0:
            raise ValueError(f"tolerance_mm must be above 0, not {tolerance_mm}")
        self.names = {value: name for name, value in sorted(labels.items(), key=lambda item: item[1])}
        self.output_dir, self.tolerance_mm, self.seed = output_dir, tolerance_mm, seed
        super().__init__(output_transform=output_transform)

    def reset(self) -> None:
        """Forget all cases."""
        self.cases: list[dict] = []
        super().reset()

    def iteration_completed(self, engine: Engine) -> None:
        """Add the cases of an iteration; ignite's own would take lists of tensors apart and allow two of them only."""
        self.update(self._output_transform(engine.state.output))

    def update(self, output) -> None:
        """Add the cases of one iteration."""
        for answer, label, *known in zip(*output, strict=True):
            case = case_name(label, f"case {len(self.cases)}")
            voxel_mm = label.pixdim.tolist() if isinstance(label, MetaTensor) else [1.0] * 3
            found, truth, *known = (torch.as_tensor(part).detach().cpu().long()[0] for part in (answer, label, *known))
            if found.shape != truth.shape:
                raise ValueError(f"{case}: the answer has shape {tuple(found.shape)}, its label {tuple(truth.shape)}")
            for what, part in (("answer", found), ("label", truth), *(("answer", part) for part in known)):
                unnamed = set(part.unique().tolist()) - set(self.names)
                if unnamed:
                    named = ", ".join(f"{name}={value}" for value, name in self.names.items())
                    raise ValueError(f"{case}: the {what} holds {min(unnamed)}, but labels name only {named}")
            scored = self._score(case, found, truth, voxel_mm)
            known_confusion = self._confusion(known[0], truth) if known else None
            for row, value in zip(scored["rows"], (value for value in self.names if value)):
                row |= overlaps(known_confusion, value, "_lung_known")
            self.cases.append(scored)

    def _confusion(self, found: torch.Tensor, truth: torch.Tensor) -> np.ndarray:
        """Return the number of voxels by true label and answer."""
        size = max(self.names) + 1
        return torch.bincount((truth * size + found).flatten(), minlength=size * size).view(size, size).numpy()

    def _score(self, case: str, found: torch.Tensor, truth: torch.Tensor, voxel_mm: list[float]) -> dict:
        """Return what one case adds: a row per tissue, and its confusion matrix."""
        confusion = self._confusion(found, truth)
        ml = float(np.prod(voxel_mm)) / 1000
        lung = {"": confusion[1:].sum(), "_predicted": confusion[:, 1:].sum()}
        rows = []
        for value, name in self.names.items():
            if value == 0:
                continue
            voxels = {"": int(confusion[value].sum()), "_predicted": int(confusion[:, value].sum())}
            in_label, in_answer = (bool(count) for count in voxels.values())
            state = ("absent", "false", "missed", "present")[2 * in_label + in_answer]
            row = {"case": case, "tissue": name, "state": state} | overlaps(confusion, value)
            row |= {"surface_dice": 0.0 if in_label else None, "hd95_mm": None}
            row["false_ml"] = None if in_label else voxels["_predicted"] * ml
            if in_label and in_answer:
                masks = [(part == value)[None, None] for part in (found, truth)]
                settings = {"include_background": True, "spacing": voxel_mm}
                row["surface_dice"] = float(compute_surface_dice(*masks, [self.tolerance_mm], **settings))
                row["hd95_mm"] = float(compute_hausdorff_distance(*masks, percentile=95, **settings))
            for kind, count in voxels.items():
                row[f"ml{kind}"] = count * ml
                row[f"percent{kind}"] = 100 * count / float(lung[kind]) if lung[kind] else 0.0
            rows.append(row | {"percent_error": row["percent_predicted"] - row["percent"]})
        return {"rows": rows, "confusion": confusion}

    def _gathered(self) -> list[dict]:
        """Return the cases of all processes, in the order in which a distributed sampler dealt them out."""
        if idist.get_world_size() == 1:
            return self.cases
        dealt = zip_longest(*idist.all_gather(self.cases))
        return [case for case in chain.from_iterable(dealt) if case is not None]

    def compute(self) -> dict[str, dict[str, float | None]]:
        """Return tissue name to what a row of ``scores_summary.csv`` holds."""
        return self._summarise([row for case in self._gathered() for row in case["rows"]])

    def _summarise(self, rows: list[dict]) -> dict[str, dict[str, float | None]]:
        summary = {}
        for name in (name for value, name in self.names.items() if value):
            having = [row for row in rows if row["tissue"] == name]
            states = [row["state"] for row in having]
            found: dict[str, float | None] = {"cases": states.count("present") + states.count("missed")}
            found |= {"missed": states.count("missed"), "false": states.count("false")}
            for measure in MEASURES:
                values = [abs(row[measure]) if measure == "percent_error" else row[measure] for row in having]
                mean, low, high = interval([value for value in values if value is not None], self.seed)
                found |= {measure: mean, f"{measure}_low": low, f"{measure}_high": high}
            summary[name] = found
        return summary

    def completed(self, engine: Engine, name: str) -> None:
        """Store the means in the engine's metrics, and write the files."""
        cases = self._gathered()
        rows = [row for case in cases for row in case["rows"]]
        summary = self._summarise(rows)
        for tissue, values in summary.items():
            for measure in MEASURES:
                if values[measure] is not None:
                    engine.state.metrics[f"{name}_{measure}_{tissue}"] = values[measure]
        if self.output_dir is not None and idist.get_rank() == 0 and cases:
            confusion = sum(case["confusion"] for case in cases)
            named = list(self.names.items())
            table = [
                {"true": name} | {other: int(confusion[value, at]) for at, other in named} for value, name in named
            ]
            folder = Path(self.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            write_csv(folder / "scores.csv", rows)
            write_csv(folder / "scores_summary.csv", [{"tissue": tissue} | row for tissue, row in summary.items()])
            write_csv(folder / "confusion.csv", table)
            at = list(self.names)
            write_report(folder, rows, summary, confusion[np.ix_(at, at)], list(self.names.values()))


def overlaps(confusion: np.ndarray | None, value: int, ending: str = "") -> dict[str, float | None]:
    """Return ``dice`` and ``dice_all`` of a label value, the names with an ending; None without a confusion matrix.

    Example: one voxel of label 1 among four, and two answers
        >>> overlaps(np.array([[2, 1], [0, 1]]), 1), overlaps(np.array([[3, 1], [0, 0]]), 1)
        ({'dice': 0.6666666666666666, 'dice_all': 0.6666666666666666}, {'dice': None, 'dice_all': 0.0})
    """
    if confusion is None:
        return {f"dice{ending}": None, f"dice_all{ending}": None}
    true, answered = int(confusion[value].sum()), int(confusion[:, value].sum())
    both = 2 * float(confusion[value, value]) / (true + answered) if true + answered else 1.0
    return {f"dice{ending}": both if true else None, f"dice_all{ending}": both}


def case_name(label: torch.Tensor, otherwise: str) -> str:
    """Return the name of the file that a label came from, without .nii or .nii.gz."""
    path = label.meta.get("filename_or_obj") if isinstance(label, MetaTensor) else None
    return Path(path).name.removesuffix(".gz").removesuffix(".nii") if isinstance(path, str) else otherwise


def interval(values: list[float], seed: int) -> tuple[float | None, float | None, float | None]:
    """Return the mean and its 95 % interval by a percentile bootstrap; None where there are too few values.

    Example:
        >>> interval([1.0, 1.0, 1.0], seed=0)
        (1.0, 1.0, 1.0)
    """
    if not values:
        return None, None, None
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None, None
    found = bootstrap((values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(seed))
    return mean, *(float(bound) for bound in found.confidence_interval)


def write_csv(path: Path, rows: list[dict]) -> None:
    """Write rows of equal columns; an interrupted write leaves the file as it was."""
    temporary = path.parent / f".{path.name}.{os.getpid()}"
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    os.replace(temporary, path)

"""The segmenter on a published split of labelled slices, beside the figures that others published for it."""

import dataclasses
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.stats import bootstrap

from tools.io.files import InputError, read_json, write_json
from tools.io.volume import check_same_geometry
from tools.segmenting.segmenter import Segmenter
from tools.tissues import tissue_labels
from tools.workflows.origin import CARD
from tools.workflows.run import FINE_TUNE, run_bundle
from tools.workflows.segmenter import SEGMENTER, dice, epochs
from tools.workflows.weights import write_weights

TISSUES = ("ground_glass", "consolidation")
RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Split:
    """A published split of slices.

    Attributes:
        test: Names of the test slices.
        figures: Method to Dice of TISSUES, as published or as scored from published maps.
        source: Where they are from.
    """

    test: tuple[str, ...]
    figures: dict[str, tuple[float, float]]
    source: str


def _names(*numbers: int | range) -> tuple[str, ...]:
    flat = [n for part in numbers for n in (part if isinstance(part, range) else [part])]
    return tuple(f"medseg_{number:03d}" for number in flat)


SPLITS = {
    "infnet": Split(
        _names(range(6, 10), 18, 21, 36, 38, range(59, 67), range(68, 100)),
        {
            "U-Net, VGG16": (0.46, 0.42),
            "DeepLabV3+": (0.44, 0.19),
            "FCN8s": (0.47, 0.22),
            "Semi-Inf-Net & MC": (0.62, 0.46),
            "FSS-2019-nCov": (0.68, 0.53),
        },
        "MedSeg COVID-19 slices, split of Inf-Net (Fan et al., IEEE TMI 2020), 48 test slices",
    )
}


def bench_published(
    name: str, data: Path, output: Path, weights: Path | None, steps: int, mix: Path | None, seed: int,
    device: str | None, mirror: bool = False,
) -> dict:  # fmt: skip
    """Score the segmenter on a published split, as :func:`tools.bench.segmentation_speed.bench_segmentation` says.

    Args:
        name: Name of the split, a key of SPLITS.
        data: Folder with ``images`` and ``labels``, NIfTI of the slices' names, in the project's label scheme, and
            ``dataset.json``, whose ``cases`` have ``id`` and ``group`` (near-duplicates share one).
        output: JSON file to write; a fine-tuning lies beside it, in a folder of its name.
        weights: Weights of the segmenter with their card; those of the bundle if None.
        steps: Optimizer steps of fine-tuning on the slices that are no test slices, 0 for none.
        mix: Folder with a datalist.json of other cases, mixed in one to one while fine-tuning; None for none.
        seed: Seed of the fine-tuning.
        device: Device of the network.
        mirror: Whether answers are averaged over mirrored slices.

    Returns:
        What was written.

    Raises:
        InputError: if a name, file or number is wrong.
        RunError: if the fine-tuning fails.
    """
    if name not in SPLITS:
        raise InputError(f"published must be one of {', '.join(SPLITS)}, not {name}")
    if steps < 0 or (mix is not None and steps == 0):
        raise InputError(f"steps must be at least {int(mix is not None)}, not {steps}")
    split, groups = SPLITS[name], _groups(Path(data))
    test = [case for case in groups if case in split.test]
    training = [case for case in groups if case not in split.test]
    if not test:
        raise InputError(f"{data} holds none of the test slices of {name}, such as {split.test[0]}")
    if steps:
        weights = _fine_tune(Path(data), training, weights, Path(output).with_suffix(""), steps, mix, seed, device)
    segmenter = Segmenter(weights, device, mirror=mirror)
    scores = {case: _score(segmenter, Path(data), case) for case in test}
    near = {groups[case] for case in training}
    rows = {
        "test slices": list(test),
        "without near-duplicates of training slices": [case for case in test if groups[case] not in near],
    }
    if not steps:
        rows["all slices"] = list(groups)
        scores |= {case: _score(segmenter, Path(data), case) for case in training}
    result = {
        "split": name,
        "source": split.source,
        "test_slices": f"{len(test)} of {len(split.test)} are here",
        "fine_tuning": {"steps": steps, "slices": len(training) if steps else 0, "mixed": mix is not None},
        "mirrored": mirror,
        "weights": segmenter.weights.sentences(),
        "published": {method: dict(zip(TISSUES, figures)) for method, figures in split.figures.items()},
        "ours": {row: _means([scores[c] for c in cases], [groups[c] for c in cases]) for row, cases in rows.items()},
        "slices": scores,
    }  # fmt: skip
    write_json(output, result)
    print(lines(result))
    return result


def _groups(data: Path) -> dict[str, int]:
    """Return slice to group, of the slices that are there."""
    content = read_json(data / "dataset.json")
    try:
        found = {case["id"]: int(case["group"]) for case in content["cases"]}
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{data / 'dataset.json'} lacks cases with id and group each") from None
    for case in found:
        for kind in ("images", "labels"):
            if not (data / kind / f"{case}.nii.gz").is_file():
                raise InputError(f"{data / kind / f'{case}.nii.gz'} does not exist, but dataset.json names it")
    return found


def _score(segmenter: Segmenter, data: Path, case: str) -> dict[str, dict[str, float | None]]:
    """Return the Dice of each tissue that a slice holds, as is and with the lung known, None where it holds none."""
    paths = [data / kind / f"{case}.nii.gz" for kind in ("images", "labels")]
    image, truth = (nib.load(path) for path in paths)
    check_same_geometry(image, truth, *paths)
    hu, truth = (np.asarray(part.dataobj) for part in (image, truth))
    answers = {"as is": segmenter.label(hu.astype(np.float32), image.affine)}
    answers["lung known"] = segmenter.label(hu.astype(np.float32), image.affine, truth > 0)
    labels = tissue_labels()
    found = {}
    for way, answer in answers.items():
        found[way] = {tissue: _dice(answer == labels[tissue], truth == labels[tissue]) for tissue in TISSUES}
    dense = truth == labels["consolidation"]
    whole = answers["as is"] > 0
    found["as is"]["lung"] = _dice(whole, truth > 0) if dense.any() else None
    found["as is"]["consolidation inside"] = float(whole[dense].mean()) if dense.any() else None
    return found


def _dice(answer: np.ndarray, truth: np.ndarray) -> float | None:
    return dice([(answer, truth)]) if truth.any() else None


def _means(scores: list[dict], groups: list[int]) -> dict:
    """Return mean, 95 % interval by resampling groups, and number of slices, by way and by what was scored."""
    answer: dict = {}
    for way in scores[0] if scores else ():
        for what in scores[0][way]:
            kept = [(score[way][what], group) for score, group in zip(scores, groups) if score[way][what] is not None]
            if not kept:
                continue
            sums: dict[int, list[float]] = {}
            for value, group in kept:
                sums.setdefault(group, []).append(value)
            totals = np.array([[sum(part), len(part)] for part in sums.values()], float)
            entry = {"mean": float(totals[:, 0].sum() / totals[:, 1].sum()), "slices": len(kept)}
            if len(totals) > 2:
                found = bootstrap(
                    (totals[:, 0], totals[:, 1]), lambda a, b, axis=-1: a.sum(axis) / b.sum(axis), paired=True,
                    vectorized=True, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(0),
                ).confidence_interval  # fmt: skip
                entry["interval"] = [float(found.low), float(found.high)]
            answer.setdefault(way, {})[what] = entry
    return answer


def _fine_tune(
    data: Path, training: list[str], weights: Path | None, work: Path, steps: int, mix: Path | None, seed: int,
    device: str | None,
) -> Path:  # fmt: skip
    """Go on with weights on the training slices, and return the file of the new ones; a finished one is used again."""
    start = Segmenter(weights, "cpu").weights
    done = work / "model.pt"
    if done.is_file():
        return done
    labels = tissue_labels()
    items = [
        {kind[:-1]: str((data / kind / f"{case}.nii.gz").absolute()) for kind in ("images", "labels")}
        | {"patient": case, "fold": 1}
        for case in training
    ]
    if mix is not None:
        for item in read_json(Path(mix) / "datalist.json")["training"]:
            paths = {key: str((Path(mix) / item[key]).absolute()) for key in ("image", "label")}
            items.append(paths | {"patient": item["patient"], "fold": -1})
    with tempfile.TemporaryDirectory() as folder:
        items.append(items[0] | {"patient": "validation", "fold": 0})  # the last weights are kept, whatever it says
        write_json(Path(folder) / "datalist.json", {"labels": labels, "training": items})
        number, length = epochs(steps)
        overrides = {"dataset_dir": folder, "fold": 0, "seed": seed, "max_epochs": number, "epoch_length": length}
        overrides |= {"val_interval": number, "model_dir": str(work / "training"), "start": str(start.path.absolute())}
        overrides |= {"output_dir": str(work / "training/eval"), "extra_ratio": 1.0 if mix is not None else None}
        overrides |= {} if device is None else {"device": device}
        configs = [name for name in start.card.get("configs", ["train.json"]) if name != FINE_TUNE] + [FINE_TUNE]
        run_bundle(SEGMENTER, configs, overrides, work / "training.log")
    write_weights(work / "training/model.pt", done)
    about = f"{start.trained_on}; then {len(training)} labelled slices for {steps} steps"
    write_json(
        work / CARD, {k: start.card[k] for k in ("spacing_mm", "overrides") if k in start.card} | {"trained_on": about}
    )
    return done


def lines(result: dict) -> str:
    """Return the table that is printed: ours beside the published figures."""
    table = [f"{result['source']}; {result['test_slices']}", f"{'':52}{'ground glass':>14}{'consolidation':>15}"]
    for row, ways in result["ours"].items():
        for way, found in ways.items():
            cells = [f"{found[tissue]['mean']:.3f}" if tissue in found else "-" for tissue in TISSUES]
            table.append(f"{f'{row}, {way}':52}{cells[0]:>14}{cells[1]:>15}")
    for method, figures in result["published"].items():
        table.append(f"{f'{method} (published)':52}{figures[TISSUES[0]]:>14.2f}{figures[TISSUES[1]]:>15.2f}")
    return "\n".join(table)

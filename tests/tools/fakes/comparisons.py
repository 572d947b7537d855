"""A small comparison with known scores, as ``compare`` and ``augment`` leave it, for the tests of the report."""

import itertools
import json
from pathlib import Path

import nibabel as nib
import numpy as np

from tools.comparison import arms, results
from tools.data.datalist import read_datalist
from tools.io.files import write_json

LABELS = {"background": 0, "healthy": 1, "ground_glass": 2, "fibrosis": 3, "emphysema": 4, "consolidation": 5}
EVIL = "<script>alert('x')</script>&\"p"
GAIN = {"real": 0.0, "oversampled": -0.2, "copy_paste": 0.0, "cbmat_filter": 0.25}
PATIENTS = [EVIL, *(f"t{number}" for number in range(7))]
CHECKPOINT = "abc123"


def save(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([2.0, 2.0, 5.0, 1.0])), path)


def real_data(folder: Path) -> Path:
    """Write one real training case and one held-out case, and return their folder."""
    items = []
    rng = np.random.default_rng(0)
    for number, case in enumerate(("real0", "real1")):
        label = np.zeros((40, 30, 4), np.uint8)
        label[5:35, 5:25] = 1
        hu = np.where(label > 0, -850, 40) + rng.integers(-20, 20, label.shape)
        hu[:2] = -1000
        save(label, folder / f"labels/{case}.nii.gz")
        save(hu.astype(np.int16), folder / f"images/{case}.nii.gz")
        files = {kind: f"{kind}s/{case}.nii.gz" for kind in ("image", "label")}
        items.append(files | {"fold": 1 - number, "patient": case})
    write_json(folder / "datalist.json", {"labels": LABELS, "training": items})
    return folder


def augmentation(data: Path, folder: Path, hu: int) -> None:
    """Write what augment writes: 90 voxels of fibrosis in slice 2 accepted, 30 of emphysema rejected, one not kept."""
    real = read_datalist(data / "datalist.json")
    files, regions = {}, {0: (slice(10, 20), slice(10, 19), 2), 1: (slice(10, 16), slice(10, 15), 1)}
    for number, part in regions.items():
        label, image = (nib.load(data / f"{kind}s/real0.nii.gz").get_fdata() for kind in ("label", "image"))
        label, image = label.astype(np.uint8), image.astype(np.int16)
        label[part], image[part] = (3, 4)[number], hu
        case = f"real0_s{number:03d}"
        files[case] = {kind: f"{kind}s/{case}.nii.gz" for kind in ("image", "label")}
        save(label, folder / files[case]["label"])
        save(image, folder / files[case]["image"])
    items = [case.item() | {"fold": 0 if case.patient == "real1" else -1} for case in real["training"]]
    extra = {"fold": -1, "patient": "real0", "synthetic": True, "source": "real0"}
    painted = [paths | extra for paths in files.values()]
    content = {"labels": LABELS, "held_out_fold": 0}
    write_json(folder / "datalist.json", content | {"training": [*items, painted[0]]})
    write_json(folder / "datalist_unfiltered.json", content | {"training": [*items, *painted]})
    good, bad = {"accepted": True, "reasons": []}, {"accepted": False, "reasons": ["median -3.5 HU <b>"]}
    lines = [
        {"case": "real0_s000", "volume_ml": {"fibrosis": 1.8}, "checks": {"fibrosis": good}, "accepted": True},
        {"case": "real0_s001", "volume_ml": {"emphysema": 0.6, "fibrosis": 0}, "accepted": False}
        | {"checks": {"emphysema": bad, "fibrosis": good}},
        {"case": "real0_s002", "volume_ml": {"emphysema": 0.4}, "accepted": False, "reason": "median 12 HU <b>"},
    ]
    common = {"schema": 2, "source": "real0", "patient": "real0", "donors": [], "map_sha256": "same", "reason": ""}
    common |= {"checkpoint_sha256": None if "copy_paste" in folder.name else CHECKPOINT}
    lines = [common | {"tissues": sorted(line["volume_ml"])} | line for line in lines]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    measured = {"hu_wasserstein": {"painted": 12.25, "floor": 13.75, "unit": "HU"}}
    unknown = {"odd_measure": {"painted": None, "floor": None, "unit": ""}}
    card = {"painted_cases": 1, "real_cases": 7} | measured | unknown
    write_json(folder / "quality.json", {"schema": 1, "tissues": {"fibrosis": card}})
    row = {
        "tissue": "fibrosis",
        "measure": "distance_to_pleura",
        "data_median": 4.5,
        "bank_median": 5.5,
        "distance": 0.125,
    }
    write_json(folder / "maps.json", {"cases": [], "table": [row | {"floor": None}]})


def scores(arm: str, seed: int, fraction: float, tested: dict[int, str]) -> dict:
    """Return known scores: the arm's gain for fibrosis; consolidation in two patients, emphysema in none."""
    table = {}
    for index, name in tested.items():
        gain = GAIN.get(arm, 0.25 if arm.startswith("cbmat") else 0)
        shift = gain - 0.1 * (1 - fraction) + 0.001 * ((3 * index) % 5 if gain else 2)
        value = {"dice": 0.4 + 0.02 * index + 0.01 * seed, "surface_dice": 0.6 + 0.02 * index, "volume_error": 2.5}
        value |= {"dice_all": value["dice"], "false_ml": None, "dice_lung_known": 0.9, "dice_all_lung_known": 0.95}
        empty = {"dice": None, "surface_dice": None, "volume_error": 0.5, "dice_all": 0.0, "false_ml": 1.5}
        empty |= {"dice_lung_known": None, "dice_all_lung_known": 1.0}
        table[name] = dict.fromkeys(("healthy", "ground_glass"), value)
        table[name] |= {
            "fibrosis": value | dict.fromkeys(("dice", "dice_all"), value["dice"] + shift),
            "emphysema": empty,
        }
        table[name] |= {"consolidation": value if index < 2 else empty}
    return table


def comparison(
    data: Path,
    output: Path,
    wanted: list[str],
    seeds: tuple = (0, 1),
    fractions: tuple = (1.0,),
    external: bool = False,
    folds: int = 4,
    primary: str | None = None,
) -> Path:
    """Write the runs of a comparison, painted cases in fold 0 alone, and its summary with ``results.collect``."""
    settings = {"command": "compare", "datalist_sha256": "d" * 64, "iterations": 123, "overrides": {"device": "cpu"}}
    write_json(output / "run.json", settings | {"max_cases": None, "synthesis_overrides": {}, "primary": primary})
    for fraction in fractions:
        share = "" if fraction == 1 else f"patients{100 * fraction:g}"
        for fold, seed, key in itertools.product(range(folds), seeds, wanted):
            arm, ratio = arms.arm_of(key)
            own = dict(list(enumerate(PATIENTS))[fold::folds])
            tested = {"own": scores(key, seed, fraction, own)}
            if external:
                tested["external"] = scores(key, seed, fraction, {number: f"e{number}" for number in range(6)})
            run = {
                    "schema": results.SCHEMA, "arm": key, "fold": fold, "seed": seed, "fraction": fraction,
                    "ratio": ratio, "iterations": 123, "training_items": 9,
                    "synthetic_items": int(arm.method not in (None, "copy_paste")),
                    "train_patients": ["real0"], "test_patients": list(own.values()),
                    "fitted_on": {"segmenter": ["real0"]}, "spacing_mm": [0.7, 0.7, -1], "seconds": 90.0,
                    "versions": {"monai": "1.6.1"}, "scores": tested,
                }  # fmt: skip
            write_json(output / f"fold{fold}/{share}/seed{seed}/{key}/result.json", run)
    for method, hu in {"cbmat": -300, "copy_paste": -100}.items():
        if any(arms.arm_of(key)[0].method == method for key in wanted):
            augmentation(data, output / f"fold0/augment_{method}", hu)
    results.collect(output, read_datalist(data / "datalist.json"))
    return output

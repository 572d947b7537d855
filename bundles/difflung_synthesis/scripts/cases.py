"""Which files belong together."""

import zlib
from pathlib import Path

from monai.data import load_decathlon_datalist


def datalist_cases(datalist: str, fold: int, held_out: bool) -> list[dict]:
    """Return the image and label files of a datalist's training patients, or of its held-out ones.

    Args:
        datalist: JSON file whose ``training`` items have image, label (relative to the file's folder) and fold.
        fold: the fold that is held out.
        held_out: True for that fold's items, False for all others.

    Raises:
        ValueError: if an item has no fold.
    """
    items = load_decathlon_datalist(datalist)
    without = [str(item["image"]) for item in items if "fold" not in item]
    if without:
        raise ValueError(f"{datalist} gives no fold for {without[0]}; make it with `python -m tools dataset`")
    return [{"image": item["image"], "label": item["label"]} for item in items if (item["fold"] == fold) == held_out]


def painting_cases(dataset_dir: str, seed: int) -> list[dict]:
    """Pair the files of ``images``, ``labels`` and ``targets`` by name and give each case a seed of its own.

    Args:
        dataset_dir: folder that holds the three folders.
        seed: a case's seed is made of this and its name, so it does not depend on the other cases.

    Returns:
        Items with image, label, target and seed, sorted by name.

    Raises:
        ValueError: if a folder is missing or empty, or a file has no partner.

    """
    kinds = {"image": "images", "label": "labels", "target": "targets"}
    files = {}
    for kind, folder in kinds.items():
        path = Path(dataset_dir) / folder
        found = sorted(p for p in path.glob("*.nii*") if not p.name.startswith(".")) if path.is_dir() else []
        if not found:
            raise ValueError(
                f"{path} holds no .nii or .nii.gz file; {' / '.join(kinds.values())} hold same-named files"
            )
        files[kind] = {p.name.removesuffix(".gz").removesuffix(".nii"): str(p) for p in found}
    names = sorted(set().union(*files.values()))
    for name in names:
        lacking = [kinds[kind] for kind in kinds if name not in files[kind]]
        if lacking:
            raise ValueError(f"{name} has no file in {dataset_dir}/{lacking[0]}")
    return [{kind: files[kind][name] for kind in kinds} | {"seed": case_seed(name, seed)} for name in names]


def case_seed(name: str, seed: int) -> int:
    """Return the seed of a case: a checksum of its name and the run's seed.

    Example:
        >>> case_seed("case012", 0) == case_seed("case012", 0) != case_seed("case012", 1)
        True
    """
    return zlib.crc32(f"{name}/{seed}".encode())

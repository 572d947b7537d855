"""The tissue label scheme, read from the bundles so that it is written down in one place only."""

import json
from pathlib import Path

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"


def tissue_labels() -> dict[str, int]:
    """Return tissue name to label value, background included, as ``labels`` in the segmenter's train.json."""
    return json.loads((BUNDLES / "lung_tissue_seg/configs/train.json").read_text())["labels"]


def unlabelled_value() -> int:
    """Return the value of voxels that nobody labelled, ``ignore`` in the segmenter's train.json."""
    return json.loads((BUNDLES / "lung_tissue_seg/configs/train.json").read_text())["ignore"]


def pathological_tissues() -> list[str]:
    """Return the names of the tissues that are neither background nor healthy, in the order of their values."""
    return [name for name in tissue_labels() if name not in ("background", "healthy")]

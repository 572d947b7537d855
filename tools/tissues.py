"""The tissues: their label values, read from the bundles, their names in words, and their colours."""

import json

from tools.bundles import BUNDLES

# Okabe and Ito's colours, which stay apart for colour-blind readers; in the order of the label values.
TISSUE_COLOURS = ("#8a8a8a", "#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#f0e442", "#0072b2", "#d55e00")
COLOUR_TABLE = "lung_tissues.ctbl"  # as 3D Slicer reads it


def tissue_labels() -> dict[str, int]:
    """Return tissue name to label value, background included, as ``labels`` in the segmenter's train.json."""
    return json.loads((BUNDLES / "lung_tissue_seg/configs/train.json").read_text(encoding="utf-8"))["labels"]


def unlabelled_value() -> int:
    """Return the value of voxels that nobody labelled, ``ignore`` in the segmenter's train.json."""
    return json.loads((BUNDLES / "lung_tissue_seg/configs/train.json").read_text(encoding="utf-8"))["ignore"]


def pathological_tissues() -> list[str]:
    """Return the names of the tissues that are neither background nor healthy, in the order of their values."""
    return [name for name in tissue_labels() if name not in ("background", "healthy")]


def words(name: str) -> str:
    """Return a tissue's or setting's name as it is read.

    Example:
        >>> words("ground_glass")
        'ground glass'
    """
    return name.replace("_", " ")


def tissue_colours(labels: dict[str, int]) -> dict[str, str]:
    """Return a colour for every tissue, the same in every figure; background has none."""
    names = [name for name in sorted(labels, key=labels.get) if name != "background"]
    return {name: TISSUE_COLOURS[index % len(TISSUE_COLOURS)] for index, name in enumerate(names)}


def colour_table(labels: dict[str, int]) -> str:
    """Return the text of a colour table: a line ``value name red green blue alpha`` per label, 0 to 255 each.

    The colours are those of the pictures; background is transparent. A name is one word, as 3D Slicer reads it.

    Args:
        labels: Tissue name to value.

    Example:
        >>> print(colour_table({"background": 0, "healthy": 1}))
        # Lung tissues: value, name, red, green, blue, alpha
        0 background 0 0 0 0
        1 healthy 138 138 138 255
        <BLANKLINE>
    """
    lines = ["# Lung tissues: value, name, red, green, blue, alpha"]
    colours = tissue_colours(labels)
    for name in sorted(labels, key=labels.get):
        red_green_blue = bytes.fromhex(colours[name].lstrip("#")) if name in colours else (0, 0, 0)
        lines.append(" ".join(map(str, (labels[name], name, *red_green_blue, 255 * (name in colours)))))
    return "\n".join(lines) + "\n"

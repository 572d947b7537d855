"""The tissues' names and colours as a colour table of 3D Slicer."""

from tools.figures import tissue_colours

FILE_NAME = "lung_tissues.ctbl"


def colour_table(labels: dict[str, int]) -> str:
    """Return the text of a colour table: a line ``value name red green blue alpha`` per label, 0 to 255 each.

    The colours are those of the pictures; background is transparent. A name is one word, as 3D Slicer reads it.

    Args:
        labels: tissue name to value.

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

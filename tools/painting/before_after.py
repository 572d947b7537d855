"""The picture of one painted CT: the same slices before and after, and where the target map is."""

import numpy as np
from scipy import ndimage

from tools import plotting
from tools.tissues import tissue_colours, words

MARGIN_MM, LEAST_MM = 12.0, 60.0  # around the largest new lesion in the enlarged panels, and their least size
BODY_HU, BODY_VOXELS = -300, 6
PANEL = 2.3  # inches, height of a panel
TITLES = ("before", "after", "before, enlarged", "after, enlarged", "target map")


def draw(
    hu: np.ndarray, painted: np.ndarray, target: np.ndarray, region: np.ndarray, spacing: np.ndarray, labels: dict
) -> bytes:
    """Draw the slice with most of the region, and slices below and above it.

    Args:
        hu: CT in HU, canonical, shape (W, H, D).
        painted: The painted CT, the same shape.
        target: Target map, the same shape.
        region: Where it differs from the CT's own map, bool, the same shape, not empty.
        spacing: Voxel size in mm.
        labels: Tissue name to value.

    Returns:
        A PNG.
    """
    from matplotlib.patches import Patch

    shown = slices(region.sum(axis=(0, 1)))
    colours = tissue_colours(labels)
    body = _body(hu[..., shown].max(axis=2) > BODY_HU)
    width, height = ((part.stop - part.start) * size for part, size in zip(body, spacing))
    wide = [width / height] * 2 + [1.0] * 3
    figure = plotting.new_figure(PANEL * sum(wide), PANEL * len(shown) + 0.6)
    grid = figure.subplots(len(shown), len(TITLES), squeeze=False, width_ratios=wide)
    for row, k in zip(grid, shown):
        near = _square(_largest(region[..., k]), spacing)
        views = ((hu, body), (painted, body), (hu, near), (painted, near), (painted, near))
        for column, (axes, (volume, part)) in enumerate(zip(row, views)):
            plotting.show_ct(axes, volume[..., k][part], aspect=spacing[1] / spacing[0], interpolation="bilinear")
            if TITLES[column] == "target map":
                _outline(axes, np.where(region, target, 0)[..., k][part], labels, colours)
            if k == shown[0]:
                axes.set_title(TITLES[column], fontsize=8.5, color=plotting.INK)
        row[0].annotate(
            f"slice {k}", (0.02, 0.02), xycoords="axes fraction", fontsize=7.5, color="white", va="bottom",
            bbox={"facecolor": "black", "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip
    new = [name for name in colours if (region & (target == labels[name])).any()]
    handles = [Patch(color=colours[name], label=words(name)) for name in new]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(new), fontsize=8.5, frameon=False)
    figure.suptitle("SYNTHETIC: painted tissue, research use only", fontsize=9.5, color=plotting.INK)
    return plotting.png_bytes(figure)


def slices(voxels: np.ndarray) -> list[int]:
    """Return the slice with most voxels, and up to two more: those that halve the voxels below and above it.

    Example:
        >>> slices(np.array([0, 4, 4, 9, 2, 2, 0]))
        [2, 3, 5]
        >>> slices(np.array([0, 7, 0]))
        [1]
    """
    most, found = int(np.argmax(voxels)), set()
    for part in (np.arange(most), np.arange(most + 1, len(voxels))):
        counts = np.cumsum(voxels[part])
        if len(counts) and counts[-1]:
            found.add(int(part[np.searchsorted(counts, counts[-1] / 2 + 0.5)]))
    return sorted(found | {most})


def _body(dense: np.ndarray) -> tuple[slice, slice]:
    """Return the rectangle around what is dense in a slice, without the thin table; all of it if nothing is."""
    thick = ndimage.binary_opening(dense, iterations=BODY_VOXELS)
    return (
        ndimage.find_objects(thick.astype(np.uint8))[0]
        if thick.any()
        else tuple(slice(0, size) for size in dense.shape)
    )


def _largest(mask: np.ndarray) -> np.ndarray:
    """Return the largest connected part of a mask in a slice."""
    parts, _ = ndimage.label(mask)
    return parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])


def _square(mask: np.ndarray, spacing: np.ndarray) -> tuple[slice, slice]:
    """Return the square (in mm) around a mask in a slice, with a margin, kept inside the slice."""
    held = [np.flatnonzero(mask.any(axis=1 - axis)) for axis in (0, 1)]
    edge_mm = max((one[-1] + 1 - one[0]) * size for one, size in zip(held, spacing)) + 2 * MARGIN_MM
    parts = []
    for one, size, length in zip(held, spacing, mask.shape):
        count = min(length, round(max(edge_mm, LEAST_MM) / size))
        start = int(np.clip((one[0] + one[-1] + 1 - count) // 2, 0, length - count))
        parts.append(slice(start, start + count))
    return parts[0], parts[1]


def _outline(axes, target: np.ndarray, labels: dict[str, int], colours: dict[str, str]) -> None:
    """Draw the border of each new tissue into a panel."""
    for name, colour in colours.items():
        mask = np.pad((target == labels[name]).astype(float), 1)
        if mask.any():
            xs, ys = (np.arange(-1, size - 1) for size in mask.shape)
            axes.contour(xs, ys, mask.T, levels=[0.5], colors=[colour], linewidths=1.1)
            axes.set_xlim(target.shape[0] - 0.5, -0.5)
            axes.set_ylim(-0.5, target.shape[1] - 0.5)

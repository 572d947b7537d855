"""How much of a lung is ill, and where: extents of each tissue per CT, as a table and a picture."""

import math
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tools import plotting
from tools.io.batch import Batch
from tools.io.files import InputError, new_directory, write_json, write_text
from tools.io.volume import (
    canonical,
    canonical_spacing,
    list_cts,
    list_nifti,
    list_volumes,
    load_ct,
    load_labels,
)
from tools.quantify import extents
from tools.tissues import COLOUR_TABLE, colour_table, tissue_colours, tissue_labels, words

SHOWN_SLICES = 5
POSTFIX = "_tissues"  # of the segmenter's files


def quantify(images: Path, tissues: Path, output: Path, periphery_mm: float = extents.PERIPHERY_MM) -> None:
    """Measure the extent of each tissue: millilitres and percent of the lung, of each lung, third and zone.

    Regions: the whole lung; right and left; upper, middle and lower third (of equal height); periphery (within
    `periphery_mm` of the lung's border in its slice) and centre. Besides, the share of voxels below -950 HU and the
    mean HU.

    Args:
        images: Folder of CTs in HU: NIfTI files, and subfolders that each hold one DICOM series.
        tissues: Folder of their tissue maps (NIfTI), named as the CTs (a series as its folder), or with _tissues after
            the name as the segmenter does.
        output: New folder for quantification.csv (a row per case and region), quantification.json, CASE.png, and
            lung_tissues.ctbl, a colour table with which 3D Slicer shows the maps in the pictures' colours.
        periphery_mm: Depth of the periphery.

    Raises:
        InputError: if a CT or a map is missing, none can be used, or the output exists.
        RunError: at the end, if some could not be used; the others are measured.
    """
    if isinstance(periphery_mm, bool) or not isinstance(periphery_mm, (int, float)) or not 0 < periphery_mm < math.inf:
        raise InputError(f"periphery_mm must be a depth in mm above 0, not {periphery_mm}")
    pairs = pair(images, tissues)
    labels, cases = tissue_labels(), {}
    batch = Batch("measured", list_volumes(images)[1])
    with new_directory(output) as folder:
        for case, (image_path, map_path) in tqdm(pairs.items(), desc="quantifying", unit="case", disable=None):
            with batch.case(case):
                hu, label, spacing = load(image_path, map_path, labels)
                if not (label > 0).any():
                    tqdm.write(f"{case}: no lung in {map_path}; its extents are empty")
                    cases[case] = None
                    continue
                cases[case] = extents.region_extents(hu, label, spacing, labels, float(periphery_mm))
                (folder / f"{case}.png").write_bytes(draw(hu, label, spacing, cases[case], labels))
        batch.refuse_if_all_failed()
        write_json(folder / "quantification.json", {"labels": labels, "periphery_mm": periphery_mm, "cases": cases})
        extents.write_rows(folder / "quantification.csv", cases, labels)
        write_text(folder / COLOUR_TABLE, colour_table(labels))
    pictures = sum(found is not None for found in cases.values())
    print(f"wrote quantification.csv, quantification.json, {COLOUR_TABLE} and {pictures} pictures in {output}")
    batch.close()


def pair(images: Path, tissues: Path) -> dict[str, tuple[Path, Path]]:
    """Return case name to CT and tissue map; InputError if a CT has no map or a map has no CT."""
    found, maps = list_cts(images), list_nifti(tissues)
    named = {name.removesuffix(POSTFIX) if name not in found else name: path for name, path in maps.items()}
    if len(named) < len(maps):
        raise InputError(f"{tissues} holds two maps of one CT, with and without {POSTFIX}")
    lonely = sorted(set(found) ^ set(named))
    if lonely:
        missing = "tissue map" if lonely[0] in found else "CT"
        raise InputError(f"{lonely[0]} has no {missing}; {images} and {tissues} must hold the same cases")
    return {case: (path, named[case]) for case, path in found.items()}


def load(image_path: Path, map_path: Path, labels: dict[str, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return HU, label values and voxel size in mm, axes to the patient's right, front and head."""
    hu, image = load_ct(image_path)
    label, _ = load_labels(map_path, labels, like=image, like_path=image_path)
    return canonical(hu, image.affine), canonical(label, image.affine), canonical_spacing(image)


def draw(hu, label, spacing, found: dict[str, dict], labels: dict[str, int]) -> bytes:
    """Draw slices from the lowest to the highest, plain and with the tissues in colour, above the shares per region.

    HU and label values have the shape (W, H, D), canonical, spacing is in mm; ``found`` is from
    ``extents.region_extents``. Returns a PNG.
    """
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Patch

    colours = tissue_colours(labels)
    occupied = np.flatnonzero((label > 0).any(axis=(0, 1)))
    places = np.linspace(0, 1, min(SHOWN_SLICES, len(occupied)) + 2)[1:-1]
    shown = [int(occupied[round(place * (len(occupied) - 1))]) for place in places]
    figure = plotting.new_figure(2.0 * max(len(shown), 3), 2 * 2.0 + 2.6)
    grid = figure.add_gridspec(3, len(shown), height_ratios=(2, 2, 2.4))
    for column, k in enumerate(shown):
        for row in (0, 1):
            axes = figure.add_subplot(grid[row, column])
            plotting.show_ct(axes, hu[..., k], aspect=spacing[1] / spacing[0])
            if row:
                paint = np.zeros((*label.shape[1::-1], 4))
                for name, colour in colours.items():
                    paint[(label[..., k] == labels[name]).T] = to_rgba(colour, 0.25 if name == "healthy" else 0.6)
                axes.imshow(paint, origin="lower", aspect=spacing[1] / spacing[0])
                axes.set_xlim(hu.shape[0] - 0.5, -0.5)
            else:
                axes.set_title(f"slice {k}", fontsize=7.5, color=plotting.INK)
    axes = figure.add_subplot(grid[2, :])
    plotting.calm(axes)
    names = [name for name in found if found[name]["lung_ml"]]
    left = np.zeros(len(names))
    for tissue, colour in colours.items():
        width = np.array([found[name][f"{tissue}_percent"] for name in names])
        axes.barh(names[::-1], width[::-1], left=left[::-1], color=colour, height=0.7)
        left += width
    whole = found["whole"]
    for name in names:
        axes.annotate(f" {found[name]['lung_ml']:.0f} ml", (100, name), fontsize=7.5, color=plotting.INK, va="center")
    axes.set_xlim(0, 112)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("percent of the region's lung", fontsize=8, color=plotting.INK)
    handles = [
        Patch(color=colour, label=f"{words(name)} {whole[f'{name}_percent']:.1f} %, {whole[f'{name}_ml']:.0f} ml")
        for name, colour in colours.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=7.5, frameon=False)
    return plotting.png_bytes(figure)

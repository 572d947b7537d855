"""``python -m tools segment``: CTs in; tissue maps, a table, pictures and one HTML page out."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

from tools.io.batch import Batch
from tools.io.files import InputError, new_directory, write_json, write_text
from tools.io.volume import (
    SYNTHETIC_MARK,
    canonical,
    canonical_spacing,
    case_name,
    check_header,
    is_volume,
    list_cts,
    list_nifti,
    list_volumes,
    load_ct,
    load_mask,
    save_nifti,
)
from tools.quantify import extents
from tools.quantify.quantify import POSTFIX, draw
from tools.segmenting import page
from tools.segmenting.dicom_output import check_series, save_seg
from tools.segmenting.segmenter import Segmenter
from tools.tissues import COLOUR_TABLE, colour_table

PAGE, LUNG_POSTFIX = "segmentation.html", "_lung"
LITTLE_AIR_HU = -780  # of eleven normal CTs the weights took four for ill: those from -750 to -708, not -889 to -845


@dataclass
class Case:
    """One CT and what was found in it.

    Attributes:
        name: Name of the case.
        path: NIfTI file, or folder of a DICOM series.
        lung: Lung mask of the user, if any.
        found: Region to measure to value, of ``extents.region_extents``; None where no lung was found.
        picture: PNG, empty where no lung was found.
        remarks: What a reader must know of this CT, in sentences.
        files: Names of the files written.
    """

    name: str
    path: Path
    lung: Path | None = None
    found: dict | None = None
    picture: bytes = b""
    remarks: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)


def segment(
    *ct: Path,
    output: Path,
    weights: Path | None = None,
    lung_dir: Path | None = None,
    dicom_seg: bool = False,
    device: str | None = None,
) -> None:
    """Label the lung tissue in CTs: tissue maps, extents per lung, third and zone, pictures, and one HTML page.

    Writes ``CASE_tissues.nii.gz`` on the CT's own grid, ``CASE.png``, ``quantification.csv`` and ``.json`` (a row per
    case and region), ``segmentation.html``, which needs no other file, and a colour table for 3D Slicer.

    Args:
        ct: NIfTI files in HU, folders of them, and folders with a DICOM series; several are separated by spaces.
        output: Folder to create.
        weights: Weights of the segmenter with their card.json beside them; those of the bundle if absent.
        lung_dir: Folder of lung masks, NIfTI, named CASE or CASE_lung: tissue is looked for there and nowhere else.
        dicom_seg: Whether to write CASE_tissues.dcm too, a DICOM SEG; every CT must be a DICOM series.
        device: Device of the network, such as cpu or cuda; the bundle's own choice if absent.

    Raises:
        InputError: if masks or weights are missing or unusable, no CT can be used or holds lung, or the output exists.
        RunError: at the end, if some CTs could not be used; the others are labelled.
    """
    cases, passed_over = find_cases(ct)
    give_lungs(cases, lung_dir)
    batch = Batch("labelled", passed_over)
    cases = readable(cases, batch)
    if dicom_seg:
        check_series({case.name: case.path for case in cases})
    with new_directory(output) as folder:
        segmenter = Segmenter(weights, device)
        for case in tqdm(cases, desc="segmenting", unit="CT", disable=True if len(cases) == 1 else None):
            with batch.case(case.name):
                label_case(case, segmenter, folder, dicom_seg)
        batch.refuse_if_all_failed()
        cases = [case for case in cases if case.name in batch.done]
        if not any(case.found for case in cases):
            raise InputError(
                f"no lung was found in {', '.join(str(case.path) for case in cases)}; is it a chest CT in HU? "
                "A lung mask can be given by --lung_dir"
            )
        labels, found = segmenter.labels, {case.name: case.found for case in cases}
        told = {"labels": labels, "periphery_mm": extents.PERIPHERY_MM, "weights": segmenter.weights.sentences()}
        write_json(folder / "quantification.json", told | {"cases": found})
        extents.write_rows(folder / "quantification.csv", found, labels)
        write_text(folder / COLOUR_TABLE, colour_table(labels))
        write_text(folder / PAGE, page.render(cases, segmenter.weights, labels, batch.failed))
    for case in cases:
        for remark in case.remarks:
            print(f"{case.name}: {remark}", file=sys.stderr)
    print(f"wrote {len(cases)} tissue map{'s' * (len(cases) > 1)} and tables to {output}; open {Path(output) / PAGE}")
    batch.close()


def readable(cases: list[Case], batch: Batch) -> list[Case]:
    """Return the cases whose headers can be used; the others are noted before any is labelled.

    Raises:
        InputError: if none is left.
    """
    for case in cases:
        with batch.case(case.name):
            check_header(case.path)
    batch.refuse_if_all_failed()
    batch.done.clear()
    return [case for case in cases if case.name not in batch.failed]


def find_cases(paths: tuple[Path, ...]) -> tuple[list[Case], dict[str, str]]:
    """Return the CTs that files and folders hold, and what else lies in the folders, with the reason.

    Raises:
        InputError: if one is missing, is no CT, or two have the same name.
    """
    found: dict[str, Path] = {}
    passed_over: dict[str, str] = {}
    for path in map(Path, paths):
        if path.is_dir():
            held = list_cts(path)
            passed_over |= list_volumes(path)[1]
        elif path.is_file() and is_volume(path):
            held = {case_name(path): path}
        elif path.exists():
            raise InputError(f"{path} is no .nii or .nii.gz file; of a DICOM series name the folder that holds it")
        else:
            raise InputError(f"{path} does not exist")
        for name, place in held.items():
            if name in found:
                raise InputError(f"{found[name]} and {place} are both called {name}; rename one, or run each by itself")
            found[name] = place
    return [Case(name, path) for name, path in found.items()], passed_over


def give_lungs(cases: list[Case], lung_dir: Path | None) -> None:
    """Note each CT's lung mask.

    Raises:
        InputError: if a folder of masks lacks one.
    """
    if lung_dir is None:
        return
    masks = list_nifti(lung_dir)
    for case in cases:
        case.lung = masks.get(case.name + LUNG_POSTFIX) or masks.get(case.name)
        if case.lung is None:
            names = f"{case.name}.nii.gz or {case.name}{LUNG_POSTFIX}.nii.gz"
            raise InputError(f"--lung_dir {lung_dir} holds no mask of {case.name}; it is named {names}")


def label_case(case: Case, segmenter: Segmenter, folder: Path, dicom_seg: bool) -> None:
    """Label one CT, measure and draw it, and write its files."""
    hu, image = load_ct(case.path)
    lung = None if case.lung is None else load_mask(case.lung, image, case.path)
    tissues = segmenter.label(hu, image.affine, lung)
    synthetic = SYNTHETIC_MARK in str(image.header["descrip"].item().decode(errors="replace"))
    case.remarks = remarks(hu, tissues, segmenter.labels, lung is not None, synthetic)
    upright, spacing = canonical(tissues, image.affine), canonical_spacing(image)
    if upright.any():
        hu = canonical(hu, image.affine)
        case.found = extents.region_extents(hu, upright, spacing, segmenter.labels)
        case.picture = draw(hu, upright, spacing, case.found, segmenter.labels)
        (folder / f"{case.name}.png").write_bytes(case.picture)
        case.files.append(f"{case.name}.png")
    weights = segmenter.weights
    mark = f"{SYNTHETIC_MARK} " * synthetic + f"{weights.bundle} {weights.version} {weights.digest[:12]}, research use"
    case.files.insert(0, f"{case.name}{POSTFIX}.nii.gz")
    save_nifti(tissues, nib.Nifti1Image(tissues, image.affine, image.header), folder / case.files[0], mark)
    if dicom_seg:
        case.files.append(f"{case.name}{POSTFIX}.dcm")
        save_seg(case.path, tissues, segmenter.labels, weights.version, folder / case.files[-1])


def remarks(
    hu: np.ndarray, tissues: np.ndarray, labels: dict[str, int], lung_known: bool, synthetic: bool
) -> list[str]:
    """Return what a reader must know of a tissue map, in sentences.

    Args:
        hu: The CT in HU.
        tissues: Label values, the same shape.
        labels: Tissue name to value.
        lung_known: Whether the user gave the lung.
        synthetic: Whether the CT is marked as synthetic.
    """
    told = []
    if synthetic:
        told.append("This CT is marked SYNTHETIC: it shows no patient.")
    if lung_known:
        told.append("The lung is the mask that was given; only the tissue in it is the network's answer.")
    if not tissues.any():
        told.append("No lung was found, so the map is empty and there are no extents.")
    healthy = hu[tissues == labels["healthy"]]
    if healthy.size and (median := float(np.median(healthy))) > LITTLE_AIR_HU:
        told.append(
            f"The median of its healthy lung is {median:.0f} HU: a lung that holds little air, as in expiration. "
            "Such lung is easily called ground glass."
        )
    return told

"""Is a tissue map that a user drew or edited usable for the CT it is named after, and is it plausible?"""

import difflib
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas
from tqdm import tqdm

from tools.data.datalist import Case, read_datalist, read_fold
from tools.io.files import InputError
from tools.io.volume import canonical, canonical_spacing, case_name, list_nifti, load_labels
from tools.maps.lesions import MIN_LESION_VOXELS, Lesion, find_lesions, lesion_bank
from tools.tissues import pathological_tissues, tissue_labels, words

# What is compared with the training lesions: name in words and unit.
COMPARED = {
    "volume_ml": ("size", " ml"),
    "depth_mm": ("distance to the pleura", " mm"),
    "height": ("height in lung", ""),
}
Ranges = dict[str, dict[str, list[float]]]  # tissue to measure to least and greatest value


@dataclass
class Finding:
    """What was found of one map, which can be painted if ``errors`` is empty."""

    path: Path
    case: Case | None  # that it is named after, None if there is none
    errors: list[str] = field(default_factory=list)  # why it cannot be painted
    warnings: list[str] = field(default_factory=list)  # what is unusual about it
    volume_ml: dict[str, float] = field(default_factory=dict)  # that it adds of each tissue
    voxels: int = 0  # in which it differs from the case's map


def list_maps(folder: Path) -> list[Path]:
    """Return the maps of a folder (or of its folder ``maps``, as the command writes it), or the one file given."""
    folder = Path(folder)
    if folder.is_file():
        return [folder]
    return list(list_nifti(folder / "maps" if (folder / "maps").is_dir() else folder).values())


def find_source(path: Path, cases: list[Case]) -> Case | None:
    """Return the case that a map is named after: ``<case>.nii.gz`` or ``<case>_anything.nii.gz``, longest first."""
    found = [case for case in cases if f"{case_name(path)}_".startswith(f"{case.name}_")]
    return max(found, key=lambda case: len(case.name), default=None)


def ranges(lesions: dict[str, list[Lesion]]) -> Ranges:
    """Return the least and greatest value of each measure in ``COMPARED`` per tissue."""
    tables = {tissue: pandas.DataFrame([lesion.measures for lesion in some]) for tissue, some in lesions.items()}
    return {tissue: table[[*COMPARED]].agg(["min", "max"]).to_dict("list") for tissue, table in tables.items()}


def check_map(path: Path, cases: list[Case], known: Ranges | None = None) -> Finding:
    """Check one map, named after one of the cases; plausibility only by ``known``, from :func:`ranges`.

    Returns:
        Errors: no such case, another geometry, unknown labels, changes outside the lung, erased lung or lesions,
        nothing new, too little of a tissue. Warnings: lesions unlike those of the training patients.
    """
    case = find_source(path, cases)
    if case is None:
        close = difflib.get_close_matches(case_name(path), [case.name for case in cases], n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        wanted = f"the {len(cases)} CTs it may be for; name it CASE.nii.gz or CASE_anything.nii.gz{hint}"
        return Finding(path, None, [f"is named after none of {wanted}"])
    finding = Finding(path, case)
    try:
        image = nib.load(case.image)
        target, _ = load_labels(path, tissue_labels(), like=image, like_path=case.image)
        label, _ = load_labels(case.label, tissue_labels(), like=image, like_path=case.image)
    except (InputError, OSError) as error:
        finding.errors.append(str(error).removeprefix(f"{path} "))
        return finding
    finding.errors += _changes(label, target)
    finding.voxels = int(np.count_nonzero(label != target))
    labels, voxel_ml = tissue_labels(), float(np.prod(canonical_spacing(image))) / 1000
    new = np.where(target != label, target, np.where(label > 0, labels["healthy"], 0))
    for tissue in pathological_tissues():
        voxels = int((new == labels[tissue]).sum())
        if 0 < voxels < MIN_LESION_VOXELS:
            finding.errors.append(f"adds only {voxels} voxels of {tissue}; {MIN_LESION_VOXELS} are the least")
        if voxels:
            finding.volume_ml[tissue] = voxels * voxel_ml
    if not finding.volume_ml and not finding.errors:
        finding.errors.append(f"adds no lesion to {case.label}")
    if known is not None and not finding.errors:
        finding.warnings += _implausible(canonical(new, image.affine), canonical_spacing(image), known)
    return finding


def _changes(label: np.ndarray, target: np.ndarray) -> list[str]:
    """Return what is wrong with the voxels that differ between a case's map and a new one."""
    healthy = tissue_labels()["healthy"]
    wrong = {
        "changes {} voxels outside the lung; only tissue inside the lung can be painted": (label == 0) & (target != 0),
        "makes {} voxels of the lung background; the lung must stay as it is": (label != 0) & (target == 0),
        "makes {} voxels of lesions healthy; lesions can be added or replaced, not erased": (label > 0)
        & (label != healthy)
        & (target == healthy),
    }
    return [text.format(int(voxels.sum())) for text, voxels in wrong.items() if voxels.any()]


def _implausible(new: np.ndarray, spacing: np.ndarray, known: Ranges) -> list[str]:
    """Return a sentence per tissue and measure in which new lesions lie outside the training lesions' range."""
    labels = tissue_labels()
    lesions = find_lesions("", new, None, spacing, {tissue: labels[tissue] for tissue in pathological_tissues()})
    texts = []
    for tissue in pathological_tissues():
        own = [lesion.measures for lesion in lesions if lesion.tissue == tissue]
        if own and tissue not in known:
            texts.append(f"{tissue}: no training patient has any, so nothing is known of its lesions")
            continue
        for name, (meaning, unit) in COMPARED.items() if own else ():
            low, high = known[tissue][name]
            outside = [row[name] for row in own if not low <= row[name] <= high]
            if outside:
                worst = max(outside, key=lambda value: max(low - value, value - high))
                texts.append(
                    f"{tissue}: {meaning} of {len(outside)} of {len(own)} lesions lies outside the training lesions' "
                    f"{low:.3g} to {high:.3g}{unit} (farthest {worst:.3g}{unit})"
                )
    return texts


def check_maps(maps: Path, datalist: Path, fold: int | None = None) -> None:
    """Compare every map of a folder with the CT it is named after, and print all that is wrong or unusual.

    Args:
        maps: A map, or a folder of maps, named CASE.nii.gz or CASE_anything.nii.gz after their CT.
        datalist: The datalist.json as `dataset` writes it; it names the CTs that the maps are for.
        fold: The fold that is held out; all cases may be hosts if not given.

    Raises:
        InputError: if the input or any map is unusable.
    """
    cases = read_datalist(datalist)["training"] if fold is None else read_fold(datalist, fold)[0]
    paths = list_maps(Path(maps))
    known = ranges(lesion_bank(cases)[0])
    findings = [check_map(path, cases, known) for path in tqdm(paths, desc="checking maps", unit="map", disable=None)]
    for finding in findings:
        lines = [f"error: {text}" for text in finding.errors] + [f"warning: {text}" for text in finding.warnings]
        adds = ", ".join(f"{words(tissue)} {volume:.3g} ml" for tissue, volume in finding.volume_ml.items())
        lines = lines or ["fine"]
        print("\n  ".join([f"{finding.path.name}" + f" adds {adds}" * bool(adds), *lines]))
    unusable = [finding.path.name for finding in findings if finding.errors]
    if unusable:
        raise InputError(f"{len(unusable)} of {len(findings)} maps cannot be painted: {', '.join(unusable)}")
    print(f"all {len(findings)} maps can be painted: python -m tools augment --maps {maps} …")

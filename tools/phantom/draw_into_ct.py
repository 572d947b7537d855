"""``python -m tools draw_into_ct``: real CT with drawn disease, a labelled cohort without any human label."""

import dataclasses
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage
from tqdm import tqdm

from tools.data.folds import assign_folds
from tools.data.patients import read_patients
from tools.data.twins import content_digest
from tools.io.files import InputError, new_directory, sha256, write_json, write_text
from tools.io.volume import SYNTHETIC_MARK, check_same_geometry, list_cts, list_nifti, load_ct, save_nifti
from tools.phantom.disease import EXISTING_DENSE_HU, EXISTING_DENSE_SHARE, KINDS, describe_case, draw_disease
from tools.phantom.lungs import lung_mask
from tools.phantom.phantom import HU_RANGE, involved_fraction
from tools.phantom.publication import change_look
from tools.phantom.real_patches import Patches, read_patches, set_patches
from tools.phantom.surroundings import draw_surroundings
from tools.tissues import tissue_labels

DESCRIPTION = f"{SYNTHETIC_MARK}: disease drawn by python -m tools draw_into_ct"
SEGMENTER = "bundles/lung_tissue_seg"
LEAST_LUNG_ML = 100.0
FOLDS = 5
PATCHED = 0.7  # of the cases, where there are patches
VOXEL_MM = (0.6, 1.5)
TO_LPS = "LPS"  # axes towards left, back and head, as the phantom's


@dataclasses.dataclass(frozen=True)
class Host:
    """A real CT to draw into, its axes towards left, back and head.

    Attributes:
        name: file or folder name without ending.
        path: where it lies.
        hu: shape (W, H, slices), float32.
        lung: bool of the same shape.
        affine: voxels to mm, RAS.
    """

    name: str
    path: Path
    hu: np.ndarray
    lung: np.ndarray
    affine: np.ndarray

    @property
    def voxel_mm(self) -> tuple[float, float, float]:
        """Size of a voxel."""
        return tuple(float(size) for size in nib.affines.voxel_sizes(self.affine))


def draw_into_ct(
    ct: Path,
    output: Path,
    lung_dir: Path | None = None,
    patients: Path | None = None,
    cases_per_ct: int = 6,
    slices: int = 10,
    framed: float = 0.5,
    windowed: float = 0.5,
    surrounded: float = 0.6,
    resampled: float = 0.0,
    kind: str | None = None,
    patches: Path | None = None,
    patches_share: float = 1.0,
    seed: int = 0,
) -> None:
    """Draw lung disease into real CT of normal lungs.

    Writes ``images/<case>.nii.gz`` (HU, int16), ``labels/<case>.nii.gz`` (the values of the label scheme, uint8),
    ``datalist.json`` with folds of whole patients, ``patients.csv`` (case, patient, severity as the share of the lung
    that is not healthy, history, fold) and ``provenance.json`` (source, its SHA-256, seed and what was drawn). Noise,
    kernel, vessels and anatomy stay the host's. The same seed gives the same cases, whatever other CTs there are.

    Args:
        ct: Folder of normal CTs in HU: NIfTI files, and subfolders that each hold one DICOM series.
        output: Folder to create.
        lung_dir: Folder of lung masks, NIfTI of the CTs' names, anything above 0 is lung; found by HU where absent.
        patients: CSV file with the columns case (name of the CT) and patient, for patients with several CTs.
        cases_per_ct: Number of cases to draw into each CT.
        slices: Number of evenly spaced axial slices of the CT in a case, 0 for all.
        framed: Probability that a case is cut to the lungs and enlarged as published pictures are; its pixels then
            count as 1 mm.
        windowed: Probability that a case is clipped to a window of 255 greys.
        surrounded: Probability that air, table and blankets are drawn round the patient, for CTs cut to the body.
        resampled: Probability that the CT is resampled before drawing, to voxels of 0.6 to 1.5 mm in the plane.
        kind: What to draw into every case: none, smoker, exposure or post-infection. All of them by turns if absent.
        patches: File of real patches of emphysema and normal lung, npz, to set into the healthy lung of most cases.
        patches_share: Share of each class of patches that is used, from the beginning of the file.
        seed: Seed for all random draws, 0 or more.

    Raises:
        InputError: if a CT cannot be read or holds no lung, a mask lies on another grid, a value is out of range, or
            ``output`` holds something.
    """
    shares = {"framed": framed, "windowed": windowed, "surrounded": surrounded, "resampled": resampled}
    _check_values(cases_per_ct, slices, shares, kind, seed)
    cts = list_cts(ct)
    masks = {} if lung_dir is None else list_nifti(lung_dir)
    if masks and not set(masks) & set(cts):
        raise InputError(f"{lung_dir} holds no mask of the name of any CT in {ct}; a mask is named as its CT")
    problems: list[str] = []
    owners, _ = read_patients(patients, cts, problems) if patients else ({n: {"patient": n} for n in cts}, [])
    if problems:
        raise InputError("; ".join(problems))
    labels = tissue_labels()
    real = None if patches is None else read_patches(patches, patches_share)
    rows, records = [], []
    with new_directory(output) as folder:
        for name in tqdm(cts, desc="drawing", unit="CT", disable=None):
            host = read_host(name, cts[name], masks.get(name))
            source = {"source": host.path.name, "sha256": _digest(host.path)}
            source["content_sha256"] = content_digest(host.path)
            for number in range(cases_per_ct):
                rng = np.random.default_rng([seed, number, *name.encode()])
                case = f"{name}_drawn{number:03d}"
                row, record = _draw_case(rng, host, folder, case, slices, shares, kind, real, labels)
                rows.append(row | {"patient": owners[name]["patient"]})
                records.append({"case": case, **source, "seed": seed} | record)
        _write_tables(folder, rows, records, labels)
    print(
        f"wrote {len(rows)} cases, drawn into {len(cts)} CTs, to {output}; next: python -m monai.bundle run "
        f"--bundle_root {SEGMENTER} --config_file {SEGMENTER}/configs/train.json --dataset_dir {output}"
    )


def _check_values(cases_per_ct, slices, shares, kind, seed) -> None:
    """Raise InputError unless every number of the command is in its range."""
    for name, value, least in (("cases_per_ct", cases_per_ct, 1), ("slices", slices, 0), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name} must be a whole number from {least} up, not {value}")
    for name, value in shares.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise InputError(f"{name} is a probability and must be from 0 to 1, not {value}")
    if kind is not None and kind not in KINDS:
        raise InputError(f"kind must be one of {', '.join(KINDS)}, not {kind}")


def read_host(name: str, path: Path, mask_path: Path | None = None) -> Host:
    """Read a CT and find its lungs.

    Args:
        name: Name of the CT.
        path: NIfTI file or folder of a DICOM series.
        mask_path: Lung mask on the same grid; None to find the lungs by HU.

    Returns:
        The host, its axes towards left, back and head.

    Raises:
        InputError: if it holds no lung, or the mask lies on another grid.
    """
    hu, file = load_ct(path)
    image = _towards_lps(nib.Nifti1Image(hu, file.affine))
    hu = np.asarray(image.dataobj)
    voxel_mm = tuple(float(size) for size in nib.affines.voxel_sizes(image.affine))
    if mask_path is None:
        lung = lung_mask(hu, voxel_mm)
        remedy = "leave it out, or give its lung mask by --lung_dir"
    else:
        mask = nib.load(mask_path)
        check_same_geometry(file, mask, path, mask_path)
        lung = np.asarray(_towards_lps(nib.Nifti1Image(np.asarray(mask.dataobj), mask.affine)).dataobj) > 0
        remedy = f"is {mask_path} the mask of this CT?"
    volume_ml = np.count_nonzero(lung) * float(np.prod(voxel_mm)) / 1000
    if volume_ml < min(LEAST_LUNG_ML, 40.0 * voxel_mm[2] / 10 * hu.shape[2]):
        raise InputError(f"{path} holds {volume_ml:.0f} ml of lung, too little to draw into; {remedy}")
    dense = float((hu[lung] > EXISTING_DENSE_HU).mean())
    if dense > EXISTING_DENSE_SHARE:
        print(
            f"warning: {path} is dense (above {EXISTING_DENSE_HU:g} HU) in {100 * dense:.0f} % of its lung; "
            "disease that it holds already will be labelled healthy where nothing is drawn over it",
            file=sys.stderr,
        )
    return Host(name, Path(path), hu, lung, image.affine)


def _towards_lps(image: nib.Nifti1Image) -> nib.Nifti1Image:
    wanted = nib.orientations.axcodes2ornt(TO_LPS)
    return image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), wanted))


def _digest(path: Path) -> str | dict[str, str]:
    """Return the SHA-256 of a file, or of each file of a DICOM folder."""
    path = Path(path)
    return (
        {file.name: sha256(file) for file in sorted(path.iterdir()) if file.is_file()}
        if path.is_dir()
        else sha256(path)
    )


def _pick_slices(rng: np.random.Generator, lung: np.ndarray, count: int) -> slice:
    """Return evenly spaced slices, at most one beyond the lungs at either end."""
    held = np.flatnonzero(lung.any((0, 1)))
    first, end = max(0, int(held[0]) - 1), min(lung.shape[2], int(held[-1]) + 2)
    if count == 0 or end - first <= count:
        return slice(first, end) if count else slice(0, lung.shape[2])
    step = (end - first) // count
    start = first + int(rng.integers(0, end - first - step * (count - 1)))
    return slice(start, start + step * (count - 1) + 1, step)


def _resample(rng: np.random.Generator, hu: np.ndarray, lung: np.ndarray, voxel_mm: tuple) -> tuple:
    """Return CT, lung and voxel size with square voxels in the plane, of a size drawn from VOXEL_MM."""
    new_mm = float(np.exp(rng.uniform(*np.log(VOXEL_MM))))
    return *resample_plane(hu, lung, voxel_mm[:2], new_mm), (new_mm, new_mm, voxel_mm[2])


def resample_plane(
    hu: np.ndarray, lung: np.ndarray, pixel_mm: tuple[float, float], new_mm: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return a CT (HU, shape (W, H, slices)) and its lung with square pixels of another size in mm."""
    factors = [size / new_mm for size in pixel_mm]
    blur = [0.5 * np.sqrt(max(0.0, 1 / factor**2 - 1)) for factor in factors]  # against aliasing
    hu = ndimage.gaussian_filter(hu.astype(np.float32), (*blur, 0))
    hu = ndimage.zoom(hu, (*factors, 1), order=1, grid_mode=True, mode="nearest")
    mask = np.ascontiguousarray(lung).view(np.uint8)
    return hu, ndimage.zoom(mask, (*factors, 1), order=0, grid_mode=True, mode="nearest").astype(bool)


def _draw_case(
    rng: np.random.Generator, host: Host, folder: Path, case: str, slices: int, shares: dict[str, float],
    kind: str | None, patches: Patches | None, labels: dict[str, int],
) -> tuple[dict, dict]:  # fmt: skip
    """Draw and write one case, and return its row of patients.csv and its provenance."""
    part = _pick_slices(rng, host.lung, slices)
    hu, lung = host.hu[..., part], host.lung[..., part]
    step = part.step or 1
    voxel_mm = (*host.voxel_mm[:2], host.voxel_mm[2] * step)
    affine, around = host.affine.copy(), None
    if rng.random() < shares["resampled"]:
        hu, lung, voxel_mm = _resample(rng, hu, lung, voxel_mm)
        affine[:3, :2] *= np.asarray(voxel_mm[:2]) / host.voxel_mm[:2]
    start_mm = affine[:3, 2] * part.start  # of the first slice that is kept
    described = describe_case(rng, kind)
    hu, label = draw_disease(rng, hu, lung, voxel_mm, described, labels)
    count = 0
    if patches is not None and rng.random() < PATCHED:
        count = set_patches(rng, hu, label, voxel_mm, patches, labels)
    if rng.random() < shares["surrounded"]:
        hu, pads, around = draw_surroundings(rng, hu, voxel_mm)
        label = np.pad(label, (*pads, (0, 0)))
        affine[:3, 3] -= affine[:3, :2] @ [pads[0][0], pads[1][0]]
    hu, label, keep, new_mm, look = change_look(rng, hu, label, voxel_mm, shares["framed"], shares["windowed"])
    affine[:3, 3] += affine[:3, :2] @ [keep[0].start, keep[1].start] + start_mm
    affine[:3, 2] *= step
    affine[:3, :3] *= np.asarray(new_mm) / voxel_mm
    hu = np.clip(np.rint(hu), *HU_RANGE).astype(np.int16)
    for array, kind_folder in ((hu, "images"), (label.astype(np.uint8), "labels")):
        like = nib.Nifti1Image(array, affine)
        like.set_qform(affine, code=1)
        like.header.set_xyzt_units("mm")
        save_nifti(np.ascontiguousarray(array), like, folder / kind_folder / f"{case}.nii.gz", DESCRIPTION)
    row = {"case": case, "severity": round(involved_fraction(label, labels), 4), "history": described.kind}
    record = {"slices": [part.start, part.stop, step], "drawn": dataclasses.asdict(described), "patches": count}
    record |= {"voxel_mm": round(float(new_mm[0]), 4)}
    record["surroundings"] = None if around is None else dataclasses.asdict(around)
    return row, record | {"look": dataclasses.asdict(look)}


def _write_tables(folder: Path, rows: list[dict], records: list[dict], labels: dict[str, int]) -> None:
    """Write patients.csv, datalist.json and provenance.json."""
    values = {value: name for name, value in labels.items()}
    held: dict[str, set[str]] = {}
    for row in rows:
        label = np.asarray(nib.load(folder / "labels" / f"{row['case']}.nii.gz").dataobj)
        held.setdefault(row["patient"], set()).update(values[value] for value in np.unique(label))
    count = min(FOLDS, len(held))
    sizes = {patient: sum(row["patient"] == patient for row in rows) for patient in held}
    folds = assign_folds(held, count, 0, sizes) if count > 1 else dict.fromkeys(held, 0)
    lines = ["case,patient,severity,history,fold"]
    training = []
    for row in rows:
        case, fold = row["case"], folds[row["patient"]]
        lines.append(f"{case},{row['patient']},{row['severity']},{row['history']},{fold}")
        item = {"image": f"images/{case}.nii.gz", "label": f"labels/{case}.nii.gz", "patient": row["patient"]}
        training.append(item | {"severity": row["severity"], "history": row["history"], "fold": fold})
    content = {
        "name": "drawn_into_ct",
        "description": f"{SYNTHETIC_MARK}: disease drawn into real CT; {count} folds of whole patients",
        "modality": "CT",
        "labels": labels,
        "numTraining": len(training),
        "training": training,
    }
    write_text(folder / "patients.csv", "\n".join(lines) + "\n")
    write_json(folder / "datalist.json", content)
    write_json(folder / "provenance.json", records)

"""CTs that nobody labelled as hosts of new tissue: checked against the patients, cut to size, their lungs found."""

import math
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

from tools.data.datalist import SYNTHETIC, Case
from tools.data.patients import read_patients
from tools.data.provenance import cases_read, check_disjoint, digest, find_twin
from tools.data.twins import content_digest
from tools.io.files import InputError
from tools.io.volume import axial_axis, list_cts, list_nifti, save_nifti, spacing_mm
from tools.phantom.draw_into_ct import pick_slices, read_host, resample_plane
from tools.tissues import tissue_labels

LUNGS, PATIENTS = "lungs", "patients.csv"  # in a folder of hosts: lung masks, and who each CT belongs to
TOLERANCE = 0.01  # of a voxel's size


def read_hosts(folder: Path) -> list[dict]:
    """Return case, patient, path and digests of the CTs in a folder of hosts, sorted by case.

    The folder holds NIfTI files and folders with a DICOM series. ``patients.csv`` in it (case, patient) says who they
    belong to; without it each CT is a patient of its own.

    Raises:
        InputError: if it holds no CT, or ``patients.csv`` is unusable.
    """
    folder = Path(folder)
    cts = list_cts(folder)
    owners: dict[str, dict] = {name: {"patient": name} for name in cts}
    if (folder / PATIENTS).is_file():
        problems: list[str] = []
        owners, _ = read_patients(folder / PATIENTS, cts, problems)
        if problems:
            raise InputError("; ".join(problems))
    rows = []
    for name, path in cts.items():
        row = {"case": name, "patient": str(owners[name]["patient"]), "content_sha256": content_digest(path)}
        rows.append(row | ({"image_sha256": digest(path)} if path.is_file() else {}) | {"path": path})
    return rows


def check_hosts(folder: Path, training: list[Case], held_out: list[Case]) -> list[dict]:
    """Return what ``read_hosts`` does, if no host is a test patient or a labelled case under whatever name.

    Raises:
        InputError: naming the host that is; disease of a labelled case would be called healthy.
    """
    rows = read_hosts(folder)
    check_disjoint(str(folder), "hosts", rows, cases_read(held_out))
    for known in cases_read(training):
        twin = find_twin(known, rows)
        if twin:
            raise InputError(
                f"{folder}: host {twin['case']} is the CT of the labelled case {known['case']}; leave it out, or its "
                "disease would count as healthy lung"
            )
    return rows


def cut_hosts(rows: list[dict], training: list[Case], output: Path, number: int, seed: int) -> list[Case]:
    """Cut hosts to the size of the training cases, and write each with a map that calls its lung healthy.

    A host gets as many evenly spaced slices as the middle training case has. Its pixels stay as they are where they are
    no smaller and no larger than those of the training cases, else they get the median size. ``lungs/CASE.nii.gz`` in
    the hosts' folder is used where it is there, else the lungs are found by HU.

    Args:
        rows: Of ``check_hosts``.
        training: Training cases.
        output: Folder for ``images`` and ``labels``.
        number: Number of cases to cut; each host gives about equally many, of other slices.
        seed: Seed for the choice of slices.

    Returns:
        The cases, of fold ``SYNTHETIC``.

    Raises:
        InputError: if a host holds no lung or its mask lies on another grid.
    """
    slices, sizes = _size_of(training)
    masks = rows[0]["path"].parent / LUNGS
    lungs = list_nifti(masks) if masks.is_dir() else {}
    cases = []
    for row in tqdm(rows[:number], desc="cutting hosts", unit="CT"):
        host = read_host(row["case"], row["path"], lungs.get(row["case"]))
        for part in range(math.ceil(number / len(rows))):
            name = f"{row['case']}_part{part}"
            rng = np.random.default_rng([seed, part, *row["case"].encode()])
            files = tuple(output / kind / f"{name}.nii.gz" for kind in ("images", "labels"))
            _write_part(host, pick_slices(rng, host.lung, slices), sizes, *files)
            cases.append(Case(*files, row["patient"], SYNTHETIC))
    return cases[:number]


def _size_of(training: list[Case]) -> tuple[int, np.ndarray]:
    """Return the middle number of slices of some cases, and all sizes of their pixels in mm."""
    files = [nib.load(case.image) for case in training]
    slices = [file.shape[axial_axis(file.affine)] for file in files]
    return int(np.median(slices)), np.array([size for file in files for size in spacing_mm(file)[:2]])


def _write_part(host, part: slice, sizes: np.ndarray, image: Path, label: Path) -> None:
    """Write some slices of a host (int16 HU) and the map of its lung."""
    hu, lung, affine = host.hu[..., part], host.lung[..., part], host.affine.copy()
    affine[:3, 3] += affine[:3, 2] * part.start
    affine[:3, 2] *= part.step or 1
    own = host.voxel_mm[:2]
    if min(own) < (1 - TOLERANCE) * sizes.min() or max(own) > (1 + TOLERANCE) * sizes.max():
        new_mm = float(np.median(sizes))
        hu, lung = resample_plane(hu, lung, own, new_mm)
        affine[:3, :2] *= new_mm / np.asarray(own)
    hu = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
    for array, path in ((hu, image), (np.where(lung, tissue_labels()["healthy"], 0).astype(np.uint8), label)):
        like = nib.Nifti1Image(array, affine)
        like.header.set_xyzt_units("mm")
        save_nifti(np.ascontiguousarray(array), like, path)

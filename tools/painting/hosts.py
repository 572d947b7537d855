"""CTs that nobody labelled as hosts of new tissue: checked against the patients, cut to size, their lungs found."""

import math
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage
from tqdm import tqdm

from tools.data.datalist import SYNTHETIC, Case
from tools.data.patients import read_patients
from tools.data.provenance import cases_read, check_disjoint, digest, find_twin
from tools.data.twins import content_digest
from tools.io.files import InputError
from tools.io.volume import canonical, canonical_spacing, list_cts, list_nifti, load_labels, save_nifti
from tools.phantom.draw_into_ct import Host, read_host, resample_plane
from tools.tissues import tissue_labels

LUNGS, PATIENTS = "lungs", "patients.csv"  # in a folder of hosts: lung masks, and who each CT belongs to
TOLERANCE = 0.01  # of a voxel's size
MUCH = 0.25  # of the largest area of lung in a slice


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

    A host gets as many evenly spaced slices as the middle training case has, of those that show much lung, and is
    cropped as closely round its lungs. Its pixels stay as they are where they are no smaller and no larger than those
    of the training cases, else they get the median size. ``lungs/CASE.nii.gz`` in the hosts' folder is used where it is
    there, else the lungs are found by HU.

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
    wanted = _size_of(training)
    masks = rows[0]["path"].parent / LUNGS
    lungs = list_nifti(masks) if masks.is_dir() else {}
    cases = []
    for row in tqdm(rows[:number], desc="cutting hosts", unit="CT", disable=None):
        host = read_host(row["case"], row["path"], lungs.get(row["case"]))
        for part in range(math.ceil(number / len(rows))):
            name = f"{row['case']}_part{part}"
            rng = np.random.default_rng([seed, part, *row["case"].encode()])
            files = tuple(output / kind / f"{name}.nii.gz" for kind in ("images", "labels"))
            _write_part(host, _pick_slices(rng, host.lung, wanted.slices), wanted, *files)
            cases.append(Case(*files, row["patient"], SYNTHETIC))
    return cases[:number]


@dataclass(frozen=True)
class Size:
    """What training cases are like: middle number of slices, every size of a pixel, room round the lungs in mm."""

    slices: int
    pixels_mm: np.ndarray
    room_mm: float


def _size_of(training: list[Case]) -> Size:
    """Return what some cases are like; the room is that of the middle case between its lungs and the nearest edge."""
    slices, pixels, rooms = [], [], []
    for case in training:
        label, image = load_labels(case.label, tissue_labels())
        label, voxel_mm = canonical(label, image.affine), canonical_spacing(image)
        slices.append(label.shape[2])
        pixels += voxel_mm[:2].tolist()
        if label.any():
            box = ndimage.find_objects((label > 0).astype(np.uint8))[0][:2]
            edges = [(part.start, size - part.stop) for part, size in zip(box, label.shape)]
            rooms.append(min(min(pair) * size_mm for pair, size_mm in zip(edges, voxel_mm)))
    return Size(int(np.median(slices)), np.array(pixels), float(np.median(rooms)) if rooms else float("inf"))


def _pick_slices(rng: np.random.Generator, lung: np.ndarray, count: int) -> slice:
    """Return evenly spaced slices between the outermost ones that show at least ``MUCH`` of the largest lung area."""
    area = lung.sum((0, 1))
    much = np.flatnonzero(area >= MUCH * area.max())
    room = int(much[-1]) - int(much[0]) + 1
    count = min(count, room)
    step = room // count if count > 1 else 1  # a single slice keeps its thickness
    start = int(much[0]) + int(rng.integers(0, room - step * (count - 1)))
    return slice(start, start + step * (count - 1) + 1, step)


def _write_part(host: Host, part: slice, wanted: Size, image: Path, label: Path) -> None:
    """Write some slices of a host (int16 HU) and the map of its lung."""
    own, sizes = host.voxel_mm[:2], wanted.pixels_mm
    box = ndimage.find_objects(host.lung[..., part].astype(np.uint8))[0]
    box = tuple(
        slice(
            max(0, math.floor(side.start - wanted.room_mm / size)),
            min(end, math.ceil(side.stop + wanted.room_mm / size)),
        )
        if math.isfinite(wanted.room_mm)
        else slice(0, end)
        for side, size, end in zip(box, own, host.hu.shape)
    )
    hu, lung, affine = host.hu[*box, part], host.lung[*box, part], host.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [box[0].start, box[1].start, part.start]
    affine[:3, 2] *= part.step or 1
    if min(own) < (1 - TOLERANCE) * sizes.min() or max(own) > (1 + TOLERANCE) * sizes.max():
        new_mm = float(np.median(sizes))
        hu, lung = resample_plane(hu, lung, own, new_mm)
        affine[:3, :2] *= new_mm / np.asarray(own)
    hu = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
    for array, path in ((hu, image), (np.where(lung, tissue_labels()["healthy"], 0).astype(np.uint8), label)):
        like = nib.Nifti1Image(array, affine)
        like.header.set_xyzt_units("mm")
        save_nifti(np.ascontiguousarray(array), like, path)

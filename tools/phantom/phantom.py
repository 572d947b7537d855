"""A cohort of drawn patients: labelled CT on which the whole chain runs without any real patient."""

import dataclasses
import re
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage
from tqdm import tqdm

from tools.io.files import InputError, new_directory, write_text
from tools.io.volume import save_nifti
from tools.phantom import anatomy, parenchyma, texture
from tools.phantom.disease import number_lesions
from tools.tissues import tissue_labels

FIELD_OF_VIEW_MM = 350.0
LUNG_HEIGHT_MM = 240.0
HU_RANGE = (-1024, 3071)  # of a 12-bit CT
SMALLEST_SIZE = (64, 64, 4)
HEALTHY_HU = -862  # mean of the healthy lung at mid depth, age 60
AGE_HU_PER_YEAR = -0.8  # older lungs hold more air
WARP_MM = 3.0  # so that no outline is a perfect ellipse
DESCRIPTION = "PHANTOM: drawn by python -m tools phantom, no patient"

# Histories of patients 0, 1, 2, ...; repeated after 12. The post-infection patients are the ones with consolidation.
HISTORIES = (
    *("smoker", "post-infection", "exposure", "none", "post-infection", "smoker"),
    *("exposure", "smoker", "none", "exposure", "post-infection", "smoker"),
)
SEVERITIES = {"smoker": (0.10, 0.38), "exposure": (0.15, 0.50), "post-infection": (0.20, 0.60), "none": (0.03, 0.15)}
# Mean share of each tissue in the involved lung.
MIXTURES = {
    "smoker": {"ground_glass": 0.26, "fibrosis": 0.16, "emphysema": 0.58},
    "exposure": {"ground_glass": 0.37, "fibrosis": 0.58, "emphysema": 0.05},
    "post-infection": {"ground_glass": 0.74, "fibrosis": 0.12, "consolidation": 0.14},
    "none": {"ground_glass": 0.68, "fibrosis": 0.32},
}
SPARED = ("fibrosis", "consolidation")  # in patients with a lung kernel, where the cohort is to be shifted
KERNEL_CYCLE = ("lung", "soft", "soft", "lung", "lung", "soft", "lung")
# Axes stored in reverse, per patient: L P S as scanners write it, then R A S, L P I, R P S and L A S.
FLIPS = ((), (0, 1), (2,), (0,), (1,))


@dataclasses.dataclass(frozen=True)
class Patient:
    """What is known about a patient before the drawing starts."""

    index: int  # place in the cohort
    age: int  # years
    severity: float  # share of the lung that is not healthy
    history: str  # smoker, exposure, post-infection or none
    mixture: dict[str, float]  # share of each tissue in the involved lung; sums to 1
    kernel: str  # of the reconstruction, soft or lung
    dose: float  # factor on the noise
    breath_hu: float  # density of the healthy lung less the mean, from how deep the patient breathes in
    cohort: str = "phantom"  # begins the name
    own_textures: bool = False  # whether density and texture are the patient's and the lesion's own

    @property
    def name(self) -> str:
        """Name of the patient and of the only case, e.g. ``phantom007``."""
        return f"{self.cohort}{self.index:03d}"


def describe_patient(
    seed: int, index: int, kernel: str | None = None, spared: bool = False, own_textures: bool = False,
    cohort: str = "phantom",
) -> Patient:  # fmt: skip
    """Return patient ``index`` of the cohort ``seed``; the size of the cohort has no say in it.

    Args:
        seed: Seed of the cohort.
        index: Place in the cohort.
        kernel: Reconstruction kernel; by turns if None.
        spared: Whether a patient with a lung kernel has none of ``SPARED``.
        own_textures: Whether density and texture are the patient's and the lesion's own.
        cohort: Beginning of the name.
    """
    rng = np.random.default_rng([seed, index])
    history = HISTORIES[index % len(HISTORIES)]
    age = int(rng.integers(34, 87))
    low, high = SEVERITIES[history]
    severity = low + (high - low) * rng.beta(1.6, 1.8)
    shares = dict(MIXTURES[history])
    if "emphysema" in shares:
        shares["emphysema"] *= 1 + 0.008 * (age - 60)  # grows with age
    drawn = rng.dirichlet([30 * share for share in shares.values()])
    kernel = kernel or KERNEL_CYCLE[index % len(KERNEL_CYCLE)]
    if spared and kernel == "lung":
        drawn = np.where([tissue in SPARED for tissue in shares], 0, drawn)
        severity *= drawn.sum()
        drawn = drawn / drawn.sum()
    return Patient(
        index=index,
        age=age,
        severity=float(severity),
        history=history,
        mixture={tissue: float(share) for tissue, share in zip(shares, drawn)},
        kernel=kernel,
        dose=float(rng.uniform(0.8, 1.25)),
        breath_hu=float(rng.normal(0, 8)),
        cohort=cohort,
        own_textures=own_textures,
    )


def draw_patient(patient: Patient, seed: int, size: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw one patient of the cohort ``seed`` on (W, H, slices) voxels; anatomy and texture keep their size in mm.

    Returns:
        HU as int16 and label values as uint8, shape ``size``, and the affine (4, 4) from voxels to mm (RAS).
    """
    body_rng, tree_rng, place_rng, texture_rng, scanner_rng = np.random.default_rng([seed, patient.index, 1]).spawn(5)
    build = anatomy.Build(
        height_mm=float(body_rng.uniform(0.93, 1.0)) * LUNG_HEIGHT_MM,
        width=float(body_rng.uniform(0.94, 1.04)),
        fat_mm=float(body_rng.uniform(7, 19)),
        heart=float(body_rng.uniform(0.92, 1.06)) + 0.002 * (patient.age - 60),
        airway=float(body_rng.uniform(0.95, 1.05)) + 0.008 * (patient.age - 60),
    )
    pixel_mm = FIELD_OF_VIEW_MM * float(scanner_rng.uniform(0.95, 1.05)) / min(size[:2])
    slice_mm = LUNG_HEIGHT_MM * float(scanner_rng.uniform(0.98, 1.03)) / size[2]
    axes = (
        (np.arange(size[0]) - (size[0] - 1) / 2) * pixel_mm,
        (np.arange(size[1]) - (size[1] - 1) / 2) * pixel_mm,
        (np.arange(size[2]) + 0.5) * slice_mm,
    )
    hu, label = _draw_thorax(patient, build, size, axes, (body_rng, tree_rng, place_rng, texture_rng))
    affine = _oblique_affine(scanner_rng, size, (pixel_mm, pixel_mm, slice_mm))
    hu = parenchyma.reconstruct(scanner_rng, hu, pixel_mm, patient.kernel, patient.dose)
    hu = np.clip(np.rint(hu), *HU_RANGE).astype(np.int16)
    for axis in FLIPS[patient.index % len(FLIPS)]:
        hu, label = np.flip(hu, axis), np.flip(label, axis)
        affine[:3, 3] += affine[:3, axis] * (size[axis] - 1)
        affine[:3, axis] *= -1
    return np.ascontiguousarray(hu), np.ascontiguousarray(label), affine


def _draw_thorax(patient: Patient, build: anatomy.Build, size: tuple, axes: tuple, rngs: tuple):
    """Return the HU (float32) and the label values (uint8) of a patient, axes along left, back and head."""
    body_rng, tree_rng, place_rng, texture_rng = rngs
    labels = tissue_labels()
    axes = tuple(axis.astype(np.float32) for axis in axes)
    x, y, z = axes[0][:, None, None], axes[1][:, None], axes[2]
    warped = [axis + WARP_MM * anatomy.smooth_noise(body_rng, axes, parenchyma.BROAD_MM) for axis in (x, y)]
    hu = anatomy.draw_body(*warped, z, build, anatomy.smooth_noise(body_rng, axes, 9.0))
    anatomy.draw_table(hu, x, y, build)
    trees = parenchyma.draw_trees(tree_rng, build, size, axes)
    lung = anatomy.outside_lung_mm(*warped, z, build) < 0
    lung &= (trees["hilar"] < 0.5) & (trees["trachea_wall"] < 0.5)

    points = np.stack([np.broadcast_to(axis, size)[lung] for axis in (x, y, z)], axis=1)
    voxels = parenchyma.LungVoxels(
        points=points,
        depth_mm=-anatomy.outside_cavity_mm(warped[0][lung], warped[1][lung], points[:, 2], build),
        level=points[:, 2] / build.height_mm,
        noise=parenchyma.noise_fields(place_rng, texture_rng, axes, lung),
    )
    scores = parenchyma.location_scores(voxels, patient.history)
    shares = {tissue: share * patient.severity for tissue, share in patient.mixture.items()}
    values, margins = parenchyma.place_tissues(scores, shares, labels)
    healthy_hu = HEALTHY_HU + AGE_HU_PER_YEAR * (patient.age - 60) + patient.breath_hu
    pixel_mm = float(axes[0][1] - axes[0][0])
    hu[lung] = parenchyma.tissue_hu(texture_rng, voxels, values, margins, labels, healthy_hu, pixel_mm)
    if patient.own_textures:
        hu[lung] = _own_textures(texture_rng, voxels, axes, lung, values, margins, labels, hu[lung])
    label = np.zeros(size, np.uint8)
    label[lung] = values
    parenchyma.add_trees(hu, trees, label, labels)
    return hu, label


def _own_textures(rng, voxels: parenchyma.LungVoxels, axes: tuple, lung: np.ndarray, values, margins, labels, usual):
    """Return the HU of the lung, shape (n,), with every lesion drawn by density and texture of its own.

    ``usual`` are the HU that all patients share, shape (n,); healthy lung keeps them.
    """
    box = ndimage.find_objects(lung.view(np.uint8))[0]
    inner = tuple(axis[part] for axis, part in zip(axes, box))
    noise = texture.draw_noise(rng, inner, lung[box])
    field = texture.Field(voxels.points, voxels.depth_mm, noise, float(axes[0][1] - axes[0][0]))
    label = np.zeros(lung.shape, np.uint8)
    label[lung] = values
    healthy = np.where(values == labels["healthy"], usual, np.median(usual[values == labels["healthy"]]))
    numbers = number_lesions(label, labels)[lung]
    return texture.draw_lesions(rng, field, values, margins, numbers, labels, healthy)


def _oblique_affine(rng: np.random.Generator, size: tuple, spacing_mm: tuple) -> np.ndarray:
    """Return an affine from voxels along left, back and head to RAS mm, a few degrees off the scanner's axes."""
    turn = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(rng.uniform(1.0, 5.0, 3) * rng.choice([-1, 1], 3))):
        rotation = np.eye(3)
        others = [other for other in range(3) if other != axis]
        rotation[np.ix_(others, others)] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        turn = turn @ rotation
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1, -1, 1]) @ np.diag(spacing_mm)
    affine[:3, 3] = rng.uniform(-40, 40, 3) - affine[:3, :3] @ ((np.array(size) - 1) / 2)
    return affine


def involved_fraction(label: np.ndarray, labels: dict[str, int]) -> float:
    """Return the share of the lung that is not healthy."""
    lung = np.count_nonzero(label != labels["background"])
    return 1 - np.count_nonzero(label == labels["healthy"]) / lung


def _check_size(size: tuple) -> tuple[int, int, int]:
    """Return the size as three integers, or raise InputError; fire passes a tuple or, when quoted, a text."""
    words = size.replace("x", ",").split(",") if isinstance(size, str) else size
    try:
        numbers = tuple(int(str(word)) for word in words)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != 3:
        raise InputError(f"size must be three integers such as 160,160,24, not {size}")
    if any(number < smallest for number, smallest in zip(numbers, SMALLEST_SIZE)):
        raise InputError(
            f"size must be at least {','.join(map(str, SMALLEST_SIZE))}, not {','.join(map(str, numbers))}"
        )
    return numbers


def phantom(
    output: Path,
    patients: int = 24,
    seed: int = 0,
    size: tuple = (160, 160, 24),
    own_textures: bool = False,
    kernel: str | None = None,
    spared: bool = False,
    name: str = "phantom",
) -> None:
    """Draw labelled lung CT of patients who do not exist.

    Writes ``images/<patient>.nii.gz`` (HU, int16), ``labels/<patient>.nii.gz`` (the values of the label scheme, uint8)
    and ``patients.csv`` (case, patient, age in years, severity as the share of the lung that is not healthy, history,
    kernel). The same seed gives the same patients, whatever their number; six are enough to show every tissue.

    Args:
        output: Folder to create.
        patients: Number of patients, one case each.
        seed: Seed of the cohort, 0 or more.
        size: Number of voxels W,H,slices; at least 64,64,4. The field of view stays near 350 mm, the lungs near 240 mm.
        own_textures: Whether density and texture differ between patients and lesions; else all patients share them.
        kernel: Reconstruction kernel of all patients, soft or lung; by turns if absent.
        spared: Whether patients with a lung kernel have neither fibrosis nor consolidation, for a study in which these
            are learned from soft kernels alone.
        name: Beginning of the patients' names, so that two cohorts can be told apart.

    Raises:
        InputError: if a value is out of range or ``output`` is not empty.
    """
    size = _check_size(size)
    for flag, value, smallest in (("patients", patients, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
            raise InputError(f"{flag} must be an integer of at least {smallest}, not {value}")
    if kernel not in (None, *parenchyma.KERNELS):
        raise InputError(f"kernel must be one of {', '.join(parenchyma.KERNELS)}, not {kernel}")
    if not re.fullmatch(r"[A-Za-z][\w-]*", str(name)):
        raise InputError(f"name must begin with a letter and hold letters, digits, _ and - alone, not {name!r}")
    labels = tissue_labels()
    rows = ["case,patient,age,severity,history,kernel"]
    with new_directory(output) as folder:
        for index in tqdm(range(patients), desc="phantom", unit="patient", disable=None):
            patient = describe_patient(seed, index, kernel, spared, own_textures, name)
            hu, label, affine = draw_patient(patient, seed, size)
            for array, kind in ((hu, "images"), (label, "labels")):
                like = nib.Nifti1Image(array, affine)
                like.set_qform(affine, code=1)
                like.header.set_xyzt_units("mm")
                save_nifti(array, like, folder / kind / f"{patient.name}.nii.gz", DESCRIPTION)
            severity = involved_fraction(label, labels)
            row = f"{patient.name},{patient.name},{patient.age},{severity:.4f},{patient.history},{patient.kernel}"
            rows.append(row)
        write_text(folder / "patients.csv", "\n".join(rows) + "\n")
    print(
        f"wrote {patients} drawn patients to {output}; next: python -m tools dataset --images {output}/images "
        f"--labels {output}/labels --patients {output}/patients.csv --output DATASET"
    )

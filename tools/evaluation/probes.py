"""What to paint in order to see whether the synthesizer obeys a condition: sites, their slices, maps and levels."""

import dataclasses
import zlib
from collections.abc import Iterable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas
from tqdm import tqdm

from tools.data.datalist import Case
from tools.io.files import InputError, write_table
from tools.io.volume import axial_axis, load_labels, save_nifti
from tools.tissues import pathological_tissues, tissue_labels

LUNG, ALL_HEALTHY, UNKNOWN, TOLD, MAP = "lung", "all_healthy", "unknown", "told", "map"
UNKNOWN_VALUE = 255  # in a target map: any tissue will do
LEVELS = 5
DENSITY_QUANTILES, SEVERITY_QUANTILES, AGE_QUANTILES = (0.1, 0.9), (0.05, 0.95), (0.0, 1.0)
FEWEST_VOXELS = 100  # of a tissue in the slices of a site


@dataclasses.dataclass(frozen=True)
class Site:
    """A held-out patient, and the axial slices that hold most of what is needed."""

    case: Case
    axis: int  # the axial one of the stored voxels
    window: slice  # the slices
    voxels: int  # of what is needed in them


@dataclasses.dataclass(frozen=True)
class Scene:
    """A site's slices and the maps that say what is repainted in them; several probes may share it."""

    name: str  # of its files
    site: Site
    image: nib.Nifti1Image  # the CT, cut
    hu: np.ndarray  # its voxels, clipped to the window of the synthesizer
    truth: np.ndarray  # tissue map
    label: np.ndarray  # tissue map that differs from the target where something is to be painted
    target: np.ndarray  # tissue map that is wanted

    @property
    def region(self) -> np.ndarray:
        """Where is painted."""
        return self.label != self.target


@dataclasses.dataclass(frozen=True)
class Probe:
    """One painting."""

    case: str  # name of the painting
    condition: str  # what is asked for: density, severity, age, history, unknown, told or map
    tissue: str  # whose density is asked for, otherwise empty
    requested: float | str | None  # None where nothing or everything is told
    scene: Scene
    told: dict[str, object]  # columns of conditions.csv and their values


def best_slices(mask: np.ndarray, axis: int, slices: int) -> slice:
    """Return the neighbouring slices that hold most of a mask.

    Example:
        >>> best_slices(np.array([0, 1, 0, 1, 1, 0])[None, None] > 0, 2, 2)
        slice(3, 5, None)
    """
    counts = mask.sum(axis=tuple(other for other in range(mask.ndim) if other != axis))
    length = min(slices, len(counts))
    start = int(np.argmax(np.convolve(counts, np.ones(length), "valid")))
    return slice(start, start + length)


def cut(array: np.ndarray, axis: int, window: slice) -> np.ndarray:
    """Return some slices of an array."""
    return array[(slice(None),) * axis + (window,)]


def find_sites(held_out: list[Case], cases: int, slices: int) -> dict[str, list[Site]]:
    """Return, per tissue and for ``lung``, the patients whose slices hold most of it, most first, ``cases`` at most."""
    labels = {name: value for name, value in tissue_labels().items() if value}
    found: dict[str, list[Site]] = {name: [] for name in (*labels, LUNG)}
    for case in tqdm(held_out, desc="looking for hosts", unit="case", disable=None):
        image = nib.load(case.image)
        label, _ = load_labels(case.label, tissue_labels(), like=image, like_path=case.image)
        axis = axial_axis(image.affine)
        for name in found:
            mask = label > 0 if name == LUNG else label == labels[name]
            window = best_slices(mask, axis, slices)
            voxels = int(cut(mask, axis, window).sum())
            if voxels >= FEWEST_VOXELS:
                found[name].append(Site(case, axis, window, voxels))
    sites = {}
    for name, candidates in found.items():
        best: dict[str, Site] = {}
        for site in sorted(candidates, key=lambda site: -site.voxels):
            best.setdefault(site.case.patient, site)
        sites[name] = list(best.values())[:cases]
    return sites


def work_maps(kind: str, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the map for ``labels/`` and the one for ``targets/``, which differ wherever is to be painted.

    ``kind`` is a tissue, which is painted anew where it is; ``all_healthy``, a lung of healthy tissue alone;
    ``unknown``, a lung of which no tissue is known; or ``told``, the lung as it is.
    """
    labels, lung = tissue_labels(), truth > 0
    healthy, other = labels["healthy"], labels[pathological_tissues()[0]]
    another = np.where(lung, np.where(truth == healthy, other, healthy), 0)  # in no voxel what it is
    if kind == UNKNOWN:
        return truth, np.where(lung, UNKNOWN_VALUE, 0)
    if kind == ALL_HEALTHY:
        return np.where(lung, other, 0), np.where(lung, healthy, 0)
    return (another if kind == TOLD else np.where(truth == labels[kind], another, truth)), truth


def set_scene(kind: str, site: Site, hu_window: tuple[float, float]) -> Scene:
    """Return a scene of a site."""
    _, truth, image = site.case.stored()
    window = (slice(None),) * site.axis + (site.window,)
    image, truth = image.slicer[window], truth[window]
    hu = np.clip(image.get_fdata(dtype=np.float32), *hu_window)
    label, target = work_maps(kind, truth)
    return Scene(f"{kind}-{site.case.name}-{site.window.start}", site, image, hu, truth, label, target)


def spread(values: list[float], quantiles: tuple[float, float], digits: int) -> list[float]:
    """Return evenly spaced levels between two quantiles.

    Example:
        >>> spread([0, 10, 20], (0.0, 1.0), 1)
        [0.0, 5.0, 10.0, 15.0, 20.0]
    """
    return [round(float(level), digits) for level in np.linspace(*np.quantile(values, quantiles), LEVELS)]


def plan(survey: list[dict], sites: dict[str, list[Site]], hu_window) -> tuple[list[Probe], dict[str, str]]:
    """Return all paintings, and why a condition cannot be probed; InputError if no held-out patient has lung."""
    if not sites[LUNG]:
        raise InputError(f"no held-out patient has {FEWEST_VOXELS} voxels of lung, so there is nothing to paint")
    asked, skipped = requests(survey)
    probes, scenes = [], {}
    for condition, tissue, kind, levels in asked:
        chosen = sites[tissue or LUNG]
        if condition == MAP:  # patients who between them have every tissue
            chosen = list(
                {(h.case.name, h.window.start): h for ill in pathological_tissues() for h in sites[ill]}.values()
            )
        if not chosen:
            skipped[f"{condition} {tissue}"] = f"no held-out patient has {FEWEST_VOXELS} voxels of it in the slices"
        name = "_".join(filter(None, (condition, tissue)))
        for site in chosen:
            place = (kind, site.case.name, site.window.start)
            if place not in scenes:
                scenes[place] = set_scene(kind, site, hu_window)
            scene = scenes[place]
            for number, level in enumerate(levels):
                told = {} if level is None else {name: level}
                if condition in (TOLD, MAP):  # a map is set beside the same patient's real lung, told as `augment` does
                    told = site.case.attributes | (densities_of(scene) if condition == TOLD else {})
                number = site.window.start if condition == MAP else number
                probes.append(Probe(f"{name}-{number}-{site.case.name}", condition, tissue, level, scene, told))
    return probes, skipped


def requests(survey: list[dict]) -> tuple[list[tuple[str, str, str, list]], dict[str, str]]:
    """Return condition, tissue, kind of scene and levels of all that is asked for, and why something is not."""
    asked, skipped = [], {}
    for tissue in (name for name, value in tissue_labels().items() if value):
        known = [row["density"][tissue] for row in survey if tissue in row["density"]]
        if len(set(known)) < 2:
            skipped[f"density {tissue}"] = f"{len(known)} training cases hold it; its range needs two"
        else:
            asked.append(("density", tissue, tissue, spread(known, DENSITY_QUANTILES, 1)))
    needed = "of the training patients are known to the synthesizer; two are needed"
    for name, kind, quantiles, digits in (
        ("severity", UNKNOWN, SEVERITY_QUANTILES, 4), ("age", ALL_HEALTHY, AGE_QUANTILES, 1),
    ):  # fmt: skip
        known = [float(row[name]) for row in survey if row[name] is not None]
        if len(set(known)) < 2:
            skipped[name] = f"{len(set(known))} values {needed}"
        else:
            asked.append((name, "", kind, spread(known, quantiles, digits)))
    words = sorted({row["history"] for row in survey if row["history"]})
    if len(words) < 2:
        skipped["history"] = f"{len(words)} {needed}"
    else:
        asked.append(("history", "", UNKNOWN, words))
    return [*asked, *((kind, "", TOLD if kind == MAP else kind, [None]) for kind in (UNKNOWN, TOLD, MAP))], skipped


def densities_of(scene: Scene) -> dict[str, float]:
    """Return the mean HU of each tissue of a scene as they are, under the names of conditions."""
    labels = {name: value for name, value in tissue_labels().items() if value and (scene.truth == value).any()}
    return {f"density_{name}": round(float(scene.hu[scene.truth == v].mean()), 1) for name, v in labels.items()}


def lay_out(probes: list[Probe], work: Path) -> None:
    """Write what the bundle paints from: links to the CTs and maps of the scenes, and conditions.csv."""
    for scene in {probe.scene.name: probe.scene for probe in probes}.values():
        save_nifti(np.asarray(scene.image.dataobj), scene.image, work / "scenes" / f"{scene.name}-images.nii.gz")
        for kind, array in (("labels", scene.label), ("targets", scene.target)):
            save_nifti(array.astype(np.uint8), scene.image, work / "scenes" / f"{scene.name}-{kind}.nii.gz")
    for kind in ("images", "labels", "targets"):
        (work / kind).mkdir(parents=True)
        for probe in probes:
            source = (work / "scenes" / f"{probe.scene.name}-{kind}.nii.gz").absolute()
            (work / kind / f"{probe.case}.nii.gz").symlink_to(source)
    # the levels of a site share their noise
    rows = [{"case": probe.case, "seed": probe.scene.site.case.name} | probe.told for probe in probes]
    columns = dict.fromkeys(key for row in rows for key in row)
    write_table(work / "conditions.csv", pandas.DataFrame(rows, columns=list(columns), dtype=object))


def unreadable(cases: Iterable[str], folder: Path) -> list[str]:
    """Return the cases whose file is missing in a folder, or was cut short when an earlier run was killed."""
    remaining = []
    for case in cases:
        try:
            np.asarray(nib.load(folder / f"{case}.nii.gz").dataobj)
        except (OSError, EOFError, zlib.error, nib.filebasedimages.ImageFileError):
            remaining.append(case)
    return remaining

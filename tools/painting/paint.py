"""``python -m tools paint``: one CT in, the same CT with new tissue out, on a target map that is drawn or given."""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from tools.data.provenance import digest
from tools.io.files import InputError, RunError, new_directory, sha256, write_json
from tools.io.volume import (
    SYNTHETIC_MARK,
    canonical,
    canonical_spacing,
    case_name,
    load_ct,
    load_labels,
    original,
    save_nifti,
)
from tools.maps.target import draw_target, place_words, where
from tools.maps.typical import tissues as typical_tissues
from tools.painting.before_after import draw
from tools.painting.manifest import as_stored, voxels_sha256
from tools.painting.one_ct import OneCtPainter
from tools.segmenting.segmenter import Segmenter
from tools.tissues import words
from tools.workflows.run import versions
from tools.workflows.synthesizer import painted_region

SCHEMA = 1  # of the provenance
LEAST_LUNG_ML = 20.0
PRESENT_ML = 5.0  # of dense disease, from which a user is told
DENSE_HU, DENSE_MM = -200, 6.0  # wider than the vessels of the lung: at least twice so many mm


@dataclass
class Host:
    """The CT to paint into.

    Attributes:
        path: NIfTI file, or folder of a DICOM series.
        hu: float32, shape (W, H, slices), in the file's own order of axes.
        image: The file, for its geometry.
        own: Tissue map of the CT, int16, the same shape.
        made_by: Where that map is from, in a phrase.
    """

    path: Path
    hu: np.ndarray
    image: nib.Nifti1Image
    own: np.ndarray
    made_by: str

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel."""
        return float(np.prod(canonical_spacing(self.image))) / 1000


def paint(
    ct: Path,
    /,
    *,
    output: Path,
    tissue: str | None = None,
    volume_ml: float | None = None,
    place: str | None = None,
    density: float | None = None,
    map: Path | None = None,
    labels: Path | None = None,
    weights: Path | None = None,
    segmenter: Path | None = None,
    steps: int = 8,
    seed: int = 0,
    device: str | None = None,
) -> None:
    """Paint new tissue into one CT: a target map is drawn (or given), and the synthesizer fills it.

    Writes ``CASE_painted.nii.gz`` (marked SYNTHETIC; all but the new tissue and its margin is the CT's, bit for bit),
    ``CASE_target.nii.gz``, ``CASE_before_after.png`` and ``CASE_provenance.json``.

    Args:
        ct: NIfTI file in HU, or folder with a DICOM series.
        output: Folder to create.
        tissue: Tissue to add, such as ground_glass; needs volume_ml, and a map is drawn.
        volume_ml: Volume of the new tissue in ml.
        place: Where to add it: words of left, right; upper, middle, lower; subpleural, central. Anywhere if absent.
        density: Mean HU wanted of the new tissue; as the training cases had it if absent.
        map: Target map to paint instead of drawing one, NIfTI on the CT's grid; its diseased voxels count.
        labels: Tissue map or lung mask of the CT, NIfTI on its grid; the segmenter makes it if absent.
        weights: Weights of the synthesizer with their card.json beside them; those of the bundle if absent.
        segmenter: Weights of the segmenter likewise, where labels are absent.
        steps: Number of network evaluations per window.
        seed: Seed for all random draws; the same seed gives the same map and the same noise.
        device: Device of the networks, such as cpu or cuda; the bundles' own choice if absent.

    Raises:
        InputError: if a value is out of range, a file is missing or unusable, the CT holds no lung, or the tissue does
            not fit.
    """
    _check_values(tissue, volume_ml, place, density, map, steps, seed)
    with new_directory(output) as folder:
        painter = OneCtPainter(weights, steps, device, density)
        host = read_host(Path(ct), labels, segmenter, device, painter.labels)
        for remark in _remarks(host, painter.labels):
            print(f"paint: {remark}", file=sys.stderr)
        if map is None:
            target, lesions_ml = _draw(host, tissue, float(volume_ml), place, seed, painter.labels)
        else:
            target, lesions_ml = _given(host, Path(map), painter.labels), []
        painted = painter.paint(host.hu, host.own, target, host.image.affine, seed)
        provenance = _write(folder, host, target, painted, painter, lesions_ml) | {"seed": seed, "steps": steps}
        provenance |= {"asked": {"tissue": tissue, "volume_ml": volume_ml, "place": place, "density": density}}
        provenance |= {"map": None if map is None else {"file": Path(map).name, "sha256": sha256(map)}}
        write_json(folder / f"{case_name(host.path)}_provenance.json", provenance)
    for name, row in provenance["painted"].items():
        print(
            f"painted {row['volume_ml']:.1f} ml of {words(name)}, mean {row['mean_hu']:.0f} HU "
            f"({row['mean_hu_before']:.0f} before)"
        )
    print(f"wrote {output}; look at {Path(output) / (case_name(host.path) + '_before_after.png')}")


def _check_values(tissue, volume_ml, place, density, map, steps, seed) -> None:
    """Raise InputError unless the values make sense together and by themselves."""
    if map is None and (tissue is None or volume_ml is None):
        raise InputError("--tissue and --volume_ml say what to add, or --map names a target map")
    if map is not None and not (tissue is None and volume_ml is None and place is None):
        raise InputError(f"--map {map} says what lies where; leave out --tissue, --volume_ml and --place")
    if tissue is not None and tissue not in typical_tissues():
        raise InputError(f"--tissue {tissue} cannot be drawn; there are {', '.join(typical_tissues())}")
    if volume_ml is not None and not (not isinstance(volume_ml, bool) and 0 < volume_ml < math.inf):
        raise InputError(f"--volume_ml must be above 0, not {volume_ml}")
    place_words(place)
    if density is not None and not math.isfinite(density):
        raise InputError(f"--density must be a number of HU, not {density}")
    for name, value, least in (("steps", steps, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"--{name} must be a whole number from {least} up, not {value}")


def read_host(
    path: Path, labels: Path | None, segmenter: Path | None, device: str | None, values: dict[str, int]
) -> Host:
    """Read a CT and its tissue map, or have the segmenter make one.

    Args:
        path: NIfTI file, or folder of a DICOM series.
        labels: Tissue map or lung mask on its grid; None to segment.
        segmenter: Weights of the segmenter; those of the bundle if None.
        device: Device of the segmenter; the bundle's own choice if None.
        values: Tissue name to label value.

    Raises:
        InputError: if a file cannot be used, or there is hardly any lung.
    """
    hu, image = load_ct(path)
    if labels is None:
        try:
            model = Segmenter(segmenter, device, "--segmenter")
        except InputError as error:
            raise InputError(f"{error}; or say where lung is by --labels") from None
        own, made_by = model.label(hu, image.affine).astype(np.int16), f"segmenter {model.weights.digest[:12]}"
        remedy = "is it a chest CT in HU? A tissue map or lung mask can be given by --labels"
    else:
        own, made_by = _load_on_grid(Path(labels), image, path, values), f"file {Path(labels).name}"
        remedy = f"is {labels} the map of this CT?"
    host = Host(path, hu, image, own, made_by)
    lung_ml = np.count_nonzero(own) * host.voxel_ml
    if lung_ml < LEAST_LUNG_ML:
        raise InputError(f"{path} holds {lung_ml:.0f} ml of lung, too little to paint into; {remedy}")
    return host


def _load_on_grid(path: Path, image: nib.Nifti1Image, ct: Path, values: dict[str, int]) -> np.ndarray:
    """Return a tissue map in the CT's order of axes."""
    return load_labels(path, values, like=image, like_path=ct)[0]


def _remarks(host: Host, labels: dict[str, int]) -> list[str]:
    """Return what a user should know of the CT before it is painted, in sentences."""
    own, hu = (canonical(array, host.image.affine) for array in (host.own, host.hu))
    dense = own == labels["consolidation"]
    for k in np.flatnonzero((own > 0).any(axis=(0, 1))):
        dense[..., k] |= _wide(hu[..., k], own[..., k] > 0, canonical_spacing(host.image)[:2])
    dense_ml = np.count_nonzero(dense) * host.voxel_ml
    if dense_ml < PRESENT_ML:
        return []
    return [
        f"warning: {host.path} holds {dense_ml:.0f} ml of dense lung already (consolidation, a tumour, collapsed "
        "lung); it stays as it is, and where the segmenter took it for chest wall nothing can be painted"
    ]


def _wide(hu: np.ndarray, lung: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Return the dense parts of a slice's lung that are wider than vessels."""
    from scipy import ndimage

    dense = lung & (hu > DENSE_HU)
    if not dense.any():
        return dense
    core = ndimage.distance_transform_edt(dense, sampling=spacing) > DENSE_MM
    return dense & (ndimage.distance_transform_edt(~core, sampling=spacing) <= DENSE_MM) if core.any() else core


def _draw(
    host: Host, tissue: str, volume_ml: float, place: str | None, seed: int, labels: dict[str, int]
) -> tuple[np.ndarray, list[float]]:
    """Return the drawn target map in the CT's order of axes, and the volume of each lesion in ml."""
    affine, spacing = host.image.affine, canonical_spacing(host.image)
    own, hu = canonical(host.own, affine), canonical(host.hu, affine)
    allowed = where(hu, own > 0, spacing, place_words(place))
    named = f"the {place} lung" if place else "the lung"
    rng = np.random.default_rng(seed)
    target, lesions_ml = draw_target(own, allowed, spacing, labels, tissue, volume_ml, rng, named)
    return np.ascontiguousarray(original(target, affine)), lesions_ml


def _given(host: Host, path: Path, labels: dict[str, int]) -> np.ndarray:
    """Return the target map of a user: the CT's own with the diseased voxels of a file, as far as they lie in lung.

    Raises:
        InputError: if the file adds nothing.
    """
    wanted = _load_on_grid(path, host.image, host.path, labels)
    ill = wanted > labels["healthy"]
    outside_ml = np.count_nonzero(ill & (host.own == 0)) * host.voxel_ml
    if outside_ml > 0:
        print(
            f"paint: warning: {outside_ml:.1f} ml of {path} lie outside the lung ({host.made_by}) and are left out; "
            "--labels says where lung is",
            file=sys.stderr,
        )
    target = np.where(ill & (host.own > 0), wanted, host.own)
    if not (target != host.own).any():
        raise InputError(f"{path} adds no tissue that {host.path} does not have already, so there is nothing to paint")
    return target


def _write(
    folder: Path, host: Host, target: np.ndarray, painted: np.ndarray, painter: OneCtPainter, lesions_ml: list[float]
) -> dict:
    """Write CT, map and picture, and return the provenance.

    Raises:
        RunError: if a voxel outside the region has changed.
    """
    region = target != host.own
    wide = painted_region(host.own, target, host.image.affine, painter.painter.margin)
    if not np.array_equal(painted[~wide], host.hu[~wide]):
        raise RunError(f"painting changed {host.path} beyond the new tissue and its margin; please report this")
    name, mark = case_name(host.path), f"{SYNTHETIC_MARK} {painter.weights.bundle} {painter.weights.version}"
    voxels = as_stored(painted, host.image)
    save_nifti(voxels, host.image, folder / f"{name}_painted.nii.gz", f"{mark} of {name}")
    save_nifti(target.astype(np.uint8), host.image, folder / f"{name}_target.nii.gz", f"{mark} map for {name}")
    affine = host.image.affine
    before, after, wanted, own = (canonical(array, affine) for array in (host.hu, painted, target, host.own))
    picture = draw(before, after, wanted, wanted != own, canonical_spacing(host.image), painter.labels)
    (folder / f"{name}_before_after.png").write_bytes(picture)
    rows = {}
    for tissue, value in painter.labels.items():
        new = region & (target == value)
        if new.any():
            means = {"mean_hu": float(painted[new].mean()), "mean_hu_before": float(host.hu[new].mean())}
            rows[tissue] = {"volume_ml": round(np.count_nonzero(new) * host.voxel_ml, 3)} | means
    source = (
        {file.name: digest(file) for file in sorted(host.path.iterdir()) if file.is_file()}
        if host.path.is_dir()
        else None
    )
    return {
        "schema": SCHEMA, "synthetic": True, "use": "research only; never for diagnosis", "source": host.path.name,
        "source_sha256": source or digest(host.path), "own_map": host.made_by, "weights": painter.weights.sentences(),
        "weights_sha256": painter.weights.digest, "painted": rows, "lesions_ml": [round(one, 3) for one in lesions_ml],
        "voxels_sha256": voxels_sha256(voxels), "versions": versions(),
    }  # fmt: skip

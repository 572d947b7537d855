"""The same CT under two names, or nearly: found by its voxels, not by the bytes of its file."""

import functools
import hashlib
import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy import ndimage

from tools.data.datalist import Case
from tools.io.volume import load_ct

EDGE = 32  # samples along the edge of a slice's sketch
BLUR = 3.0  # samples; what is smoother is alike in all chests and left out
SLICES = 48  # of one case, spread evenly
# Correlation from which two sketches are near-duplicates. Of 70 real slices the near-duplicates had 0.61 to 0.88, no
# other pair above 0.60 (docs/log.md); a volume has more slices to be alike by chance.
ALIKE = 0.65
MOST_NAMED = 3  # pairs
FEWEST_VOXELS = 64  # of lung in a slice that is sketched


def content_digest(path: Path) -> str:
    """Return a SHA-256 of what a CT shows, the same however its file stores it.

    It is taken over the number of voxels of each rounded HU, and the sorted edges of the volume. So neither compression
    nor a number type, an order or direction of the axes or a changed affine hides a CT. Two different CTs of patients
    have the same by a chance that can be left aside. Remembered while the file stays as it is.

    Raises:
        InputError: if the file cannot be read.
    """
    return _content_digest(Path(path), Path(path).stat().st_mtime_ns)


@functools.cache
def _content_digest(path: Path, modified: int) -> str:
    return digest_of(load_ct(path)[0])


def digest_of(hu: np.ndarray) -> str:
    """Return what ``content_digest`` returns for a CT in HU."""
    values, counts = np.unique(np.rint(hu).astype(np.int32), return_counts=True)
    parts = (np.sort(hu.shape), values, counts)
    return hashlib.sha256(b"".join(np.asarray(part, np.int64).tobytes() + b";" for part in parts)).hexdigest()


def sketches(hu: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Return a sketch of the lung of each of some axial slices, float32, shape (slices, EDGE x EDGE), of length 1.

    The box around the lung, resampled; so neither another crop nor another voxel size hides a slice.

    Args:
        hu: CT in HU, canonical orientation, shape (W, H, D).
        label: Its tissue map, the same shape; lung is above 0.
    """
    found = []
    kept = np.flatnonzero((label > 0).sum((0, 1)) >= FEWEST_VOXELS)
    for z in kept[np.linspace(0, len(kept) - 1, min(SLICES, len(kept))).round().astype(int)] if len(kept) else ():
        box = ndimage.find_objects((label[..., z] > 0).astype(np.uint8))[0]
        edges = [EDGE / (part.stop - part.start) for part in box]
        small = ndimage.zoom(hu[..., z][box].clip(-1024, 300).astype(np.float32), edges, order=1)
        detail = small - ndimage.gaussian_filter(small, BLUR)
        size = np.linalg.norm(detail - detail.mean())
        if size > 1e-3:
            found.append(((detail - detail.mean()) / size).ravel())
    return np.array(found, np.float32).reshape(-1, EDGE * EDGE)


def near_duplicates(drawn: dict[str, np.ndarray], patients: Mapping[str, str]) -> list[str]:
    """Return sentences that name pairs of cases of different patients that show nearly the same slice, nearest first.

    Args:
        drawn: Case to its ``sketches``.
        patients: Case to patient.
    """
    pairs = []
    for one, other in itertools.combinations(drawn, 2):
        if patients[one] != patients[other] and len(drawn[one]) and len(drawn[other]):
            alike = float((drawn[one] @ drawn[other].T).max())
            if alike >= ALIKE:
                pairs.append((alike, one, other))
    pairs = sorted(pairs, reverse=True)
    named = [
        f"{one} of patient {patients[one]} and {other} of patient {patients[other]} show nearly the same slice "
        f"(correlation {alike:.2f}); slices of one CT must belong to one patient, or the folds leak"
        for alike, one, other in pairs[:MOST_NAMED]
    ]
    if len(pairs) > MOST_NAMED:
        named.append(f"so do {len(pairs) - MOST_NAMED} more pairs; between drawn patients, who are alike, it is chance")
    return named


def warn_of_near_duplicates(cases: list[Case]) -> list[str]:
    """Return what ``near_duplicates`` says of some cases on disk."""
    drawn = {}
    for case in cases:
        label, hu, _ = case.volumes()
        drawn[case.name] = sketches(hu, label)
    return near_duplicates(drawn, {case.name: case.patient for case in cases})

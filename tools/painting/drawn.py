"""The phantom's tissues drawn into a CT at a target map: a rival of painting that needs no synthesizer."""

from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

from tools.io.volume import SYNTHETIC_MARK, save_nifti
from tools.maps.bank import PlannedCase
from tools.phantom.disease import fill_lesions
from tools.phantom.draw_into_ct import TO_LPS
from tools.tissues import tissue_labels
from tools.workflows.synthesizer import painted_region, region_margin


def draw_cases(plan: list[PlannedCase], work: Path, seed: int) -> None:
    """Draw tissue where each map of a plan differs from its source's, and write ``work/painted/CASE.nii.gz``.

    HU change where painting may change them, in the new tissue and the margin round it, and nowhere else.

    Args:
        plan: What to draw.
        work: Folder that gets ``painted``.
        seed: Seed for all random draws; each case has its own.
    """
    for planned in tqdm(plan, desc="drawing", unit="case", disable=None):
        hu, label, image = planned.source.stored()
        target = planned.maps()[1]
        rng = np.random.default_rng([seed, *planned.name.encode()])
        drawn = draw_case(rng, hu, label, target, image.affine)
        save_nifti(drawn, image, work / "painted" / f"{planned.name}.nii.gz", f"{SYNTHETIC_MARK} drawn")


def draw_case(
    rng: np.random.Generator, hu: np.ndarray, label: np.ndarray, target: np.ndarray, affine: np.ndarray
) -> np.ndarray:
    """Return a CT with the tissues that a target map has and its own map has not, drawn into it.

    Args:
        rng: Source of all draws.
        hu: CT in HU, shape (W, H, D).
        label: Its tissue map, the same shape.
        target: The map wanted, the same shape.
        affine: From voxels to RAS in mm.

    Returns:
        HU, float32, the same shape; whole numbers where the CT has whole numbers.
    """
    own = nib.io_orientation(affine)
    wanted = nib.orientations.axcodes2ornt(TO_LPS)
    turn, back = (nib.orientations.ornt_transform(*pair) for pair in ((own, wanted), (wanted, own)))
    turned = [nib.orientations.apply_orientation(array, turn) for array in (hu, label, target)]
    sizes = nib.affines.voxel_sizes(affine @ nib.orientations.inv_ornt_aff(turn, hu.shape))
    new = np.where(turned[2] != turned[1], turned[2], 0)
    answer = fill_lesions(rng, turned[0], turned[1] > 0, new, tuple(map(float, sizes)), tissue_labels())
    drawn = nib.orientations.apply_orientation(answer, back)
    if np.array_equal(hu, np.round(hu)):
        drawn = np.round(drawn)
    region = painted_region(label, target, affine, region_margin({}))
    return np.where(region, drawn, hu).astype(np.float32)

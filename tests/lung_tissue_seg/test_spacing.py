"""Labels find back to a file's own voxels axis by axis, as MONAI's own way brings them, and only where that holds."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, Orientationd, Spacingd

from tools.bundles import load_script

AxisSpacingd = load_script("lung_tissue_seg", "spacing").AxisSpacingd
# sizes by which no voxel lies just between two: there MONAI rounds as its noise in float32 will have it
TURN = nib.eulerangles.euler2mat(0.1, 0.2, 0.05)
OBLIQUE = nib.affines.from_matvec(TURN @ np.diag([-0.7031, 0.7127, 1.3117]), [3, -50, 9])
SHEARED = np.array([[0.7, 0.2, 0, 0], [0, 0.7, 0, 0], [0, 0, 1.3, 0], [0, 0, 0, 1]])


def there_and_back(spacing: type, affine: np.ndarray, pixdim: list[float], nearest: bool = True) -> MetaTensor:
    """Return what comes back of random labels on the grid that ``spacing`` makes of a CT of 50 x 41 x 20."""
    image = MetaTensor(torch.zeros(1, 50, 41, 20), affine=torch.from_numpy(affine))
    transform = Compose(
        [Orientationd("image", axcodes="RAS", labels=None), spacing("image", pixdim=pixdim, dtype=np.float32)]
    )
    item = transform({"image": image})
    labels = torch.randint(0, 6, item["image"].shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    item["pred"] = MetaTensor(labels, meta=item["image"].meta, applied_operations=[])
    return Invertd("pred", transform, "image", nearest_interp=nearest)(item)["pred"]


@pytest.mark.parametrize("pixdim", [[2.0, 2.0, -1], [1.1, 1.1, 2.0], [0.4, 3.0, 1.3]])
def test_labels_come_back_as_monai_brings_them(pixdim):
    ours, monais = (there_and_back(spacing, OBLIQUE, pixdim) for spacing in (AxisSpacingd, Spacingd))
    assert ours.dtype == torch.uint8
    np.testing.assert_array_equal(ours.numpy(), monais.numpy())
    np.testing.assert_allclose(ours.affine, monais.affine, atol=1e-6)
    assert ours.applied_operations == []


@pytest.mark.parametrize("affine,nearest", [(SHEARED, True), (OBLIQUE, False)])
def test_turned_axes_and_probabilities_go_monais_way(affine, nearest):
    ours, monais = (there_and_back(spacing, affine, [2.0, 2.0, -1], nearest) for spacing in (AxisSpacingd, Spacingd))
    assert torch.equal(ours.as_tensor(), monais.as_tensor())


def test_a_place_between_two_voxels_falls_to_the_upper_one_however_a_header_rounds():
    exact, rounded = np.diag([1.4, 1.4, 8.0, 1.0]), np.diag([np.float32(1.4), np.float32(1.4), 8.0, 1.0])
    ours, theirs = (there_and_back(AxisSpacingd, affine, [2.0, 2.0, -1]) for affine in (exact, rounded))
    assert torch.equal(ours.as_tensor(), theirs.as_tensor())

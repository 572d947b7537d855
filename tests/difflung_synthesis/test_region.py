"""What is to be painted follows from the maps, and what is pasted changes nothing else."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scripts.region import PaintRegiond, PasteRegiond
from scripts.tissue_channels import UNKNOWN

LABELS = {"background": 0, "healthy": 1, "ground_glass": 2, "emphysema": 4}


def sample():
    affine = torch.eye(4, dtype=torch.float64)
    image = MetaTensor(torch.zeros(1, 4, 4, 2), affine=affine, meta={"filename_or_obj": "ct.nii.gz"})
    label = MetaTensor(torch.ones(1, 4, 4, 2), affine=affine, meta={"filename_or_obj": "map.nii.gz"})
    label[:, 0] = 0
    target = MetaTensor(label.clone(), affine=affine, meta={"filename_or_obj": "target.nii.gz"})
    target[:, 2, 1:3] = 2
    return {"image": image, "label": label, "target": target}


def test_region_is_the_difference():
    data = PaintRegiond("target", LABELS)(sample())
    assert torch.equal(data["region"].as_tensor() > 0, data["target"].as_tensor() != data["label"].as_tensor())


def test_repaint_takes_tissue_that_did_not_change():
    data = sample()
    data["target"] = data["label"].clone()
    data["label"][:, 3], data["target"][:, 3] = 4, 4
    region = PaintRegiond("target", LABELS, repaint=("emphysema",))(data)["region"]
    assert torch.equal(region.as_tensor() > 0, data["label"].as_tensor() == 4)


def test_unknown_in_the_target_is_painted():
    data = sample()
    data["target"][:, 2] = 255
    result = PaintRegiond("target", LABELS)(data)
    assert (result["target"][:, 2] == UNKNOWN).all() and (result["region"][:, 2] == 1).all()
    assert result["region"].sum() == 8


def test_hidden_tissue_is_painted_without_being_told():
    data = sample()
    data["label"][:, 3], data["target"] = 4, data["label"].clone()
    data["target"][:, 3] = 4
    result = PaintRegiond("target", LABELS, repaint=("emphysema",), hidden=("emphysema",))(data)
    assert (result["target"][:, 3] == UNKNOWN).all() and result["region"].sum() == 8


def test_tissue_that_may_not_be_replaced_is_kept():
    data = sample()
    data["label"][:, 2, 1] = 4
    with pytest.raises(ValueError, match="target.nii.gz paints over emphysema in 2 voxels, which replaceable does not"):
        PaintRegiond("target", LABELS, replaceable=["healthy"])(data)
    PaintRegiond("target", LABELS, replaceable=["healthy", "emphysema"])(data)


def change(key, index, value):
    def apply(data):
        data[key][index] = value

    return apply


@pytest.mark.parametrize(("spoil", "message"), [
    (change("target", (0, 0, 0, 0), 2), "target.nii.gz asks for tissue in 1 voxels that are background"),
    (change("target", (0, 1, 1, 0), 0), "target.nii.gz is background in 1 voxels of lung"),
    (change("target", (0, 1, 1, 0), 9), "target.nii.gz holds label 9, but labels name only"),
    (change("target", (0, 2), 1), "target.nii.gz equals the CT's own map"),
    (lambda d: d.update(target=d["target"][..., :1]), r"target.nii.gz has shape \(1, 4, 4, 1\), but ct.nii.gz has"),
    (lambda d: setattr(d["label"], "affine", torch.eye(4).double() * 2), "map.nii.gz has another affine than ct.nii"),
])  # fmt: skip
def test_impossible_target_is_refused(spoil, message):
    data = sample()
    spoil(data)
    with pytest.raises(ValueError, match=message):
        PaintRegiond("target", LABELS)(data)


def test_paste_keeps_the_original_bit_for_bit_and_whole_hu():
    original = MetaTensor(torch.tensor([[-1000.0, 12.0, 30.0]]))
    data = {"pred": torch.tensor([[1.0, -700.4, -650.6]]), "original": original,
            "original_region": torch.tensor([[0, 1, 1]])}  # fmt: skip
    assert PasteRegiond("pred")(data)["pred"].tolist() == [[-1000.0, -700.0, -651.0]]
    data["original"] = original + 0.25
    painted = PasteRegiond("pred")(data)["pred"]
    assert painted[0, 0].item() == -999.75
    assert np.allclose(painted[0, 1:], [-700.4, -650.6])


def test_the_region_grows_within_slices_and_the_lung_and_the_core_is_kept():
    """The failure that was shown: a region that is exactly the label holds none of the lesion's own blur."""
    label = torch.zeros(1, 12, 12, 3)
    label[:, 1:11, 1:11] = 1
    target = label.clone()
    target[0, 2, 5, 1] = 2
    for axial, affine in ((2, torch.eye(4)), (0, torch.eye(4)[[2, 1, 0, 3]])):
        volumes = [part.movedim(3, 1 + axial) for part in (label * -100 - 800, label, target)]
        image, own, wanted = (MetaTensor(volume, affine=affine) for volume in volumes)
        found = PaintRegiond("target", LABELS, margin=2)({"image": image, "label": own, "target": wanted})
        region, core = (found[key].as_tensor().movedim(1 + axial, 3)[0].bool() for key in ("region", "core"))
        assert core.sum() == 1 and core[2, 5, 1] and not region[..., [0, 2]].any()
        assert region[..., 1].sum() == 4 * 5  # two voxels each way, less what lies outside the lung
        assert not (region & (label[0] == 0)).any()


def test_a_tissue_that_may_not_be_replaced_is_left_out_of_the_margin():
    label = torch.ones(1, 9, 9, 1)
    label[:, 5] = 4
    target = label.clone()
    target[0, 4, 4] = 2
    data = {"image": label * -800, "label": label, "target": target}
    region = PaintRegiond("target", LABELS, replaceable=["healthy"], margin=3)(data)["region"]
    assert region[0, 1:5].any() and not region[0, 5].any()
    with pytest.raises(ValueError, match="margin must be a whole number of voxels from 0, not -1"):
        PaintRegiond("target", LABELS, margin=-1)

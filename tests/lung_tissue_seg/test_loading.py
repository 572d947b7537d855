"""What was loaded as CT or tissue map is checked: what cannot be right is refused by name, what is right is kept."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged

from tests.lung_tissue_seg.bundle import CONFIGS, load
from tests.tools.fakes.chest import AFFINE, LABELS, chest, lungs, save

loading, volumes, batch = load("loading"), load("volumes"), load("batch")
CT, MAP = chest(lungs()), lungs()
KEYS = ["image", "label"]
CHECK = loading.CheckVolumesd(KEYS, values=LABELS, allow_missing_keys=True)
READ = Compose([LoadImaged(KEYS, reader=[loading.SeriesReader(), loading.NiftiReader()], allow_missing_keys=True),
                EnsureChannelFirstd(KEYS, allow_missing_keys=True), CHECK])  # fmt: skip


def load_item(tmp_path, image=CT, label=None, affine=AFFINE) -> dict:
    """Return a CT and a map as the bundles load them; the map lies on the CT's grid unless an affine is given."""
    item = {"image": str(save(image, tmp_path / "ct.nii.gz"))}
    if label is not None:
        item["label"] = str(save(label, tmp_path / "map.nii.gz", affine))
    return batch.CaseCompose([READ])(item)


def refusal(tmp_path, **given) -> str:
    with pytest.raises(Exception) as caught:
        load_item(tmp_path, **given)
    return batch.sentence_of(caught.value)


def damaged(where, value) -> np.ndarray:
    hu = CT.astype(np.float32)
    hu[where] = value
    return hu


PADDED = np.where(np.hypot(*np.meshgrid(np.linspace(-1, 1, 96), np.linspace(-1, 1, 80), indexing="ij")) > 1, -2000, 0)


@pytest.mark.parametrize(
    "image",
    [
        CT,
        np.where(PADDED[..., None] < 0, -2000, CT),  # outside the scanner's circle
        CT[12:84, 12:68, 2:8],  # no air round the patient
        CT[10:40, 20:60, 4:5],  # one slice of one lung
        np.clip(CT, -1000, 200),
        ((np.clip(CT, -1350, 150) + 1350) / 1500 * 255).astype(np.uint8) / 255 * 1500 - 1350,  # a picture made HU again
        CT.astype(np.float64),
    ],
)
def test_whole_slices_crops_windows_and_pictures_in_hu_are_taken(tmp_path, image):
    assert load_item(tmp_path, image)["image"].shape == (1, *image.shape)


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (damaged((20, 40, 4), np.nan), "ct.nii.gz holds 1 NaN or infinite voxels; replace them"),
        (damaged((20, 40, 4), np.inf), "ct.nii.gz holds 1 NaN or infinite voxels; replace them"),
        (CT + 1024, "which cannot be HU (air is -1000)"),
        (np.where(PADDED[..., None] < 0, -2000, CT) + 1024, "which cannot be HU"),  # its padding is as dark as air
        (CT - 1024, "which cannot be HU"),
        (damaged((0, 0, 0), -1000) * 0 + damaged((0, 0, 0), -1000)[:1, :1, :1], "ranges from -1000 to -1000"),
        ((CT + 1000) / 1300, "which cannot be HU"),
        ((np.clip(CT, -1350, 150) + 1350) / 1500 * 255, "which cannot be HU"),
        (CT[..., 4], "expected one volume; save the slice with shape (96, 80, 1)"),
        (np.stack([CT, CT], axis=3), "has 2 channels of shape" ),
    ],
)  # fmt: skip
def test_what_cannot_be_a_ct_in_hu_is_refused(tmp_path, image, told):
    sentence = refusal(tmp_path, image=image)
    assert str(tmp_path / "ct.nii.gz") in sentence and told in sentence


def test_labels_near_whole_numbers_are_rounded_and_others_refused(tmp_path):
    label = MAP.astype(np.float32) * np.float32(2.9999998)
    found = load_item(tmp_path, label=label)["label"].numpy()[0]
    assert np.array_equal(found, MAP * 3)
    assert "holds label 0.5, but labels must be integers" in refusal(tmp_path, label=MAP / 2)
    assert "map.nii.gz holds 9; labels name background=0, healthy=1" in refusal(tmp_path, label=MAP * 9)
    assert "holds label nan" in refusal(tmp_path, label=np.where(MAP, np.nan, 0))


@pytest.mark.parametrize("turn", [[[1, 1], [0, 1], [2, 1]], [[0, -1], [1, 1], [2, -1]], [[2, 1], [0, -1], [1, 1]]])
def test_a_map_stored_in_another_order_of_axes_is_turned_as_its_ct(tmp_path, turn):
    label = MAP.copy()
    label[20:30, 30:50, 3] = 3
    image = nib.Nifti1Image(label, AFFINE).as_reoriented(np.array(turn))
    item = load_item(tmp_path, label=np.asarray(image.dataobj), affine=image.affine)
    assert np.array_equal(item["label"].numpy()[0], label)
    assert np.allclose(item["label"].affine, item["image"].affine, atol=1e-4)


def test_a_map_must_lie_on_its_cts_grid_within_a_tenth_of_a_voxel(tmp_path):
    near = AFFINE.copy()
    near[:3, 3] += 0.05 * 3
    load_item(tmp_path, label=MAP, affine=near @ np.diag([1 + 3e-5, 1, 1, 1]))
    near[0, 3] += 1
    told = refusal(tmp_path, label=MAP, affine=near)
    assert "map.nii.gz has another affine than" in told and "lie up to 1.15 mm apart" in told
    assert "has shape (95, 80, 10), but" in refusal(tmp_path, label=MAP[1:])


def test_a_sheared_grid_is_refused_and_rounding_is_not(tmp_path):
    """A tilted gantry, as converters write it: volumes by the sizes of voxels would be too large."""
    for slanted, told in ((np.tan(np.radians(15)) * 6, "15 degrees off right angles"), (0.05, None)):
        affine = AFFINE.copy()
        affine[1, 2] = slanted
        path = tmp_path / "tilted.nii.gz"
        save(CT, path, affine)
        if told is None:
            volumes.check_file(path, ct=True)
        else:
            with pytest.raises(ValueError, match=f"tilted.nii.gz: its axes are {told}"):
                volumes.check_file(path, ct=True)


def rewritten(path, **fields):
    """Change fields of a NIfTI header in its file."""
    content = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    content[:348] = header.binaryblock
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"dim": [3, 30000, 30000, 30000, 1, 1, 1, 1]}, "has 27000000000000 voxels, .* at most 1073741824 are read"),
        ({"dim": [3, 96, 80, 11, 1, 1, 1, 1]}, "may be truncated: its header tells of .* bytes, the file has"),
        ({"dim": [3, 0, 80, 10, 1, 1, 1, 1]}, "is empty: its shape is"),
        ({"srow_x": [np.nan, 0, 0, 0]}, "has no usable affine: its voxels are nan"),
        ({"srow_x": [0, 3, 0, 0]}, "has no usable affine: its voxels are 0 x 4.2"),
        (
            {"srow_x": [-3e-3, 0, 0, 0]},
            "has no usable affine: its voxels are 0.003 x 3 x 6 mm; expected 0.05 to 100 mm",
        ),
        ({"pixdim": [1, 3, 3, 5, 0, 0, 0, 0]}, "voxels are 6 mm by its affine, 5 mm by pixdim; correct one"),
        ({"datatype": 32, "bitpix": 64}, "holds voxels of type complex64"),
        ({"datatype": 9999}, "cannot be read as NIfTI"),
        ({"magic": b"oh"}, "cannot be read as NIfTI"),
    ],
)
def test_a_header_that_means_nothing_is_refused_before_voxels_are_read(tmp_path, fields, told):
    path = rewritten(save(CT, tmp_path / "ct.nii"), **fields)
    with pytest.raises(ValueError, match=told) as caught:
        volumes.check_file(path)
    assert str(path) in str(caught.value)


def test_a_flipped_bit_in_a_gzip_file_is_found(tmp_path):
    path = save(CT, tmp_path / "ct.nii.gz")
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # of the checksum, which a reader of the voxels never comes to
    path.write_bytes(content)
    with pytest.raises(Exception) as caught:
        READ({"image": str(path)})
    assert "ct.nii.gz is damaged: CRC check failed" in batch.sentence_of(caught.value)


def test_a_reader_of_nifti_files_serves_threads_that_read_at_once(tmp_path):
    reader = loading.NiftiReader()
    files = [reader.read(str(save(volume, tmp_path / name))) for volume, name in ((CT, "a.nii.gz"), (MAP, "b.nii"))]
    for file, volume in zip(files, (CT, MAP)):
        found, _ = reader.get_data(file)
        assert np.array_equal(found, volume) and found.flags.c_contiguous


@pytest.mark.parametrize(
    ("name", "place", "keys"),
    [
        ("train", "train::fixed_transforms", ["image", "label"]),
        ("train", "validate::preprocessing::transforms", ["image", "label"]),
        ("inference", "preprocessing::transforms", "image"),
        ("synthesizer train", "train::load", ["image", "label"]),
        ("synthesizer inference", "preprocessing::transforms", ["image", "label", "target"]),
    ],
)
def test_every_workflow_checks_behind_loading(name, place, keys):
    bundle = CONFIGS if " " not in name else CONFIGS.parents[1] / "difflung_synthesis/configs"
    parser = ConfigParser(json.loads((bundle / f"{name.split()[-1]}.json").read_text()))
    names = [part["_target_"] for part in parser[place]]
    after = names.index("EnsureChannelFirstd") + 1
    assert names[after - 2] == "LoadImaged" and names[after] == "scripts.loading.CheckVolumesd"
    assert parser[place][after]["keys"] == keys


def test_tensors_without_a_file_are_checked_too():
    """As MONAI Deploy hands them over: a consumer loads, and the check stands behind it."""
    image = torch.from_numpy(CT[None].astype(np.float32))
    assert CHECK({"image": image})["image"] is image
    with pytest.raises(ValueError, match="^image ranges from .*, which cannot be HU"):
        CHECK({"image": image + 1024})

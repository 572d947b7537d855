"""A folder of DICOM slices is labelled as the NIfTI file of the same CT; a series that is not whole is refused."""

import json
import os
import subprocess
import sys

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirst, LoadImage, Orientation

from tests.dicom import write_series
from tests.lung_tissue_seg.bundle import BUNDLE, TINY, load, read_rows, run

cases, dicom, loading, volumes = load("cases"), load("dicom"), load("loading"), load("volumes")
TURN = 0.15  # rad about the patient's axis
SPACING_MM = (0.8, 0.9, 2.5)  # columns, rows, slices


def ct(slices=6):
    """HU of columns, rows and slices, and the affine to RAS of a CT that is turned a little."""
    hu = np.random.default_rng(0).integers(-1000, 200, (40, 36, slices)).astype(np.int16)
    affine = np.eye(4)
    turned = np.array([[np.cos(TURN), np.sin(TURN), 0], [-np.sin(TURN), np.cos(TURN), 0], [0, 0, 1]])
    affine[:3, :3] = np.diag([-1, -1, 1]) @ turned @ np.diag(SPACING_MM)  # DICOM is LPS
    affine[:3, 3] = [-10, 20, 300]
    return hu, affine


@pytest.mark.parametrize("backwards", [False, True])
def test_a_series_is_read_as_the_nifti_file_of_the_same_ct(tmp_path, backwards):
    hu, affine = ct()
    nib.save(nib.Nifti1Image(hu, affine), tmp_path / "ct.nii.gz")
    folder = write_series(tmp_path / "series", hu, affine, backwards)
    found = cases.find_cts(str(tmp_path))
    assert found == [str(tmp_path / "ct.nii.gz"), str(folder)]
    read = Compose([LoadImage(reader=loading.SeriesReader()), EnsureChannelFirst(), Orientation("RAS", labels=None)])
    one, other = (read(path) for path in found)
    assert torch.equal(one.as_tensor(), other.as_tensor())
    assert np.allclose(one.affine, other.affine, atol=1e-4)
    assert cases.find_cts(str(folder)) == [str(folder)]  # the folder itself


@pytest.mark.slow
def test_a_series_gets_the_labels_of_the_nifti_file(tmp_path):
    hu, affine = ct()
    data, models, out = (tmp_path / name for name in ("data", "models", "out"))
    write_series(data / "patient7", hu, affine, backwards=True)
    nib.save(nib.Nifti1Image(hu, affine), data / "ct.nii.gz")
    settings = {"network_channels": [4, 4, 4, 4, 4], "window_size": [64, 64], "find_lung": False, "device": "cpu"}
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs/inference.json"))
    parser.update(settings)
    torch.manual_seed(0)
    models.mkdir()
    torch.save(parser.get_parsed_content("network_def").state_dict(), models / "model.pt")
    settings |= {"dataset_dir": str(data), "model_dir": str(models), "output_dir": str(out)}
    line = [sys.executable, "-m", "monai.bundle", "run", "--bundle_root", str(BUNDLE)]
    line += ["--config_file", str(BUNDLE / "configs/inference.json")]
    for key, value in settings.items():
        line += [f"--{key}", str(value)]
    done = subprocess.run(line, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    nifti, dicom = (nib.load(out / f"{name}_tissues.nii.gz") for name in ("ct", "patient7"))
    assert nifti.shape == dicom.shape == hu.shape
    nifti, dicom = (nib.as_closest_canonical(image) for image in (nifti, dicom))
    assert np.allclose(nifti.affine, dicom.affine, atol=1e-4)
    assert np.array_equal(nifti.dataobj, dicom.dataobj) and len(np.unique(nifti.dataobj)) > 1


def datalist_of_series(folder):
    """Write a datalist of two folders that hold series, one to train on and one to validate."""
    items = []
    for number in range(2):
        hu, affine = ct()
        label = np.where(hu < -400, 1, 2).astype(np.uint8)
        write_series(folder / f"images/p{number}", hu, affine)
        (folder / "labels").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(label, affine), folder / f"labels/p{number}.nii.gz")
        items.append({"image": f"images/p{number}", "label": f"labels/p{number}.nii.gz", "fold": number})
    (folder / "datalist.json").write_text(json.dumps({"training": items}))
    return folder / "datalist.json"


def test_a_datalist_may_name_series_if_they_are_whole(tmp_path):
    path = datalist_of_series(tmp_path)
    for held_out, number in ((True, 0), (False, 1)):
        (item,) = cases.datalist_cases(str(path), fold=0, held_out=held_out)
        assert item["image"] == f"{tmp_path}/images/p{number}"
    (tmp_path / "images/p1/IM0002").unlink()
    with pytest.raises(ValueError, match="images/p1: slices IM0001 and IM0003 lie 5 mm apart, the others 2.5 mm"):
        cases.datalist_cases(str(path), fold=0, held_out=False)


def test_an_item_without_a_fold_is_refused(tmp_path):
    path = datalist_of_series(tmp_path)
    content = json.loads(path.read_text())
    del content["training"][1]["fold"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="gives no fold for .*images/p1; make it with `python -m tools dataset`"):
        cases.datalist_cases(str(path), fold=0, held_out=True)


@pytest.mark.slow
def test_training_and_validation_read_series(tmp_path):
    datalist_of_series(tmp_path)
    places = {"dataset_dir": str(tmp_path), "model_dir": str(tmp_path / "out"), "output_dir": str(tmp_path / "out")}
    run(["run", "training"], ["train"], tmp_path, **places, **TINY)
    assert (tmp_path / "out/model.pt").is_file()
    assert set(read_rows(tmp_path / "out/val_mean_dice_raw.csv")) == {"p0"}


@pytest.mark.parametrize(("changes", "message"), [
    ([(2, "SeriesInstanceUID", "1.2.3")], r"holds 2 series: chest \(1 files\), chest \(5 files\); give each a folder"),
    ([(1, "Modality", "MR")], "IM0001 is MR, not CT"),
    ([(1, "NumberOfFrames", 30)], r"IM0001 holds several frames \(enhanced CT\)"),
    ([(0, "ImagePositionPatient", None)], "IM0000 lacks ImagePositionPatient"),
    ([("all", "PixelSpacing", [0, 1])], "PixelSpacing is .*, which means nothing"),
    ([(3, "PixelSpacing", [1, 1])], "the slices differ in PixelSpacing"),
    ([(5, "ImagePositionPatient", [10, -20, 310])], "IM0004 and IM0005 lie at the same place but differ"),
    ([("all", "ImageOrientationPatient", [1, 0, 0, 0.1, 0.9, 0])], "rows and columns are not at right angles"),
])  # fmt: skip
def test_what_is_not_one_series_is_refused(tmp_path, changes, message):
    folder = write_series(tmp_path / "series", *ct(), changes=changes)
    with pytest.raises(ValueError, match=message):
        dicom.check_series(folder)
    assert len(list(folder.iterdir())) == 6


@pytest.mark.parametrize(
    "numbers", [[4, 4, 4, 4, 4, 4], [3, 1, 6, 2, 5, 4], [1, 2, 3, 1, 2, 3], [None] * 6, [1, 2, 2, 4, 5, 6]]
)
def test_slices_are_ordered_by_position_whatever_their_numbers(tmp_path, numbers):
    hu, affine = ct()
    changes = [(place, "InstanceNumber", number) for place, number in enumerate(numbers)]
    folder = write_series(tmp_path / "series [1]", hu, affine, changes=changes)  # brackets are a pattern to MONAI
    image = LoadImage(reader=loading.SeriesReader())(folder)
    assert np.array_equal(image.numpy(), hu)
    assert np.allclose(image.affine, affine, atol=1e-4)


def test_localizers_files_twice_and_files_without_preamble_do_not_disturb(tmp_path):
    hu, affine = ct()
    folder = write_series(tmp_path / "series", hu, affine)
    (folder / "copy_of_2").write_bytes((folder / "IM0002").read_bytes())
    scout = pydicom.dcmread(folder / "IM0000")
    scout.ImageType, scout.SeriesInstanceUID = ["ORIGINAL", "PRIMARY", "LOCALIZER"], "1.2.3"
    scout.save_as(folder / "scout")
    for name in ("IM0001", "IM0003", "IM0005"):  # as old exports are
        slice_ = pydicom.dcmread(folder / name)
        bare = pydicom.Dataset(slice_)
        bare.save_as(folder / name, implicit_vr=True, little_endian=True, enforce_file_format=False)
        assert not pydicom.misc.is_dicom(folder / name)
    image = LoadImage(reader=loading.SeriesReader())(folder)
    assert np.array_equal(image.numpy(), hu)
    assert cases.find_cts(str(tmp_path)) == [str(folder)]


@pytest.mark.parametrize("content", [b"", b"not DICOM at all" * 20, None])
def test_what_is_neither_dicom_nor_known_stops_the_series(tmp_path, content):
    folder = write_series(tmp_path / "series", *ct())
    whole = (folder / "IM0003").read_bytes()
    (folder / "IM0003").write_bytes(whole[:100] if content is None else content)
    with pytest.raises(ValueError, match="IM0003 is not DICOM, or damaged: a slice may be missing"):
        dicom.check_series(folder)


def test_two_slices_at_one_place_are_refused(tmp_path):
    hu, affine = ct()
    folder = write_series(tmp_path / "series", hu, affine)
    other = pydicom.dcmread(folder / "IM0003")
    other.PixelData = bytes(len(other.PixelData))
    other.save_as(folder / "IM0003_again")
    with pytest.raises(ValueError, match="IM0003 and IM0003_again lie at the same place but differ; take one of them"):
        dicom.check_series(folder)


def test_positions_of_two_decimals_are_rounding(tmp_path):
    hu, affine = ct(40)
    affine[:3, 2] *= 0.625 / 2.5
    folder = write_series(tmp_path / "series", hu, affine)
    for path in folder.iterdir():
        slice_ = pydicom.dcmread(path)
        slice_.ImagePositionPatient = [round(float(value), 2) for value in slice_.ImagePositionPatient]
        slice_.PixelSpacing = [float(value) * (1 + 3e-5) for value in slice_.PixelSpacing]
        slice_.save_as(path)
    assert len(dicom.check_series(folder)) == 40


def test_what_a_file_of_a_series_says_elsewhere_is_refused(tmp_path):
    """What another reader loaded is compared with the positions of the slices."""
    hu, affine = ct()
    folder = write_series(tmp_path / "series", hu, affine)
    check = loading.CheckVolumesd("image")
    image = MetaTensor(torch.from_numpy(hu[None].astype(np.float32)), affine, {"filename_or_obj": str(folder)})
    assert check({"image": image})["image"] is image
    for wrong in (affine @ np.diag([1, 1, 2, 1]), affine @ np.diag([1, 1, -1, 1])):
        image.affine = torch.from_numpy(wrong)
        with pytest.raises(ValueError, match="series has another affine than what its slices tell"):
            check({"image": image})


def test_missing_slices_are_named(tmp_path):
    folder = write_series(tmp_path / "series", *ct())
    (folder / "IM0003").unlink()
    with pytest.raises(ValueError, match="IM0002 and IM0004 lie 5 mm apart, the others 2.5 mm: some are missing"):
        dicom.check_series(folder)


def test_a_tilted_gantry_and_a_single_slice_are_refused(tmp_path):
    hu, affine = ct()
    affine[:3, 2] = [0, 1.0, 2.5]
    with pytest.raises(ValueError, match=r"the slices are shifted against each other \(a tilted gantry\)"):
        dicom.check_series(write_series(tmp_path / "tilted/series", hu, affine))
    with pytest.raises(ValueError, match="holds one slice; a series needs two"):
        dicom.check_series(write_series(tmp_path / "single/series", hu[..., :1], affine))


def test_nested_and_dotted_folders_are_found_and_named_by_their_way(tmp_path):
    """As TCIA delivers them: patient, study, series; other modalities beside them are passed over."""
    for place in ("P1/1.2.840.1/4.000000-Lung", "P1/1.2.840.2/4.000000-Lung", "1.2.3"):
        write_series(tmp_path / place, *ct())
    write_series(tmp_path / "P1/1.2.840.1/300-Seg", *ct(), changes=[("all", "Modality", "SEG")])
    scout = [("all", "ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"])]
    write_series(tmp_path / "P1/scout", *ct(), changes=scout)
    (tmp_path / "P1/circle").symlink_to(tmp_path)
    found, passed = volumes.list_volumes(tmp_path)
    assert list(found) == ["1.2.3", "P1_1.2.840.1_4.000000-Lung", "P1_1.2.840.2_4.000000-Lung"]
    assert passed == {"P1/1.2.840.1/300-Seg": "SEG, not CT", "P1/scout": "a localizer, not CT"}
    named = loading.CaseName(str(tmp_path))({"filename_or_obj": str(found["1.2.3"])}, None)
    assert named["subject"] == "1.2.3.nii.gz"


def test_other_files_are_left_alone_and_nothing_to_label_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="the folder .*nowhere does not exist"):
        cases.find_cts(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("not DICOM")
    with pytest.raises(FileNotFoundError, match=r"holds neither NIfTI files \(.nii, .nii.gz\) nor DICOM series"):
        cases.find_cts(str(tmp_path))
    folder = write_series(tmp_path / "series", *ct())
    (folder / "readme.txt").write_text("not DICOM either")
    assert cases.find_cts(str(tmp_path)) == [str(folder)]
    assert pydicom.misc.is_dicom(folder / "IM0000")

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
from monai.transforms import Compose, EnsureChannelFirst, LoadImage, Orientation

from tests.dicom import write_series
from tests.lung_tissue_seg.bundle import BUNDLE, TINY, load, read_rows, run

cases = load("cases")
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
    load = Compose([LoadImage(), EnsureChannelFirst(), Orientation("RAS", labels=None)])
    nifti, dicom = (load(path) for path in found)
    assert torch.equal(nifti.as_tensor(), dicom.as_tensor())
    assert np.allclose(nifti.affine, dicom.affine, atol=1e-4)
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
    with pytest.raises(ValueError, match="images/p1: slices 2 and 4 lie 5 mm apart, the others 2.5 mm"):
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
    ([(0, "InstanceNumber", None)], "IM0000 lacks InstanceNumber"),
    ([(3, "PixelSpacing", [1, 1])], "the slices differ in PixelSpacing"),
    ([(0, "InstanceNumber", 4), (3, "InstanceNumber", 1)], "InstanceNumber does not follow their position"),
    ([(5, "ImagePositionPatient", [0, 0, 0])], "InstanceNumber does not follow their position"),
    ([("all", "ImageOrientationPatient", [1, 0, 0, 0.1, 0.9, 0])], "rows and columns are not at right angles"),
])  # fmt: skip
def test_what_is_not_one_series_is_refused(tmp_path, changes, message):
    folder = write_series(tmp_path / "series", *ct(), changes=changes)
    with pytest.raises(ValueError, match=message):
        cases.find_cts(str(tmp_path))
    assert len(list(folder.iterdir())) == 6


def test_missing_slices_are_named(tmp_path):
    folder = write_series(tmp_path / "series", *ct())
    (folder / "IM0003").unlink()
    with pytest.raises(ValueError, match="slices 3 and 5 lie 5 mm apart, the others 2.5 mm: some are missing"):
        cases.find_cts(str(tmp_path))


def test_a_tilted_gantry_and_a_single_slice_are_refused(tmp_path):
    hu, affine = ct()
    affine[:3, 2] = [0, 1.0, 2.5]
    write_series(tmp_path / "tilted/series", hu, affine)
    with pytest.raises(ValueError, match=r"the slices are shifted against each other \(a tilted gantry\)"):
        cases.find_cts(str(tmp_path / "tilted"))
    write_series(tmp_path / "single/series", hu[..., :1], affine)
    with pytest.raises(ValueError, match="holds one slice; a series needs two"):
        cases.find_cts(str(tmp_path / "single"))


def test_a_folder_whose_name_would_be_cut_is_refused(tmp_path):
    """MONAI's SaveImaged would write 1.2.3 and 1.2.4 into one file, 1.2_tissues.nii.gz."""
    write_series(tmp_path / "1.2.3", *ct())
    with pytest.raises(ValueError, match="1.2.3: MONAI would cut the case's name at its last dot; rename the folder"):
        cases.find_cts(str(tmp_path))


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

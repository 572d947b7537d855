"""Extents of lungs whose volumes are known, in every orientation, and the files that quantify writes."""

import csv
import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from tools.io.files import InputError, RunError
from tools.quantify import extents
from tools.quantify.quantify import quantify
from tools.tissues import tissue_labels

LABELS = tissue_labels()
SPACING = (2.0, 2.0, 5.0)
AFFINE = np.diag([*SPACING, 1.0])


def body(shape=(120, 90, 12), fused=False):
    """Two cuboid lungs (40 by 60 voxels each, the right one at larger indices), every tissue in its own place."""
    label = np.zeros(shape, np.uint8)
    label[15:55, 15:75] = label[65:105, 15:75] = 1
    if fused:
        label[55:65, 44:46] = 1  # 4 mm thick, where the lungs touch
    hu = np.full(shape, -1000, np.int16)
    hu[5:115, 5:85] = 40
    hu[label > 0] = -850
    return hu, label


def save(folder, case, hu, label, affine=AFFINE, postfix=""):
    for kind, array, name in (("images", hu, case), ("tissues", label, case + postfix)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, affine), folder / kind / f"{name}.nii.gz")


def measured(hu, label, **given):
    return extents.region_extents(hu, label, np.array(SPACING), LABELS, **given)


def test_extents_of_a_drawn_lung_are_its_own():
    hu, label = body()
    label[65:85, 15:75, :4] = LABELS["fibrosis"]  # a half of the right lung's lowest third
    label[15:55, 15:75, 8:] = LABELS["emphysema"]  # the whole left lung's highest third
    hu[15:55, 15:75, 8:] = -970
    found = measured(hu, label)
    ml = np.prod(SPACING) / 1000
    assert list(found) == list(extents.REGIONS)
    assert found["whole"]["lung_ml"] == pytest.approx(2 * 40 * 60 * 12 * ml)
    assert found["whole"]["fibrosis_ml"] == pytest.approx(20 * 60 * 4 * ml)
    percents = {name: round(row["fibrosis_percent"], 2) for name, row in found.items()}
    assert {name: percents[name] for name in ("whole", "right", "left", "upper", "middle", "lower")} == {
        "whole": 8.33, "right": 16.67, "left": 0, "upper": 0, "middle": 0, "lower": 25,
    }  # fmt: skip
    assert found["left"]["emphysema_percent"] == pytest.approx(100 / 3)
    assert found["upper"]["below_950_percent"] == found["upper"]["emphysema_percent"] == pytest.approx(50)
    assert found["right"]["below_950_percent"] == 0 and found["right"]["mean_hu"] == pytest.approx(-850)
    for row in found.values():
        assert sum(row[f"{name}_percent"] for name in LABELS if LABELS[name]) == pytest.approx(100)


@pytest.mark.parametrize("depth", [5.0, 15.0])
def test_periphery_is_what_lies_near_the_border_of_its_slice(depth):
    hu, label = body()
    label[30:32, 40:42] = 0  # a vessel that the map leaves out has no periphery of its own
    found = measured(hu, label, periphery_mm=depth)
    edge = int(depth // 2)  # the first voxel's centre lies 2 mm from the nearest voxel outside
    share = (40 - 2 * edge) * (60 - 2 * edge) / (40 * 60)
    assert found["central"]["lung_ml"] / found["whole"]["lung_ml"] == pytest.approx(share, abs=0.003)
    assert found["central"]["lung_ml"] + found["peripheral"]["lung_ml"] == pytest.approx(found["whole"]["lung_ml"])


def test_lungs_that_touch_are_taken_apart():
    apart, touching = measured(*body()), measured(*body(fused=True))
    for side in ("right", "left"):
        assert touching[side]["lung_ml"] == pytest.approx(apart[side]["lung_ml"] * (1 + 10 / 2400), rel=1e-6)


def test_a_lung_that_cannot_be_taken_apart_is_cut_at_the_midline():
    hu, label = body()
    label[15:105, 15:75] = 1
    found = measured(hu, label)
    assert found["right"]["lung_ml"] == pytest.approx(found["left"]["lung_ml"])


@pytest.mark.parametrize("spacing", [(3.80484645, 3.804846633), (3.804846633, 3.80484645)])
def test_the_last_digit_of_a_voxel_size_decides_nothing(spacing):
    """DICOM keeps voxel sizes as decimal text, NIfTI as float32: what is equally far in one is so in the other."""
    lung = np.zeros((60, 60, 1), bool)
    lung[5:25, 35:55] = lung[35:55, 5:25] = True
    across = np.add(*np.indices((60, 60))) - 59
    lung[(np.abs(across) < 2) & (np.abs(np.subtract(*np.indices((60, 60)))) < 40)] = True  # as far from both, partly
    grids = [np.array([*sizes, 20.0]) for sizes in (spacing, (3.80484653, 3.80484653))]
    for periphery in (3.80484653, 15.0):
        one, other = (extents.regions(lung, grid, 29.5, periphery) for grid in grids)
        assert all(np.array_equal(one[name], other[name]) for name in extents.REGIONS)


def test_one_lung_alone_is_its_own_side():
    hu, label = body()
    label[:60] = 0
    hu[15:55, 15:75] = 40
    found = measured(hu, label)
    assert found["right"]["lung_ml"] == found["whole"]["lung_ml"] and found["left"]["lung_ml"] == 0
    assert found["left"]["fibrosis_percent"] is None and found["left"]["mean_hu"] is None


@pytest.mark.usefixtures("without_ink")
@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAL", "PIR"])
def test_orientation_of_the_file_changes_nothing(tmp_path, codes):
    hu, label = body(shape=(120, 90, 6))
    label[70:80, 20:30, 4:] = LABELS["consolidation"]
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(codes))
    )
    turned = [nib.Nifti1Image(array, AFFINE).as_reoriented(turn) for array in (hu, label)]
    assert "".join(nib.aff2axcodes(turned[0].affine)) == codes
    save(tmp_path, "turned", *(np.asarray(file.dataobj) for file in turned), affine=turned[0].affine)
    quantify(tmp_path / "images", tmp_path / "tissues", tmp_path / "out")
    assert json.loads((tmp_path / "out/quantification.json").read_text())["cases"]["turned"] == measured(hu, label)


def test_files_hold_a_row_per_case_and_region_and_a_picture(tmp_path, capsys):
    hu, label = body()
    label[70:80, 20:30] = LABELS["ground_glass"]
    save(tmp_path, "a", hu, label, postfix="_tissues")
    save(tmp_path, "loose_slice", hu[..., :1], label[..., :1], postfix="_tissues")
    save(tmp_path, "no_lung", hu, np.zeros_like(label))
    quantify(tmp_path / "images", tmp_path / "tissues", tmp_path / "out", periphery_mm=20)
    with open(tmp_path / "out/quantification.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["case"] for row in rows] == ["a"] * 8 + ["loose_slice"] * 8 + ["no_lung"]
    assert [row["region"] for row in rows[:8]] == list(extents.REGIONS)
    assert rows[0]["ground_glass_ml"] == "24.0" and rows[0]["ground_glass_percent"] == "2.083"
    assert rows[-1]["lung_ml"] == "0.0" and rows[-1]["mean_hu"] == ""
    read = json.loads((tmp_path / "out/quantification.json").read_text())
    assert read["periphery_mm"] == 20 and read["labels"] == LABELS and read["cases"]["no_lung"] is None
    assert read["cases"]["loose_slice"]["middle"]["lung_ml"] == read["cases"]["loose_slice"]["whole"]["lung_ml"]
    assert read["cases"]["loose_slice"]["upper"]["fibrosis_percent"] is None
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["a.png", "loose_slice.png"]
    out = capsys.readouterr().out
    assert "no_lung: no lung in" in out and "2 pictures" in out


@pytest.mark.parametrize("depth", [0, -1, float("nan"), True, "deep"])
def test_impossible_periphery_is_refused(tmp_path, depth):
    save(tmp_path, "a", *body())
    with pytest.raises(InputError, match="periphery_mm must be a depth in mm above 0"):
        quantify(tmp_path / "images", tmp_path / "tissues", tmp_path / "out", periphery_mm=depth)


@pytest.mark.usefixtures("without_ink")
def test_unusable_input_is_refused_and_leaves_nothing(tmp_path):
    hu, label = body()
    save(tmp_path, "a", hu, label)
    nib.save(nib.Nifti1Image(hu, AFFINE), tmp_path / "images/b.nii.gz")
    with pytest.raises(InputError, match="^b has no tissue map"):
        quantify(tmp_path / "images", tmp_path / "tissues", tmp_path / "out")
    nib.save(nib.Nifti1Image(np.where(label, 7, 0).astype(np.uint8), AFFINE), tmp_path / "tissues/b_tissues.nii.gz")
    with pytest.raises(RunError, match="1 of 2 cases could not be measured:\n.*holds label 7, but labels name only"):
        quantify(tmp_path / "images", tmp_path / "tissues", tmp_path / "out")
    assert [row.split(",")[0] for row in (tmp_path / "out/quantification.csv").read_text().splitlines()[1:3]] == [
        "a",
        "a",
    ]
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "images/a.nii.gz").rename(tmp_path / "a.nii.gz")
    (tmp_path / "tissues/a.nii.gz").rename(tmp_path / "a_tissues.nii.gz")
    nib.save(nib.Nifti1Image(label, np.diag([2.0, 2.0, 4.0, 1.0])), tmp_path / "tissues/b_tissues.nii.gz")
    with pytest.raises(InputError, match="another affine"):
        quantify(tmp_path / "images", tmp_path / "tissues", tmp_path / "out")
    nib.save(nib.Nifti1Image(label, AFFINE), tmp_path / "tissues/b.nii.gz")
    with pytest.raises(InputError, match="two maps of one CT"):
        quantify(tmp_path / "images", tmp_path / "tissues", tmp_path / "out")
    assert not (tmp_path / "out").exists()

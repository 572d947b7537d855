"""DICOM series where users hand CTs to the tools: every voxel keeps its place in the patient, bad series are named."""

import csv
import json
import shutil
import sys

import nibabel as nib
import numpy as np
import pydicom
import pytest

from tests.dicom import write_series
from tests.tools.fakes.cases import LABELS
from tools.bundles import BUNDLES
from tools.data.datalist import read_datalist, read_fold
from tools.data.dataset import dataset
from tools.io.dicom import read_series
from tools.io.files import InputError, sha256
from tools.io.volume import list_cts, load_ct
from tools.quantify.quantify import quantify

SPACING_MM = (0.8, 0.9, 2.5)  # columns, rows, slices
TURNED = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]])
AXES = {
    "LPS": np.diag([-1, -1, 1]),
    "RAS": np.eye(3),
    "LAI": np.diag([-1, 1, -1]),
    "sagittal": np.eye(3)[[2, 0, 1]],
    "oblique": TURNED,
    "oblique, flipped": TURNED @ np.diag([-1, 1, -1]),
}


def ct() -> tuple[np.ndarray, np.ndarray]:
    """Return HU, shape (columns, rows, slices), and the affine of a CT in the scanner's axes."""
    affine = np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1])
    affine[:3, 3] = [-10, 20, 300]
    return np.random.default_rng(0).integers(-1000, 200, (40, 36, 6)).astype(np.int16), affine


def world(slice_) -> tuple[np.ndarray, np.ndarray]:
    """Return the RAS position in mm of each pixel, by the equation of DICOM's image plane module, and its HU."""
    row, column = np.array(slice_.ImageOrientationPatient, float).reshape(2, 3)
    down, across = map(float, slice_.PixelSpacing)
    r, c = np.mgrid[: slice_.Rows, : slice_.Columns]
    lps = np.array(slice_.ImagePositionPatient, float) + c[..., None] * across * row + r[..., None] * down * column
    return lps * [-1, -1, 1], slice_.pixel_array * float(slice_.RescaleSlope) + float(slice_.RescaleIntercept)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("axes", AXES)
def test_every_voxel_keeps_its_place_and_its_hu(tmp_path, axes, backwards):
    hu, affine = ct()
    affine[:3, :3] = AXES[axes] @ np.diag(SPACING_MM)
    folder = write_series(tmp_path / "series", hu, affine, backwards)
    file = read_series(folder)
    nib.save(file, tmp_path / "ct.nii.gz")
    file = nib.load(tmp_path / "ct.nii.gz")
    assert file.shape == hu.shape and file.get_data_dtype() == np.int16
    np.testing.assert_allclose(file.get_qform(), file.get_sform(), atol=1e-4)
    for path in folder.iterdir():
        places, values = world(pydicom.dcmread(path))
        index = nib.affines.apply_affine(np.linalg.inv(file.affine), places)
        assert np.abs(index - index.round()).max() < 1e-3
        np.testing.assert_array_equal(file.get_fdata()[tuple(np.moveaxis(index.round().astype(int), -1, 0))], values)


def test_hu_that_are_no_whole_numbers_are_kept(tmp_path):
    hu, affine = ct()
    folder = write_series(tmp_path / "series", hu, affine, changes=[("all", "RescaleSlope", 1.5)])
    array, file = load_ct(folder)
    assert file.get_data_dtype() == np.float32
    np.testing.assert_allclose(array, (hu.astype(np.float32) + 1024) * 1.5 - 1024)


class Patients:
    """Four CTs, two of them DICOM series, in folders with their maps; the maps lie in the axes of other programs."""

    def __init__(self, root):
        self.images, self.labels, self.output = root / "images", root / "labels", root / "out"
        self.maps = {}
        for number, name in enumerate(("a", "b", "c", "d")):
            hu, affine = ct()
            hu = hu - 10 * number
            label = np.full(hu.shape, 1, np.uint8)
            label[:10], label[20:30, :20, :3], label[5:15, 25:] = 0, 2 + number, 3
            self.labels.mkdir(exist_ok=True)
            self.maps[name] = nib.Nifti1Image(label, affine)
            if number < 2:
                nib.save(nib.as_closest_canonical(self.maps[name]), self.labels / f"{name}.nii.gz")
                write_series(self.images / name, hu, affine, backwards=bool(number))
            else:
                nib.save(self.maps[name], self.labels / f"{name}.nii.gz")
                nib.save(nib.Nifti1Image(hu, affine), self.images / f"{name}.nii.gz")

    def run(self, **flags):
        dataset(self.images, self.labels, self.output, folds=2, **flags)
        return json.loads((self.output / "datalist.json").read_text())["training"]

    def refusal(self):
        with pytest.raises(InputError) as caught:
            self.run()
        assert not self.output.exists()
        return str(caught.value)


@pytest.fixture
def patients(tmp_path):
    return Patients(tmp_path)


def test_dataset_takes_series_beside_files(patients):
    items = {item["image"].rsplit("/", 1)[1].split(".")[0]: item for item in patients.run()}
    assert sorted(items) == ["a", "b", "c", "d"] and items["c"]["image"] == "../images/c.nii.gz"
    for name in ("a", "b"):
        assert items[name]["image"] == f"images/{name}.nii.gz" and items[name]["patient"] == name
        image, label = (nib.load(patients.output / items[name][key]) for key in ("image", "label"))
        np.testing.assert_allclose(image.affine, label.affine, atol=1e-3)
        truth = nib.as_closest_canonical(patients.maps[name])
        hu = nib.as_closest_canonical(read_series(patients.images / name)).get_fdata()
        np.testing.assert_array_equal(nib.as_closest_canonical(image).get_fdata(), hu)
        np.testing.assert_array_equal(nib.as_closest_canonical(label).get_fdata(), truth.get_fdata())
    card = json.loads((patients.output / "data_card.json").read_text())
    assert card["from_dicom"] == ["a", "b"]
    text = (patients.output / "data_card.md").read_text()
    assert "Converted from DICOM series to NIfTI, in HU and voxel by voxel: a, b." in text


def test_a_series_gives_the_same_file_each_time(patients):
    digits = []
    for _ in range(2):
        patients.run()
        digits.append(sha256(patients.output / "images/a.nii.gz"))
        shutil.rmtree(patients.output)
    assert digits[0] == digits[1]


def test_foreign_maps_of_series_are_mapped_too(patients):
    items = patients.run(label_map={1: "healthy", 2: "fibrosis", 3: "emphysema", 4: "unlabelled", 5: "consolidation"})
    assert [items[0][key] for key in ("image", "label")] == ["images/a.nii.gz", "labels/a.nii.gz"]
    image, label = (nib.load(patients.output / items[0][key]) for key in ("image", "label"))
    np.testing.assert_array_equal(image.affine, label.affine)
    own = nib.load(patients.labels / "a.nii.gz").get_fdata()
    np.testing.assert_array_equal(label.get_fdata() == LABELS["fibrosis"], own == 2)


def test_dataset_names_every_unusable_series(patients):
    affine = ct()[1]
    for tag, value in (("Modality", "MR"), ("NumberOfFrames", 30), ("SeriesInstanceUID", "1.2.3")):
        hu, _ = ct()
        write_series(patients.images / tag, hu, affine, changes=[(1, tag, value)])
        shutil.copy(patients.labels / "c.nii.gz", patients.labels / f"{tag}.nii.gz")
    tilted = affine.copy()
    tilted[:3, 2] += [0, 1, 0]
    write_series(patients.images / "tilted", ct()[0], tilted)
    shutil.copy(patients.labels / "c.nii.gz", patients.labels / "tilted.nii.gz")
    (patients.images / "a/IM0003").unlink()
    told = patients.refusal()
    assert told.startswith("5 problems")
    for sentence in (
        f"{patients.images}/Modality/IM0001 is MR, not CT",
        f"{patients.images}/NumberOfFrames/IM0001 holds several frames (enhanced CT)",
        f"{patients.images}/SeriesInstanceUID holds 2 series: chest (1 files), chest (5 files)",
        f"{patients.images}/tilted: the slices are shifted against each other (a tilted gantry)",
        f"{patients.images}/a: slices IM0002 and IM0004 lie 5 mm apart, the others 2.5 mm: some are missing",
    ):
        assert sentence in told


def test_a_map_that_lies_elsewhere_than_its_series_is_refused(patients):
    label = nib.load(patients.labels / "a.nii.gz")
    nib.save(nib.Nifti1Image(label.get_fdata().astype(np.uint8), np.eye(4)), patients.labels / "a.nii.gz")
    told = patients.refusal()
    assert f"{patients.labels}/a.nii.gz has another affine than {patients.images}/a (voxels lie up to" in told


def test_other_mistakes_with_series_are_told(patients):
    (patients.labels / "b.nii.gz").unlink()
    assert f"{patients.images}/b has no label {patients.labels}/b.nii.gz" in patients.refusal()
    shutil.copy(patients.images / "c.nii.gz", patients.images / "a.nii.gz")
    with pytest.raises(InputError, match="holds both a.nii.gz and a, which are one case, a; remove one"):
        list_cts(patients.images)
    (patients.images / "b").rename(patients.images / "1.2.840")
    assert load_ct(patients.images / "1.2.840")[0].shape == (40, 36, 6)
    with pytest.raises(InputError, match="labels holds no DICOM file"):
        load_ct(patients.labels)
    (patients.images / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds no .nii or .nii.gz file and no folder with a DICOM series"):
        list_cts(patients.images / "empty")


def test_a_slice_that_cannot_be_decoded_is_told(tmp_path):
    changes = [(2, "PixelData", b"\0\0"), (2, "Rows", 36)]
    folder = write_series(tmp_path / "series", *ct(), changes=changes)
    with pytest.raises(
        InputError, match="series cannot be read as DICOM: .*; convert it to NIfTI, by dcm2niix for one"
    ):
        read_series(folder)


def test_quantify_measures_a_series_as_the_file_of_the_same_ct(patients, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["tools.quantify.quantify"], "draw", lambda *given: b"")
    rows = []
    for kind in ("series", "files"):
        images, maps = tmp_path / kind, tmp_path / f"{kind}_maps"
        images.mkdir(), maps.mkdir()
        shutil.copy(patients.labels / "a.nii.gz", maps / "a_tissues.nii.gz")
        if kind == "series":
            shutil.copytree(patients.images / "a", images / "a")
        else:
            file = nib.as_closest_canonical(read_series(patients.images / "a"))
            nib.save(file, images / "a.nii.gz")
        quantify(images, maps, tmp_path / f"{kind}_out")
        rows.append(list(csv.reader(open(tmp_path / f"{kind}_out/quantification.csv"))))
    assert rows[0] == rows[1] and float(rows[0][1][2]) > 1
    quantify(tmp_path / "series/a", tmp_path / "series_maps", tmp_path / "alone")
    assert list(csv.reader(open(tmp_path / "alone/quantification.csv"))) == rows[0]


@pytest.mark.parametrize("read", [read_datalist, lambda path: read_fold(path, 0)])
def test_a_datalist_that_names_a_folder_is_refused(patients, read):
    patients.run()
    path = patients.output / "datalist.json"
    content = json.loads(path.read_text())
    content["training"][0]["image"] = "../images/a"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="images/a is a folder; python -m tools dataset makes a NIfTI file of a DICOM"):
        read(path)


def test_the_checks_are_the_same_everywhere():
    own, other = (BUNDLES / name / "scripts/dicom.py" for name in ("lung_tissue_seg", "difflung_synthesis"))
    assert own.read_text() == other.read_text()


def test_reading_a_series_leaves_the_name_scripts_free(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "scripts", raising=False)
    load_ct(write_series(tmp_path / "series", *ct()))
    assert "scripts" not in sys.modules

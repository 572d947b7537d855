"""segment: CTs in; maps on their own grid, a table, pictures and a page out, and one clear sentence when not."""

import csv
import json
import warnings

import nibabel as nib
import numpy as np
import pytest

import tools.__main__ as cli
from tests.dicom import write_series
from tests.tools.fakes.chest import AFFINE, LABELS, SHAPE, chest, lungs, save, segmenter_weights
from tools.io.files import InputError
from tools.quantify.extents import REGIONS
from tools.segmenting import dicom_output
from tools.segmenting.segment import segment
from tools.segmenting.segmenter import Segmenter
from tools.workflows.segmenter import label_cts

GLASS = LABELS["ground_glass"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return segmenter_weights(tmp_path_factory.mktemp("weights"), steps=7)


@pytest.fixture
def by_hu(monkeypatch):
    """Have the segmenter answer by HU, so that tests know the truth."""

    def label(self, hu, affine, lung=None):
        inside = (hu > -990) & (hu < -300) if lung is None else lung
        inside = inside if (hu > -300).any() else np.zeros(hu.shape, bool)
        return np.where(inside, np.where(hu > -700, GLASS, LABELS["healthy"]), 0).astype(np.uint8)

    monkeypatch.setattr(Segmenter, "label", label)


def air() -> np.ndarray:
    """Return the HU of air above a table."""
    hu = np.random.default_rng(0).normal(-1000, 2, SHAPE).astype(np.int16)
    hu[:, -3:] = -100
    return hu


def ill() -> np.ndarray:
    label = lungs()
    label[60:80, 30:50, 2:5] = GLASS  # files' first axis runs to the left: in the left lung, low
    return label


def test_a_ct_becomes_a_map_on_its_grid_a_table_a_picture_and_a_page(tmp_path, weights, by_hu, capsys):
    ct = save(chest(ill()), tmp_path / "12.nii.gz")
    assert cli.main(["segment", str(ct), "--output", str(tmp_path / "7"), "--weights", str(weights)]) == 0
    out = tmp_path / "7"
    assert capsys.readouterr().out.endswith(f"open {out}/segmentation.html\n")
    held = {"12_tissues.nii.gz", "12.png", "quantification.csv", "quantification.json", "segmentation.html"}
    assert {path.name for path in out.iterdir()} == held | {"lung_tissues.ctbl"}
    file = nib.load(out / "12_tissues.nii.gz")
    assert file.get_data_dtype() == np.uint8 and np.array_equal(file.affine, AFFINE)
    assert b"research use" in file.header["descrip"].item()
    truth = ill()
    assert (np.asarray(file.dataobj)[truth > 0] == truth[truth > 0]).mean() > 0.99
    with open(out / "quantification.csv") as stream:
        rows = {row["region"]: row for row in csv.DictReader(stream)}
    assert list(rows) == list(REGIONS) and {row["case"] for row in rows.values()} == {"12"}
    wanted = 20 * 20 * 3 * 0.054
    assert float(rows["left"]["ground_glass_ml"]) == pytest.approx(wanted, rel=0.05)
    assert float(rows["right"]["ground_glass_ml"]) < 2 and float(rows["upper"]["ground_glass_ml"]) < 2
    told = json.loads((out / "quantification.json").read_text())
    assert told["cases"]["12"]["left"]["ground_glass_ml"] == pytest.approx(wanted, rel=0.05)
    page = (out / "segmentation.html").read_text()
    assert "Trained on: nothing, they are random." in page and "Trained for 7 steps." in page
    assert "not a medical device" in page and "data:image/png;base64,iVBOR" in page
    assert "<script" not in page and "http" not in page and 'src="data:' in page  # nothing else is needed


@pytest.mark.usefixtures("without_ink")
def test_names_of_files_are_escaped_on_the_page(tmp_path, by_hu):
    weights = segmenter_weights(tmp_path / "w", trained_on="<b>CTs</b> & more")
    ct = save(chest(lungs()), tmp_path / "<img src=x onerror=alert(1)>.nii.gz")
    other = save(chest(lungs()), tmp_path / "b&b.nii.gz")
    segment(ct, other, output=tmp_path / "out", weights=weights)
    page = (tmp_path / "out/segmentation.html").read_text()
    assert "<img src=x" not in page and page.count("&lt;img src=x onerror=alert(1)&gt;") >= 3
    assert "b&amp;b" in page and "b&b" not in page
    assert "<b>CTs" not in page and "&lt;b&gt;CTs&lt;/b&gt; &amp; more" in page


@pytest.mark.usefixtures("without_ink")
def test_files_folders_and_series_are_taken_together_and_one_without_lung_is_told(tmp_path, weights, by_hu, capsys):
    series = write_series(tmp_path / "series", chest(ill()), AFFINE)
    save(chest(lungs()), tmp_path / "folder/a.nii")
    save(air(), tmp_path / "folder/air.nii.gz")
    segment(series, tmp_path / "folder", output=tmp_path / "out", weights=weights)
    told = json.loads((tmp_path / "out/quantification.json").read_text())["cases"]
    assert list(told) == ["series", "a", "air"] and told["air"] is None
    assert told["series"]["left"]["ground_glass_ml"] > 50 > told["series"]["right"]["ground_glass_ml"]
    assert "air: No lung was found, so the map is empty" in capsys.readouterr().err
    assert "no lung found" in (tmp_path / "out/segmentation.html").read_text()
    assert not (tmp_path / "out/air.png").exists()


@pytest.mark.usefixtures("without_ink")
def test_a_lung_that_holds_little_air_is_told(tmp_path, weights, by_hu, capsys):
    full = chest(lungs())
    little = np.where(lungs() > 0, np.clip(full + 110, None, -701), full)
    for name, hu in (("full", full), ("little", little)):
        save(hu.astype(np.int16), tmp_path / f"cts/{name}.nii.gz")
    segment(tmp_path / "cts", output=tmp_path / "out", weights=weights)
    told = capsys.readouterr().err
    assert "little: The median of its healthy lung is -7" in told and "full: " not in told
    assert (tmp_path / "out/segmentation.html").read_text().count("easily called ground glass") == 1


@pytest.mark.usefixtures("without_ink")
def test_a_synthetic_ct_stays_marked(tmp_path, weights, by_hu, capsys):
    image = nib.Nifti1Image(chest(lungs()), AFFINE)
    image.header["descrip"] = b"SYNTHETIC difflung_synthesis"
    nib.save(image, tmp_path / "a.nii.gz")
    segment(tmp_path / "a.nii.gz", output=tmp_path / "out", weights=weights)
    assert "marked SYNTHETIC" in (tmp_path / "out/segmentation.html").read_text()
    assert nib.load(tmp_path / "out/a_tissues.nii.gz").header["descrip"].item().startswith(b"SYNTHETIC")


@pytest.mark.slow
def test_the_answer_is_that_of_the_bundle(tmp_path, weights):
    path = save(chest(ill()), tmp_path / "cts/a.nii.gz")
    label_cts({"a": path}, weights, tmp_path / "answers", {}, tmp_path / "log")
    file = nib.load(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Segmenter(weights).label(np.asarray(file.dataobj, np.float32), file.affine)
    assert len(np.unique(found)) > 1
    assert np.array_equal(found, nib.load(tmp_path / "answers/a_tissues.nii.gz").dataobj)


@pytest.mark.usefixtures("without_ink")
def test_with_a_lung_mask_tissue_lies_in_it_and_nowhere_else(tmp_path, weights, capsys):
    save(chest(ill()), tmp_path / "ct/a.nii.gz")
    mask = lungs() > 0
    mask[..., 6:] = False
    flipped = np.ascontiguousarray(mask[::-1].astype(np.uint8))  # the same voxels, the first axis the other way
    affine = AFFINE @ nib.affines.from_matvec(np.diag([-1, 1, 1]), [SHAPE[0] - 1, 0, 0])
    save(flipped, tmp_path / "lungs/a_lung.nii.gz", affine)
    segment(tmp_path / "ct", output=tmp_path / "out", weights=weights, lung_dir=tmp_path / "lungs")
    found = np.asarray(nib.load(tmp_path / "out/a_tissues.nii.gz").dataobj)
    assert np.array_equal(found > 0, mask)
    assert "The lung is the mask that was given" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("name", "holds no mask of a; it is named a.nii.gz or a_lung.nii.gz"),
        ("grid", r"a.nii.gz has shape \(95, 80, 10\), but .* has \(96, 80, 10\)"),
        ("place", "has another affine than"),
        ("empty", "a.nii.gz is empty: nothing in it lies above 0"),
    ],
)
def test_a_lung_mask_that_does_not_fit_is_refused(tmp_path, weights, damage, told):
    save(chest(lungs()), tmp_path / "ct/a.nii.gz")
    mask, affine = lungs() * (damage != "empty"), AFFINE.copy()
    affine[0, 3] += damage == "place"
    mask = mask[1:] if damage == "grid" else mask
    save(mask, tmp_path / "lungs" / ("b.nii.gz" if damage == "name" else "a.nii.gz"), affine)
    with pytest.raises(InputError, match=told):
        segment(tmp_path / "ct", output=tmp_path / "out", weights=weights, lung_dir=tmp_path / "lungs")
    assert not (tmp_path / "out").exists()


def test_paths_that_hold_no_ct_or_two_of_a_name_are_refused(tmp_path, weights):
    ct = save(chest(lungs()), tmp_path / "a.nii.gz")
    twin = save(chest(lungs()), tmp_path / "more/a.nii")
    (tmp_path / "scan.dcm").write_text("")
    (tmp_path / "empty").mkdir()
    for paths, told in (
        ((tmp_path / "b.nii.gz",), "b.nii.gz does not exist"),
        ((tmp_path / "scan.dcm",), "scan.dcm is no .nii or .nii.gz file; of a DICOM series name the folder"),
        ((tmp_path / "empty",), "empty holds no .nii or .nii.gz file and no folder with a DICOM series"),
        ((ct, twin), "a.nii.gz and .*more/a.nii are both called a; rename one"),
        ((save(lungs(), tmp_path / "map.nii.gz"),), "map.nii.gz ranges from 0 to 1, which cannot be HU"),
    ):
        with pytest.raises(InputError, match=told):
            segment(*paths, output=tmp_path / "out", weights=weights)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("without_ink")
def test_bad_cts_do_not_cost_the_others_and_are_told(tmp_path, weights, by_hu, capsys):
    good = save(chest(lungs()), tmp_path / "a.nii.gz")
    for name, size in (("b", 500), ("c", -4)):
        (tmp_path / f"{name}.nii.gz").write_bytes(good.read_bytes()[:size])
    save(chest(lungs()) + 1024, tmp_path / "d.nii.gz")
    save(chest(lungs()), tmp_path / "e.NII.GZ")
    (tmp_path / "f.mha").write_bytes(b"ObjectType = Image")
    assert cli.main(["segment", str(tmp_path), "--output", str(tmp_path / "out"), "--weights", str(weights)]) == 1
    told = capsys.readouterr()
    assert told.out.splitlines()[-1] == "labelled 2, failed 3, passed over 1: f.mha (needs the package itk)"
    lines = told.err.strip().splitlines()
    assert lines[-4] == "segment: 3 of 5 cases could not be labelled:"
    for line, name in zip(lines[-3:], "bcd"):
        assert f"{tmp_path}/{name}.nii.gz" in line
    written = {path.name for path in (tmp_path / "out").glob("*.nii.gz")}
    assert written == {"a_tissues.nii.gz", "e_tissues.nii.gz"}
    assert "d could not be labelled" in (tmp_path / "out/segmentation.html").read_text(encoding="utf-8")
    with open(tmp_path / "out/quantification.csv", encoding="utf-8") as stream:
        assert {row["case"] for row in csv.DictReader(stream)} == {"a", "e"}


def test_bad_cts_alone_leave_nothing(tmp_path, weights):
    bad = save(chest(lungs()), tmp_path / "b.nii.gz")
    bad.write_bytes(bad.read_bytes()[:500])
    with pytest.raises(InputError, match="b.nii.gz cannot be read as NIfTI"):
        segment(bad, output=tmp_path / "out", weights=weights)
    assert not (tmp_path / "out").exists()


def test_a_ct_without_lung_is_refused(tmp_path, weights, by_hu):
    ct = save(air(), tmp_path / "air.nii.gz")
    with pytest.raises(InputError, match=r"no lung was found in .*air.nii.gz; is it a chest CT in HU\? .*--lung_dir"):
        segment(ct, output=tmp_path / "out", weights=weights)


def test_weights_of_another_number_of_labels_or_none_are_refused(tmp_path, weights):
    ct = save(chest(lungs()), tmp_path / "a.nii.gz")
    import torch

    state = torch.load(weights, weights_only=True)
    last = [name for name, value in state.items() if value.ndim == 1][-1]
    (tmp_path / "w").mkdir()
    (tmp_path / "w/card.json").write_text('{"trained_on": "nothing"}')
    torch.save(state | {last: state[last][:4]}, tmp_path / "w/model.pt")
    with pytest.raises(InputError, match="w/model.pt tells 4 labels apart, but the bundles' scheme has 6"):
        segment(ct, output=tmp_path / "out", weights=tmp_path / "w/model.pt")
    (tmp_path / "w/model.pt").write_bytes(b"weights")
    with pytest.raises(InputError, match="w/model.pt cannot be read as weights"):
        segment(ct, output=tmp_path / "out", weights=tmp_path / "w/model.pt")


def test_dicom_seg_is_refused_without_highdicom_or_dicom(tmp_path, weights, monkeypatch):
    ct = save(chest(lungs()), tmp_path / "a.nii.gz")

    class Module:
        check_repeated = staticmethod(lambda header, path: (_ for _ in ()).throw(ValueError(f"{path} lacks StudyID")))

    def missing(name):
        raise ModuleNotFoundError("No module named 'highdicom'", name="highdicom")

    with monkeypatch.context() as patch:
        patch.setattr(dicom_output.importlib, "import_module", missing)
        with pytest.raises(InputError, match="--dicom_seg needs highdicom, which is not installed: pip install highdi"):
            segment(ct, output=tmp_path / "out", weights=weights, dicom_seg=True)
    monkeypatch.setattr(dicom_output, "writer", lambda: Module)
    with pytest.raises(InputError, match="--dicom_seg needs DICOM series, but .*a.nii.gz is a NIfTI file"):
        segment(ct, output=tmp_path / "out", weights=weights, dicom_seg=True)
    series = write_series(tmp_path / "series", chest(lungs()), AFFINE)
    with pytest.raises(InputError, match="IM0000 lacks StudyID"):
        segment(series, output=tmp_path / "out", weights=weights, dicom_seg=True)


@pytest.mark.parametrize("backwards", [False, True])
def test_dicom_seg_holds_the_map_where_the_patient_lies(tmp_path, weights, by_hu, backwards):
    highdicom = pytest.importorskip("highdicom")
    series = write_series(tmp_path / "series", chest(ill()), AFFINE, backwards)
    segment(series, output=tmp_path / "out", weights=weights, dicom_seg=True)
    seg = highdicom.seg.segread(tmp_path / "out/series_tissues.dcm")
    volume = seg.get_volume(combine_segments=True)
    file = nib.load(tmp_path / "out/series_tissues.nii.gz")
    map_ = np.asarray(file.dataobj)
    assert (map_ == GLASS).sum() > 1000
    points = nib.affines.apply_affine(np.diag([-1, -1, 1, 1]) @ file.affine, np.argwhere(map_ > 0))
    places = nib.affines.apply_affine(np.linalg.inv(volume.affine), points).round().astype(int)
    assert np.array_equal(volume.array[tuple(places.T)], map_[map_ > 0])
    assert (volume.array > 0).sum() == (map_ > 0).sum()

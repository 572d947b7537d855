"""MONAI Deploy's App SDK labels a DICOM series as the plain bundle does; its DICOM SEG lies where the CT lies."""

import csv
import json

import nibabel as nib
import numpy as np
import pydicom
import pytest
from monai.transforms import LoadImage
from pydicom.uid import Comprehensive3DSRStorage, SegmentationStorage

from tests.dicom import write_series
from tests.integrations.consumers import python_of, run, run_workflow
from tools.quantify.quantify import quantify
from tools.serving.deploy import write_app
from tools.tissues import tissue_colours, tissue_labels

pytestmark = pytest.mark.deploy
LABELS = tissue_labels()
CODES = {
    "healthy": ("39607008", "SCT", "85756007"),
    "ground_glass": ("112120", "DCM", "49755003"),
    "fibrosis": ("112674009", "SCT", "49755003"),
    "emphysema": ("87433001", "SCT", "49755003"),
    "consolidation": ("95436008", "SCT", "49755003"),
}
REGION_CODES = [
    ("39607008",), ("39607008", "24028007"), ("39607008", "7771000"), ("281392002",), ("281393007",), ("281394001",),
    ("39607008", "26216008"), ("39607008", "14414005"),
]  # fmt: skip
# In the app's environment: the SEG as one label map with its affine to the patient (LPS), and the SR's measurements.
READER = """
import json, sys
import highdicom as hd, numpy as np
from highdicom.sr import CodedConcept
folder = sys.argv[1]
seg = hd.seg.segread(folder + "/tissues.dcm")
volume = seg.get_volume(combine_segments=True)
np.savez(folder + "/read.npz", tissues=volume.array, affine=volume.affine)
colours = [hd.color.CIELabColor.from_dicom_value(s.RecommendedDisplayCIELabValue).to_rgb(clip=True)
           for s in seg.SegmentSequence]
content = hd.sr.srread(folder + "/measurements.dcm").content
groups = content.get_volumetric_roi_measurement_groups() + content.get_image_measurement_groups()
read = {}
for group in groups:
    rows = read.setdefault(group.tracking_identifier, {"finding": group.finding_type.value, "measurements": []})
    segment = getattr(group, "referenced_segment", None)
    if segment:
        rows["segment"] = int(segment[0].referenced_segment_numbers[0])
    for measurement in group.get_measurements():
        site = measurement.finding_sites[0]
        place = [code.value for code in (site.value, site.laterality, site.topographical_modifier) if code]
        rows["measurements"].append([measurement.name.value, measurement.value, measurement.unit.value, place])
print(json.dumps({"colours": colours, "groups": read}))
"""
REFUSALS = """
import runpy, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
app = runpy.run_path(sys.argv[1] + "/__main__.py", run_name="app")
calls = [(app["find_series"], Path(folder)) for folder in sys.argv[2:]]
calls += [(app["describe"], {"background": 0, "nodule": 1}, "1"), (app["describe"], {"healthy": 1, "fibrosis": 3}, "1")]
for function, *given in calls:
    try:
        print("accepted", function(*given))
    except ValueError as error:
        print("refused", error)
"""


@pytest.fixture(scope="module")
def app(segmenter, tmp_path_factory):
    folder = tmp_path_factory.mktemp("deploy") / "app"
    write_app(segmenter, folder)
    return folder


def label(app, data, out, check=True):
    """Run the app from another folder, as its page says."""
    words = ["-i", data, "-o", out, "-m", app / "models"]
    return run(python_of("deploy"), app, *words, cwd=app.parent, check=check, OMP_NUM_THREADS="1")


def ct(cohort, turned=False):
    """HU and affine of a drawn patient as a scanner gives it, or turned, with pixels that are not square."""
    file = nib.load(cohort.parent / "images/phantom001.nii.gz")
    lps = nib.orientations.axcodes2ornt("LPS")
    file = file.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(file.affine), lps))
    sizes = nib.affines.voxel_sizes(file.affine)
    affine = nib.affines.from_matvec(np.diag([-1, -1, 1]) @ np.diag(sizes), [180, 170.5, -120])
    if turned:
        a, b = 0.15, 0.1
        about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
        about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
        affine[:3, :3] = about_z @ about_x @ affine[:3, :3] @ np.diag([1, 0.9, 1])
    return np.asarray(file.dataobj).astype(np.int16), affine


def at(tissues, affine, points):
    """Return which labels a map holds at points in mm, 0 outside; they must be centres of its voxels."""
    places = nib.affines.apply_affine(np.linalg.inv(affine), points)
    assert np.abs(places - places.round()).max() < 1e-3
    places = places.round().astype(int)
    inside = ((places >= 0) & (places < tissues.shape)).all(axis=1)
    values = np.zeros(len(points), int)
    values[inside] = tissues[tuple(places[inside].T)]
    return values


def centres(shape, affine):
    return nib.affines.apply_affine(affine, np.indices(shape).reshape(3, -1).T)


@pytest.mark.parametrize("turned", [False, True])
def test_a_series_gets_the_labels_of_the_plain_bundle_where_the_patient_lies(app, cohort, segmenter, tmp_path, turned):
    hu, affine = ct(cohort, turned)
    data, out, plain = tmp_path / "data", tmp_path / "out", tmp_path / "plain"
    series = write_series(data / "series", hu, affine, backwards=turned)
    label(app, data, out)
    assert sorted(path.name for path in out.iterdir()) == ["measurements.dcm", "quantification.csv", "tissues.dcm"]
    read = json.loads(run(python_of("deploy"), "-c", READER, out).stdout.splitlines()[-1])

    run_workflow(segmenter, ["inference.json"], dataset_dir=data, output_dir=plain)
    tissues = nib.load(plain / "series_tissues.nii.gz")
    expected, to_lps = np.asarray(tissues.dataobj), np.diag([-1, -1, 1, 1]) @ tissues.affine
    assert set(np.unique(expected)) >= {0, 1, 2, 3} and expected.shape == hu.shape
    with np.load(out / "read.npz") as seg:
        found, place = seg["tissues"].astype(int), seg["affine"]
    assert np.array_equal(at(found, place, centres(expected.shape, to_lps)), expected.ravel())
    assert np.array_equal(at(expected, to_lps, centres(found.shape, place)), found.ravel())

    seg, slice_ = pydicom.dcmread(out / "tissues.dcm"), pydicom.dcmread(series / "IM0000")
    assert seg.SOPClassUID == SegmentationStorage and seg.SeriesInstanceUID != slice_.SeriesInstanceUID
    for tag in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert seg[tag].value == slice_[tag].value
    assert "research use only" in seg.SeriesDescription
    check_segments(seg, read["colours"])

    (tmp_path / "images").mkdir()
    image = LoadImage(image_only=True)(series)
    nib.save(nib.Nifti1Image(image.numpy(), image.affine.numpy()), tmp_path / "images/series.nii.gz")
    quantify(tmp_path / "images", plain, tmp_path / "measured")
    rows = read_csv(out / "quantification.csv")
    assert {row.pop("case") for row in rows} == {slice_.SeriesInstanceUID}
    same = read_csv(tmp_path / "measured/quantification.csv")
    assert [row.pop("region") for row in same] == [row["region"] for row in rows]
    for row, other in zip(rows, same, strict=True):  # NIfTI keeps the voxel size as float32
        assert other.pop("case") == "series"
        assert {key: float(row[key]) for key in other} == pytest.approx(
            {key: float(other[key]) for key in other}, abs=2e-3
        )
    check_report(out, rows, read["groups"], set(np.unique(expected)))


def read_csv(path):
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def check_segments(seg, colours):
    """Every tissue is a segment with its name, codes and colour, in the order of the label values."""
    wanted = tissue_colours(LABELS)
    tissues = sorted(wanted, key=LABELS.get)
    assert [segment.SegmentNumber for segment in seg.SegmentSequence] == [LABELS[name] for name in tissues]
    for name, segment, colour in zip(tissues, seg.SegmentSequence, colours, strict=True):
        kind, category = segment.SegmentedPropertyTypeCodeSequence[0], segment.SegmentedPropertyCategoryCodeSequence[0]
        assert segment.SegmentLabel == name.replace("_", " ") and segment.SegmentAlgorithmType == "AUTOMATIC"
        assert (kind.CodeValue, kind.CodingSchemeDesignator, category.CodeValue) == CODES[name]
        assert segment.AnatomicRegionSequence[0].CodeValue == "39607008"
        assert ("SegmentedPropertyTypeModifierCodeSequence" in kind) == (name == "healthy")
        shade = [int(wanted[name][place : place + 2], 16) for place in (1, 3, 5)]
        assert np.abs(np.subtract(colour, shade)).max() <= 1


def check_report(out, rows, groups, present):
    """The SR names each tissue, its segment and, per region, the numbers of the table."""
    report = pydicom.dcmread(out / "measurements.dcm")
    assert report.SOPClassUID == Comprehensive3DSRStorage
    assert set(groups) == {"lung", *(name.replace("_", " ") for name in CODES)}
    for name, (code, *_) in CODES.items():
        group = groups[name.replace("_", " ")]
        assert group["finding"] == code
        assert group.get("segment") == (LABELS[name] if LABELS[name] in present else None)
        wanted = []
        for row, place in zip(rows, REGION_CODES, strict=True):
            wanted.append(["118565006", float(row[f"{name}_ml"]), "ml", list(place)])
            wanted.append(["tissue_percent", float(row[f"{name}_percent"]), "%", list(place)])
        assert group["measurements"] == wanted
    lung = [[name, unit] for name, _, unit, _ in groups["lung"]["measurements"][:3]]
    assert lung == [["118565006", "ml"], ["below_950_percent", "%"], ["112181", "[hnsf'U]"]]
    assert groups["lung"]["measurements"][0][1] == float(rows[0]["lung_ml"])


def test_a_ct_without_lung_gives_empty_results(app, tmp_path):
    hu = np.full((64, 64, 4), 40, np.int16)
    hu[:6] = -1000  # air beside the body
    write_series(tmp_path / "data", hu, np.diag([-2.0, -2, 5, 1]))
    label(app, tmp_path / "data", tmp_path / "out")
    assert not pydicom.dcmread(tmp_path / "out/tissues.dcm").pixel_array.any()
    rows = read_csv(tmp_path / "out/quantification.csv")
    assert [(row["region"], row["lung_ml"], row["healthy_ml"]) for row in rows] == [("whole", "0.0", "")]
    read = json.loads(run(python_of("deploy"), "-c", READER, tmp_path / "out").stdout.splitlines()[-1])
    assert read["groups"]["lung"]["measurements"] == [["118565006", 0.0, "ml", ["39607008"]]]


def test_what_dicom_seg_cannot_hold_is_refused_before_anything_runs(app, cohort, tmp_path):
    hu, affine = ct(cohort)
    tilted, sheared = affine.copy(), affine.copy()
    tilted[1, 2], sheared[1, 0] = 3, 1
    write_series(tmp_path / "tilted", hu, tilted)
    write_series(tmp_path / "sheared", hu, sheared)
    (write_series(tmp_path / "missing", hu, affine) / "IM0005").unlink()
    write_series(tmp_path / "mixed", hu, affine, changes=[(2, "SeriesInstanceUID", "1.2.3")])
    for name in ("one", "other"):
        write_series(tmp_path / "two" / name, hu, affine)
    (tmp_path / "empty").mkdir()
    write_series(tmp_path / "lacking", hu, affine, changes=[(0, "FrameOfReferenceUID", None)])
    slice_ = pydicom.dcmread(tmp_path / "lacking/IM0000")
    del slice_.FrameOfReferenceUID, slice_.PatientSex
    slice_.save_as(tmp_path / "lacking/IM0000")
    wanted = {
        "tilted": "the slices are shifted against each other (a tilted gantry)",
        "sheared": "rows and columns are not at right angles",
        "missing": "slices IM0004 and IM0006 lie",
        "mixed": "holds 2 series: chest (1 files), chest (11 files)",
        "two": f"holds 2 folders with DICOM files ({tmp_path}/two/one, {tmp_path}/two/other)",
        "empty": "holds 0 folders with DICOM files; the app labels one series",
        "lacking": "IM0000 lacks FrameOfReferenceUID, PatientSex, which a DICOM SEG repeats",
    }
    done = run(python_of("deploy"), "-c", REFUSALS, app, *(tmp_path / name for name in wanted))
    lines = [line for line in done.stdout.splitlines() if line.startswith(("refused", "accepted"))]
    of_labels = [
        "label nodule has no DICOM code; there are codes for healthy, ground_glass",
        "segments are numbered 1, 2, 3",
    ]
    for line, message in zip(lines, [*wanted.values(), *of_labels], strict=True):
        assert line.startswith("refused") and message in line
    done = label(app, tmp_path / "tilted", tmp_path / "out", check=False)
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1].endswith("resample them first")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_folder_without_a_model_is_refused(app, cohort, tmp_path):
    write_series(tmp_path / "data", *ct(cohort))
    (tmp_path / "models").mkdir()
    words = ["-i", tmp_path / "data", "-o", tmp_path / "out", "-m", tmp_path / "models"]
    done = run(python_of("deploy"), app, *words, cwd=tmp_path, check=False)
    assert done.returncode == 1 and f"{tmp_path}/models holds 0 TorchScript files (.ts), not one" in done.stderr

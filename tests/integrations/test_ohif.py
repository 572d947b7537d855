"""A hospital's loop: series to Orthanc, labelled by MONAI Label or MONAI Deploy, SEG to Orthanc, seen in OHIF."""

import os
import re
import shutil

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image

from tests.dicom import write_series
from tests.integrations.consumers import ROOT, python_of, run, run_workflow
from tests.integrations.hospital import MISSING, hospital
from tests.integrations.label_server import label_server
from tools.serving.deploy import write_app
from tools.tissues import tissue_colours, tissue_labels, words

pytestmark = [
    pytest.mark.ohif,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}; docs/serving.md says how"),
]
LABELS = tissue_labels()
COLOURS = {words(name): tuple(bytes.fromhex(colour[1:])) for name, colour in tissue_colours(LABELS).items()}
VALUES = {words(name): value for name, value in LABELS.items()}
SCRIPT = ROOT / "tools/serving/label_series.py"
DESCRIPTION = "Lung tissue, research use only"
# An outline is drawn in the segment's own colour; healthy is as grey as the CT.
NEAR, OUTLINE_PIXELS = 12, 8
STORE = """
import runpy, sys
from monailabel.client import MONAILabelClient
script, server, series, file = sys.argv[1:]
runpy.run_path(script)["store"](MONAILabelClient(server), series, file)
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    with hospital(tmp_path_factory.mktemp("hospital")) as running:
        yield running


@pytest.fixture(scope="module")
def label(segmenter, archive, tmp_path_factory):
    """MONAI Label on the archive, with dcmqi's program, by which it writes DICOM SEG."""
    programs = f"{python_of('label').parent}{os.pathsep}{os.environ['PATH']}"
    if not python_of("label").is_file() or not shutil.which("itkimage2segimage", path=programs):
        pytest.skip("MONAI Label or its dcmqi is not installed; make .venv-label/.ready installs them")
    folder = tmp_path_factory.mktemp("label")
    cache = {"MONAI_LABEL_DICOMWEB_CACHE_PATH": str(folder / "cache")}
    with label_server(segmenter, archive.dicomweb, folder, PATH=programs, **cache) as server:
        yield server


@pytest.fixture
def ct(cohort, archive, tmp_path):
    """The folder of a drawn patient's series, which lies in the archive."""
    file = nib.load(cohort.parent / "images/phantom001.nii.gz")
    affine = np.diag([-1, -1, 1, 1]) @ np.diag([*nib.affines.voxel_sizes(file.affine), 1])
    return send(archive, tmp_path / "images/series", np.asarray(file.dataobj).astype(np.int16)[::-1, ::-1], affine)


def send(archive, folder, hu, affine):
    write_series(folder, hu, affine)
    archive.store(*sorted(folder.iterdir()))
    return folder


def uids(folder):
    slice_ = pydicom.dcmread(folder / "IM0000", stop_before_pixels=True)
    return slice_.StudyInstanceUID, slice_.SeriesInstanceUID


def label_series(server, series, check=True):
    return run(python_of("label"), SCRIPT, server.url, series, check=check)


def labelled(segmenter, ct, folder):
    """Return what `monai.bundle run` makes of the series, shape (columns, rows, slices)."""
    run_workflow(segmenter, ["inference.json"], dataset_dir=ct.parent, output_dir=folder)
    return np.asarray(nib.load(folder / "series_tissues.nii.gz").dataobj)


def check_seg(archive, study, ct, expected, folder):
    """Check the study's one SEG in the archive: every voxel lies under its tissue's name. Return its description."""
    (series,) = archive.series(study, "SEG")
    (file,) = archive.fetch(study, series, folder).iterdir()
    seg, slices = pydicom.dcmread(file), [pydicom.dcmread(path) for path in sorted(ct.iterdir())]
    names = {segment.SegmentNumber: segment.SegmentLabel for segment in seg.SegmentSequence}
    assert set(names.values()) >= {name for name in VALUES if (expected == VALUES[name]).any()} - {"background"}
    heights = [float(slice_.ImagePositionPatient[2]) for slice_ in slices]
    found = np.zeros(expected.shape, np.uint8)
    for frame, place in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
        height = place.PlanePositionSequence[0].ImagePositionPatient[2]
        name = names[place.SegmentIdentificationSequence[0].ReferencedSegmentNumber]
        found[..., int(np.argmin(np.abs(np.subtract(heights, height))))][frame.T == 1] = VALUES[name]
    assert np.array_equal(found, expected)
    return seg.SeriesDescription, [names[number] for number in sorted(names)]


def check_page(archive, study, description, names, expected, folder):
    """Check what a reader sees: each segment's name and colour in the list, and its outline on the slice."""
    middle = max(range(expected.shape[2]), key=lambda place: len(np.unique(expected[..., place])))
    shown = archive.show(study, description, (middle + 1, expected.shape[2]), folder)
    assert shown["errors"] == []
    assert [segment["name"] for segment in shown["segments"]] == names
    for segment in shown["segments"]:
        colour = [int(part) for part in re.findall(r"\d+", segment["colour"])]
        assert np.abs(np.subtract(colour, COLOURS[segment["name"]])).max() <= 1
    picture = np.asarray(Image.open(shown["slice"]).convert("RGB")).astype(int)
    there = {name for name in COLOURS if (expected[..., middle] == VALUES[name]).sum() > 1} - {"healthy"}
    drawn = {name for name in COLOURS if count(picture, COLOURS[name]) >= OUTLINE_PIXELS} - {"healthy"}
    assert there and drawn == there


def count(picture, colour):
    return int((np.abs(picture - colour).max(axis=2) <= NEAR).sum())


def test_monai_label_stores_a_seg_that_ohif_shows(archive, label, segmenter, ct, tmp_path):
    study, series = uids(ct)
    expected = labelled(segmenter, ct, tmp_path / "plain")
    done = label_series(label, series)
    description, names = check_seg(archive, study, ct, expected, tmp_path / "seg")
    assert description == DESCRIPTION
    assert names == [name for name in COLOURS if (expected == VALUES[name]).any()]
    assert f"stored a DICOM SEG of {', '.join(names)}" in done.stdout
    check_page(archive, study, description, names, expected, tmp_path / "page")


def test_a_map_that_lacks_a_tissue_is_stored_under_the_right_names(archive, label, segmenter, ct, tmp_path):
    study, series = uids(ct)
    expected = labelled(segmenter, ct, tmp_path / "plain").copy()
    expected[expected == LABELS["ground_glass"]] = 0
    assert (expected > LABELS["ground_glass"]).any()
    affine = nib.load(tmp_path / "plain/series_tissues.nii.gz").affine
    nib.save(nib.Nifti1Image(expected, affine), tmp_path / "corrected.nii.gz")
    run(python_of("label"), "-c", STORE, SCRIPT, label.url, series, tmp_path / "corrected.nii.gz")
    check_seg(archive, study, ct, expected, tmp_path / "seg")


def test_a_ct_without_lung_stores_nothing(archive, label, tmp_path):
    hu = np.full((64, 64, 4), 40, np.int16)
    hu[:6] = -1000  # air beside the body
    study, series = uids(send(archive, tmp_path / "no_lung", hu, np.diag([-2.0, -2, 5, 1])))
    done = label_series(label, series, check=False)
    assert done.returncode == 1 and "no lung was found; nothing is stored" in done.stderr
    assert archive.series(study, "SEG") == []


@pytest.mark.skipif(not python_of("deploy").is_file(), reason="deploy is not installed; make .venv-deploy/.ready")
def test_monai_deploy_labels_a_fetched_series_and_ohif_shows_it(archive, segmenter, ct, tmp_path):
    study, series = uids(ct)
    fetched = archive.fetch(study, series, tmp_path / "fetched")
    app = tmp_path / "app"
    write_app(segmenter, app)
    words = ["-i", fetched, "-o", tmp_path / "out", "-m", app / "models"]
    run(python_of("deploy"), app, *words, cwd=tmp_path, OMP_NUM_THREADS="1")
    archive.store(*sorted((tmp_path / "out").glob("*.dcm")))
    assert len(archive.series(study, "SR")) == 1
    expected = labelled(segmenter, ct, tmp_path / "plain")
    description, names = check_seg(archive, study, ct, expected, tmp_path / "seg")
    assert description == f"{DESCRIPTION}: chest" and names == list(COLOURS)
    check_page(archive, study, description, names, expected, tmp_path / "page")

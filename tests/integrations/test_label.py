"""MONAI Label's own server with the unmodified bundle: what it answers over REST is what MONAI answers."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError

import nibabel as nib
import numpy as np
import pytest

from tests.integrations.consumers import python_of, run, run_workflow
from tests.integrations.label_server import MODEL, Server, label_server
from tools.tissues import tissue_labels

pytestmark = pytest.mark.label

TISSUES = {name: value for name, value in tissue_labels().items() if name != "background"}
TRAIN_SECONDS = 600
TURNED = [[1, -1], [2, 1], [0, -1]]  # where each axis of the file goes, and which are flipped
CLIENT = """
import json, sys
from monailabel.client import MONAILabelClient
url, folder, model, image = sys.argv[1:]
file, answer = MONAILabelClient(url, tmpdir=folder).infer(model, image, {"device": "cpu"})
print(json.dumps({"file": file, "label_names": answer["label_names"]}))
"""


@pytest.fixture(scope="module")
def studies(cohort, tmp_path_factory) -> Path:
    """The cohort with its labels as final ones; a CT with its axes turned, one wider than a window, one of no lung."""
    folder = tmp_path_factory.mktemp("studies")
    shutil.copytree(cohort.parent / "images", folder, dirs_exist_ok=True)
    shutil.copytree(cohort.parent / "labels", folder / "labels/final")
    ct = nib.load(folder / "phantom000.nii.gz")
    ct.as_reoriented(np.array(TURNED)).to_filename(folder / "turned.nii.gz")
    wide = nib.Nifti1Image(np.asarray(ct.dataobj)[..., 5:7], ct.affine @ np.diag([5, 5, 3, 1]))
    wide.to_filename(folder / "wide.nii.gz")
    no_lung = np.full((40, 40, 4), 40, np.int16)
    no_lung[:4] = -1000  # air beside the body
    nib.Nifti1Image(no_lung, np.eye(4)).to_filename(folder / "no_lung.nii.gz")
    return folder


@pytest.fixture(scope="module")
def python() -> Path:
    return python_of("label")


@pytest.fixture(scope="module")
def server(segmenter, studies, tmp_path_factory) -> Iterator[Server]:
    with label_server(segmenter, studies, tmp_path_factory.mktemp("label")) as running:
        yield running


@pytest.fixture(autouse=True)
def printed(server):
    """What the server printed during a test, for the report of one that fails."""
    before = server.log.stat().st_size
    yield
    print(server.log.read_text()[before:][-8000:])


@pytest.fixture(scope="module")
def expected(segmenter, studies, tmp_path_factory) -> Path:
    """What `monai.bundle run` makes of every image."""
    return labelled(segmenter, studies, tmp_path_factory.mktemp("expected"))


def labelled(bundle: Path, images: Path, folder: Path, **settings: object) -> Path:
    run_workflow(bundle, ["inference.json"], dataset_dir=images, output_dir=folder, **settings)
    return folder


OTHER_FORMATS = """
import sys
from pathlib import Path
import itk, nibabel, nrrd, numpy
ct, folder = nibabel.load(sys.argv[1]), Path(sys.argv[2])
image = itk.imread(sys.argv[1])
itk.imwrite(image, folder / "phantom000.mha")
itk.imwrite(image, folder / "phantom001.mhd")
to_lps = numpy.diag([-1, -1, 1, 1]) @ ct.affine
about = {"space": "left-posterior-superior", "space directions": to_lps[:3, :3].T, "space origin": to_lps[:3, 3]}
nrrd.write(str(folder / "phantom002.nrrd"), numpy.asarray(ct.dataobj), about)
"""


def assert_same(found: nib.Nifti1Image, case: str, images: Path, expected: Path) -> None:
    """Check every voxel, and that the labels lie where the image lies."""
    image, wanted = nib.load(images / f"{case}.nii.gz"), nib.load(expected / f"{case}_tissues.nii.gz")
    assert found.shape == image.shape
    assert np.allclose(found.affine, image.affine, atol=1e-3)
    assert np.array_equal(np.asarray(found.dataobj), np.asarray(wanted.dataobj))


def test_the_server_offers_the_tissues_and_the_options(server):
    info = json.loads(server.ask("/info/"))
    assert info["labels"] == list(TISSUES)
    model = info["models"][MODEL]
    assert (model["type"], model["labels"]) == ("segmentation", TISSUES)
    assert model["version"] == json.loads((server.bundle / "configs/metadata.json").read_text())["version"]
    options = {"sw_batch_size": 8, "overlap": 0.25, "mirror": False, "find_lung": True}
    assert model["config"].items() >= options.items()
    assert list(info["trainers"]) == [MODEL]


@pytest.mark.parametrize("case", ["phantom000", "turned"])
def test_labels_are_those_of_monai_in_any_orientation(server, expected, tmp_path, case):
    found = server.infer(case, tmp_path)
    assert_same(found, case, server.studies, expected)
    assert len(np.unique(found.dataobj)) >= 4


def test_other_formats_get_the_same_labels_where_their_readers_are(python, server, studies, expected, tmp_path):
    """MONAI Label's environment holds the packages itk and pynrrd; the CT lies oblique."""
    (tmp_path / "images").mkdir()
    ct, turn = nib.load(studies / "phantom000.nii.gz"), np.eye(4)
    turn[:2, :2] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
    oblique = nib.Nifti1Image(np.asarray(ct.dataobj), turn @ ct.affine)
    oblique.to_filename(tmp_path / "oblique.nii.gz")
    run(python, "-c", OTHER_FORMATS, tmp_path / "oblique.nii.gz", tmp_path / "images")
    flow = ["-m", "monai.bundle", "run", "inferring", "--bundle_root", server.bundle]
    flow += ["--config_file", server.bundle / "configs/inference.json", "--device", "cpu"]
    done = run(python, *flow, "--dataset_dir", tmp_path / "images", "--output_dir", tmp_path / "labels")
    assert done.stdout.splitlines()[-1] == "labelled 3"
    wanted = nib.load(expected / "phantom000_tissues.nii.gz")
    for number in range(3):
        found = nib.load(tmp_path / f"labels/phantom00{number}_tissues.nii.gz")
        assert np.allclose(found.affine, oblique.affine, atol=1e-3)
        assert np.mean(np.asarray(found.dataobj) != np.asarray(wanted.dataobj)) < 0.01


def test_the_client_gets_names_and_the_same_labels(python, server, expected, tmp_path):
    done = run(python, "-c", CLIENT, server.url, tmp_path, MODEL, "turned")
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["label_names"] == TISSUES
    assert_same(nib.load(answer["file"]), "turned", server.studies, expected)


@pytest.mark.parametrize(("name", "value"), [("overlap", 0.6), ("mirror", True), ("find_lung", False)])
def test_options_change_the_labels_as_they_do_in_monai(server, expected, tmp_path, name, value):
    (tmp_path / "images").mkdir()
    shutil.copy(server.studies / "wide.nii.gz", tmp_path / "images")
    settings = {f"displayable_configs::{name}": value}
    changed = labelled(server.bundle, tmp_path / "images", tmp_path / "changed", **settings)
    assert_same(server.infer("wide", tmp_path, **{name: value}), "wide", server.studies, changed)
    usual = server.infer("wide", tmp_path)
    assert_same(usual, "wide", server.studies, expected)  # an option holds for its own request
    assert (np.asarray(usual.dataobj) != nib.load(changed / "wide_tissues.nii.gz").dataobj).any()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"overlap": 1.5}, "overlap must be from 0 to below 1, not 1.5"),
        ({"mirror": "yes"}, "mirror must be True or False, not 'yes'"),
        ({"sw_batch_size": 0}, "sw_batch_size must be at least 1, not 0"),
    ],
)
def test_a_wrong_option_is_refused(server, tmp_path, settings, text):
    with pytest.raises(HTTPError, match="500"):
        server.infer("phantom000", tmp_path, **settings)
    server.find(text)


def test_a_ct_without_lung_gets_an_empty_map_and_a_warning(server, tmp_path):
    assert not np.asarray(server.infer("no_lung", tmp_path).dataobj).any()
    server.find("no lung was found")


def test_a_batch_labels_every_image(server, expected):
    settings = json.dumps({"device": "cpu", "multi_gpu": False, "label_tag": "original"}).encode()
    server.ask(f"/batch/infer/{MODEL}", settings, images="all", run_sync="true")
    written = server.studies / "labels/original"
    cases = sorted(path.name for path in server.studies.glob("*.nii.gz"))
    assert len(cases) == 11
    assert sorted(path.name for path in written.glob("*.nii.gz")) == cases
    for case in cases:
        assert_same(nib.load(written / case), case.removesuffix(".nii.gz"), server.studies, expected)


def test_training_changes_the_next_labels(server, expected, tmp_path):
    """The last test, since the server's weights are others after it."""
    weights = server.bundle / "models/model.pt"
    before = weights.read_bytes()
    settings = {"device": "cpu", "max_epochs": 1, "val_split": 0.34, "multi_gpu": False}
    server.ask(f"/train/{MODEL}", json.dumps(settings).encode())
    task = {"status": "SUBMITTED"}
    for _ in range(TRAIN_SECONDS):
        if task["status"] not in ("SUBMITTED", "RUNNING"):
            break
        time.sleep(1)
        task = json.loads(server.ask("/train/"))
    assert task["status"] == "DONE", task
    assert weights.read_bytes() != before
    assert (server.bundle / "eval/metrics.csv").is_file()  # the last epoch was validated
    changed = labelled(server.bundle, server.studies, tmp_path / "changed")
    found = server.infer("turned", tmp_path)
    assert_same(found, "turned", server.studies, changed)
    assert (np.asarray(found.dataobj) != nib.load(expected / "turned_tissues.nii.gz").dataobj).any()

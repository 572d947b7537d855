"""A series full of planted identifiers goes through the commands: none of them is in anything that they write."""

import json
import os
import shutil
import zipfile
import zlib

import numpy as np
import pydicom
import pytest

import tools.__main__ as cli
from tests.dicom import write_series
from tests.tools.fakes.chest import AFFINE, LABELS, chest, lungs, save, segmenter_weights, synthesizer_weights
from tools.attack.jobs import EPOCHS, SIZE, SMALL_SEGMENTER, SMALL_SYNTHESIZER, draw_cohort
from tools.bundles import BUNDLES
from tools.phantom.phantom import phantom
from tools.serving.archive import write_zip
from tools.workflows.run import read_bundle

PLANTED = {
    "PatientName": "Zyxwv^Planted", "PatientID": "PID-77123", "PatientBirthDate": "19611107", "StudyID": "STU-4711",
    "PatientAddress": "Plantstreet 7", "AccessionNumber": "ACC-90210", "InstitutionName": "Plantclinic",
    "ReferringPhysicianName": "Quxdoctor^P", "OperatorsName": "Quxoperator^P", "StudyDescription": "Plantstudy",
    "StudyDate": "20190204", "StudyTime": "081522", "DeviceSerialNumber": "SN-5150", "StationName": "PLANTSTATION",
    "PatientComments": "Plantcomment", "SeriesDescription": "Plantseries", "ImageComments": "Plantimage",
    "OtherPatientIDs": "OPID-1984", "ProtocolName": "Plantprotocol",
}  # fmt: skip


@pytest.fixture
def planted(tmp_path):
    """A series and its map in neutral folders, and every text that must not leave them."""
    changes = [("all", keyword, value) for keyword, value in PLANTED.items()]
    series = write_series(tmp_path / "in/images/case1", chest(lungs()), AFFINE, changes=changes)
    label = lungs()
    label[60:80, 30:50, 2:5] = LABELS["ground_glass"]
    save(label, tmp_path / "in/labels/case1.nii.gz")
    save(chest(lungs(), 1), tmp_path / "in/images/case2.nii.gz")
    save(lungs(), tmp_path / "in/labels/case2.nii.gz")
    header = pydicom.dcmread(series / "IM0000")
    texts = {part for value in PLANTED.values() for part in value.split("^") if len(part) > 1}
    texts |= {str(header.SeriesInstanceUID), str(header.StudyInstanceUID), str(header.FrameOfReferenceUID)}
    return texts | {str(tmp_path), os.environ.get("USER") or "nobody-of-this-name"}


def unpacked(content: bytes) -> bytes:
    """Return a file's bytes and those that are compressed in it by gzip, as in NIfTI, or deflate, as in PNG."""
    found = content
    for start, skipped in ((b"\x1f\x8b", 0), (b"IDAT", 4)):
        place = content.find(start)
        while place >= 0:
            stream = zlib.decompressobj(zlib.MAX_WBITS | 32)
            try:
                found += stream.decompress(content[place + skipped :])
            except zlib.error:
                pass
            place = content.find(start, place + 1)
    return found


def leaks(folder, texts) -> list[tuple[str, str]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [
        (str(path.relative_to(folder)), text)
        for path in files
        for text in texts
        if text.encode() in unpacked(path.read_bytes()) or text in str(path.relative_to(folder))
    ]


@pytest.mark.usefixtures("without_ink")
def test_no_identifier_or_path_is_in_any_output(tmp_path, planted, capsys, monkeypatch):
    inputs = tmp_path / "in"
    monkeypatch.chdir(tmp_path)
    weights, painter = segmenter_weights(tmp_path / "w"), synthesizer_weights(tmp_path / "s")
    ill = np.where(lungs() > 0, 1, 0)
    assert ill.any()
    runs = {
        "dataset": ["--images", "in/images", "--labels", "in/labels", "--folds", "2"],
        "segment": ["in/images/case1", "--weights", str(weights)],
        "quantify": ["--images", "in/images", "--tissues", "in/labels"],
        "paint": ["in/images/case1", "--labels", "in/labels/case1.nii.gz", "--tissue", "ground_glass", "--volume_ml",
                  "5", "--steps", "1", "--weights", str(painter)],
    }  # fmt: skip
    for command, words in runs.items():
        assert cli.main([command, *words, "--output", f"out/{command}"]) == 0, capsys.readouterr().err
    assert leaks(inputs, planted)  # the test finds what is there
    assert leaks(tmp_path / "out", planted) == []
    said = capsys.readouterr()
    assert [text for text in planted - {str(tmp_path)} if text in said.out + said.err] == []
    assert "case1" in json.dumps(json.loads((tmp_path / "out/dataset/datalist.json").read_text(encoding="utf-8")))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bundle", "settings"), [("lung_tissue_seg", SMALL_SEGMENTER), ("difflung_synthesis", SMALL_SYNTHESIZER)]
)
def test_no_identifier_or_path_is_in_what_a_training_and_its_zip_hold(tmp_path, planted, monkeypatch, bundle, settings):
    """Checkpoints, tables and the zip that ``package`` makes of them; logs name files, and are no part of it."""
    monkeypatch.chdir(tmp_path)
    words = ["--images", "in/images", "--labels", "in/labels", "--folds", "2", "--output", "data"]
    assert cli.main(["dataset", *words]) == 0
    parser = read_bundle(bundle, "train.json")
    root = tmp_path / "made" / bundle
    shutil.copytree(BUNDLES / bundle, root, ignore=shutil.ignore_patterns("models", "__pycache__"))
    places = {
        "dataset_dir": str(tmp_path / "data"),
        "model_dir": str(root / "models"),
        "output_dir": str(tmp_path / "e"),
    }
    steps = {"max_epochs": 1, "epoch_length": 2, "val_interval": 1, "num_workers": 0, "progress_bar": False}
    for key, value in (places | settings | steps).items():
        parser[key] = value
    parser.get_parsed_content("initialize")
    parser.get_parsed_content("train::trainer").run()
    assert {"model.pt", "training.pt"} <= {path.name for path in (root / "models").iterdir()}
    write_zip(root, tmp_path / "zip/bundle.zip")
    with zipfile.ZipFile(tmp_path / "zip/bundle.zip") as stream:
        stream.extractall(tmp_path / "zip/unpacked")
    for folder in (root / "models", tmp_path / "e", tmp_path / "zip"):
        assert leaks(folder, planted) == [], folder


@pytest.mark.slow
def test_no_path_is_in_what_a_comparison_and_its_report_hold(tmp_path):
    """Logs name files, and are not to be passed on."""
    datalist, hosts, output = draw_cohort(tmp_path / "cohort"), tmp_path / "hosts", tmp_path / "compared"
    phantom(tmp_path / "normal", patients=2, size=SIZE, seed=5, name="normal")
    shutil.copytree(tmp_path / "normal/images", hosts)
    few = {"folds": 0, "seeds": 0, "iterations": 3, "steps": 1, "max_cases": 1, "fractions": 0.7}
    few |= {
        "arms": "real,cbmat_filter",
        "overrides": SMALL_SEGMENTER,
        "synthesis_overrides": SMALL_SYNTHESIZER | EPOCHS,
    }
    words = [str(word) for name, value in few.items() for word in (f"--{name}", value)]
    assert (
        cli.main(["compare", "--datalist", str(datalist), "--output", str(output), "--hosts", str(hosts), *words]) == 0
    )
    assert cli.main(["report", "--directory", str(output)]) == 0
    assert (output / "report.html").is_file()
    found = leaks(output, {str(tmp_path), str(BUNDLES.parent)})
    assert [(file, text) for file, text in found if not file.endswith(".log")] == []

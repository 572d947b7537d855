"""What the dataset command says of bad data: the file and the value, and everything is left as it was."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.tools.fakes.cases import AFFINE, LABELS, SHAPE, Data, ct, save, tissue_map
from tools.io.files import InputError, new_directory
from tools.io.volume import load_labels


@pytest.fixture
def data(tmp_path: Path) -> Data:
    return Data(tmp_path)


# What it writes


def test_missing_and_empty_folders_are_refused_together(data):
    (data.root / "empty").mkdir()
    message = data.refusal(images=data.root / "nowhere", labels=data.root / "empty")
    assert f"{data.root}/nowhere does not exist" in message
    assert f"{data.root}/empty holds no .nii or .nii.gz file" in message
    assert data.refusal(images=data.image(0)) == f"{data.image(0)} is not a folder"


def test_image_without_label_and_label_without_image_are_refused(data):
    data.label(1).unlink()
    data.image(4).unlink()
    message = data.refusal(patients=data.csv())
    assert message.splitlines() == [
        "2 problems",
        f"  {data.image(1)} has no label {data.labels}/case1.nii.gz",
        f"  {data.label(4)} has no image {data.images}/case4.nii.gz",
    ]


def test_one_case_as_nii_and_as_nii_gz_is_refused(data):
    save(ct(0), data.images / "case0.nii")
    held = "holds both case0.nii and case0.nii.gz, which are one case, case0; remove one"
    assert data.refusal() == f"{data.images} {held}"


def test_differing_shape_is_refused(data):
    save(tissue_map()[..., :2], data.label(3))
    assert (
        data.refusal()
        == f"{data.label(3)} has shape (7, 6, 2), but {data.image(3)} has (7, 6, 3); resample it to the CT"
    )


def test_differing_affine_is_refused(data):
    shifted = AFFINE.copy()
    shifted[0, 3] += 2.5
    save(tissue_map(), data.label(3), shifted)
    message = data.refusal()
    assert f"{data.label(3)} has another affine than {data.image(3)}" in message and "2.5 mm" in message


def test_rounding_is_no_fault(data):
    """Voxels of another size by 3e-5, and labels of 2.9999998, are what other programs write."""
    save(tissue_map("fibrosis").astype(np.float32) * np.float32(0.99999994), data.label(3), AFFINE * (1 + 3e-5))
    assert data.run()["numTraining"] == 6


@pytest.mark.parametrize("turn", [[[1, 1], [0, 1], [2, 1]], [[0, -1], [1, 1], [2, -1]]])
def test_a_map_in_another_order_of_axes_is_written_in_its_cts(data, turn):
    image = nib.Nifti1Image(tissue_map("fibrosis", "emphysema"), AFFINE)
    wanted = np.asarray(image.dataobj).copy()
    nib.save(image.as_reoriented(np.array(turn)), data.label(3))
    items = data.run()["training"]
    assert [item["label"].startswith("labels/") for item in items] == [False, False, False, True, False, False]
    written = nib.load(data.output / items[3]["label"])
    np.testing.assert_array_equal(written.dataobj, wanted)
    np.testing.assert_allclose(written.affine, AFFINE, atol=1e-5)


def test_a_pair_whose_endings_are_in_capitals_counts(data):
    data.image(3).rename(data.images / "case3.NII.GZ")
    data.label(3).rename(data.labels / "case3.NII.gz")
    assert data.run()["numTraining"] == 6


def test_what_is_passed_over_is_said(data, capsys):
    (data.images / "case9.mgz").write_bytes(b"a volume of another program")
    (data.labels / "case9.mgz").write_bytes(b"its map")
    (data.images / "patient.zip").write_bytes(b"PK")
    assert data.run()["numTraining"] == 6
    told = capsys.readouterr().err
    assert (
        "passed over 2 of images: case9.mgz (neither a volume nor DICOM); patient.zip (an archive; unpack it)" in told
    )
    assert "passed over 1 of labels: case9.mgz (neither a volume nor DICOM)" in told


def test_unnamed_labels_are_refused(data):
    bad = tissue_map()
    bad[0, 0, 0], bad[0, 0, 1] = 7, 255
    save(bad, data.label(3))
    message = data.refusal()
    assert message.startswith(f"{data.label(3)} holds labels 7, 255, but labels name only background=0, healthy=1")


def test_fractional_labels_are_refused(data):
    bad = tissue_map().astype(np.float32)
    bad[0, 0, 0] = 1.5
    save(bad, data.label(3))
    assert data.refusal() == f"{data.label(3)} holds label 1.5, but labels must be integers; resample it by nearest"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinite_voxels_are_refused(data, value):
    bad = ct(0).astype(np.float32)
    bad[0, 0, :2] = value
    save(bad, data.image(3))
    assert data.refusal() == f"{data.image(3)} holds 2 NaN or infinite voxels; replace them, by -1024 outside the scan"


@pytest.mark.parametrize(
    ("lowest", "highest", "dtype"), [(0, 255, np.uint8), (-1, 1, np.float32), (0, 1, np.float32), (0, 4095, np.int16)]
)
def test_image_that_cannot_be_hu_is_refused(data, lowest, highest, dtype):
    save(np.linspace(lowest, highest, ct(0).size).reshape(SHAPE).astype(dtype), data.image(3))
    message = data.refusal()
    assert message.startswith(f"{data.image(3)} ranges from {lowest} to {highest}, which cannot be HU (air is -1000)")


@pytest.mark.parametrize(
    ("shape", "hint"),
    [
        ((7, 6), "save the slice with shape (7, 6, 1)"),
        ((7, 6, 3, 1), "remove the last axis, which has length 1, with nibabel.squeeze_image"),
        ((7, 6, 3, 2), "save each volume as a case of its own"),
    ],
)
def test_image_that_is_not_3d_is_refused_with_advice(data, shape, hint):
    save(ct(0, shape), data.image(3))
    message = data.refusal()
    assert message.startswith(f"{data.image(3)} is {len(shape)}D with shape {shape}") and message.endswith(hint)


def test_truncated_files_are_refused(data):
    for path, size in ((data.image(3), 150), (data.label(5), 40)):
        path.write_bytes(path.read_bytes()[:size])
    message = data.refusal()
    assert f"{data.image(3)} cannot be read as NIfTI, it may be truncated" in message
    assert f"{data.label(5)} cannot be read as NIfTI, it may be truncated" in message


def test_problems_of_all_files_are_reported_together_up_to_twenty(data):
    for number in range(6, 40):
        save(np.full(SHAPE, 9, np.uint8), data.label(number))
        save(ct(number), data.image(number))
    save(ct(0).astype(np.uint8), data.image(0))
    lines = data.refusal().splitlines()
    assert len(lines) == 22
    assert (lines[0], lines[-1]) == ("35 problems", "  ... and 15 more")
    assert "case0.nii.gz" in lines[1] and "cannot be HU" in lines[1]
    assert "case10.nii.gz" in lines[2] and "label 9" in lines[2]


def test_same_voxels_under_two_patients_are_refused(data):
    shutil.copy(data.image(0), data.image(5))
    assert data.refusal(patients=data.csv()).startswith(
        f"{data.image(5)} has the same voxels as case0.nii.gz, but belongs to patient p5 instead of p0"
    )
    rows = [f"case{number},p{number % 5}" for number in range(6)]
    assert data.run(patients=data.csv("case,patient", *rows))["numTraining"] == 6


def test_patient_in_two_folds_is_refused(data):
    rows = [f"case{number},p{number % 3},{number % 2}" for number in range(6)]
    message = data.refusal(patients=data.csv("case,patient,fold", *rows))
    csv = data.root / "patients.csv"
    assert f"{csv} puts patient p1 in fold 1 (case case1) and in fold 0 (case case4); the folds would leak" in message


@pytest.mark.parametrize(
    ("numbers", "told"),
    [("000000", "names fold 0;"), ("022020", "names fold 0, 2;"), ("01x010", "line 4 has fold 'x'")],
)
def test_incomplete_folds_are_refused(data, numbers, told):
    rows = [f"case{number},p{number},{fold}" for number, fold in enumerate(numbers)]
    assert told in data.refusal(patients=data.csv("case,patient,fold", *rows))


def test_csv_that_does_not_match_the_files_is_refused(data):
    message = data.refusal(patients=data.csv(cases=range(1, 7)))
    assert f"{data.root}/patients.csv does not list case case0" in message
    assert f"{data.root}/patients.csv lists case case6, which has no image and no label" in message


@pytest.mark.parametrize(
    ("header", "row", "told"),
    [
        ("name,patient", "case0,p0", "has no column case; its columns are name, patient"),
        ("case,patient,age", "case0,p0,old", "line 2 has age 'old'; expected a number from 0 up"),
        ("case,patient,age", "case0,p0,-999", "line 2 has age '-999'"),
        ("case,patient,history", "case0,p0,$run", "line 2 has history '$run', which MONAI would run; write a word"),
        ("case,patient,severity", "case0,p0,nan", "line 2 has severity 'nan'"),
        ("case,patient", "case0,", "line 2 has no case or no patient"),
        ("case,patient", "case1,p0", "line 4 names case case1 again"),
    ],
)
def test_damaged_csv_is_refused(data, header, row, told):
    columns = header.count(",") - 1
    rows = [f"case{number},p{number}{',' * columns}" for number in range(1, 6)]
    rows.insert(0, row)
    if told.startswith("line 4"):
        rows.insert(1, "case0,p0")
    message = data.refusal(patients=data.csv(header, *rows))
    assert f"{data.root}/patients.csv {told}" in message


def test_missing_csv_file_and_missing_label_map_are_refused(data):
    assert f"patients {data.root}/no.csv cannot be read" in data.refusal(patients=data.root / "no.csv")
    assert data.refusal(label_map=data.root / "no.json") == f"{data.root}/no.json does not exist"


@pytest.mark.parametrize(
    ("mapping", "told"),
    [
        ({1: "ggo"}, "label_map maps 1 to 'ggo', but the tissues are background, healthy, ground_glass"),
        ({"one": "healthy"}, "label_map maps 'one', but label values are integers"),
        ({}, "label_map must look like {1: ground_glass, 3: consolidation}, not {}"),
    ],
)
def test_wrong_label_map_is_refused(data, mapping, told):
    assert told in data.refusal(label_map=mapping)


def test_unlabelled_voxels_are_kept_apart_and_said(data, capsys):
    names = {0: "unlabelled"} | {value: name for name, value in LABELS.items() if value}
    items = data.run(label_map=names)["training"]
    mapped = np.asarray(nib.load(data.output / items[0]["label"]).dataobj)
    original = np.asarray(nib.load(data.label(0)).dataobj)
    np.testing.assert_array_equal(mapped, np.where(original == 0, 255, original))
    assert "voxels are unlabelled in case0, case1" in capsys.readouterr().err
    card = json.loads((data.output / "data_card.json").read_text())
    assert card["tissues"]["healthy"]["voxels"] == 6 * np.count_nonzero(original == LABELS["healthy"])
    with pytest.raises(InputError, match="unlabelled, from which only the segmenter's bundle can learn"):
        load_labels(data.output / items[0]["label"], LABELS)


def test_value_that_the_label_map_does_not_name_is_refused(data):
    message = data.refusal(label_map={1: "healthy", 2: "ground_glass", 3: "fibrosis", 4: "emphysema"})
    assert message.splitlines()[1] == (
        f"  {data.label(0)} holds label 5, but label_map names only "
        "0=background, 1=healthy, 2=ground_glass, 3=fibrosis, 4=emphysema"
    )


def test_more_folds_than_patients_is_refused(data):
    rows = [f"case{number},p{number % 2}" for number in range(6)]
    message = data.refusal(patients=data.csv("case,patient", *rows))
    assert message == "folds is 3, but there are only 2 patients; a patient cannot be divided"


@pytest.mark.parametrize("folds", [1, 0, 2.5])
def test_fewer_than_two_folds_is_refused(data, folds):
    assert data.refusal(folds=folds) == f"folds is {folds}, but cross-validation needs at least 2"


def test_negative_seed_is_refused(data):
    assert data.refusal(seed=-1) == "seed is -1, but must be a whole number from 0 up"


def test_output_that_holds_something_is_refused_and_kept(data):
    data.run()
    assert data.refusal() == f"output {data.output} is not empty; remove it or name another folder"


@pytest.mark.parametrize("place", ["images/case0.nii.gz/out", "/proc/nowhere/out"])
def test_unwritable_output_is_refused(data, place):
    output = data.root / place
    assert f"output {output} cannot be written" in data.refusal(output=output)


def test_output_that_is_a_file_is_refused(data):
    assert f"output {data.image(0)} is a file" in data.refusal(output=data.image(0))


def test_new_directory_removes_the_parents_it_made(tmp_path):
    with pytest.raises(ZeroDivisionError), new_directory(tmp_path / "a/b/c") as folder:
        (folder / "file").touch()
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []

"""The dataset command: what it writes for good data, and what it says about bad data without writing anything."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.auto3dseg.utils import datafold_read
from monai.data import load_decathlon_datalist

from tools.data_card import QUANTILES, TissueStatistics
from tools.dataset import dataset
from tools.files import InputError, new_directory
from tools.folds import assign_folds, scarce_tissues
from tools.nifti import load_labels, relative
from tools.scheme import tissue_labels

LABELS = tissue_labels()
SHAPE = (7, 6, 3)
AFFINE = np.array([[-0.8, 0.1, 0, 30], [0.1, 0.7, 0, -20], [0, 0, 2.5, 5], [0, 0, 0, 1]], float)


def save(array: np.ndarray, path: Path, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def ct(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, -600, shape).astype(np.int16)


def tissue_map(*names: str) -> np.ndarray:
    values = np.array([LABELS[name] for name in ("background", "healthy", *names)], np.uint8)
    return np.resize(values, SHAPE)


class Data:
    """Six good cases in folders that tests damage."""

    def __init__(self, root: Path) -> None:
        self.root, self.images, self.labels, self.output = root, root / "images", root / "labels", root / "out"
        for number in range(6):
            save(ct(number), self.image(number))
            save(tissue_map("ground_glass", "fibrosis", "emphysema", "consolidation"), self.label(number))

    def image(self, number: int) -> Path:
        return self.images / f"case{number}.nii.gz"

    def label(self, number: int) -> Path:
        return self.labels / f"case{number}.nii.gz"

    def csv(self, *lines: str, cases: range = range(6)) -> Path:
        path = self.root / "patients.csv"
        path.write_text("\n".join(lines or ["case,patient", *(f"case{number},p{number}" for number in cases)]) + "\n")
        return path

    def run(self, **flags) -> dict:
        """Run the command and return the datalist."""
        given = {"images": self.images, "labels": self.labels, "output": self.output, "folds": 3} | flags
        dataset(**given)
        return json.loads((Path(given["output"]) / "datalist.json").read_text())

    def card(self) -> dict:
        return json.loads((self.output / "data_card.json").read_text())

    def files(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in self.root.rglob("*") if path.is_file()}

    def refusal(self, **flags) -> str:
        """Return the message of a run that must fail; nothing may be written, changed or lost."""
        before, folders = self.files(), {path for path in self.root.rglob("*") if path.is_dir()}
        with pytest.raises(InputError) as caught:
            self.run(**flags)
        assert self.files() == before
        assert {path for path in self.root.rglob("*") if path.is_dir()} == folders
        return str(caught.value)


@pytest.fixture
def data(tmp_path: Path) -> Data:
    return Data(tmp_path)


# What it writes


def test_datalist_is_read_by_monai_from_any_working_directory(data, monkeypatch, tmp_path):
    datalist = data.run(patients=data.csv())
    assert datalist["numTraining"] == len(datalist["training"]) == 6
    assert (datalist["modality"], datalist["labels"]) == ("CT", LABELS)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    for item in load_decathlon_datalist(data.output / "datalist.json"):
        assert nib.load(item["image"]).shape == nib.load(item["label"]).shape == SHAPE
    folds = [datafold_read(str(data.output / "datalist.json"), str(data.output), fold) for fold in range(3)]
    assert [len(validation) for _, validation in folds] == [2, 2, 2]
    for training, validation in folds:
        assert not {item["patient"] for item in training} & {item["patient"] for item in validation}
        assert all(Path(item[key]).is_file() for item in training + validation for key in ("image", "label"))


def test_project_folder_can_be_moved_as_a_whole(tmp_path):
    data = Data(tmp_path / "project")
    data.run()
    (tmp_path / "project").rename(tmp_path / "moved")
    items = load_decathlon_datalist(tmp_path / "moved/out/datalist.json")
    assert all(Path(item["image"]).is_file() for item in items)


def test_relative_paths_survive_a_linked_output_folder(data, tmp_path):
    (tmp_path / "disk/deep/deeper").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk/deep/deeper")
    data.run(output=tmp_path / "link/out")
    items = load_decathlon_datalist(tmp_path / "disk/deep/deeper/out/datalist.json")
    assert len(items) == 6 and all(Path(item["image"]).is_file() for item in items)
    assert (tmp_path / "link" / relative(data.image(0), tmp_path / "link")).is_file()


def test_patients_stay_whole_and_keep_their_attributes(data):
    rows = ["case0.nii.gz,a,63,0.5,smoker", "case1,a,64,,", "case2,b,,,", "case3,b,,,", "case4,c,,0.25,", "case5,c,,,"]
    items = data.run(patients=data.csv("case,patient,age,severity,history", *rows))["training"]
    fold_of = {}
    for item in items:
        assert fold_of.setdefault(item["patient"], item["fold"]) == item["fold"]
    assert sorted(fold_of.values()) == [0, 1, 2]
    attributes = [{key: item[key] for key in ("age", "severity", "history") if key in item} for item in items]
    assert attributes[:3] == [{"age": 63, "severity": 0.5, "history": "smoker"}, {"age": 64}, {}]
    assert attributes[4] == {"severity": 0.25}


def test_excel_csv_with_semicolons_byte_order_mark_and_quoted_line_break_is_read(data):
    rows = [f'case{number};p{number};"first\nsecond; third"' for number in range(6)]
    path = data.root / "patients.csv"
    path.write_text("\r\n".join(["case;patient;history", *rows]), encoding="utf-8-sig", newline="")
    items = data.run(patients=path)["training"]
    assert [item["patient"] for item in items] == [f"p{number}" for number in range(6)]
    assert items[0]["history"] == "first\nsecond; third"


def test_given_folds_are_used(data):
    given = [1, 0, 1, 0, 0, 0]
    rows = [f"case{number},p{number},{fold}" for number, fold in enumerate(given)]
    items = data.run(patients=data.csv("case,patient,fold", *rows), folds=5)["training"]
    assert [item["fold"] for item in items] == given
    assert [fold["patients"] for fold in data.card()["folds"]] == [4, 2]


def test_label_map_writes_named_values_and_leaves_the_originals(data, capsys):
    foreign = tissue_map("ground_glass").astype(np.int32)
    foreign[foreign == LABELS["ground_glass"]] = 70000
    for number in range(6):
        save(foreign, data.label(number))
    before = data.label(0).read_bytes()
    mapping = data.root / "map.json"
    mapping.write_text('{"1": "healthy", "70000": "consolidation"}')
    items = data.run(label_map=mapping)["training"]
    assert items[0]["label"] == "labels/case0.nii.gz"
    written = nib.load(data.output / items[0]["label"])
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(written.affine, nib.load(data.image(0)).affine)
    expected = np.where(foreign == 70000, LABELS["consolidation"], foreign)
    np.testing.assert_array_equal(np.asarray(written.dataobj), expected)
    assert data.label(0).read_bytes() == before
    other = data.run(label_map={1: "healthy", 70000: "consolidation"}, output=data.root / "other")["training"]
    assert [item["fold"] for item in other] == [item["fold"] for item in items]


def test_card_counts_voxels_volumes_quantiles_and_low_attenuation(data):
    data.run(patients=data.csv())
    card = data.card()
    images = np.stack([np.asarray(nib.load(data.image(number)).dataobj) for number in range(6)])
    maps = np.stack([np.asarray(nib.load(data.label(number)).dataobj) for number in range(6)])
    voxel_ml = 0.8062257748 * 0.7071067812 * 2.5 / 1000
    for name, tissue in card["tissues"].items():
        inside = images[maps == LABELS[name]]
        assert tissue["voxels"] == inside.size > 0
        assert tissue["volume_ml"] == pytest.approx(inside.size * voxel_ml, abs=1e-3)
        assert (tissue["patients"], tissue["cases"]) == (6, 6)
        expected = np.quantile(inside, np.array(QUANTILES) / 100, method="inverted_cdf")
        assert list(tissue["hu_quantiles"].values()) == expected.tolist()
    lung = images[maps > 0]
    assert card["lung_share_below_minus_950_hu"] == pytest.approx(np.mean(lung < -950), abs=1e-6)
    assert card["spacing_mm"]["min"] == pytest.approx([0.8062257748, 0.7071067812, 2.5])
    assert card["shape"] == {"min": [7, 6, 3], "max": [7, 6, 3]}
    assert card["warnings"] == []
    text = (data.output / "data_card.md").read_text()
    fibrosis = card["tissues"]["fibrosis"]
    assert f"| fibrosis | {fibrosis['voxels']} |" in text and "| 2 | 2 | 2 | 2 | 2 | 2 | 2 | 2 |" in text


def test_statistics_take_hu_beyond_the_histogram_and_fractions():
    statistics = TissueStatistics({"background": 0, "healthy": 1})
    hu = np.array([-3024, -950.4, -950, 9000], np.float32).reshape(4, 1, 1)
    statistics.add("case", hu, np.ones((4, 1, 1), np.int16), [1, 1, 1])
    assert list(statistics.hu_quantiles("healthy").values()) == [-2048, -2048, -2048, -950, -950, 4095, 4095]
    assert statistics.low_attenuation_share() == 0.5


def test_single_slices_and_integers_stored_as_floats_are_accepted(data):
    for number in range(6):
        save(ct(number, (9, 8, 1)), data.image(number))
        save(np.ones((9, 8, 1), np.float64), data.label(number))
    data.run()
    assert data.card()["tissues"]["healthy"]["voxels"] == 6 * 72


def test_last_lines_say_what_was_written_and_what_to_run_next(data, capsys):
    data.run(output=data.root / "my out")
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"wrote {data.root}/my out/datalist.json (6 cases, 6 patients, 3 folds)")
    assert second == (
        f"next: python -m tools augment --datalist '{data.root}/my out/datalist.json' --fold 0 "
        f"--output '{data.root}/my out_augmented'"
    )


def test_hidden_files_are_ignored(data):
    for name in ("._case0.nii.gz", ".partial-x.nii.gz"):
        (data.images / name).write_bytes(b"no nifti")
    assert len(data.run()["training"]) == 6


def test_existing_empty_output_and_what_a_killed_run_left_are_taken(data):
    (data.output / ".partial").mkdir(parents=True)
    (data.output / ".partial/half").touch()
    data.run()
    items = load_decathlon_datalist(data.output / "datalist.json")
    assert all(Path(item[key]).is_file() for item in items for key in ("image", "label"))
    written = sorted(path.name for path in data.output.iterdir())
    assert written == ["data_card.json", "data_card.md", "datalist.json"]


def test_interrupted_run_leaves_nothing(data, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("tools.dataset.write_json", interrupt)
    before = data.files()
    with pytest.raises(KeyboardInterrupt):
        data.run(output=data.root / "new/deep/out", label_map={value: name for name, value in LABELS.items()})
    assert data.files() == before and not (data.root / "new").exists()


# Folds


def test_folds_share_every_tissue_evenly_whatever_the_seed():
    rates = {"rare": 0.1, "uncommon": 0.2, "common": 0.5, "universal": 1}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        patients = {f"p{n}": {name for name in rates if rng.random() < rates[name]} for n in range(43)}
        cases = {patient: int(rng.geometric(0.5)) for patient in patients}
        fold_of = assign_folds(patients, 5, seed, cases)
        sizes = np.bincount(list(fold_of.values()), minlength=5)
        assert sizes.sum() == 43 and np.ptp(sizes) == 1
        for name in rates:
            holders = [fold_of[patient] for patient in patients if name in patients[patient]]
            assert np.ptp(np.bincount(holders, minlength=5)) <= 1, (seed, name)


def test_folds_balance_the_number_of_cases():
    cases = {f"p{number}": count for number, count in enumerate([9, 1, 1, 1, 1, 1, 5, 5])}
    fold_of = assign_folds(dict.fromkeys(cases, {"healthy"}), 2, 0, cases)
    load = [sum(cases[patient] for patient in cases if fold_of[patient] == fold) for fold in (0, 1)]
    assert load == [12, 12]


def test_folds_follow_the_seed_and_not_the_order_of_the_patients():
    patients = {f"p{number}": {"fibrosis"} if number % 3 else set() for number in range(30)}
    backwards = dict(reversed(patients.items()))
    assert assign_folds(patients, 5, seed=1) == assign_folds(backwards, 5, seed=1)
    assert assign_folds(patients, 5, seed=1) != assign_folds(patients, 5, seed=2)


def test_tissue_missing_from_a_given_fold_is_named():
    tissues = {"p0": {"fibrosis"}, "p1": {"fibrosis"}, "p2": set(), "p3": set()}
    sentences = scarce_tissues(tissues, {"p0": 0, "p1": 0, "p2": 1, "p3": 1}, 2)
    assert sentences == ["fibrosis occurs in 2 patients, yet not in each of the 2 folds: none in fold 1"]


# Warnings, after which it goes on


def test_tissue_in_fewer_patients_than_folds_is_a_warning(data, capsys):
    for number in range(1, 6):
        save(tissue_map("ground_glass", "emphysema", "consolidation"), data.label(number))
    items = data.run(patients=data.csv())["training"]
    without = sorted({0, 1, 2} - {items[0]["fold"]})
    sentence = f"fibrosis occurs in 1 patient, fewer than the 3 folds: none in folds {without[0]}, {without[1]}"
    assert data.card()["warnings"] == [sentence]
    assert f"warning: {sentence}" in capsys.readouterr().err
    assert f"- {sentence}" in (data.output / "data_card.md").read_text()


def test_absent_tissue_is_a_warning(data):
    for number in range(6):
        save(tissue_map("ground_glass", "fibrosis", "consolidation"), data.label(number))
    data.run(patients=data.csv())
    assert data.card()["warnings"] == [
        "no case holds emphysema; it can be neither learned nor synthesized from these data"
    ]
    assert data.card()["tissues"]["emphysema"]["hu_quantiles"] is None


def test_missing_csv_is_a_warning(data):
    items = data.run()["training"]
    assert [item["patient"] for item in items] == [f"case{number}" for number in range(6)]
    assert data.card()["warnings"][0].startswith("no patients CSV: each file counts as a patient of its own")


def test_misspelt_column_is_a_warning(data):
    data.run(patients=data.csv("case,patient,Age,kernel", *(f"case{number},p{number},60,B" for number in range(6))))
    assert data.card()["warnings"] == [f"{data.root}/patients.csv: column Age is not used; did you mean age?"]


def test_map_without_tissue_and_map_beside_the_lung_are_warnings(data):
    save(np.zeros(SHAPE, np.uint8), data.label(2))
    save(np.where(tissue_map() > 0, 40, -1000).astype(np.int16), data.image(4))
    save(tissue_map(), data.label(4))
    data.run(patients=data.csv())
    first, second = data.card()["warnings"]
    assert first == "only background in case2"
    assert second.startswith("healthy lung has a median above -500 HU in case4; do the labels lie on the lung")


# Refusals: each names the file and the value, and leaves everything as it was


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
    assert data.refusal() == f"{data.images} holds both case0.nii and case0.nii.gz; remove one"


def test_differing_shape_is_refused(data):
    save(tissue_map()[..., :2], data.label(3))
    assert data.refusal() == f"{data.label(3)} has shape (7, 6, 2), but {data.image(3)} has (7, 6, 3)"


def test_differing_affine_is_refused(data):
    shifted = AFFINE.copy()
    shifted[0, 3] += 2.5
    save(tissue_map(), data.label(3), shifted)
    message = data.refusal()
    assert f"{data.label(3)} has another affine than {data.image(3)}" in message and "2.5 mm" in message


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
    assert data.refusal() == f"{data.label(3)} holds label 1.5, but labels must be integers"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinite_voxels_are_refused(data, value):
    bad = ct(0).astype(np.float32)
    bad[0, 0, :2] = value
    save(bad, data.image(3))
    assert data.refusal() == f"{data.image(3)} holds 2 NaN or infinite voxels"


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

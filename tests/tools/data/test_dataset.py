"""The dataset command: what it writes for good data, and what it warns of."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.auto3dseg.utils import datafold_read
from monai.data import load_decathlon_datalist

from tests.tools.fakes.cases import LABELS, SHAPE, Data, ct, save, tissue_map
from tools.data.card import QUANTILES, TissueStatistics
from tools.data.folds import assign_folds, scarce_tissues
from tools.io.volume import relative


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


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_tables_of_any_spreadsheet_are_read(data, separator):
    age = "61.5" if separator == "," else "61,5"
    rows = [separator.join((f" case{number}", f"p{number}", age, "")) for number in range(6)]
    path = data.root / "patients.csv"
    header = separator.join(("Case", "PATIENT ", "Age", ""))
    lines = ["sep=;" if separator == ";" else "", header, rows[0], separator * 3, *rows[1:], "", ""]
    path.write_text("\r\n".join(lines).lstrip(), encoding="utf-8-sig", newline="")
    items = data.run(patients=path)["training"]
    assert [(item["patient"], item["age"]) for item in items] == [(f"p{number}", 61.5) for number in range(6)]


def test_a_table_that_is_not_utf_8_is_refused_with_the_remedy(data):
    path = data.root / "patients.csv"
    path.write_bytes("case,patient\ncase0,Müller\n".encode("cp1252"))
    assert data.refusal(patients=path) == f"patients {path} is not UTF-8; save as UTF-8 (in Excel: CSV UTF-8)"


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

    monkeypatch.setattr("tools.data.dataset.write_json", interrupt)
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
    data.run(patients=data.csv("case,patient,agee,kernel", *(f"case{number},p{number},60,B" for number in range(6))))
    assert data.card()["warnings"] == [f"{data.root}/patients.csv: column agee is not used; did you mean age?"]


def test_map_without_tissue_and_map_beside_the_lung_are_warnings(data):
    save(np.zeros(SHAPE, np.uint8), data.label(2))
    save(np.where(tissue_map() > 0, 40, -1000).astype(np.int16), data.image(4))
    save(tissue_map(), data.label(4))
    data.run(patients=data.csv())
    first, second = data.card()["warnings"]
    assert first == "only background in case2"
    assert second.startswith("healthy lung has a median above -500 HU in case4; do the labels lie on the lung")

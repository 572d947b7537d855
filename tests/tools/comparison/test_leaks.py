"""A comparison refuses to go on where any stage has read a test patient, planted in each stage in turn."""

import sys

import pytest

from tests.tools.fakes.standin import install, twelve_patients
from tools.comparison import compare, results
from tools.data.datalist import read_datalist
from tools.data.provenance import GATE_CARD, MAPS_CARD, SYNTHESIZER_CARD, cases_read
from tools.io.files import InputError, read_json, write_json
from tools.painting.manifest import read_manifest


@pytest.fixture
def datalist(tmp_path):
    return twelve_patients(tmp_path)


@pytest.fixture
def standin(monkeypatch):
    return install(monkeypatch)


def test_train_and_test_patients_are_disjoint_in_every_stage_of_every_run(datalist, standin, tmp_path):
    output = tmp_path / "out"
    compare.compare(datalist, output, arms="real,oversampled,copy_paste,cbmat_filter", seeds=0, iterations=10)
    found = sorted(output.glob("fold*/seed*/*"))
    assert len(found) == 8
    for folder in found:
        result, own = read_json(folder / "result.json"), read_json(folder / "datalist.json")
        test = {item["patient"] for item in own["training"] if item["fold"] == result["fold"]}
        train = {item["patient"] for item in own["training"] if item["fold"] != result["fold"]}
        assert test == set(result["test_patients"]) and train == set(result["train_patients"])
        assert len(test) == 6 and len(train) == 6 and not test & train
        assert all(not test & set(names) for names in result["fitted_on"].values())
    stages = set(read_json(output / "fold0/seed0/cbmat_filter/result.json")["fitted_on"])
    assert stages == {"segmenter", "synthesizer", "quality gate", "tissue maps and their frequencies"}


@pytest.mark.parametrize("card", [SYNTHESIZER_CARD, MAPS_CARD, GATE_CARD])
@pytest.mark.parametrize("disguised", [False, True])
def test_a_planted_leak_is_refused_with_stage_and_patient(datalist, standin, tmp_path, card, disguised):
    cases = read_datalist(datalist)["training"]
    seen = cases_read([next(case for case in cases if case.patient == "p04")])[0]  # in fold 0
    standin.planted = {card: seen | {"patient": "somebody", "case": "x"} if disguised else seen}
    message = "x of patient somebody, which is the same CT as test case case04a" if disguised else "test patients p04"
    with pytest.raises(InputError, match=f"leak in .*fitted on {message}"):
        compare.compare(datalist, tmp_path / "out", arms="real,cbmat", folds=0, seeds=0, iterations=1)
    assert standin.trained == ["fold0/seed0/real"]


def test_a_stage_that_does_not_say_what_it_read_is_refused(datalist, standin, tmp_path, monkeypatch):
    honest = standin.augment

    def secretive(**given):
        honest(**given)
        (given["output"] / GATE_CARD).unlink()

    sys.modules["tools.painting.augment"].augment = secretive
    with pytest.raises(InputError, match="gate.json does not say which cases were read; a leak cannot be ruled out"):
        compare.compare(datalist, tmp_path / "out", arms="real,cbmat", folds=0, seeds=0, iterations=1)


def test_one_ct_under_two_patients_is_refused(datalist, standin, tmp_path):
    folder = datalist.parent / "images"
    (folder / "case05a.nii.gz").write_bytes((folder / "case02b.nii.gz").read_bytes())
    with pytest.raises(InputError, match="case02b of patient p02 and case05a of patient p05 are the same CT"):
        compare.compare(datalist, tmp_path / "out", iterations=1)


def test_a_painted_test_case_is_refused_under_any_patient_name(datalist, standin, tmp_path):
    real = read_datalist(datalist)
    leaked = next(case for case in real["training"] if case.patient == "p04").item()
    for planted, message in (
        (leaked | {"fold": -1}, "stage segmenter was fitted on test patients p04"),
        (leaked | {"fold": -1, "patient": "p01", "synthetic": True}, "which is the same CT as test case case04a"),
        (real["training"][2].item() | {"fold": 0, "synthetic": True, "patient": "p04"}, "same CT as test case|differ"),
    ):
        standin.planted_items = [planted]
        with pytest.raises(InputError, match=message):
            compare.compare(
                datalist, tmp_path / message[-9:] / "out", arms="real,cbmat", folds=0, seeds=0, iterations=1
            )


def test_an_augmentation_for_another_fold_is_refused(datalist, standin, tmp_path):
    standin.held_out = 1
    with pytest.raises(InputError, match="was made with fold 1 held out, not fold 0"):
        compare.compare(datalist, tmp_path / "out", arms="real,cbmat", folds=0, iterations=1)


def test_a_lesion_donated_by_a_test_patient_is_refused(datalist, standin, tmp_path):
    standin.donor = "case04b"
    with pytest.raises(InputError, match="painted_cbmat has the test case case04b as its donor"):
        compare.compare(datalist, tmp_path / "out", arms="real,cbmat", folds=0, iterations=1)
    file = tmp_path / "manifest.jsonl"
    with pytest.raises(InputError, match="manifest.jsonl does not exist"):
        read_manifest(file)
    file.write_text('{"case": "a"}\n')
    with pytest.raises(InputError, match="line 1 is damaged: KeyError.*source"):
        read_manifest(file)


def test_a_leak_in_a_finished_run_is_found_when_the_results_are_gathered(datalist, standin, tmp_path):
    compare.compare(datalist, tmp_path / "out", arms="real", folds=0, seeds=0, iterations=1)
    file = tmp_path / "out/fold0/seed0/real/result.json"
    result = read_json(file)
    write_json(file, result | {"fitted_on": {"masks": ["p02"]}})
    with pytest.raises(InputError, match="masks was fitted on test patients p02"):
        results.collect(tmp_path / "out", read_datalist(datalist))
    write_json(file, result | {"schema": 1})
    with pytest.raises(InputError, match="holds runs of another version"):
        results.collect(tmp_path / "out", read_datalist(datalist))

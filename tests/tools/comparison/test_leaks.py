"""A comparison refuses to go on where any stage has read a test patient, planted in each stage in turn."""

import sys

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from tools.comparison import compare, results
from tools.data.datalist import read_datalist
from tools.data.provenance import GATE_CARD, MAPS_CARD, SYNTHESIZER_CARD, cases_read, check_disjoint
from tools.data.twins import near_duplicates, sketches
from tools.io.files import InputError, read_json, write_json
from tools.painting.manifest import read_manifest

pytestmark = pytest.mark.slow  # the file takes seconds: make check leaves it to make test


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


def stored_otherwise(path, how):
    """Return a CT of which no byte of the file is as before."""
    image = nib.load(path)
    if how == "uncompressed":
        return image
    if how == "as floats":
        return nib.Nifti1Image(image.get_fdata().astype(np.float32), image.affine)
    if how == "without its place":
        return nib.Nifti1Image(np.asarray(image.dataobj), np.diag([1.0, 1.0, 1.0, 1.0]))
    return image.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))  # in another order of storage


@pytest.mark.parametrize("how", ["uncompressed", "as floats", "without its place", "in another order"])
def test_one_ct_in_two_files_of_other_bytes_is_refused(datalist, standin, tmp_path, how):
    """The failure that was shown: the same voxels as .nii and as .nii.gz under two names passed."""
    content, folder = read_json(datalist), datalist.parent
    copy = stored_otherwise(folder / "images/case02b.nii.gz", how)
    nib.save(copy, folder / "images/other.nii")
    label = nib.Nifti1Image(np.ones(copy.shape, np.uint8), copy.affine)
    nib.save(label, folder / "labels/other.nii")
    files = {"image": "images/other.nii", "label": "labels/other.nii"}
    write_json(datalist, content | {"training": [*content["training"], files | {"fold": 1, "patient": "other"}]})
    with pytest.raises(InputError, match="case02b of patient p02 and other of patient other are the same CT"):
        compare.compare(datalist, tmp_path / "out", iterations=1)


def test_a_card_of_an_earlier_version_still_tells_a_test_ct_by_its_file(datalist):
    rows = cases_read(read_datalist(datalist)["training"])
    old = {key: value for key, value in rows[3].items() if key != "content_sha256"} | {"patient": "somebody"}
    with pytest.raises(InputError, match="of patient somebody, which is the same CT as test case case01b"):
        check_disjoint("here", "synthesizer", [old], rows)


def chest(seed):
    """Return a CT of three slices and the lung in it, its vessels drawn by the seed."""
    rng = np.random.default_rng(seed)
    hu = -850 + 900 * (ndimage.gaussian_filter(rng.normal(size=(60, 50, 3)), (1.5, 1.5, 0.3)) > 0.12)
    label = np.zeros(hu.shape, np.uint8)
    label[8:52, 6:44] = 1
    return hu.astype(np.float32), label


def test_slices_of_one_ct_under_two_names_are_named_and_other_patients_are_not(tmp_path):
    (hu, label), (other, _) = chest(0), chest(1)
    noise = np.random.default_rng(2).normal(0, 20, hu[..., :1].shape)
    cut = [
        ndimage.zoom(part[..., 1:2], (1.5, 1.5, 1), order=0) for part in (hu + noise, label)
    ]  # voxels of another size
    drawn = {"whole": sketches(hu, label), "slice": sketches(*cut), "other": sketches(other, label)}
    (sentence,) = near_duplicates(drawn, {"whole": "p1", "slice": "p2", "other": "p3"})
    assert sentence.startswith("whole of patient p1 and slice of patient p2 show nearly the same slice")
    assert not near_duplicates(drawn, {"whole": "p1", "slice": "p1", "other": "p3"})


def test_of_many_near_duplicates_the_nearest_are_named_and_the_others_counted():
    sketch = np.ones((1, 4), np.float32) / 2
    sentences = near_duplicates({str(n): sketch for n in range(5)}, {str(n): f"p{n}" for n in range(5)})
    assert len(sentences) == 4 and sentences[-1].startswith("so do 7 more pairs")


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

"""Membership inference: what is told apart where it must be, what is not, and a tiny synthesizer from end to end."""

import json

import numpy as np
import pytest

from tools.data.card import auc_text
from tools.data.datalist import Case, read_datalist
from tools.data.dataset import dataset
from tools.data.provenance import cases_read
from tools.evaluation import membership as module
from tools.evaluation.membership import by_patient, distances, judge, losses, membership, sides
from tools.io.files import InputError, read_json, write_json
from tools.io.volume import load_ct, save_nifti
from tools.phantom.phantom import phantom
from tools.workflows.synthesizer import known_attributes, train_synthesizer

TINY = {"max_epochs": 2, "epoch_length": 4, "batch_size": 2, "patches_per_case": 2, "patch_size": [32, 32, 1],
        "network_channels": [8, 16, 16], "warmup_steps": 1, "measured_patches": 64, "device": "cpu"}  # fmt: skip


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Six drawn patients in two folds, at a size at which lesions fill tiles."""
    folder = tmp_path_factory.mktemp("cohort")
    drawn = folder / "phantom"
    phantom(drawn, patients=6, size=(128, 128, 6))
    dataset(drawn / "images", drawn / "labels", folder / "dataset", patients=drawn / "patients.csv", folds=2)
    return folder / "dataset/datalist.json"


def real(datalist) -> list[Case]:
    return read_datalist(datalist)["training"]


def test_the_area_is_one_where_members_lie_below_and_a_half_where_none_do():
    apart = judge([0.1, 0.2, 0.3, 0.2], [0.5, 0.6, 0.9], 0)
    assert (apart["auc"], apart["low"], apart["high"]) == (1.0, 1.0, 1.0)
    assert judge([0.5, 0.6, 0.9], [0.1, 0.2, 0.3, 0.2], 0)["auc"] == 0.0
    rng = np.random.default_rng(0)
    alike = judge(list(rng.normal(size=40)), list(rng.normal(size=40)), 0)
    assert alike["low"] < 0.5 < alike["high"] and 0.15 < alike["high"] - alike["low"] < 0.35
    assert judge([0.1, 0.2], [0.5] * 5, 0) == {
        "patients": 2,
        "other_patients": 5,
        "auc": None,
        "low": None,
        "high": None,
    }
    assert judge([1.0] * 3, [1.0] * 3, 0)["auc"] == 0.5  # ties


def test_the_unit_is_the_patient(tmp_path):
    cases = [Case(tmp_path / f"{name}.nii", tmp_path / "label.nii", name[0], 0) for name in ("a1", "a2", "b1", "c1")]
    assert by_patient(cases, {"a1": 1.0, "a2": 3.0, "b1": 5.0, "c1": float("nan")}) == [2.0, 5.0]


@pytest.mark.slow
def test_sides_go_by_what_the_card_says_was_read(cohort):
    cases = real(cohort)
    rows = cases_read(cases[:3])
    members, others = sides(cases, rows)
    assert (members, others) == (cases[:3], cases[3:])
    renamed = [row | {"patient": "somebody else"} for row in rows]  # the same CT under another name
    assert sides(cases, renamed) == (cases[:3], cases[3:])
    unread = [row | {"image_sha256": "0", "content_sha256": "0"} for row in rows]  # other CTs of these patients
    assert sides(cases, unread) == ([], cases[3:])
    with pytest.raises(InputError, match="names no case that was trained on"):
        sides(cases, [])


def test_a_synthesizer_that_paints_its_training_cases_again_is_found_out(cohort, tmp_path):
    cases, painted = real(cohort), {}
    for number, case in enumerate(cases):
        hu, image = load_ct(case.image)
        noise = np.random.default_rng(number).normal(-600, 120, hu.shape)  # of the others it paints noise
        painted[case.name] = tmp_path / f"{case.name}.nii.gz"
        save_nifti((hu if number < 3 else noise).astype(np.int16), image, painted[case.name])
    found = distances(cases, painted)
    own, others = ([found[case.name] for case in part] for part in (cases[:3], cases[3:]))
    assert np.nanmean(own) < 0.5 * np.nanmean(others), (own, others)


@pytest.mark.slow
def test_a_synthesizer_of_a_few_steps_is_judged_and_the_data_card_says_how(cohort, tmp_path, capsys):
    cases, overrides = real(cohort), dict(TINY)
    overrides["attributes"] = known_attributes(cases[:3], None, overrides)
    weights = train_synthesizer(cases[:3], tmp_path / "trained", 0, "cbmat", overrides)
    membership(cohort, weights, tmp_path / "out", draws=2, steps=1)
    written = read_json(tmp_path / "out/membership.json")
    assert set(written["scores"]["loss"]) == {case.name for case in cases}
    one = written["attacks"]["loss"]
    assert (one["patients"], one["other_patients"]) == (3, 3) and 0 <= one["low"] <= one["auc"] <= one["high"] <= 1
    assert set(written["attacks"]["nearest"]) == set(one) and any(written["scores"]["nearest"].values())
    card = read_json(cohort.with_name("data_card.json"))
    assert [row["attacks"] for row in card["membership"]] == [written["attacks"]]
    text = cohort.with_name("data_card.md").read_text()
    assert "## Membership inference" in text and auc_text(written["attacks"]["loss"]) in text
    assert str(tmp_path) not in json.dumps(card) and "area under the curve" in capsys.readouterr().out
    membership(cohort, weights, tmp_path / "again", draws=2, steps=1)
    assert read_json(tmp_path / "again/membership.json") == written
    assert len(read_json(cohort.with_name("data_card.json"))["membership"]) == 1

    again = losses(cases, weights, overrides, 2, 0, tmp_path)
    assert again == written["scores"]["loss"]
    write_json(weights.with_name("card.json"), read_json(weights.with_name("card.json")) | {"cases": []})
    with pytest.raises(InputError, match="names no case"):
        membership(cohort, weights, tmp_path / "other")


def test_too_few_patients_on_a_side_are_refused(cohort, tmp_path, monkeypatch):
    weights = tmp_path / "model.pt"
    weights.touch()
    write_json(tmp_path / "card.json", {"cases": cases_read(real(cohort)[:5])})
    with pytest.raises(InputError, match="fewer than 3 patients that .*model.pt was not trained on"):
        membership(cohort, weights, tmp_path / "out")
    assert module.FEWEST == 3 and not (tmp_path / "out").exists()

"""How painted cases are drawn among the real ones, and settings tried on training patients alone."""

import numpy as np
import pytest

from tests.tools.fakes.standin import LABELS, twelve_patients
from tools.comparison import compare
from tools.comparison.mixing import Mixing, prevalence_weights, ratio_weights
from tools.data.datalist import patients, read_datalist, split
from tools.io.files import InputError, read_json, write_json

pytestmark = pytest.mark.slow  # the file takes seconds: make check leaves it to make test


def with_tissues(standin, monkeypatch, names):
    """Let the stand-in say which tissues it painted, as augment does."""
    bare = standin.augment

    def augment(**given):
        bare(**given)
        for name in ("datalist.json", "datalist_unfiltered.json"):
            content = read_json(given["output"] / name)
            for item in content["training"]:
                item |= {"tissues": names} if item.get("synthetic") else {}
            write_json(given["output"] / name, content)

    monkeypatch.setattr(__import__("sys").modules["tools.painting.augment"], "augment", augment)


def test_a_case_counts_for_the_tissue_with_the_smallest_ratio():
    added = [["consolidation", "ground_glass"], ["ground_glass"], ["fibrosis"], ["emphysema"]]
    weights, ratio = ratio_weights(added, {"consolidation": 0.2, "ground_glass": 0.5}, 1)
    assert ratio == pytest.approx(1.7) and weights == pytest.approx([0.2, 0.5, 0.5, 0.5])
    with pytest.raises(InputError, match="do not say which tissues were added; augment them anew"):
        ratio_weights([None], {"fibrosis": 1}, 1)
    with pytest.raises(InputError, match="leaves no painted case to draw"):
        ratio_weights([["fibrosis"]], {"fibrosis": 0}, 1)


def test_painted_draws_get_the_prevalence_of_the_real_cases():
    rng = np.random.default_rng(0)
    present = rng.random((60, 4)) < [0.7, 0.5, 0.5, 0.6]
    weights = prevalence_weights(present, np.array([0.6, 0.3, 0.5, 0.25]))
    assert weights.min() >= 0 and np.abs(weights @ present - [0.6, 0.3, 0.5, 0.25]).max() < 0.01
    assert np.count_nonzero(weights) > 20  # not a few cases alone
    everywhere = prevalence_weights(np.ones((5, 1)), np.array([0.2]))
    assert everywhere == pytest.approx(np.full(5, 0.2))  # cannot be held: all alike


def test_ratios_per_tissue_and_schedule_reach_the_segmenter(datalist, standin, tmp_path, monkeypatch):
    with_tissues(standin, monkeypatch, ["consolidation"])
    given = {"arms": "real,cbmat", "folds": 0, "seeds": 0, "iterations": 400, "schedule": "real_last"}
    given |= {"norm_apart": True}
    compare.compare(datalist, tmp_path / "out", **given, ratio_per_tissue={"consolidation": 0.25})
    painted, real = (standin.settings[f"fold0/seed0/{arm}"] for arm in ("cbmat", "real"))
    assert (painted["extra_ratio"], painted["extra_schedule"], painted["real_share"]) == (0.25, "real_last", 0.25)
    assert painted["norm_apart"] is True
    assert real["extra_ratio"] == 0 and not {"extra_schedule", "norm_apart"} & set(real)
    own = read_json(tmp_path / "out/fold0/seed0/cbmat/datalist.json")["training"]
    assert [item["draw_weight"] for item in own if item.get("synthetic")] == [0.25]
    assert read_json(tmp_path / "out/run.json")["mixing"] == {
        "ratios": {"consolidation": 0.25},
        "schedule": "real_last",
        "norm_apart": True,
    }
    with pytest.raises(InputError, match="mixing was"):
        compare.compare(datalist, tmp_path / "out", **given | {"schedule": "mixed"})


def test_prevalence_is_held_by_weights(datalist, standin, tmp_path):
    given = {"arms": "real,cbmat", "folds": 0, "seeds": 0, "iterations": 10}
    compare.compare(datalist, tmp_path / "out", **given, prevalence=True)
    own = read_json(tmp_path / "out/fold0/seed0/cbmat/datalist.json")["training"]
    assert [item["draw_weight"] for item in own if item.get("synthetic")] == [1.0]  # there is one


def test_an_inner_comparison_reads_training_patients_alone(standin, tmp_path):
    datalist = twelve_patients(tmp_path, folds=3)
    compare.compare(datalist, tmp_path / "out", arms="real,cbmat", seeds=(0, 1), iterations=10, inner=2)
    real = read_datalist(datalist)
    _, held_out = split(real, 2)
    runs = read_json(tmp_path / "out/summary.json")["runs"]
    seen = {name for run in runs for key in ("train_patients", "test_patients") for name in run[key]}
    assert not seen & set(patients(held_out)) and len(seen) == 8
    assert {run["fold"] for run in runs} == {0, 1, 2}
    trained = len(standin.trained)
    compare.compare(datalist, tmp_path / "out", arms="real,cbmat", seeds=(0, 1), iterations=10, inner=2)
    assert len(standin.trained) == trained  # started again, it finds what is finished
    with pytest.raises(InputError, match="has no fold 7"):
        compare.compare(datalist, tmp_path / "other", inner=7)


def test_joint_mixtures_by_error_ask_the_inner_segmenter(datalist, standin, tmp_path):
    given = {"arms": "real,cbmat", "folds": 0, "seeds": 0, "iterations": 500, "mixture": "joint"}
    with pytest.raises(InputError, match="by_error asks the inner segmenter of --until plateau"):
        compare.compare(datalist, tmp_path / "out", **given, by_error=True)
    with pytest.raises(InputError, match="look_alikes asks the inner segmenter of --until plateau"):
        compare.compare(datalist, tmp_path / "out", **given, look_alikes=True)
    compare.compare(datalist, tmp_path / "out", **given, by_error=True, look_alikes=True, until="plateau")
    assert standin.asked["mixture"] == "joint"
    assert read_json(standin.asked["dice"])["dice"].keys() <= LABELS.keys()
    found = read_json(standin.asked["look_alikes"])["look_alikes"]
    assert found["fibrosis"] == {"ground_glass": 0, "emphysema": 0, "consolidation": round(40 / 110, 4)}
    assert found.keys() == {"fibrosis", "consolidation"} and sum(found["consolidation"].values()) == 0
    assert read_json(tmp_path / "out/run.json")["look_alikes"] is True


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"ratio_per_tissue": {"honeycombs": 1}}, "ratio_per_tissue names honeycombs; the tissues are ground_glass"),
        ({"ratio_per_tissue": {"fibrosis": -1}}, "must give fibrosis a number from 0 up, not -1"),
        ({"ratio_per_tissue": {"fibrosis": 1}, "prevalence": True}, "give either ratio_per_tissue or prevalence"),
        ({"schedule": "never"}, "schedule must be one of mixed, synthetic_first, real_last, not never"),
        ({"real_share": 1}, "real_share must be above 0 and below 1, not 1"),
        ({"norm_apart": True, "arms": "real,synthetic_only"}, "but no arm mixes them; add cbmat"),
        (
            {"norm_apart": True, "overrides": {"network_def#norm": "instance"}},
            "norm_apart needs batch norm, but overrides give network_def::norm instance",
        ),
        ({"overrides": {"norm_apart": True}}, "overrides may not hold 'norm_apart'"),
        ({"schedule": "real_last", "iterations": 50}, "needs more than the 1 epoch of 50 iterations"),
    ],
)
def test_wrong_mixing_is_refused(datalist, standin, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        compare.compare(datalist, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_a_ratio_for_a_tissue_that_nobody_has_is_refused(datalist):
    real = [case for case in read_datalist(datalist)["training"] if case.patient not in ("p00", "p01")]
    with pytest.raises(InputError, match="names consolidation, which no case has, so none is painted with it"):
        Mixing({"consolidation": 0.5}).check(real, LABELS, 100)

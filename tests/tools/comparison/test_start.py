"""Arms that begin with given weights, overlays that all arms share, and learning curves over numbers of patients."""

import pytest

from tests.tools.fakes.standin import twelve_patients
from tools.bundles import BUNDLES
from tools.comparison import compare
from tools.data.datalist import read_datalist
from tools.data.provenance import cases_read
from tools.io.files import InputError, read_json, write_json

pytestmark = pytest.mark.slow  # the file takes seconds: make check leaves it to make test


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights/model.pt"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    card = {"cases": [{"case": "x", "patient": "someone"}], "spacing_mm": [1.5, 1.5, -1], "overrides": {}}
    write_json(path.with_name("card.json"), card)
    return path


def test_a_started_arm_differs_from_its_twin_in_the_weights_it_begins_with(datalist, standin, weights, tmp_path):
    out = tmp_path / "out"
    arms = "real,real_started,cbmat,cbmat_started"
    compare.compare(datalist, out, arms=arms, folds=0, seeds=0, iterations=10, start=weights, ratios=(0.5,))
    plain, started = (standin.settings[f"fold0/seed0/cbmat{name}_x0.5"] for name in ("", "_started"))
    assert started.pop("start") == str(weights) and "start" not in plain
    assert plain["spacing_mm"] == started["spacing_mm"] == [1.5, 1.5, -1]
    places = ("dataset_dir", "datalist", "model_dir", "output_dir")
    assert {k: v for k, v in plain.items() if k not in places} == {k: v for k, v in started.items() if k not in places}
    assert standin.configs["fold0/seed0/real_started"] == ["train.json", "fine_tune.yaml", "scores.yaml"]
    assert standin.configs["fold0/seed0/real"] == ["train.json", "scores.yaml"]
    result = read_json(out / "fold0/seed0/real_started/result.json")
    assert result["fitted_on"]["start weights"] == ["someone"]
    assert len(standin.augmented) == 1  # both arms get the same cases


def test_overlays_are_laid_over_every_arm_and_stand_on_its_card(datalist, standin, tmp_path):
    given = {"folds": 0, "seeds": 0, "iterations": 10, "overlays": "whole_slices.yaml"}
    compare.compare(datalist, tmp_path / "out", arms="real,class_weighted", **given)
    assert all(files[1] == "whole_slices.yaml" for files in standin.configs.values())
    assert standin.settings["fold0/seed0/class_weighted"]["tissue_weights"][0] == 0  # that of the overlay
    assert read_json(tmp_path / "out/fold0/seed0/real/card.json")["configs"] == ["train.json", "whole_slices.yaml"]


def test_start_weights_that_know_a_test_patient_are_refused(datalist, standin, weights, tmp_path):
    given = {"datalist": datalist, "output": tmp_path / "out", "arms": "real,real_started", "start": weights}
    card = read_json(weights.with_name("card.json"))
    case = next(case for case in read_datalist(datalist)["training"] if case.patient == "p01")
    write_json(weights.with_name("card.json"), card | {"cases": cases_read([case])})
    with pytest.raises(InputError, match="stage start weights was fitted on test patients p01"):
        compare.compare(**given)
    compare.compare(**given, folds=0, seeds=0, iterations=1)  # p01 trains there
    write_json(weights.with_name("card.json"), {"trained_on": "somebody"})
    with pytest.raises(InputError, match="does not say whom start weights"):
        compare.compare(**given | {"output": tmp_path / "other"})
    write_json(weights.with_name("card.json"), card | {"overrides": {"network_channels": [8, 8]}})
    with pytest.raises(InputError, match=r"have network_channels \[8, 8\], but the arms have \[16"):
        compare.compare(**given | {"output": tmp_path / "other"})


def test_the_weights_of_the_bundle_have_a_name(datalist, standin, tmp_path):
    given = {"folds": 0, "seeds": 0, "iterations": 1, "start": "shipped"}
    compare.compare(datalist, tmp_path / "out", arms="real,real_started", **given)
    shipped = BUNDLES / "lung_tissue_seg/models/model.pt"
    assert standin.settings["fold0/seed0/real_started"]["start"] == str(shipped.resolve())
    assert standin.settings["fold0/seed0/real"]["spacing_mm"] == [2.0, 2.0, -1]


def test_a_learning_curve_over_numbers_of_patients_has_as_many_in_every_fold(standin, tmp_path):
    datalist = twelve_patients(tmp_path, folds=5)  # 9 or 10 training patients
    given = {"seeds": 0, "iterations": 1, "patients": "1,2,5,all"}
    compare.compare(datalist, tmp_path / "out", arms="real,cbmat", **given)
    summary = read_json(tmp_path / "out/summary.json")
    counts = {}
    for run in summary["runs"]:
        counts.setdefault(run["fraction"], set()).add(len([p for p in run["train_patients"]]))
    assert list(counts.values()) == [{9, 10}, {5}, {2}, {1}] and len(summary["fractions"]) == 4
    with pytest.raises(InputError, match="patients asks for 11, but a fold has 9 training patients"):
        compare.compare(datalist, tmp_path / "other", patients=(11,))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"arms": "real,cbmat_started"}, "cbmat_started needs --start WEIGHTS"),
        ({"start": "shipped"}, "--start needs an arm that uses it, such as real_started"),
        ({"arms": "real,real_started", "start": "none.pt"}, "start weights none.pt does not exist"),
        (
            {"overlays": "scores.yaml"},
            "overlays may be federated.yaml, kernels.yaml, volume.yaml, whole_slices.yaml, not scores.yaml",
        ),
        ({"patients": (0,)}, "patients must be whole numbers of at least 1, or all, not 0"),
        ({"patients": "some"}, "patients must be whole numbers of at least 1, or all, not some"),
        ({"patients": (2,), "fractions": (0.5,)}, "give either fractions or patients"),
        ({"arms": "real,started"}, "there is no arm 'started'; there are real, .*, and each with _started"),
    ],
)
def test_wrong_starts_and_numbers_are_refused(datalist, standin, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        compare.compare(datalist, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists() and not standin.trained


def test_the_sharpened_arm_has_an_overlay_of_its_own(datalist, standin, tmp_path):
    given = {"folds": 0, "seeds": 0, "iterations": 1, "overlays": "whole_slices.yaml"}
    compare.compare(datalist, tmp_path / "out", arms="real,sharpened", **given)
    own = standin.configs["fold0/seed0/sharpened"]
    assert own == ["train.json", "whole_slices.yaml", "kernels.yaml", "scores.yaml"]

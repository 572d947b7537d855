"""The comparison with a stand-in segmenter and a stand-in synthesizer: what is trained on what, resuming, refusals."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.tools.fakes.standin import LABELS, TISSUES, make_case, twelve_patients
from tools.comparison import arms, compare, results
from tools.data.datalist import Case, read_datalist
from tools.io.files import InputError, RunError, read_json, write_json
from tools.report.report import load

pytestmark = pytest.mark.slow  # the file takes seconds: make check leaves it to make test


def test_all_arms_run_and_the_known_gain_is_called_a_gain(standin, tmp_path, capsys):
    output, datalist = tmp_path / "out", twelve_patients(tmp_path, folds=3)
    compare.compare(datalist, output, arms="real,oversampled,copy_paste,cbmat,cbmat_filter", seeds=(0, 1), iterations=9)
    assert len(standin.trained) == 3 * 2 * 4  # cbmat_filter trains as cbmat did
    assert sorted(standin.augmented) == [(fold, method, 0) for fold in range(3) for method in ("cbmat", "copy_paste")]
    summary = read_json(output / "summary.json")
    verdicts = {(row["tissue"], row["arm"]): row.get("verdict") for row in summary["rows"]}
    assert verdicts["fibrosis", "cbmat_filter"] == verdicts["fibrosis", "oversampled"] == "gain"
    assert verdicts["fibrosis", "copy_paste"] == verdicts["emphysema", "cbmat"] == "no gain"
    assert verdicts["mean", "cbmat"] == "gain" and verdicts["consolidation", "cbmat"] == "too few patients (2)"
    errors = {(row["tissue"], row["arm"]): row.get("verdict") for row in summary["measures"]["volume_error"]}
    assert errors["emphysema", "cbmat"] == "gain"  # the error falls from 3 points to 1
    with open(output / "results.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == list(results.RESULT_COLUMNS)
    assert len(rows) == 5 * 2 * 12 * len(TISSUES)
    one = next(row for row in rows if (row["patient"], row["tissue"], row["arm"]) == ("p04", "fibrosis", "real"))
    assert float(one["dice"]) == pytest.approx(0.5 + 0.04 + 0.01)  # the two cases of a patient are averaged
    assert float(one["volume_error"]) == 3 and one["false_ml"] == ""
    lacked = next(row for row in rows if (row["patient"], row["tissue"]) == ("p04", "consolidation"))
    assert [lacked[name] for name in ("dice", "dice_all", "false_ml")] == ["", "0.0", "0.5"]
    printed = capsys.readouterr().out
    assert "run 3 of 30: fold 0, seed 0, arm copy_paste" in printed
    assert "consolidation lies in 2 test patients: a verdict needs 5 or more" in printed
    assert f"python -m tools report --directory {output}" in printed


def test_an_arm_whose_training_is_that_of_a_finished_run_is_not_trained_again(datalist, standin, tmp_path):
    output = tmp_path / "out"
    compare.compare(datalist, output, arms="real,cbmat,cbmat_filter", folds=0, seeds=0, iterations=1)
    assert standin.trained == ["fold0/seed0/real", "fold0/seed0/cbmat"]  # every painted case was accepted
    result = read_json(output / "fold0/seed0/cbmat_filter/result.json")
    assert (result["arm"], result["same_as"], result["synthetic_items"]) == ("cbmat_filter", "cbmat", 1)
    assert {row["arm"] for row in read_json(output / "summary.json")["rows"]} == {"real", "cbmat", "cbmat_filter"}


def test_an_arm_without_an_accepted_case_is_said_to_equal_real(datalist, standin, tmp_path, capsys):
    standin.accepts = False
    compare.compare(datalist, tmp_path / "out", arms="real,cbmat,cbmat_filter", folds=1, seeds=0, iterations=1)
    assert "arm cbmat_filter equals real in fold 1: no case was accepted" in capsys.readouterr().out
    assert [read_json(tmp_path / f"out/fold1/seed0/{arm}/result.json")["synthetic_items"] for arm in
            ("cbmat", "cbmat_filter")] == [1, 0]  # fmt: skip
    with pytest.raises(RunError, match="fold 1, seed 0, arm synthetic_only"):
        compare.compare(datalist, tmp_path / "out", arms="real,synthetic_only", folds=1, seeds=0, iterations=1)


def test_real_and_painted_cases_are_drawn_in_the_ratio_asked_for(datalist, standin, tmp_path):
    compare.compare(datalist, tmp_path / "out", arms="real,cbmat", folds=0, seeds=0, ratios=(0.25, 1), iterations=1)
    ratio = {key.rpartition("/")[2]: settings["extra_ratio"] for key, settings in standin.settings.items()}
    assert ratio == {"real": 0, "cbmat_x0.25": 0.25, "cbmat": 1.0}
    own = read_json(tmp_path / "out/fold0/seed0/cbmat_x0.25/datalist.json")["training"]
    assert {item["fold"] for item in own if item.get("synthetic")} == {-1}
    assert {item["fold"] for item in own if not item.get("synthetic")} == {0, 1}


def test_the_painted_cases_alone_train_one_arm_and_weights_another(datalist, standin, tmp_path):
    compare.compare(
        datalist, tmp_path / "out", arms="real,synthetic_only,class_weighted", folds=0, seeds=0, iterations=1
    )
    own = read_json(tmp_path / "out/fold0/seed0/synthetic_only/datalist.json")["training"]
    assert all(item.get("synthetic") for item in own if item["fold"] != 0)
    assert "tissue_weights" not in standin.settings["fold0/seed0/real"]
    weights = standin.settings["fold0/seed0/class_weighted"]["tissue_weights"]
    assert weights[:2] == [0.1, 0.3] and weights[5] >= max(weights[2:5])
    held_out = next(case for case in read_datalist(datalist)["training"] if case.patient == "p00")
    assert arms.tissue_weights([held_out], LABELS, [1] * 6)[2:] == [1, 1, 1, 1]  # four tissues, a row each


def test_a_learning_curve_refits_everything_on_nested_shares_of_the_training_patients(datalist, standin, tmp_path):
    compare.compare(
        datalist, tmp_path / "out", arms="real,cbmat", folds=0, seeds=(0, 1), fractions=(0.5, 1), iterations=1
    )
    assert len(standin.augmented) == 2 and len(standin.trained) == 8
    half = read_json(tmp_path / "out/fold0/patients50/seed0/cbmat/result.json")
    whole = read_json(tmp_path / "out/fold0/seed0/cbmat/result.json")
    assert len(half["train_patients"]) == 3 and set(half["train_patients"]) < set(whole["train_patients"])
    assert half["test_patients"] == whole["test_patients"]
    assert all(set(names) <= set(half["train_patients"]) for names in half["fitted_on"].values())
    summary = read_json(tmp_path / "out/summary.json")
    assert summary["fractions"] == [0.5, 1.0] and {row["fraction"] for row in summary["curve"]} == {0.5, 1.0}
    assert {row["patients"] for row in summary["rows"]} == {1, 6}


def test_another_datalist_is_tested_too_and_its_patients_must_be_others(datalist, standin, tmp_path):
    items = [make_case(tmp_path / "other", f"new{n}", [2, 3]) | {"fold": n, "patient": f"p{50 + n}"} for n in range(3)]
    write_json(tmp_path / "other/datalist.json", {"labels": LABELS, "training": items})
    compare.compare(datalist, tmp_path / "out", arms="real,cbmat", folds=0, seeds=0, iterations=1,
                    external=tmp_path / "other/datalist.json")  # fmt: skip
    external = read_json(tmp_path / "out/summary.json")["external"]
    assert {row["patients"] for row in external if row["tissue"] == "fibrosis"} == {3}
    items[0]["patient"] = "p01"
    write_json(tmp_path / "other/datalist.json", {"labels": LABELS, "training": items})
    with pytest.raises(InputError, match="leak in arm real, fold 0: stage segmenter was fitted on test patients p01"):
        compare.compare(datalist, tmp_path / "again/out", arms="real", folds=0, seeds=0, iterations=1,
                        external=tmp_path / "other/datalist.json")  # fmt: skip


def test_a_plan_trains_nothing_and_a_tissue_missing_in_a_fold_is_said(datalist, standin, tmp_path, capsys):
    with pytest.raises(InputError, match="compare --plan needs --output, a folder with the results.csv of a small"):
        compare.compare(datalist, plan=True)
    compare.compare(datalist, tmp_path / "pilot/out", arms="real,oversampled", seeds=(0, 1), iterations=1)
    trained, _ = len(standin.trained), capsys.readouterr()
    compare.compare(datalist, tmp_path / "pilot/out", plan=True)
    assert "fibrosis" in capsys.readouterr().out and len(standin.trained) == trained
    content = json.loads(datalist.read_text())
    content["training"] = [item for item in content["training"] if item["patient"] != "p01"]
    write_json(datalist, content)
    compare.compare(datalist, tmp_path / "out", arms="real", seeds=0, iterations=1)
    printed = capsys.readouterr().out
    assert "fold 0: no training patient has consolidation, so no arm can learn it there" in printed
    assert "fold 1: no test patient has consolidation" in printed
    with pytest.raises(InputError, match="compare needs --output"):
        compare.compare(datalist)


def test_a_killed_comparison_goes_on_where_it_stopped(datalist, standin, tmp_path):
    output = tmp_path / "out"
    standin.dies_at = 2
    with pytest.raises(KeyboardInterrupt):
        compare.compare(datalist, output, arms="real,oversampled", folds=0, seeds=(0, 1), iterations=10)
    assert not (output / "summary.json").exists() and (output / "fold0/seed1/real/half").exists()
    compare.compare(datalist, output, arms="real,oversampled", folds=0, seeds=(0, 1), iterations=10)
    assert standin.trained == [
        "fold0/seed0/real",
        "fold0/seed0/oversampled",
        "fold0/seed1/real",
        "fold0/seed1/oversampled",
    ]
    assert not (output / "fold0/seed1/real/half").exists()  # nothing of the killed run is left


def test_arms_seeds_and_folds_can_be_added_later_without_repeating_runs(datalist, standin, tmp_path):
    output = tmp_path / "out"
    compare.compare(datalist, output, arms="real", folds=0, seeds=0, iterations=10)
    compare.compare(datalist, output, arms="real,cbmat_oversampled", folds=(0, 1), seeds=(0, 1), iterations=10)
    assert len(standin.trained) == len(set(standin.trained)) == 8
    summary = read_json(output / "summary.json")
    assert summary["arms"] == ["real", "cbmat_oversampled"] and summary["folds"] == summary["seeds"] == [0, 1]
    before = (output / "summary.json").read_bytes()
    compare.compare(datalist, output, arms="real", folds=0, seeds=0, iterations=10)
    assert (output / "summary.json").read_bytes() == before
    with pytest.raises(InputError, match="iterations was 10, now 20"):
        compare.compare(datalist, output, arms="real", iterations=20)


def test_a_failed_run_is_named_after_the_others_have_finished(datalist, standin, tmp_path, monkeypatch):
    def run_bundle(bundle, config_files, overrides, log, variables=None):
        if log.parent.name == "oversampled":
            raise RuntimeError("out of memory")
        standin.run_bundle(bundle, config_files, overrides, log)

    sys.modules["tools.workflows.run"].run_bundle = run_bundle
    with pytest.raises(RuntimeError, match=r"1 of 3 runs failed \(fold 0, seed 0, arm oversampled\)"):
        compare.compare(datalist, tmp_path / "out", arms="real,oversampled,cbmat", folds=0, seeds=0, iterations=10)
    assert standin.trained == ["fold0/seed0/real", "fold0/seed0/cbmat"]


def test_every_arm_gets_the_same_settings_but_for_its_folder_and_ratio(datalist, standin, tmp_path):
    output = tmp_path / "out"
    names = ("real", "oversampled", "copy_paste", "cbmat_filter")
    compare.compare(datalist, output, names, folds=1, seeds=3, iterations=120, overrides={"batch_size": 2})
    settings = [
        {key: value for key, value in overrides.items() if str(output) not in str(value)}
        for overrides in standin.settings.values()
    ]
    assert [one.pop("extra_ratio") for one in settings] == [0, 0, 1, 1]
    assert all(one == settings[0] for one in settings) and len(settings) == 4
    assert settings[0] == {
        "fold": 1,
        "seed": 3,
        "max_epochs": 2,
        "epoch_length": 60,
        "val_interval": 2,
        "spacing_mm": [0.8, 0.8, -1],  # of the training patients, whose fold is 0
        "batch_size": 2,
    }


def test_oversampling_evens_out_the_tissues_and_stops_at_the_cap(datalist, standin, tmp_path):
    compare.compare(datalist, tmp_path / "out", arms="real,oversampled", folds=0, seeds=0, iterations=1)
    own = read_json(tmp_path / "out/fold0/seed0/oversampled/datalist.json")["training"]
    times = [sum(item["image"].endswith(f"case{number:02d}a.nii.gz") for item in own) for number in (1, 3, 5)]
    assert times[0] > 3 and times[1:] == [1, 1]  # patient 1 alone has consolidation
    assert arms.repeats(np.array([[1, 0]] * 40 + [[0, 1]]))[-1] == arms.REPEATS_AT_MOST
    assert arms.repeats(np.array([[1, 1], [1, 1]])) == [1, 1]
    assert arms.repeats(np.zeros((3, 2))) == [1, 1, 1]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"arms": "real,syntetic"}, "no arm 'syntetic'; there are real, oversampled"),
        ({"arms": "oversampled"}, "arms oversampled lack real"),
        ({"folds": (0, 7)}, "has no fold 7; it has 0, 1"),
        ({"seeds": "a"}, r"seeds must be integers such as 0,1, not \['a'\]"),
        ({"ratios": (0.5, 0)}, r"ratios must be numbers above 0, not"),
        ({"fractions": (0.5, 2)}, r"fractions must be numbers above 0 and at most 1, not \[0.5, 2\]"),
        ({"workers": 0}, "workers must be a whole number of at least 1, not 0"),
        ({"iterations": 0}, "iterations must be a whole number of at least 1, not 0"),
        ({"overrides": {"max_epochs": 3}}, "overrides may not hold 'max_epochs'"),
        ({"datalist": "absent.json"}, "absent.json does not exist"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(datalist, standin, tmp_path, changes, message):
    arguments = {"datalist": datalist, "output": tmp_path / "out"} | changes
    with pytest.raises(InputError, match=message):
        compare.compare(**arguments)
    assert not (tmp_path / "out").exists() and not standin.trained


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda content: content["training"][0].update(fold=1), "patient p00 lies in fold 1 and in fold 0"),
        (lambda content: content["training"][0].pop("patient"), "case00a.* lacks patient"),
        (
            lambda content: content["training"][0].update(image="images/gone.nii.gz"),
            "gone.nii.gz, which does not exist",
        ),
        (lambda content: content["training"][0].update(synthetic=True), "case00a is synthetic"),
        (lambda content: content.update(held_out_fold=1), "made with fold 1 held out, so fold 0 cannot be tested"),
        (lambda content: content.update(training=[]), "is not a datalist"),
        (lambda content: content["labels"].update(honeycombing=6), "honeycombing.*but the segmenter has"),
        (
            lambda content: content.update(training=[item for item in content["training"] if item["fold"] == 0]),
            "holds fold 0 only; nothing is left to train on",
        ),
    ],
)
def test_a_datalist_that_cannot_be_compared_is_refused(datalist, standin, tmp_path, change, message):
    content = json.loads(datalist.read_text())
    change(content)
    write_json(datalist, content)
    with pytest.raises(InputError, match=message):
        compare.compare(datalist, tmp_path / "out", iterations=1)


def test_a_table_of_scores_that_does_not_fit_the_test_cases_is_refused(tmp_path):
    test = [Case(Path(f"/x/{name}.nii.gz"), Path(f"/y/{name}.nii.gz"), name, 0) for name in "ab"]
    file = tmp_path / "scores.csv"
    with pytest.raises(RuntimeError, match="ended without"):
        results.read_scores(file, test, ["fibrosis"])
    head = "case,tissue,state,dice,surface_dice,percent_error,ml_predicted\n"
    row = "{},present,0.5,0.5,1,2\n".format
    for text, message in (
        (row("a,fibrosis"), "once: b fibrosis"),
        (row("a,fibrosis") * 2 + row("b,fibrosis"), "once: a case twice"),
        (row("a,fibrosis") + row("b,fibrosis") + row("c,fibrosis"), "once: c fibrosis"),
        (row("a,fibrosis") + row("b,emphysema"), "once: b emphysema"),
    ):
        file.write_text(head + text)
        with pytest.raises(RunError, match=message):
            results.read_scores(file, test, ["fibrosis"])
    file.write_text(head + "b,fibrosis,false,,,0.5,3\na,fibrosis,present,0.5,0.25,-2,3\n")
    unknown = {"dice_all_lung_known": None, "dice_lung_known": None}
    found = {"dice_all": 0.5, "dice": 0.5, "surface_dice": 0.25, "volume_error": 2.0, "false_ml": None}
    lacked = {"dice_all": 0.0, "dice": None, "surface_dice": None, "volume_error": 0.5, "false_ml": 3.0}
    scores = {"a": {"fibrosis": found | unknown}, "b": {"fibrosis": lacked | unknown}}
    assert results.read_scores(file, test, ["fibrosis"]) == scores
    file.write_text(head + "b,fibrosis,absent,,,0.5,0\na,fibrosis,missed,0,0,-2,0\n")
    assert [results.read_scores(file, test, ["fibrosis"])[name]["fibrosis"]["dice_all"] for name in "ab"] == [0, 1]


def earlier(output):
    """Make a finished comparison look as the version before left it."""
    for path in output.glob("fold*/**/result.json"):
        result = read_json(path)
        for row in (row for scores in result["scores"].values() for row in scores.values()):
            for measures in row.values():
                for name in ("dice_all", "false_ml", "dice_all_lung_known", "dice_lung_known"):
                    measures.pop(name)
        write_json(path, result | {"schema": 2})
    settings = read_json(output / "run.json") | {"schema": 2}
    write_json(output / "run.json", {k: v for k, v in settings.items() if k not in ("primary", "paint_per_seed")})
    write_json(output / "summary.json", read_json(output / "summary.json") | {"schema": 2})


def test_a_comparison_begun_under_the_old_statistics_is_recomputed_from_its_scores_and_never_mixed(
    datalist, standin, tmp_path, capsys
):
    output = tmp_path / "out"
    given = {"arms": "real,cbmat,cbmat_filter", "seeds": (0, 1), "iterations": 1}
    compare.compare(datalist, output, **given)
    today = (output / "results.csv").read_text()
    earlier(output)
    (output / "results.csv").write_text("")
    with pytest.raises(InputError, match="schema was 2, now 3"):
        compare.compare(datalist, output, **given)
    summary, records = load(output)
    assert summary["schema"] == 3 and summary["recomputed"] and (output / "results.csv").read_text() == today
    assert len(records) == 3 * 2 * 12 * len(TISSUES) and "computed anew from its scores" in capsys.readouterr().out
    run = output / "fold0/seed0/cbmat/result.json"
    write_json(run, read_json(run) | {"schema": 3})
    with pytest.raises(InputError, match="holds runs of several versions"):
        results.collect(output, read_datalist(datalist))
    write_json(run, read_json(run) | {"schema": 2})
    (output / "fold1/seed1/real/scores.csv").unlink()
    with pytest.raises(InputError, match="made by an earlier version and cannot be scored anew"):
        results.collect(output, read_datalist(datalist))


def test_each_seed_can_have_painted_cases_of_its_own(datalist, standin, tmp_path):
    given = {"arms": "real,cbmat", "folds": 0, "seeds": (0, 3), "iterations": 1}
    compare.compare(datalist, tmp_path / "out", paint_per_seed=True, augmentation_seed=4, **given)
    assert sorted(standin.augmented) == [(0, "cbmat", 4), (0, "cbmat", 7)]
    assert (tmp_path / "out/fold0/seed3/augment_cbmat/datalist.json").is_file()
    assert len(standin.trained) == 4


def test_the_primary_question_is_named_beforehand(standin, tmp_path, capsys):
    datalist = twelve_patients(tmp_path, folds=3)
    given = {"arms": "real,cbmat,oversampled", "seeds": (0, 1), "iterations": 1}
    for primary, message in (
        ("konz,mean", "primary names arm 'konz'; compared with real are cbmat, oversampled"),
        ("real,mean", "primary names arm 'real'"),
        ("cbmat,honeycombing", "primary names tissue 'honeycombing'; there are healthy, ground_glass"),
        ("cbmat", "primary is ARM,TISSUE such as cbmat_filter,mean; not 'cbmat'"),
    ):
        with pytest.raises(InputError, match=message):
            compare.compare(datalist, tmp_path / "out", primary=primary, **given)
    compare.compare(datalist, tmp_path / "out", primary="cbmat,MEAN", **given)
    summary = read_json(tmp_path / "out/summary.json")
    assert summary["primary"] == ["cbmat", "mean"] and "gain (primary)" in capsys.readouterr().out
    with pytest.raises(InputError, match="primary was cbmat,mean, now oversampled,mean"):
        compare.compare(datalist, tmp_path / "out", primary="oversampled,mean", **given)

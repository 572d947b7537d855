"""The number of steps found on training patients alone, and the arm that spends what painting costs."""

import sys

import pytest

from tests.tools.fakes.standin import LABELS
from tools.comparison import compare, plateau
from tools.comparison.experiment import clock
from tools.data.datalist import patients, read_datalist, split
from tools.io.files import InputError, read_json, write_json

pytestmark = pytest.mark.slow  # the file takes seconds: make check leaves it to make test


def learning(standin, gains):
    """Let the stand-in's Dice grow with the steps: ``gains`` is steps to what is added."""
    bare = standin.run_bundle

    def run_bundle(bundle, config_files, overrides, log, variables=None):
        bare(bundle, config_files, overrides, log, variables)
        steps = overrides["max_epochs"] * overrides["epoch_length"]
        if "plateau" in log.parent.parts:
            path = log.parent / "scores.csv"
            lines = path.read_text().splitlines()
            place = lines[0].split(",").index("dice")
            rows = [line.split(",") for line in lines[1:]]
            for row in rows:
                row[place] = str(float(row[place]) + gains[steps]) if row[place] else ""
            path.write_text("\n".join([lines[0], *(",".join(row) for row in rows)]) + "\n")

    sys.modules["tools.workflows.run"].run_bundle = run_bundle


def steps_of(standin, key):
    settings = standin.settings[key]
    return settings["max_epochs"] * settings["epoch_length"]


def test_every_arm_takes_the_smallest_budget_after_which_doubling_gains_little(datalist, standin, tmp_path, capsys):
    learning(standin, {250: 0.0, 500: 0.1, 1000: 0.104, 2000: 0.4})
    given = {"arms": "real,oversampled", "folds": 0, "seeds": (0, 1), "until": "plateau"}
    compare.compare(datalist, tmp_path / "out", **given)
    assert steps_of(standin, "fold0/seed0/real") == steps_of(standin, "fold0/seed1/oversampled") == 500
    found = read_json(tmp_path / "out/fold0/plateau/plateau.json")
    assert found["reached"] and list(found["scores"]) == ["250", "500", "1000"]  # 2000 steps are not tried
    assert "fold 0: plateau at 500 steps: mean Dice" in capsys.readouterr().out
    trained = len(standin.trained)
    compare.compare(datalist, tmp_path / "out", **given | {"seeds": (0, 1, 2)})
    assert len(standin.trained) == trained + 2  # the plateau is not looked for again
    run = read_json(tmp_path / "out/fold0/seed2/real/result.json")
    assert run["iterations"] == 500 and set(run["fitted_on"]["number of steps"]) == set(run["train_patients"])


def test_no_test_patient_is_read_to_find_the_steps(datalist, standin, tmp_path):
    learning(standin, {250: 0.0, 500: 0.0})
    compare.compare(datalist, tmp_path / "out", arms="real", folds=1, seeds=0, until="plateau", iterations=500)
    inner = read_datalist(tmp_path / "out/fold1/plateau/steps250/datalist.json")["training"]
    _, test = split(read_datalist(datalist), 1)
    assert not set(patients(inner)) & set(patients(test)) and {case.fold for case in inner} == {0, 1, 2}
    own, held_out = split({"training": inner}, 0)
    assert len(patients(own)) == 4 and len(patients(held_out)) == 2


def test_a_plateau_that_is_not_reached_is_said_with_how_far(datalist, standin, tmp_path, capsys):
    learning(standin, {250: 0.0, 500: 0.1, 1000: 0.15})
    compare.compare(datalist, tmp_path / "out", arms="real", folds=0, seeds=0, until="plateau", iterations=1000)
    assert "no plateau within 1000 steps: mean Dice" in (printed := capsys.readouterr().out)
    assert "the last doubling still gained 0.050; more --iterations" in printed
    assert steps_of(standin, "fold0/seed0/real") == 1000
    assert "no plateau" in read_json(tmp_path / "out/summary.json")["plateaus"][0]


def test_the_arm_longer_spends_the_seconds_of_the_dearest_painted_arm(datalist, standin, tmp_path):
    output = tmp_path / "out"
    compare.compare(datalist, output, arms="real,cbmat", folds=0, seeds=0, iterations=100)
    write_json(clock(output / "fold0/augment_cbmat"), {"seconds": 30.0})
    real = output / "fold0/seed0/real/result.json"
    write_json(real, read_json(real) | {"seconds": 50.0})
    compare.compare(datalist, output, arms="real,longer,cbmat", folds=0, seeds=0, iterations=100)
    assert steps_of(standin, "fold0/seed0/longer") == 160
    assert standin.settings["fold0/seed0/longer"]["extra_ratio"] == 0
    rows = read_json(output / "summary.json")["rows"]
    assert {row["arm"] for row in rows} == {"real", "longer", "cbmat"}


def test_the_arm_longer_takes_a_multiple_that_is_given(datalist, standin, tmp_path):
    compare.compare(datalist, tmp_path / "out", arms="real,longer", folds=0, seeds=0, iterations=100, longer=2.5)
    assert steps_of(standin, "fold0/seed0/longer") == 250


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"until": "dawn"}, "until may be plateau, not 'dawn'"),
        ({"until": "plateau", "iterations": 400}, "so give 500 or more"),
        ({"longer": 0}, "longer must be a number above 0, not 0"),
        ({"arms": "real,longer"}, "the arm longer spends what painting costs, and no arm is painted"),
    ],
)
def test_steps_that_cannot_be_found_are_refused(datalist, standin, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        compare.compare(datalist, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists() and not standin.trained


def test_a_single_training_patient_is_not_divided(datalist):
    some = [case for case in read_datalist(datalist)["training"] if case.patient == "p03"]
    with pytest.raises(InputError, match="1 training patient cannot be divided once more"):
        plateau.inner_split(some, LABELS)

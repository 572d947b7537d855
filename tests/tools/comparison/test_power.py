"""The plan states the power that simulated experiments have, and what it would take to find a gain."""

import numpy as np
import pytest

from tools.comparison import power as planning
from tools.comparison.power import Spread, format_plan, plan, power, smallest_gain, spread_of
from tools.comparison.simulate import experiment
from tools.comparison.verdicts import summarise
from tools.io.files import InputError

SPREAD = Spread(fold=0.01, patient=0.05, run=0.02, noise=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("patients", "folds", "seeds", "spread", "gain"),
    [
        (40, 5, 3, Spread(0.01, 0.05, 0.02, 0.05), 0.03),
        (40, 5, 3, Spread(0.03, 0.0, 0.01, 0.04), 0.03),
        (20, 3, 2, Spread(0.0, 0.02, 0.01, 0.05), 0.03),
        (10, 5, 3, Spread(0.02, 0.02, 0.01, 0.03), 0.05),
    ],
)
def test_a_true_gain_is_found_as_often_as_stated(patients, folds, seeds, spread, gain):
    rng, found = np.random.default_rng(6), []
    for _ in range(300):
        single = spread.noise / 2**0.5, spread.run / 2**0.5  # of one run; the plan's are of a difference
        data = experiment(rng, patients, folds, seeds, 2, spread.patient, *single, gain, spread.fold)
        found.append(summarise(data, ["fibrosis"], ["real", "arm1"])[1]["verdict"] == "gain")
    assert np.mean(found) == pytest.approx(power(gain, patients, folds, seeds, spread), abs=0.1)


def test_without_a_gain_half_of_the_5_percent_are_called_gain():
    assert power(0.0, 40, 5, 3, SPREAD) == pytest.approx(0.025, abs=0.02)


def test_power_rises_with_folds_and_gain_and_falls_with_every_spread_and_with_other_questions():
    base = power(0.03, 40, 5, 3, SPREAD)
    assert power(0.03, 40, 10, 3, SPREAD) > base and power(0.05, 40, 5, 3, SPREAD) > base
    for name in Spread._fields:
        assert power(0.03, 40, 5, 3, SPREAD._replace(**{name: 0.2})) < base
    assert power(0.03, 40, 5, 3, SPREAD, questions=20) < base


def test_no_claim_is_possible_with_one_seed_two_folds_or_four_patients_and_none_fails_where_nothing_varies():
    assert power(0.03, 40, 5, 1, SPREAD) == power(0.03, 40, 2, 3, SPREAD) == power(0.03, 4, 5, 3, SPREAD) == 0
    still = Spread(0.0, 0.0, 0.0, 0.0)
    assert power(0.03, 40, 5, 3, still) == 1 and power(0.0, 40, 5, 3, still) == 0


@pytest.mark.parametrize(("name", "design"), [("folds", (0, 3)), ("seeds", (5, 0))])
def test_an_impossible_design_is_refused(name, design):
    with pytest.raises(InputError, match=f"at least 1 {name}, not 0"):
        power(0.03, 40, *design, SPREAD)


def test_the_smallest_gain_has_the_power_and_a_smaller_one_has_not():
    gain = smallest_gain(40, 5, 3, SPREAD)
    assert power(gain - 0.001, 40, 5, 3, SPREAD) < 0.8 <= power(gain, 40, 5, 3, SPREAD)
    assert smallest_gain(3, 5, 3, SPREAD) is None


def test_a_pilot_gives_the_spread_it_was_drawn_with():
    data = experiment(np.random.default_rng(1), 600, 60, 3, 2, patient=0.05, noise=0.04, luck=0.03, fold=0.04)
    assert spread_of(data, "fibrosis") == pytest.approx((0.04, 0.05, 0.03 * 2**0.5, 0.04 * 2**0.5), rel=0.3)


@pytest.mark.parametrize(
    ("design", "words"),
    [
        ((4, 2, 2, 2), "4 patients with fibrosis, 2 arms, 2 folds and 2 seeds"),
        ((10, 2, 1, 2), "10 patients with fibrosis, 2 arms, 2 folds and 1 seeds"),
        ((10, 1, 2, 2), "10 patients with fibrosis, 2 arms, 1 folds and 2 seeds"),
        ((10, 2, 2, 1), "10 patients with fibrosis, 1 arms, 2 folds and 2 seeds"),
        ((5, 5, 2, 2), "no two patients with fibrosis share two runs of an arm"),
    ],
)
def test_a_pilot_that_is_too_small_is_refused_with_what_it_lacks(design, words):
    with pytest.raises(InputError, match=words):
        plan({"fibrosis": 20}, 20, 5, 3, 4, experiment(np.random.default_rng(1), *design))


def test_the_plan_holds_the_power_and_names_a_tissue_of_which_the_pilot_holds_too_little(monkeypatch):
    monkeypatch.setattr(planning, "EXPERIMENTS", 40)
    pilot = experiment(np.random.default_rng(1), 20, 3, 2, 3)
    row, *others = plan({"fibrosis": 40, "emphysema": 12}, 50, 5, 3, 4, pilot)
    spread = Spread(**row["spread"])
    assert spread == spread_of(pilot, "fibrosis") and row["having"] == 40
    assert row["power"] == {gain: power(gain, 50, 5, 3, spread) for gain in (0.01, 0.03, 0.05)}
    assert row["smallest_gain"] < row["family_gain"]
    assert others[0]["unknown"].startswith("the pilot has 0 patients with emphysema")
    text = format_plan([row, *others])
    assert "emphysema is not planned: the pilot has 0 patients" in text
    assert max(map(len, text.splitlines()[:2])) <= 140


def test_the_table_says_what_to_add_where_no_number_suffices(monkeypatch):
    monkeypatch.setattr(planning, "EXPERIMENTS", 20)
    pilot = experiment(np.random.default_rng(1), 60, 6, 2, 2, 0.9, 0.0, 0.5)
    text = format_plan(plan({"fibrosis": 40}, 40, 3, 2, 4, pilot))
    assert "add folds" in text and "add patients" in text
    few = format_plan(plan({"fibrosis": 0}, 40, 3, 2, 4, pilot)).splitlines()[1]
    assert few.split()[1:6] == ["0", "0.00", "0.00", "0.00", "-"]


def test_a_plan_for_no_tissue_is_refused():
    with pytest.raises(InputError, match="no tissue"):
        plan({}, 20, 5, 3, 4, [])

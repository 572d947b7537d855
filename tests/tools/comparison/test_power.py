"""The plan states the power that simulated experiments have, and what it would take to find a gain."""

import numpy as np
import pytest

from tests.tools.fakes.experiments import experiment
from tools.comparison import verdicts
from tools.comparison.power import Spread, format_plan, patients_needed, plan, power, smallest_gain, variances
from tools.io.files import InputError

SPREAD = Spread(patient=0.05, noise=0.05, luck=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("patients", "folds", "seeds", "arms", "spread", "gain"),
    [
        (40, 5, 3, 2, Spread(0.05, 0.05, 0.02), 0.03),
        (40, 5, 3, 2, Spread(0.0, 0.04, 0.01), 0.03),
        (40, 5, 2, 4, Spread(0.03, 0.05, 0.03), 0.03),
        (20, 1, 2, 5, Spread(0.02, 0.05, 0.01), 0.03),
        (10, 5, 3, 2, Spread(0.02, 0.03, 0.01), 0.03),
        (6, 5, 3, 2, Spread(0.02, 0.03, 0.01), 0.05),
    ],
)
def test_a_true_gain_is_found_as_often_as_stated(patients, folds, seeds, arms, spread, gain, monkeypatch):
    monkeypatch.setattr(verdicts, "RESAMPLES", 1000)
    rng, found, names = np.random.default_rng(6), [], ["real", *(f"arm{index}" for index in range(1, arms))]
    for _ in range(300):
        data = experiment(rng, patients, folds, seeds, arms, *spread, gain)
        found += [row["verdict"] == "gain" for row in verdicts.summarise(data, ["fibrosis"], names)[1:]]
    assert np.mean(found) == pytest.approx(power(gain, patients, folds, seeds, arms, spread), abs=0.1)


def test_without_a_gain_half_of_the_5_percent_are_called_gain():
    assert power(0.0, 200, 5, 4, 2, Spread(0.05, 0.0, 0.02)) == pytest.approx(0.025, abs=0.005)


def test_power_rises_with_patients_folds_seeds_and_gain_and_falls_with_every_spread():
    base = power(0.03, 40, 5, 3, 4, SPREAD)
    assert power(0.03, 80, 5, 3, 4, SPREAD) > base and power(0.03, 40, 8, 3, 4, SPREAD) > base
    assert power(0.03, 40, 5, 4, 4, SPREAD) > base and power(0.04, 40, 5, 3, 4, SPREAD) > base
    for name in Spread._fields:
        assert power(0.03, 40, 5, 3, 4, SPREAD._replace(**{name: 0.1})) < base


def test_no_claim_is_possible_with_one_seed_or_four_patients_and_none_fails_where_nothing_varies():
    assert power(0.03, 40, 5, 1, 4, SPREAD) == power(0.03, 4, 2, 3, 4, SPREAD) == 0
    still = Spread(0.0, 0.0, 0.0)
    assert power(0.03, 40, 5, 3, 4, still) == 1 and power(0.0, 40, 5, 3, 4, still) == 0
    assert power(0.2, 40, 5, 3, 4, Spread(0.0, 0.0, 0.01)) > 0.999


@pytest.mark.parametrize(("name", "design"), [("folds", (0, 3, 4)), ("seeds", (5, 0, 4)), ("arms", (5, 3, 1))])
def test_an_impossible_design_is_refused(name, design):
    with pytest.raises(InputError, match=f"at least . {name}, not {min(design)}"):
        power(0.03, 40, *design, SPREAD)


def test_the_patients_needed_have_the_power_and_one_fewer_has_not():
    needed = patients_needed(0.03, 5, 4, 4, SPREAD)
    assert power(0.03, needed - 1, 5, 4, 4, SPREAD) < 0.8 <= power(0.03, needed, 5, 4, 4, SPREAD)


def test_no_number_of_patients_outweighs_the_luck_of_few_runs():
    assert patients_needed(0.03, 1, 2, 4, Spread(0.01, 0.01, 0.05)) is None


def test_the_smallest_gain_has_the_power_and_a_smaller_one_has_not():
    gain = smallest_gain(40, 5, 3, 4, SPREAD)
    assert power(gain - 0.001, 40, 5, 3, 4, SPREAD) < 0.8 <= power(gain, 40, 5, 3, 4, SPREAD)
    assert smallest_gain(3, 5, 3, 4, SPREAD) is None


def test_a_pilot_gives_the_spread_it_was_drawn_with():
    drawn = Spread(patient=0.05, noise=0.04, luck=0.03)
    data = experiment(np.random.default_rng(1), 600, 20, 4, 4, *drawn)
    assert variances(data, "fibrosis") == pytest.approx(drawn, rel=0.15)


@pytest.mark.parametrize(
    ("design", "words"),
    [
        ((4, 1, 2, 2), "4 patients with fibrosis, 2 arms and 2 seeds"),
        ((10, 1, 1, 2), "10 patients with fibrosis, 2 arms and 1 seeds"),
        ((10, 1, 2, 1), "10 patients with fibrosis, 1 arms and 2 seeds"),
        ((5, 5, 2, 2), "no two patients with fibrosis share two runs of arm arm1"),
    ],
)
def test_a_pilot_that_is_too_small_is_refused_with_what_it_lacks(design, words):
    with pytest.raises(InputError, match=words):
        plan({"fibrosis": 20}, 5, 3, 4, experiment(np.random.default_rng(1), *design))


def test_a_tissue_of_which_the_pilot_holds_too_little_is_named_with_the_reason():
    pilot = experiment(np.random.default_rng(1), 20, 2, 2, 3)
    rows = plan({"fibrosis": 40, "emphysema": 12}, 5, 3, 4, pilot)
    assert rows[0]["spread"] == variances(pilot, "fibrosis")._asdict()
    assert rows[1]["unknown"].startswith("the pilot has 0 patients with emphysema")
    assert "emphysema is not planned: the pilot has 0 patients" in format_plan(rows)


def test_the_plan_holds_the_power_and_the_numbers_needed():
    (row,) = plan({"fibrosis": 40}, 5, 3, 4, experiment(np.random.default_rng(1), 200, 10, 4, 4, 0.05, 0.05, 0.02))
    spread = Spread(**row["spread"])
    assert row["power"] == {gain: power(gain, 40, 5, 3, 4, spread) for gain in (0.01, 0.03, 0.05)}
    assert row["patients_needed"] == patients_needed(0.03, 5, 3, 4, spread) > 40
    seeds = row["seeds_needed"]
    assert power(0.03, 40, 5, seeds - 1, 4, spread) < 0.8 <= power(0.03, 40, 5, seeds, 4, spread)


def test_the_table_says_what_to_add_where_no_number_suffices():
    pilot = experiment(np.random.default_rng(1), 200, 10, 4, 4, 0.3, 0.0, 0.1)
    text = format_plan(plan({"fibrosis": 40}, 1, 2, 4, pilot))
    assert "add seeds" in text and "add patients" in text
    assert max(map(len, text.splitlines())) <= 140
    few = format_plan(plan({"fibrosis": 0}, 1, 2, 4, pilot)).splitlines()[1]
    assert few.split()[1:6] == ["0", "0.00", "0.00", "0.00", "-"]


def test_a_plan_for_no_tissue_is_refused():
    with pytest.raises(InputError, match="no tissue"):
        plan({}, 5, 3, 4, [])

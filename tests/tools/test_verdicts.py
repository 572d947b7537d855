"""Known answers for the paired statistics."""

import numpy as np
import pytest

from tools import verdicts


def records(dice, tissue="fibrosis"):
    """dice: arm -> seed -> list over patients (None where the tissue is absent)."""
    return [
        {"fold": 0, "seed": seed, "arm": arm, "patient": f"p{index}", "tissue": tissue, "dice": value}
        for arm, seeds in dice.items()
        for seed, values in seeds.items()
        for index, value in enumerate(values)
    ]


def row_of(rows, arm, tissue="fibrosis"):
    return next(row for row in rows if row["arm"] == arm and row["tissue"] == tissue)


def test_a_constant_shift_is_a_gain_of_exactly_that_size():
    real = [0.1, 0.5, 0.3, 0.7, 0.2, 0.6]
    rows = verdicts.summarise(
        records({"real": {0: real}, "synthetic": {0: [value + 0.25 for value in real]}}),
        ["fibrosis"],
        ["real", "synthetic"],
    )
    row = row_of(rows, "synthetic")
    assert row["difference"] == pytest.approx(0.25)
    assert row["interval"] == pytest.approx([0.25, 0.25])
    assert row["p"] == row["p_holm"] == pytest.approx(2 / 2**6)  # all six signs agree
    assert row["verdict"] == "gain"
    assert row_of(rows, "real")["dice"] == pytest.approx(np.mean(real)) and "verdict" not in row_of(rows, "real")


def test_a_symmetric_difference_is_no_gain_and_its_mirror_image_of_a_gain_is_a_loss():
    real = [0.5] * 8
    shifts = [0.1, -0.1, 0.2, -0.2, 0.05, -0.05, 0.15, -0.15]
    losing = [-0.1, -0.12, -0.2, -0.15, -0.11, -0.13, -0.18, -0.1]
    rows = verdicts.summarise(
        records(
            {
                "real": {0: real},
                "oversampled": {0: [0.5 + shift for shift in shifts]},
                "copy_paste": {0: [0.5 + shift for shift in losing]},
                "synthetic": {0: [0.5 - shift for shift in losing]},
            }
        ),
        ["fibrosis"],
        ["real", "oversampled", "copy_paste", "synthetic"],
    )
    assert [row.get("verdict") for row in rows] == [None, "no gain", "loss", "gain"]
    low, high = row_of(rows, "oversampled")["interval"]
    assert low < 0 < high and low == pytest.approx(-high, abs=0.01)


def test_seeds_are_averaged_within_the_patient_before_anything_else():
    data = {"real": {0: [0.4] * 6, 1: [0.6] * 6}, "synthetic": {0: [0.5] * 6, 1: [0.5] * 6}}
    rows = verdicts.summarise(records(data), ["fibrosis"], ["real", "synthetic"])
    row = row_of(rows, "synthetic")
    assert row["patients"] == 6 and row["difference"] == pytest.approx(0)
    assert row["difference_per_seed"] == pytest.approx({0: 0.1, 1: -0.1})
    assert row["seed_sd"] == pytest.approx(0)
    assert row_of(rows, "real")["seed_sd"] == pytest.approx(np.std([0.4, 0.6], ddof=1))


def test_a_difference_that_one_seed_turns_round_is_no_gain_and_no_loss():
    better = {"real": {0: [0.5] * 6, 1: [0.5] * 6}, "synthetic": {0: [0.7] * 6, 1: [0.49] * 6}}
    worse = {"real": better["synthetic"], "synthetic": better["real"]}
    for data in (better, worse):
        row = row_of(verdicts.summarise(records(data), ["fibrosis"], ["real", "synthetic"]), "synthetic")
        assert row["interval"][0] * row["interval"][1] > 0 and row["verdict"] == "no gain"


def test_a_run_without_its_partner_does_not_enter_the_difference():
    data = {"real": {0: [0.5] * 6, 1: [0.5] * 6}, "synthetic": {0: [0.6] * 6, 1: [0.6] * 6, 2: [0.0] * 6}}
    row = row_of(verdicts.summarise(records(data), ["fibrosis"], ["real", "synthetic"]), "synthetic")
    assert row["difference"] == pytest.approx(0.1) and row["verdict"] == "gain"


def test_patients_without_the_tissue_do_not_count():
    data = {"real": {0: [0.1, 0.2, None, None, 0.3]}, "synthetic": {0: [0.2, 0.3, None, None, 0.4]}}
    row = row_of(verdicts.summarise(records(data), ["fibrosis"], ["real", "synthetic"]), "synthetic")
    assert row["verdict"] == "too few patients (3)"
    assert row["difference"] == pytest.approx(0.1) and row["p"] is None and row["p_holm"] is None


def test_a_tissue_nobody_has_gives_an_empty_row_without_an_error():
    rows = verdicts.summarise(
        records({"real": {0: [None]}, "synthetic": {0: [None]}}), ["fibrosis"], ["real", "synthetic"]
    )
    assert row_of(rows, "synthetic")["verdict"] == "too few patients (0)"
    assert row_of(rows, "synthetic")["difference"] is None and row_of(rows, "synthetic")["interval"] is None
    assert "too few patients (0)" in verdicts.format_table(rows)


def test_holm_runs_over_all_tissues_and_arms_and_matches_the_hand_computed_values():
    assert verdicts.holm([0.01, 0.02, 0.03, 0.04]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert verdicts.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    real, better = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.2, 0.4, 0.6, 0.8, 0.9, 0.95]
    both = [
        record
        for tissue in ("fibrosis", "emphysema")
        for record in records({"real": {0: real}, "synthetic": {0: better}}, tissue)
    ]
    rows = verdicts.summarise(both, ["fibrosis", "emphysema"], ["real", "synthetic"])
    assert [row["p_holm"] for row in rows if row["arm"] == "synthetic"] == pytest.approx([0.0625, 0.0625])


def test_the_interval_is_the_same_for_any_order_of_the_patients_and_repeats_with_its_seed():
    differences = [0.3, -0.1, 0.05, 0.2, 0.11, -0.02, 0.4]
    assert verdicts.bootstrap_interval(differences) == verdicts.bootstrap_interval(differences[::-1])
    assert verdicts.bootstrap_interval(differences, 1) != verdicts.bootstrap_interval(differences, 2)


def test_the_interval_covers_the_truth_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr(verdicts, "RESAMPLES", 1000)
    draws = np.random.default_rng(5).normal(0.1, 1.0, (800, 8))
    intervals = [verdicts.bootstrap_interval(draw, seed) for seed, draw in enumerate(draws)]
    covered = np.mean([low <= 0.1 <= high for low, high in intervals])
    assert 0.90 <= covered <= 0.98  # the plain percentile interval covers 0.87 here, and would fail


def test_one_patient_has_no_interval():
    assert np.isnan(verdicts.bootstrap_interval([0.2])).all()

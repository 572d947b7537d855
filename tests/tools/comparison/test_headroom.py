"""What more real patients would gain: found first, too little refused, and shown beside what each arm takes of it."""

import pytest

from tests.tools.fakes import standin as fakes
from tests.tools.fakes.standin import LABELS, make_case
from tools.__main__ import main
from tools.comparison import compare
from tools.comparison.verdicts import format_table, summarise
from tools.io.files import InputError, read_json, write_json

pytestmark = pytest.mark.slow  # the file takes seconds: make check leaves it to make test


@pytest.fixture
def held_back(tmp_path):
    rows = [
        make_case(tmp_path / "more", f"more{n}", [2, 3, 4]) | {"fold": n, "patient": f"p{50 + n}"} for n in range(3)
    ]
    write_json(tmp_path / "more/datalist.json", {"labels": LABELS, "training": rows})
    return tmp_path / "more/datalist.json"


def test_every_gain_stands_beside_its_share_of_the_headroom(
    datalist, standin, held_back, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(fakes.GAIN, "more_real", 0.2)
    out = tmp_path / "out"
    compare.compare(
        datalist,
        out,
        arms="real,oversampled,cbmat",
        seeds=(0, 1),
        iterations=10,
        held_back=held_back,
        primary="cbmat,mean",
    )
    printed = capsys.readouterr().out
    assert "headroom: more real patients gain +0.0" in printed and "of headroom" in printed
    first = ["fold0/seed0/real", "fold0/seed0/more_real", "fold0/seed1/real", "fold0/seed1/more_real"]
    assert standin.trained[:4] == first
    rows = {(row["tissue"], row["arm"]): row for row in read_json(out / "summary.json")["rows"]}
    assert rows["fibrosis", "oversampled"]["headroom_share"] == pytest.approx(0.25)
    assert rows["fibrosis", "cbmat"]["headroom_share"] == pytest.approx(0.5)
    assert rows["emphysema", "cbmat"]["headroom_share"] is None  # nothing to gain there
    own = read_json(out / "fold0/seed0/more_real/datalist.json")["training"]
    assert {item["patient"] for item in own if item["fold"] == -1} == {"p50", "p51", "p52"}
    assert standin.settings["fold0/seed0/more_real"]["extra_ratio"] is None
    assert standin.settings["fold0/seed0/real"]["extra_ratio"] == 0
    assert main(["report", "--directory", str(out)]) == 0
    page = (out / "report.html").read_text()
    assert "Of headroom" in page and '<td class="n">50 %</td>' in page and "A perfect generator" in page
    assert "the best free rival (oversampled)" in page


def test_a_setting_without_headroom_is_not_run_unless_asked_for(datalist, standin, held_back, tmp_path):
    given = {"arms": "real,cbmat", "folds": 0, "seeds": 0, "iterations": 10, "held_back": held_back}
    with pytest.raises(InputError, match="gain less than 0.03, so no arm could be told from real; train on fewer"):
        compare.compare(datalist, tmp_path / "out", **given)
    assert standin.trained == ["fold0/seed0/real", "fold0/seed0/more_real"] and not standin.augmented
    compare.compare(datalist, tmp_path / "out", **given, least_headroom=0)
    assert standin.trained[2:] == ["fold0/seed0/cbmat"]  # the finished ones are not repeated


def test_patients_held_back_must_be_others(datalist, standin, held_back, tmp_path):
    content = read_json(held_back)
    content["training"][0]["patient"] = "p03"
    write_json(held_back, content)
    with pytest.raises(InputError, match="stage patients held back was fitted on test patients p03"):
        compare.compare(datalist, tmp_path / "out", arms="real", held_back=held_back)
    with pytest.raises(InputError, match="the arm more_real needs --held_back"):
        compare.compare(datalist, tmp_path / "out", arms="real,more_real")
    with pytest.raises(InputError, match="least_headroom is a difference of Dice, from 0 to below 1, not 3"):
        compare.compare(datalist, tmp_path / "out", arms="real", held_back=held_back, least_headroom=3)
    assert not (tmp_path / "out").exists()


def test_more_real_patients_stand_outside_the_family_of_verdicts():
    gains = {"real": 0.0, "more_real": 0.2, "cbmat": 0.1, "konz": 0.1}
    records = [{"tissue": "fibrosis", "arm": arm, "fold": fold, "seed": seed, "patient": f"{fold}{p}",
                "dice_all": 0.3 + gains[arm] + p / 90 + (gain > 0) * fold * seed / 90}
               for arm, gain in gains.items() for fold in range(4) for seed in (0, 1) for p in range(3)]  # fmt: skip
    rows = {row["arm"]: row for row in summarise(records, ["fibrosis"], list(gains))}
    assert rows["more_real"]["p_holm"] == rows["more_real"]["p"] and rows["more_real"]["verdict"] == "gain"
    assert rows["cbmat"]["p_holm"] == pytest.approx(2 * rows["cbmat"]["p"])


def test_the_table_has_no_column_of_shares_without_such_an_arm():
    records = [{"tissue": "fibrosis", "arm": arm, "fold": f, "seed": 0, "patient": f"{f}{p}", "dice_all": 0.5 + p / 9}
               for arm in ("real", "cbmat") for f in range(3) for p in range(3)]  # fmt: skip
    assert "of headroom" not in format_table(summarise(records, ["fibrosis"], ["real", "cbmat"]))

"""The calibration campaign in short: its tables stand where the page has its marks, and say what they must."""

import pytest

from tools.comparison import trust as campaign
from tools.comparison.trust import BEGIN, END, trust
from tools.io.files import InputError


def test_a_page_without_its_marks_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"{END} {BEGIN}")
    with pytest.raises(InputError, match="does not hold <!-- campaign --> and <!-- end of campaign --> once"):
        trust(page)
    with pytest.raises(InputError, match="drawn is 4, but the gate needs at least 10 patients"):
        trust(tmp_path / "new.md", drawn=4)


def test_one_fold_gives_no_verdict_and_three_give_few_false_ones(monkeypatch):
    monkeypatch.setattr(campaign, "PATIENTS", (10,))
    monkeypatch.setattr(campaign, "FOLDS", (1, 3))
    monkeypatch.setattr(campaign, "DEVIATIONS", (0.0, 0.05))
    _, _, one, three = campaign.false_verdicts(0, 60).split("\n\n")[-1].splitlines()
    assert one == "| 1 | 10 | 0.0 | 0.0 |"
    assert all(float(cell) <= 13.5 for cell in three.split(" | ")[2:3])  # three standard errors of 5 %


@pytest.mark.slow
def test_the_campaign_writes_its_tables_and_keeps_the_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# Trust\n\nbefore\n\n{BEGIN}\nsuperseded\n{END}\n\nafter\n")
    trust(page, seed=3, experiments=20, drawn=20, arms=4, mixed=4)
    text = page.read_text()
    assert text.startswith("# Trust\n\nbefore") and text.endswith("after\n") and "superseded" not in text
    for title in ("False verdicts", "a mixed model", "Studies with a false verdict", "What five folds can answer"):
        assert f"{title}" in text
    gate = text[text.index("What the gate rejects") :]
    for fake in ("constant", "faint constant", "noise", "histogram draws", "blurred draws", "unchanged host"):
        (row,) = [line for line in gate.splitlines() if line.startswith(f"| {fake} |") and line.endswith(" % |")]
        assert int(row.split("|")[-2].strip().removesuffix(" %")) >= 90, row
    assert max(map(len, text.splitlines())) <= 120

"""Hostile files, each kind of damage once: the right answer, or one sentence and no output."""

import numpy as np
import pytest

from tools.attack.attack import attack, campaign, kinds, outcomes
from tools.attack.files import write
from tools.attack.series import write_series
from tools.io.files import InputError
from tools.io.volume import load_ct


@pytest.mark.slow
def test_no_kind_of_damage_gets_past_the_door():
    counts, findings = campaign(1, len(kinds()))
    assert findings == []
    assert len(counts) == len(kinds()) > 45
    total = sum(counts.values(), start=type(next(iter(counts.values())))())
    assert total["right"] > 10 and total["refused"] > 10
    text = outcomes(counts)
    assert text.count("\n") == len(kinds()) + 2 and "traceback" not in text


def test_the_undamaged_series_is_the_undamaged_file(tmp_path):
    hu = np.random.default_rng(0).integers(-1000, 100, (20, 18, 5)).astype(np.int16)
    affine = np.diag([-1.4, -1.6, 8.0, 1.0])
    write_series(hu, affine, tmp_path / "series")
    one, other = load_ct(tmp_path / "series"), load_ct(write(hu, affine, tmp_path / "file"))
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_allclose(one[1].affine, other[1].affine, atol=1e-4)


def test_a_page_without_its_marks_and_no_trials_are_refused(tmp_path):
    (tmp_path / "page.md").write_text("# Page\n", encoding="utf-8")
    with pytest.raises(InputError, match="does not hold <!-- attack --> and <!-- end of attack --> once"):
        attack(tmp_path / "page.md")
    with pytest.raises(InputError, match="trials must be a whole number of at least 1"):
        attack(tmp_path / "new.md", trials=0)

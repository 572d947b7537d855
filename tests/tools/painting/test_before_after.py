"""The picture of one painted CT says which panel is which."""

import numpy as np

from tools.painting import before_after
from tools.tissues import tissue_labels


def test_the_columns_have_their_titles_and_the_rows_their_slices(monkeypatch):
    drawn = []
    monkeypatch.setattr(before_after.plotting, "png_bytes", lambda figure: drawn.append(figure) or b"")
    hu = np.full((40, 40, 5), 40.0)
    hu[8:32, 8:32] = -850
    region = np.zeros(hu.shape, bool)
    region[12:20, 12:20, 1:4] = True
    target = np.where(region, tissue_labels()["ground_glass"], 1)
    before_after.draw(hu, hu + 200 * region, target, region, np.ones(3), tissue_labels())
    titles = [axes.get_title() for axes in drawn[0].axes]
    assert titles[:5] == list(before_after.TITLES) and not any(titles[5:]) and len(titles) > 5

"""The report's pictures: which cases are shown, which way up, and figures of many arms."""

import io

import numpy as np
from PIL import Image

from tests.tools.fakes.comparisons import LABELS, PATIENTS
from tools.comparison import arms
from tools.plotting import PANEL, RESOLUTION
from tools.report import figures, pictures


def test_largest_median_and_smallest_case_are_chosen_and_the_smallest_gives_way_to_a_rejected_one(tmp_path):
    volumes = {"a": 5.0, "b": 9.0, "c": 1.0, "d": 7.0}
    lines = [
        {"case": case, "source": "s", "accepted": True, "volume_ml": {"fibrosis": ml}} for case, ml in volumes.items()
    ]
    folder, made = {"path": tmp_path, "manifest": lines}, [(LABELS, dict.fromkeys(volumes, {}), {"s": {}})]

    def chosen():
        return [(line["case"], why) for _, line, why in pictures._choose("fibrosis", [folder], made)]

    assert chosen() == [("b", "largest"), ("a", "median"), ("c", "smallest")]
    lines[3] |= {"accepted": False}
    assert chosen() == [("b", "largest"), ("a", "median"), ("d", "rejected")]
    lines[1] |= {"accepted": False, "checks": {"fibrosis": {"accepted": True}}}  # rejected for another tissue
    assert chosen() == [("a", "largest"), ("c", "median"), ("d", "rejected")]


def test_the_patients_right_is_on_the_left_and_the_front_is_up(monkeypatch):
    hu = np.full((20, 20), -1350.0)
    hu[15:, 15:] = 150  # to the patient's right (RAS: larger x) and front
    image = np.asarray(Image.open(io.BytesIO(figures.ct_slice(hu, (1.0, 1.0)))).convert("L"))
    quarter = image.shape[0] // 8
    assert image[:quarter, :quarter].mean() > 250 and image[-quarter:].mean() < 5 and image[:, -quarter:].mean() < 5


def test_many_arms_are_drawn_one_below_the_other_with_readable_titles():
    keys = list(arms.ARMS)
    rng = np.random.default_rng(0)
    rows = [
        {
            "tissue": "fibrosis",
            "arm": key,
            "difference": rng.normal(0, 0.02),
            "interval": [-0.05, 0.05],
            "verdict": "gain",
        }
        for key in keys
        if key != "real"
    ]
    records = [
        {"tissue": "fibrosis", "arm": key, "patient": patient, "dice": rng.uniform(0.4, 0.6)}
        for key in keys
        for patient in PATIENTS
    ]
    for data in (
        figures.forest(rows, "fibrosis", "#e69f00"),
        figures.patients(records, "fibrosis", keys, "#e69f00"),
    ):
        width, height = Image.open(io.BytesIO(data)).size
        assert width == round(PANEL * RESOLUTION)
        assert height > 0.2 * RESOLUTION * (len(keys) - 1)  # 14 points and more for each arm

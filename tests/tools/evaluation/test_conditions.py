"""Conditions with a stand-in that obeys or does not; the maps, levels, measures and verdicts around it are real."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest

import tools.evaluation.conditions as module
from tools.evaluation import measures, probes
from tools.evaluation.conditions import conditions
from tools.evaluation.figures import draw_conditions
from tools.evaluation.probes import UNKNOWN_VALUE, best_slices, work_maps
from tools.io.files import InputError, RunError, read_json
from tools.io.volume import axial_axis
from tools.tissues import tissue_labels
from tools.workflows import segmenter

pytestmark = pytest.mark.slow  # the file takes seconds: make check leaves it to make test

LABELS = tissue_labels()
HISTORIES = ("none", "smoker", "exposure", "post-infection")
MEANS = np.array([40, -740, -650, -500, -955, 10])
SHIFT = {"none": 0, "smoker": -120, "exposure": 200, "post-infection": 450}


def make_case(folder, number, severity, age, history):
    """A case whose axial axis is the first (odd numbers) or the last (even numbers), ill by its severity."""
    rng = np.random.default_rng(number)
    label = np.zeros((40, 36, 6), np.uint8)
    label[4:36, 4:32] = 1
    ill = [2 + index % 4 for index in range(round(severity * 32))]
    for row, value in enumerate(ill):
        label[4 + row, 4:32] = value
    shift = 4.0 * (number * 5 % 7) + (label > 1) * SHIFT[history] / 8 - (label == 1) * 2.0 * age
    hu = np.where(label > 0, rng.normal(MEANS[label] + shift, 15), 40).round().astype(np.int16)
    hu[0] = -1000
    affine = np.diag([-2.0, -2.0, 8.0, 1.0])
    if number % 2:
        hu, label, affine = np.moveaxis(hu, 2, 0), np.moveaxis(label, 2, 0), affine[:, [2, 0, 1, 3]]
    for kind, array in (("images", hu), ("labels", label)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, affine), folder / kind / f"case{number}.nii.gz")
    return {"image": f"images/case{number}.nii.gz", "label": f"labels/case{number}.nii.gz", "patient": f"p{number}",
            "fold": number % 3, "severity": severity, "age": age, "history": history}  # fmt: skip


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    items = [make_case(folder, n, 0.25 + 0.04 * n, 40 + 3 * n, HISTORIES[n % 4]) for n in range(12)]
    (folder / "datalist.json").write_text(json.dumps({"labels": tissue_labels(), "training": items}))
    (folder / "model.pt").write_bytes(b"weights")
    (folder / "segmenter.pt").write_bytes(b"other weights")
    return folder


class Standin:
    """Stands in for the bundles' processes; an obedient one paints what it is told."""

    def __init__(self, obedient=True):
        self.obedient, self.runs, self.stops_after = obedient, [], None

    def __call__(self, bundle, configs, overrides, log, variables=None):
        self.runs.append((bundle, configs, overrides))
        source, output = module.Path(overrides["dataset_dir"]), module.Path(overrides["output_dir"])
        output.mkdir(parents=True, exist_ok=True)
        if bundle == "lung_tissue_seg":
            assert (module.Path(overrides["model_dir"]) / "model.pt").read_bytes() == b"other weights"
            for path in source.iterdir():
                image = nib.load(path)
                tissues = np.where(image.get_fdata() < -750, LABELS["healthy"], LABELS["fibrosis"]).astype(np.uint8)
                nib.save(nib.Nifti1Image(tissues, image.affine), output / path.name)
            return
        with open(source / "conditions.csv", newline="") as stream:
            told = {row["case"]: {key: value for key, value in row.items() if value} for row in csv.DictReader(stream)}
        names = sorted(path.name for path in (source / "images").iterdir())
        for number, name in enumerate(names):
            if number == self.stops_after:
                (output / name).write_bytes((source / "images" / name).read_bytes()[:40])
                raise RunError("killed")
            self.paint(source, output / name, told.get(name.removesuffix(".nii.gz"), {}) if self.obedient else {})

    def paint(self, source, path, told):
        image, label, target = (nib.load(source / kind / path.name) for kind in ("images", "labels", "targets"))
        hu, label, target = image.get_fdata(dtype=np.float32), np.asarray(label.dataobj), np.asarray(target.dataobj)
        assert np.array_equal(label > 0, target > 0) and np.array_equal(
            image.affine, nib.load(path.parents[1] / "labels" / path.name).affine
        )
        region, rng = label != target, np.random.default_rng(len(path.name))
        ill = rng.random(hu.shape) < float(told.get("severity", 0.2))
        tissue = np.where(target == UNKNOWN_VALUE, np.where(ill, 3, 1), target)
        mean = MEANS[tissue] + SHIFT[told.get("history", "none")] - 2.0 * float(told.get("age", 60)) * (tissue == 1)
        for name, value in LABELS.items():
            if f"density_{name}" in told:
                mean[tissue == value] = float(told[f"density_{name}"])
        hu[region] = (mean + rng.normal(0, 15, hu.shape))[region]
        nib.save(nib.Nifti1Image(hu, image.affine), path)


@pytest.fixture
def stand_in(monkeypatch):
    standin = Standin()
    monkeypatch.setattr(module, "run_bundle", standin)
    monkeypatch.setattr(segmenter, "run_bundle", standin)
    monkeypatch.setattr(module, "draw_conditions", lambda *given: b"")  # takes a second; one test draws
    return standin


def call(cohort, output, **given):
    conditions(cohort / "datalist.json", 0, cohort / "model.pt", output, **{"cases": 2, "slices": 2} | given)


def judgements(output):
    return {(j["condition"], j["tissue"], j["measure"]): j for j in read_json(output / "summary.json")["judgements"]}


def test_obedient_synthesizer_is_found_obedient_in_every_condition(cohort, stand_in, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "draw_conditions", draw_conditions)
    call(cohort, tmp_path / "out", segmenter=cohort / "segmenter.pt", cases=1)
    found = judgements(tmp_path / "out")
    for tissue in list(LABELS)[1:]:
        density = found["density", tissue, "mean_hu"]
        assert density["verdict"] == "obeyed" and density["slope"] == pytest.approx(1, abs=0.1)
        assert len(density["levels"]) == 5
    severity = found["severity", "", "non_healthy_share"]
    assert severity["verdict"] == "obeyed" and severity["slope"] == pytest.approx(1, abs=0.15)
    assert found["severity", "", "abnormal_share"]["verdict"] == "obeyed"
    age = found["age", "", "median_hu"]
    assert age["verdict"] == "obeyed" and age["slope"] == pytest.approx(-2, abs=0.3)
    assert found["history", "", "high_share"]["levels"].keys() == set(HISTORIES)
    unknown = read_json(tmp_path / "out/summary.json")["unknown"]
    assert unknown["told"]["wasserstein_hu"] < unknown["unknown"]["wasserstein_hu"]
    out = capsys.readouterr().out
    assert out.startswith("42 paintings of 2 slices at most")  # 7 conditions at 5 levels, 4 histories, 3
    faithful = read_json(tmp_path / "out/summary.json")["map"]
    assert faithful["healthy"]["real"] > 0.7
    painted, truths = (list((tmp_path / "out/work" / kind).glob("map-*")) for kind in ("painted", "targets"))
    assert len(painted) == len(truths) == 1
    answer = nib.load(painted[0]).get_fdata() < -750  # the stand-in's rule; it paints other histories denser
    healthy = np.asarray(nib.load(truths[0]).dataobj) == LABELS["healthy"]
    expected = 2 * (answer & healthy).sum() / (answer.sum() + healthy.sum())
    assert faithful["healthy"]["painted"] == pytest.approx(expected, abs=1e-9) and expected > 0.5
    with open(tmp_path / "out/work/conditions.csv", newline="") as stream:
        rows = {row["case"].split("-")[0]: row for row in csv.DictReader(stream)}
    assert rows["map"]["age"] and not rows["map"]["density_healthy"]  # as `augment` tells it
    assert rows["told"]["age"] and rows["told"]["density_healthy"]
    assert faithful["fibrosis"]["real"] > 0.1 and "Dice of the segmenter's answer with the map" in out
    assert "| density fibrosis" in out and "obeyed" in out
    assert [bundle for bundle, _, _ in stand_in.runs] == ["difflung_synthesis", "lung_tissue_seg"]
    assert (tmp_path / "out/conditions.png").read_bytes().startswith(b"\x89PNG")


def test_deaf_synthesizer_is_found_deaf(cohort, stand_in, tmp_path):
    stand_in.obedient = False
    call(cohort, tmp_path / "out", cases=1)
    found = judgements(tmp_path / "out")
    slopes = [j["slope"] for (condition, *_), j in found.items() if condition == "density"]
    assert len(slopes) == 5 and np.abs(slopes).max() < 0.3
    verdicts = [j["verdict"] for j in found.values()]
    assert verdicts.count("obeyed") <= 1  # by chance
    assert ("severity", "", "non_healthy_share") not in found  # no segmenter, no tissues


def test_rows_are_tidy_and_held_out_patients_are_the_hosts(cohort, stand_in, tmp_path):
    call(cohort, tmp_path / "out", cases=1)
    with open(tmp_path / "out/conditions.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == module.COLUMNS
    assert {row["case"] for row in rows} <= {"case0", "case3", "case6", "case9"}
    per_condition = {row["condition"]: row["requested"] for row in rows}
    assert set(per_condition) == {"density", "severity", "age", "history", "unknown", "told"}
    assert per_condition["unknown"] == ""
    level = {float(row["requested"]) for row in rows if row["condition"] == "age"}
    assert (min(level), max(level)) == (43, 73)  # of the training patients: all but cases 0, 3, 6, 9
    assert stand_in.runs[0][2]["num_steps"] == 8


def test_killed_run_goes_on_with_what_is_missing(cohort, stand_in, tmp_path):
    stand_in.stops_after = 30
    with pytest.raises(RunError, match="killed"):
        call(cohort, tmp_path / "out", cases=1)
    stand_in.stops_after = None
    call(cohort, tmp_path / "out", cases=1)
    work = tmp_path / "out/work"
    assert len(list((work / "painted").iterdir())) == 42
    assert len(list((work / "images").iterdir())) == 12  # the half-written one is painted again
    call(cohort, tmp_path / "out", cases=1)
    assert len(stand_in.runs) == 2
    with pytest.raises(InputError, match="steps was 8, now 4"):
        call(cohort, tmp_path / "out", cases=1, steps=4)


def test_painting_outside_its_region_is_an_error(cohort, stand_in, tmp_path, monkeypatch):
    paint = Standin.paint

    def spill(self, source, path, told):
        paint(self, source, path, told)
        image = nib.load(path)
        nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32) + 1, image.affine), path)

    monkeypatch.setattr(Standin, "paint", spill)
    with pytest.raises(RunError, match="density_healthy-0-case. changed outside its painted region"):
        call(cohort, tmp_path / "out")


def test_unknown_attributes_are_skipped_and_named(cohort, stand_in, tmp_path, capsys):
    content = read_json(cohort / "datalist.json")
    items = [{k: v for k, v in item.items() if k not in ("age", "history")} for item in content["training"]]
    (cohort / "bare.json").write_text(json.dumps({"labels": tissue_labels(), "training": items}))
    conditions(cohort / "bare.json", 0, cohort / "model.pt", tmp_path / "out", cases=1, slices=1)
    assert {condition for condition, *_ in judgements(tmp_path / "out")} == {"density", "severity"}
    assert (
        "not measured: age, 0 values of the training patients are known to the synthesizer" in capsys.readouterr().out
    )


@pytest.mark.parametrize(("given", "told"), [
    ({"steps": 0}, "steps must be a whole number of at least 1, not 0"),
    ({"cases": 1.5}, "cases must be a whole number of at least 1, not 1.5"),
    ({"slices": True}, "slices must be a whole number of at least 1, not True"),
    ({"segmenter": "none.pt"}, "segmenter none.pt does not exist"),
    ({"overrides": {"num_steps": 4}}, "overrides may not hold 'num_steps': conditions sets it"),
    ({"overrides": {"samplr": "heun"}}, "difflung_synthesis/inference.json has no id 'samplr' to override"),
    ({"segmenter_overrides": {"window": 3}}, "lung_tissue_seg/inference.json has no id 'window' to override"),
])  # fmt: skip
def test_wrong_argument_is_refused_before_anything_runs(cohort, stand_in, tmp_path, given, told):
    with pytest.raises(InputError, match=told):
        call(cohort, tmp_path / "out", **given)
    assert not stand_in.runs and not (tmp_path / "out").exists()


def test_weights_that_know_a_held_out_patient_are_refused(cohort, stand_in, tmp_path):
    (tmp_path / "model.pt").write_bytes(b"weights")
    (tmp_path / "card.json").write_text(json.dumps({"patients": ["p1", "p3"]}))
    with pytest.raises(InputError, match="stage synthesizer was fitted on test patients p3"):
        conditions(cohort / "datalist.json", 0, tmp_path / "model.pt", tmp_path / "out")


def test_settings_on_the_card_are_kept_and_what_the_synthesizer_does_not_know_is_not_told(cohort, stand_in, tmp_path):
    (tmp_path / "model.pt").write_bytes(b"weights")
    settings = {"network_channels": [8, 16], "max_epochs": 3, "attributes": {"age": [45, 60], "severity": [0, 1]}}
    (tmp_path / "card.json").write_text(json.dumps({"patients": ["p1"], "overrides": settings}))
    conditions(cohort / "datalist.json", 0, tmp_path / "model.pt", tmp_path / "out", cases=2, slices=1)
    run = stand_in.runs[0][2]
    assert run["network_channels"] == [8, 16] and run["attributes"] == settings["attributes"]
    assert "max_epochs" not in run
    found = judgements(tmp_path / "out")
    assert list(found["age", "", "median_hu"]["levels"]) == ["46.0", "48.2", "50.5", "52.8", "55.0"]
    assert not any(condition == "history" for condition, *_ in found)
    with open(tmp_path / "out/work/conditions.csv", newline="") as stream:
        told = [row for row in csv.DictReader(stream) if row["case"].startswith("told")]
    ages = {row["case"]: row["age"] for row in told}
    assert len(ages) == 2 and "history" not in told[0]
    assert all(age in ("", "49", "58") for age in ages.values())  # 40 and 67 are unknown to it


def test_best_slices_are_neighbours_and_lie_in_the_volume():
    mask = np.zeros((3, 7, 2), bool)
    mask[:, [0, 4, 5]] = True
    assert best_slices(mask, 1, 2) == slice(4, 6)
    assert best_slices(mask, 1, 99) == slice(0, 7)
    assert axial_axis(np.array([[0, 0, 2.0, 0], [2.0, 0.1, 0, 0], [0.1, -8, 0, 0], [0, 0, 0, 1]])) == 1


@pytest.mark.parametrize("kind", ["healthy", "fibrosis", "all_healthy", "unknown", "told"])
def test_work_maps_paint_exactly_the_region_of_their_kind(kind):
    truth = np.array([0, 1, 1, 2, 3, 3, 4, 5])
    label, target = work_maps(kind, truth)
    painted = truth == LABELS[kind] if kind in LABELS else truth > 0
    assert np.array_equal(label != target, painted)
    assert np.array_equal(label > 0, truth > 0) and np.array_equal(target > 0, truth > 0)
    expected = {"all_healthy": np.minimum(truth, 1), "unknown": (truth > 0) * UNKNOWN_VALUE}.get(kind, truth)
    assert np.array_equal(target, expected)
    assert set(np.unique(label)) <= set(LABELS.values())


def test_spread_lies_between_the_quantiles():
    assert probes.spread(list(range(101)), (0.1, 0.9), 1) == [10, 30, 50, 70, 90]


def test_lung_measures_do_not_see_the_chest_wall():
    lung = np.zeros((20, 20, 3), bool)
    lung[5:15, 5:15] = True
    hu = np.where(lung, -850.0, 60.0)
    assert measures.lung_measures(hu, lung, [1, 1, 5], 2) == pytest.approx(
        {"mean_hu": -850, "abnormal_share": 0, "low_share": 0, "high_share": 0}
    )
    hu[5:10, 5:15] = -300
    found = measures.lung_measures(hu, lung, [1, 1, 5], 2)
    assert found["high_share"] == 0.5 and found["abnormal_share"] == pytest.approx(0.6, abs=0.1)


def test_falling_trend_is_obeyed_where_real_lung_falls_and_has_no_verdict_where_it_has_no_trend():
    rows = [{"requested": float(age), "measured": -age / 2, "case": "a"} for age in (40, 50, 60, 70, 80)]
    head = {"condition": "age", "measure": "median_hu", "levels": measures.level_means(rows)}

    def verdict(slope):
        noise = np.random.default_rng(0).normal(0, 0.5, 30)
        surveyed = [{"age": 40 + n, "median_hu": slope * n + noise[n]} for n in range(30)]
        return measures.judge_numbers(head, rows, surveyed)["verdict"]

    assert verdict(-1.0) == "obeyed"
    assert verdict(1.0) == "not obeyed"
    assert verdict(0.0) == "no clear real trend"


def test_ranks_within_hosts_do_not_see_that_hosts_differ():
    rows = [
        {"requested": level, "measured": 100 * (host == "b") + level, "case": host}
        for host in "ab"
        for level in (1, 2, 3)
    ]
    assert measures.within_hosts(rows) == [-1, 0, 1, -1, 0, 1]


def test_history_is_judged_by_the_side_of_the_mean():
    surveyed = [{"history": word, "low_share": share} for word, share in zip("abc", (0.1, 0.2, 0.6))]

    def judged(*painted):
        rows = [{"requested": word, "measured": share, "case": "a"} for word, share in zip("abc", painted)]
        head = {"condition": "history", "measure": "low_share", "levels": measures.level_means(rows)}
        return measures.judge_history(head, rows, surveyed)

    assert judged(0.12, 0.11, 0.3)["verdict"] == "obeyed"  # a and b swapped, both below the mean
    assert judged(0.3, 0.1, 0.2)["verdict"] == "not obeyed" and judged(0.3, 0.1, 0.2)["same_side"] == 1
    assert judged(0.1, 0.1, 0.1)["same_side"] == 0

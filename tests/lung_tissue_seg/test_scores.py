"""What the segmenter's scripts do on masks whose overlap, surfaces and volumes are known, and without labels."""

import csv
import doctest

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.losses import DiceCELoss

from tests.lung_tissue_seg.bundle import BUNDLE, load

lungs, sampling, scores, unlabelled = load("lungs"), load("sampling"), load("scores"), load("unlabelled")
LABELS = {"background": 0, "healthy": 1, "fibrosis": 3, "emphysema": 4}
VOXEL_MM = (2.0, 1.0, 5.0)


def volume(**boxes):
    """A lung of 20 by 20 by 4 voxels with a box of each named tissue in it, as (first, end) along the first axis."""
    label = torch.zeros(1, 24, 24, 4, dtype=torch.uint8)
    label[:, 2:22, 2:22] = 1
    for name, (start, end) in boxes.items():
        label[:, start:end, 4:16, 1:3] = LABELS[name]
    return label


def with_file(label, name):
    affine = np.diag([*VOXEL_MM, 1.0])
    return MetaTensor(label, affine=torch.as_tensor(affine), meta={"filename_or_obj": f"/somewhere/{name}.nii.gz"})


def scored(answers, labels, **given):
    metric = scores.TissueScores(LABELS, **given)
    metric.update((answers, [with_file(label, f"case{number}") for number, label in enumerate(labels)]))
    return metric


def rows_of(metric):
    return {(row["case"], row["tissue"]): row for case in metric.cases for row in case["rows"]}


def test_a_perfect_answer_scores_perfectly():
    label = volume(fibrosis=(5, 9))
    metric = scored([label], [label])
    row = rows_of(metric)["case0", "fibrosis"]
    assert (row["state"], row["dice"], row["surface_dice"], row["hd95_mm"]) == ("present", 1, 1, 0)
    assert row["ml"] == row["ml_predicted"] == pytest.approx(4 * 12 * 2 * np.prod(VOXEL_MM) / 1000)
    assert row["percent"] == pytest.approx(100 * 4 * 12 * 2 / (20 * 20 * 4)) and row["percent_error"] == 0


def test_a_shifted_box_has_the_overlap_and_the_distance_of_its_shift():
    """By three voxels of 2 mm: a quarter of four overlaps, and the far faces lie 6 mm apart."""
    row = rows_of(scored([volume(fibrosis=(8, 12))], [volume(fibrosis=(5, 9))]))["case0", "fibrosis"]
    assert row["dice"] == pytest.approx(0.25)
    assert row["hd95_mm"] == pytest.approx(6)
    assert 0.1 < row["surface_dice"] < 0.6
    near = rows_of(scored([volume(fibrosis=(6, 10))], [volume(fibrosis=(5, 9))]))["case0", "fibrosis"]
    assert near["surface_dice"] == 1 and near["hd95_mm"] == pytest.approx(2)  # within the tolerance of 2 mm


def test_absent_missed_and_added_tissues_are_told_apart():
    metric = scored([volume(emphysema=(5, 9)), volume()], [volume(fibrosis=(5, 9)), volume()])
    rows = rows_of(metric)
    missed, added = rows["case0", "fibrosis"], rows["case0", "emphysema"]
    assert (missed["state"], missed["dice"], missed["surface_dice"], missed["hd95_mm"]) == ("missed", 0, 0, None)
    assert (added["state"], added["dice"], added["surface_dice"]) == ("false", None, None)
    assert missed["percent_error"] == pytest.approx(-6) and added["percent_error"] == pytest.approx(6)
    assert {rows["case1", name]["state"] for name in ("fibrosis", "emphysema")} == {"absent"}
    summary = metric.compute()
    assert (summary["fibrosis"]["cases"], summary["fibrosis"]["missed"], summary["fibrosis"]["dice"]) == (1, 1, 0)
    assert (summary["emphysema"]["cases"], summary["emphysema"]["false"]) == (0, 1)
    assert summary["emphysema"]["dice"] is None and summary["emphysema"]["percent_error"] == pytest.approx(3)


def test_tissue_found_where_there_is_none_costs_dice_over_all_cases():
    """The failure that was shown: what is found in patients without the tissue cost nothing."""
    metric = scored([volume(emphysema=(5, 9)), volume()], [volume(fibrosis=(5, 9)), volume()])
    rows = rows_of(metric)
    added, absent = rows["case0", "emphysema"], rows["case1", "emphysema"]
    assert (added["dice_all"], absent["dice_all"], rows["case0", "fibrosis"]["dice_all"]) == (0, 1, 0)
    assert added["false_ml"] == pytest.approx(4 * 12 * 2 * 0.01) and absent["false_ml"] == 0
    assert rows["case0", "fibrosis"]["false_ml"] is None
    assert metric.compute()["emphysema"]["dice_all"] == pytest.approx(0.5)


def test_with_the_lung_known_an_error_at_its_border_does_not_count():
    label = volume(fibrosis=(5, 9))
    answer, tissue = label.clone(), torch.where(label > 0, label, 3)
    answer[:, 5:9] = 0  # fibrosis is taken for the chest wall
    known = lungs.LungKnownd("pred")({"pred": torch.cat([answer, tissue]), "label": label})
    assert torch.equal(known["pred"], answer) and torch.equal(known["lung_known"], label)
    metric = scores.TissueScores(LABELS)
    metric.update(([known["pred"]], [with_file(label, "case0")], [known["lung_known"]]))
    row = rows_of(metric)["case0", "fibrosis"]
    assert (row["dice"], row["dice_lung_known"], row["dice_all_lung_known"]) == (0, 1, 1)
    assert rows_of(scored([answer], [label]))["case0", "fibrosis"]["dice_lung_known"] is None


def test_voxels_that_nobody_labelled_count_nowhere():
    label, answer = volume(fibrosis=(5, 9)), volume(fibrosis=(5, 15))
    label[:, 9:15] = 255
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs/train.json"))
    *_, hide = parser["validate::postprocessing::transforms"]
    hide = ConfigParser({"hide": hide, "ignore": 255, "imports": parser["imports"]}).get_parsed_content("hide")
    sample = hide({"pred": answer, "label": with_file(label, "case0"), "image": answer})
    assert sample["image"] is answer and (answer[:, 9:15] > 0).any()  # the input is not changed
    assert sample["label"].meta["filename_or_obj"].endswith("case0.nii.gz")
    metric = scored([sample["pred"]], [sample["label"]])
    assert rows_of(metric)["case0", "fibrosis"]["dice"] == 1
    assert metric.cases[0]["confusion"][1, 3] == 0


@pytest.mark.parametrize("weight", [None, torch.tensor([0.1, 0.3, 1.0, 2.0])])
def test_loss_is_that_of_monai_where_all_is_labelled_and_of_the_rest_where_not(weight):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 8, 6, generator=generator, requires_grad=True)
    target = torch.randint(4, (2, 1, 8, 6), generator=generator)
    ours = unlabelled.LabelledDiceCELoss(weight)
    monai = DiceCELoss(to_onehot_y=True, softmax=True, batch=True, weight=weight)
    assert ours(logits, target.byte()).item() == pytest.approx(monai(logits, target).item(), abs=1e-6)
    hidden = target.clone()
    hidden[..., 4:] = 255
    loss = ours(logits, hidden.byte())
    assert loss.item() == pytest.approx(monai(logits[..., :4], target[..., :4]).item(), abs=1e-6)
    (slope,) = torch.autograd.grad(loss, logits)
    assert (slope[..., 4:] == 0).all() and (slope[..., :4] != 0).all()


def test_loss_of_a_patch_without_labels_is_nothing():
    logits = torch.randn(2, 4, 8, 6, requires_grad=True)
    loss = unlabelled.LabelledDiceCELoss()(logits, torch.full((2, 1, 8, 6), 255, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6) and (logits.grad.abs() < 1e-6).all()


def test_intervals_hold_the_mean_and_narrow_with_the_cases():
    values = np.random.default_rng(0).normal(0.7, 0.1, 40).tolist()
    mean, low, high = scores.interval(values, seed=0)
    error = np.std(values) / np.sqrt(len(values))
    assert mean == pytest.approx(np.mean(values))
    assert (mean - low, high - mean) == pytest.approx((1.96 * error, 1.96 * error), rel=0.15)
    assert scores.interval([0.5], seed=0) == (0.5, None, None) and scores.interval([], seed=0) == (None, None, None)


def test_files_and_engine_hold_the_scores(tmp_path):
    labels = [volume(fibrosis=(5, 9)), volume(fibrosis=(12, 16))]
    metric = scored([volume(fibrosis=(5, 9)), volume(fibrosis=(13, 17))], labels, output_dir=tmp_path / "out")
    engine = Engine(lambda engine, batch: None)
    metric.completed(engine, "scores")
    assert engine.state.metrics["scores_dice_fibrosis"] == pytest.approx((1 + 0.75) / 2)
    assert "scores_dice_emphysema" not in engine.state.metrics
    tables = {}
    for name in ("scores", "scores_summary", "confusion"):
        with open(tmp_path / f"out/{name}.csv", newline="") as stream:
            tables[name] = list(csv.DictReader(stream))
    assert [(row["case"], row["tissue"]) for row in tables["scores"][:4]] == [
        ("case0", "healthy"), ("case0", "fibrosis"), ("case0", "emphysema"), ("case1", "healthy"),
    ]  # fmt: skip
    fibrosis = next(row for row in tables["scores_summary"] if row["tissue"] == "fibrosis")
    assert fibrosis["cases"] == "2" and float(fibrosis["dice_low"]) <= 0.875 <= float(fibrosis["dice_high"])
    page = (tmp_path / "out/report.md").read_text()
    assert (
        "| fibrosis | 2 | 0 | 0 | 0.875 (0.750, 1.000) |  | 0.875 (0.750, 1.000) |" in page
        and "| emphysema | 0 | 0 | 0 | 1.000 (1.000, 1.000) |  |  |" in page
    )
    assert (tmp_path / "out/report.png").read_bytes().startswith(b"\x89PNG") and not list(tmp_path.glob("out/.*"))
    true = {row.pop("true"): {name: int(count) for name, count in row.items()} for row in tables["confusion"]}
    assert true["fibrosis"] == {"background": 0, "healthy": 24, "fibrosis": 4 * 24 + 3 * 24, "emphysema": 0}
    assert sum(map(sum, (row.values() for row in true.values()))) == 2 * 24 * 24 * 4


def test_a_label_without_a_file_is_numbered_and_voxels_are_one_mm():
    metric = scores.TissueScores(LABELS)
    metric.update(([volume(fibrosis=(8, 12))], [volume(fibrosis=(5, 9))]))
    row = rows_of(metric)["case 0", "fibrosis"]
    assert row["hd95_mm"] == pytest.approx(3) and row["ml"] == pytest.approx(0.096)


def test_unusable_settings_and_maps_are_refused():
    with pytest.raises(ValueError, match="^tolerance_mm must be above 0, not 0$"):
        scores.TissueScores(LABELS, tolerance_mm=0)
    with pytest.raises(ValueError, match="case0: the answer has shape"):
        scored([volume()[..., :2]], [volume()])
    label = volume()
    label[0, 5, 5, 1] = 7
    with pytest.raises(ValueError, match="case0: the label holds 7, but labels name only background=0, healthy=1"):
        scored([volume()], [label])


@pytest.mark.parametrize("name", sorted(path.stem for path in (BUNDLE / "scripts").glob("[a-z]*.py")))
def test_examples_in_the_scripts_are_true(name):
    script = load(name)
    assert doctest.testmod(script, extraglobs={"np": np, "torch": torch}).failed == 0


def test_extra_cases_are_drawn_in_the_ratio_asked_for():
    cases = [{"fold": 1}] * 4 + [{"fold": -1}] * 12
    drawn = list(sampling.case_sampler(cases, 6000, extra_ratio=0.5))
    assert np.mean([number >= 4 for number in drawn]) == pytest.approx(1 / 3, abs=0.03)
    assert max(sampling.case_sampler(cases, 100, extra_ratio=0)) < 4
    assert sorted(sampling.case_sampler(cases, 32)) == sorted([*range(16)] * 2), "by default it goes round all cases"


def test_extra_cases_are_drawn_by_their_weights():
    cases = [{"fold": 1}] * 4 + [{"fold": -1, "draw_weight": weight} for weight in (1.0, 3.0, 0.0)]
    drawn = list(sampling.case_sampler(cases, 800, extra_ratio=1.0))
    counts = [drawn.count(number) for number in range(7)]
    assert counts[:4] == [100] * 4 and counts[4:] == [100, 300, 0]


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [("mixed", [0.5] * 4), ("synthetic_first", [1, 1, 1, 0]), ("real_last", [0.5, 0.5, 0.5, 0])],
)
def test_extra_cases_are_drawn_in_the_epochs_of_the_schedule(schedule, shares):
    cases = [{"fold": 1}] * 4 + [{"fold": -1}] * 4
    sampler, found = sampling.case_sampler(cases, 80, 1.0, schedule, real_share=0.25, epochs=4), []
    for epoch in range(1, 5):
        sampler.set_epoch(epoch)
        found.append(np.mean([number >= 4 for number in sampler]))
    assert found == shares


def test_a_schedule_that_leaves_no_epoch_is_refused():
    cases = [{"fold": 1}, {"fold": -1}]
    with pytest.raises(ValueError, match="real_share 0.1 of 4 epochs leaves real_last 0 of them with real cases"):
        sampling.case_sampler(cases, 8, 1.0, "real_last", real_share=0.1, epochs=4)
    with pytest.raises(
        ValueError, match="extra_schedule must be one of mixed, synthetic_first, real_last, not 'never'"
    ):
        sampling.case_sampler(cases, 8, 1.0, "never")
    with pytest.raises(ValueError, match="draw_weight must not be negative"):
        sampling.case_sampler([*cases, {"fold": -1, "draw_weight": -1}], 8, 1.0)


@pytest.mark.parametrize("ratio", [-1, "0.5", True, float("nan")])
def test_a_ratio_that_is_none_is_refused(ratio):
    with pytest.raises(ValueError, match="extra_ratio must be None or a number"):
        sampling.case_sampler([{"fold": 0}, {"fold": -1}], 4, ratio)


def test_a_ratio_without_extra_cases_is_refused():
    with pytest.raises(ValueError, match="extra_ratio is 0.5, but 0 cases are in fold -1 and 2 in others"):
        sampling.case_sampler([{"fold": 0}, {"fold": 1}], 4, 0.5)


def test_an_engine_may_hand_on_answers_labels_and_answers_with_the_lung_known():
    """As ignite calls it: its own way takes such lists apart, two of them only."""
    metric = load("scores").TissueScores(LABELS, output_transform=lambda output: output)
    part = torch.tensor([1, 1, 3, 0]).view(1, 4, 1, 1)
    engine = Engine(lambda engine, batch: ([part, part], [part, part], [part, part]))
    metric.attach(engine, "scores")
    engine.run([0])
    assert len(metric.cases) == 2 and engine.state.metrics["scores_dice_lung_known_fibrosis"] == 1

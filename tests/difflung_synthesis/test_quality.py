"""What TissueQuality says of painting whose quality is known, and what it and TissueGrid write."""

import csv
import json
import math

import ignite.distributed as idist
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from PIL import Image
from scipy.ndimage import gaussian_filter
from scripts.hu_distance import HuWasserstein
from scripts.pictures import LUNG_WINDOW, Crops, TissueGrid, draw_grid
from scripts.quality import TissueQuality
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

LABELS = {"background": 0, "healthy": 1, "ground_glass": 2, "fibrosis": 3, "emphysema": 4}
MEANS = {2: -650.0, 4: -940.0}
SHAPE = (72, 64, 4)


def tissue_map():
    tissue = np.zeros(SHAPE, np.float32)
    tissue[6:40, 5:45] = 2
    tissue[44:64, 10:60] = 4
    return tissue


def texture(seed, means=None):
    """Correlated in-plane and, half, between slices; its mean differs between tissues."""
    rng = np.random.default_rng(seed)
    own, common = rng.standard_normal(SHAPE), rng.standard_normal((*SHAPE[:2], 1))
    field = gaussian_filter((own + common) / math.sqrt(2), (0.7, 0.7, 0))
    hu = -850 + 60 * field / field.std()
    for value, mean in (means or MEANS).items():
        hu[tissue_map() == value] += mean + 850
    return hu.astype(np.float32)


def case(samples, seed):
    reference = np.stack([texture(seed), tissue_map()])
    tissue = reference[1] != 0
    painted = np.stack([np.where(tissue, sample, reference[0]) for sample in samples])
    return torch.from_numpy(painted), torch.from_numpy(reference)


def measure(*cases, **arguments):
    metric = TissueQuality(LABELS, **arguments)
    for painted, reference in cases:
        metric.update(([painted], [reference]))
    return metric.compute()


def test_a_redraw_of_the_truth_passes_for_real():
    measures = measure(*(case([texture(100 + seed), texture(200 + seed)], seed) for seed in range(6)))
    assert list(measures) == ["ground_glass", "emphysema"]
    for tissue in measures.values():
        assert tissue["cases"] == 6
        assert tissue["texture_distance"] == pytest.approx(tissue["texture_floor"], rel=0.5)
        assert tissue["hu_wasserstein"] == pytest.approx(tissue["hu_wasserstein_floor"], abs=2)
        assert tissue["auc"] == pytest.approx(0.5, abs=0.15) and tissue["auc_floor"] == 0.5
        assert tissue["mmd"] == pytest.approx(tissue["mmd_floor"], abs=1)
        for name in ("precision", "recall", "density", "coverage"):
            assert tissue[name] == pytest.approx(tissue[f"{name}_floor"], abs=0.15)
        assert tissue["diversity"] == pytest.approx(1, abs=0.05)
        assert tissue["border_gradient"] == pytest.approx(1, abs=0.1)
        assert tissue["slice_correlation_painted"] == pytest.approx(0.5, abs=0.06)
        assert tissue["slice_correlation_real"] == pytest.approx(0.5, abs=0.06)
        assert tissue["laa950_painted"] == pytest.approx(tissue["laa950_real"], abs=0.02)
    quantiles = [measures["emphysema"][f"hu_q{q:02d}_real"] for q in (5, 25, 50, 75, 95)]
    assert quantiles == pytest.approx([-1024, -980, -940, -900, -841], abs=5)  # the first is clipped


def test_the_truth_itself_scores_the_floor():
    for tissue in measure(*(case([texture(seed)], seed) for seed in range(4))).values():
        for name in ("precision", "recall", "density", "coverage", "mmd"):
            assert tissue[name] == tissue[f"{name}_floor"]
        assert tissue["texture_distance"] == tissue["texture_floor"]
        assert tissue["psnr_paper"] == math.inf
        assert tissue["ssim_paper"] == pytest.approx(1)


def test_each_patients_own_histogram_without_texture_is_told_from_real():
    """The failure that was shown: a prior that repeats the HU of the very patient scored below the floor."""
    cases, tissue = [], tissue_map()
    for seed in range(6):
        real = texture(seed, means={2: -650.0 + 40 * (seed % 3), 4: -940.0})
        drawn = real.copy()
        for value in MEANS:
            drawn[tissue == value] = np.random.default_rng(seed).permutation(real[tissue == value])
        reference = np.stack([real, tissue])
        cases.append((torch.from_numpy(drawn[None]), torch.from_numpy(reference)))
    for measured in measure(*cases).values():
        assert measured["hu_wasserstein"] == pytest.approx(measured["hu_wasserstein_floor"], rel=0.05)  # once 0
        assert measured["auc"] > 0.95 and measured["texture_distance"] > 4 * measured["texture_floor"]


def test_blurred_painting_is_far_above_the_floor():
    cases = [case([gaussian_filter(texture(seed), (1, 1, 0))], seed) for seed in range(4)]
    for tissue in measure(*cases).values():
        assert tissue["texture_distance"] > 4 * tissue["texture_floor"]
        assert tissue["mmd"] > tissue["mmd_floor"] + 1
        assert tissue["recall"] < 0.3
        assert tissue["border_gradient"] < 0.9


def test_collapsed_samples_have_no_diversity_and_one_sample_has_none_to_tell():
    assert measure(case([texture(9)] * 3, 0))["ground_glass"]["diversity"] == 0
    assert math.isnan(measure(case([texture(9)], 0))["ground_glass"]["diversity"])


def test_white_noise_has_no_slice_correlation_whatever_its_mean():
    white = np.random.default_rng(5).normal(-400, 60, SHAPE).astype(np.float32)
    assert measure(case([white], 0))["ground_glass"]["slice_correlation_painted"] == pytest.approx(0, abs=0.03)


def test_a_seam_is_seen_at_the_border():
    brighter = texture(0, means={2: 0.0, 4: -940.0})
    assert measure(case([brighter], 0))["ground_glass"]["border_gradient"] > 3


class TwoWindows:
    """Stands for a painter whose two windows meet in the middle of the ground glass."""

    def window_counts(self, region, network):
        counts = region.long()
        counts[20:] *= 2
        return counts


def test_a_seam_is_seen_between_windows():
    halves = texture(7)
    halves[20:] += 120
    even, uneven = (measure(case([hu], 0), inferer=TwoWindows()) for hu in (texture(7), halves))
    assert even["ground_glass"]["seam_gradient"] == pytest.approx(1, abs=0.2)
    assert uneven["ground_glass"]["seam_gradient"] > 1.5
    assert math.isnan(even["emphysema"]["seam_gradient"])  # no edge crosses it
    assert math.isnan(measure(case([halves], 0))["ground_glass"]["seam_gradient"])


def test_psnr_of_a_known_error():
    measures = measure(case([texture(0) + 13.24], 0))["ground_glass"]
    assert measures["psnr_paper"] == pytest.approx(40, abs=0.01)  # 1 % of a window of 1324 HU


def test_hu_distance_is_that_of_the_other_metric():
    cases = [case([texture(50 + seed) + 20], seed) for seed in range(3)]
    other = HuWasserstein(LABELS, bin_width=1.0, highest=300.0)
    for painted, reference in cases:
        other.update(([painted], [reference]))
    expected = other.compute()
    for name, tissue in measure(*cases).items():
        assert tissue["hu_wasserstein"] == pytest.approx(expected[name])
        assert tissue["hu_wasserstein_floor"] == pytest.approx(expected[f"floor_{name}"])


def test_one_case_alone_has_no_texture_distance():
    tissue = measure(case([texture(9)], 0))["ground_glass"]
    assert math.isnan(tissue["texture_distance"]) and math.isnan(tissue["hu_wasserstein_floor"])
    assert math.isnan(tissue["hu_wasserstein"]) and math.isnan(tissue["auc"])  # no other patient to compare with


def test_a_case_without_painting_counts_for_the_halves_alone():
    cases = [case([texture(seed + 9)], seed) for seed in range(2)]
    empty = (cases[0][0], torch.zeros(2, *SHAPE))
    assert measure(empty, *cases)["emphysema"]["cases"] == 2
    assert measure(empty) == {}


def test_processes_together_say_what_one_says(monkeypatch):
    cases = [case([texture(seed + 9)], seed) for seed in range(5)]
    metrics = [TissueQuality(LABELS), TissueQuality(LABELS)]
    for index, (painted, reference) in enumerate(cases):  # as a distributed sampler deals them out
        metrics[index % 2].update(([painted], [reference]))
    monkeypatch.setattr(idist, "get_world_size", lambda: 2)
    monkeypatch.setattr(idist, "all_gather", lambda own: [metric.cases for metric in metrics])
    together = metrics[0].compute()
    monkeypatch.undo()
    for name, tissue in measure(*cases).items():
        assert together[name] == pytest.approx(tissue, nan_ok=True)


def engine_with(*attached):
    """An evaluator's manner: the output is a list of dictionaries with metadata."""
    engine = Engine(lambda engine, batch: [dict(zip(("pred", "label"), map(MetaTensor, batch)))])
    for one in attached:
        one.attach(engine, "quality") if isinstance(one, TissueQuality) else one.attach(engine)
    return engine


def pairs(output):
    return [[item[key] for item in output] for key in ("pred", "label")]


def test_files_and_headlines_are_written(tmp_path):
    folder = tmp_path / "new" / "eval"
    metric = TissueQuality(LABELS, output_dir=str(folder), output_transform=pairs)
    engine = engine_with(metric)
    engine.run([case([texture(100 + seed), texture(200 + seed)], seed) for seed in range(4)])
    assert sorted(path.name for path in folder.iterdir()) == ["quality.csv", "quality.json", "quality.png"]
    rows = {row["tissue"]: row for row in csv.DictReader((folder / "quality.csv").open())}
    report = json.loads((folder / "quality.json").read_text(), parse_constant=pytest.fail)
    assert (report["cases"], report["samples"]) == (4, 8)
    assert list(rows) == list(report["tissues"]) == ["ground_glass", "emphysema"]
    headlines = {
        f"quality_{key}_{tissue}"
        for key in ("texture_distance", "texture_floor", "auc", "diversity", "border_gradient")
        for tissue in rows
    }
    assert set(engine.state.metrics) == headlines
    for tissue, row in rows.items():
        assert report["tissues"][tissue]["tiles"] == int(row["tiles"]) > 30
        assert float(row["diversity"]) == pytest.approx(engine.state.metrics[f"quality_diversity_{tissue}"], rel=1e-4)
    with Image.open(folder / "quality.png") as picture:
        assert picture.width > 4 * 2 * 64 and picture.height > 2 * 64
        assert np.asarray(picture)[..., :3].std() > 20


def test_not_a_number_is_null_in_the_report_and_absent_from_the_headlines(tmp_path):
    engine = engine_with(TissueQuality(LABELS, output_dir=str(tmp_path), output_transform=pairs))
    engine.run([case([texture(9)], 0)])
    report = json.loads((tmp_path / "quality.json").read_text(), parse_constant=pytest.fail)
    assert report["tissues"]["emphysema"]["diversity"] is None
    assert set(engine.state.metrics) == {"quality_border_gradient_ground_glass", "quality_border_gradient_emphysema"}


def test_nothing_painted_writes_no_picture(tmp_path):
    engine = engine_with(TissueQuality(LABELS, output_dir=str(tmp_path), output_transform=pairs))
    engine.run([(torch.zeros(1, *SHAPE), torch.zeros(2, *SHAPE))])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["quality.csv", "quality.json"]
    with pytest.raises(ValueError, match="no crop to draw"):
        draw_grid({}, tmp_path / "quality.png")


def test_tiles_are_thinned_out_alike_each_time(monkeypatch):
    monkeypatch.setattr("scripts.quality.TILES_PER_CASE", 7)
    monkeypatch.setattr("scripts.quality.TILES_IN_PAIRS", 20)
    cases = [case([texture(seed + 30)], seed) for seed in range(8)]
    first, second = measure(*cases)["ground_glass"], measure(*cases)["ground_glass"]
    assert first == pytest.approx(second, nan_ok=True)
    assert first["tiles"] == 8 * 7
    assert measure(*cases, seed=1)["ground_glass"]["texture_distance"] != first["texture_distance"]


@pytest.mark.parametrize(
    ("painted", "reference", "message"),
    [
        ((1, 8, 8, 2), (1, 8, 8, 2), r"reference of case 0 has shape \(1, 8, 8, 2\), expected \(2, W, H, D\)"),
        ((1, 8, 8, 3), (2, 8, 8, 2), r"painting of case 0 has shape \(1, 8, 8, 3\), expected \(samples, 8, 8, 2\)"),
        ((8, 8, 2), (2, 8, 8, 2), r"painting of case 0 has shape \(8, 8, 2\)"),
        ((0, 8, 8, 2), (2, 8, 8, 2), r"painting of case 0 has shape \(0, 8, 8, 2\)"),
    ],
)
def test_wrong_shapes_are_refused(painted, reference, message):
    with pytest.raises(ValueError, match=message):
        measure((torch.zeros(painted), torch.zeros(reference)))


def test_painting_that_is_not_finite_is_refused():
    painted, reference = case([texture(9)], 0)
    painted[0, 3, 3, 0] = math.nan
    with pytest.raises(ValueError, match="painting of case 0 holds values that are not finite"):
        measure((painted, reference))


def test_tissue_without_a_name_is_refused():
    with pytest.raises(ValueError, match="case 0 holds tissue 7, but labels name only background=0, healthy=1"):
        measure((torch.zeros(1, 8, 8, 2), torch.full((2, 8, 8, 2), 7.0)))


@pytest.mark.parametrize(
    ("arguments", "message"), [({"hu_window": (-900, 300)}, r"not \[-900, 300\]"), ({"tile": 2}, "not 2")]
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TissueQuality(LABELS, **arguments)


def test_crops_come_from_different_cases_and_hold_the_tissue():
    crops = Crops(LABELS, number=3, size=24)
    for level in (-700.0, -500.0):  # two cases: the third crop is the next slice of one of them
        crops.add(np.full(SHAPE, level), np.full(SHAPE, level), tissue_map())
    kept = crops.named()["emphysema"]
    assert [crop.rank for crop in kept] == [0, 0, 1]
    assert {float(crop.real[0, 0]) for crop in kept[:2]} == {-700.0, -500.0}
    assert all(crop.region.mean() > 0.8 and crop.real.shape == (24, 24) for crop in kept)


def test_a_crop_larger_than_the_slice_is_filled_up_with_black():
    crops = Crops({"background": 0, "healthy": 1}, size=64)
    crops.add(np.zeros((20, 30, 1)), np.zeros((20, 30, 1)), np.ones((20, 30, 1)))
    (crop,) = crops.named()["healthy"]
    assert crop.real.shape == crop.painted.shape == crop.region.shape == (64, 64)
    assert (crop.real == LUNG_WINDOW[0]).sum() == 64 * 64 - 20 * 30


def test_a_crop_is_shown_as_radiologists_look_at_it():
    real = np.full((8, 8, 1), -1350.0)
    real[7, 7] = 150  # right, anterior
    crops = Crops({"background": 0, "healthy": 1}, size=8)
    crops.add(real, real, np.ones((8, 8, 1)))
    shown = crops.named()["healthy"][0].side_by_side()
    assert shown[0, 0] == 1 and shown[1:, 1:8].max() == 0  # anterior above, right on the left


def test_grid_adds_a_picture_per_tissue_at_the_epoch_of_the_evaluation(tmp_path):
    engine, fresh = (engine_with(TissueGrid(LABELS, log_dir=str(tmp_path / name))) for name in ("log", "fresh"))
    for epoch in (1, 2):
        engine.run([case([texture(100 + epoch)], epoch)], max_epochs=epoch)
    fresh.run([case([texture(102)], 2)])
    events, fresh_events = (EventAccumulator(str(tmp_path / name)).Reload() for name in ("log", "fresh"))
    assert events.Tags()["images"] == ["tissue/ground_glass", "tissue/emphysema"]
    first, second = events.Images("tissue/emphysema")
    assert (first.step, second.step) == (1, 2)
    assert second.encoded_image_string == fresh_events.Images("tissue/emphysema")[0].encoded_image_string


def test_grid_takes_its_step_from_where_it_is_told(tmp_path):
    engine_with(TissueGrid(LABELS, str(tmp_path), step=lambda: 41)).run([case([texture(9)], 0)])
    (event,) = EventAccumulator(str(tmp_path)).Reload().Images("tissue/ground_glass")
    assert event.step == 41

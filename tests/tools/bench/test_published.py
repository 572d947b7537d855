"""The published split: what is scored, fine-tuned and refused, with a stand-in for the segmenter."""

import json
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from tools.bench import published as module
from tools.bench.segmentation_speed import bench_segmentation
from tools.io.files import InputError, read_json
from tools.tissues import tissue_labels

LABELS = tissue_labels()
CARD = {"trained_on": "drawings", "spacing_mm": [2.0, 2.0, -1], "configs": ["train.json", "whole_slices.yaml"]}
GROUPS = {"medseg_000": 0, "medseg_001": 1, "medseg_006": 0, "medseg_018": 2, "medseg_021": 3}  # the last 3 are tested


class Answers:
    """In place of the segmenter: calls half of the lung ground glass, and with the lung known all of it."""

    def __init__(self, weights=None, device=None, mirror=False):
        self.weights = SimpleNamespace(path=weights, card=CARD, trained_on="drawings", sentences=lambda: ["drawings"])

    def label(self, hu, affine, lung=None):
        answer = np.zeros(hu.shape, np.uint8)
        answer[:10] = LABELS["ground_glass"]
        return answer if lung is None else np.where(lung, LABELS["ground_glass"], 0).astype(np.uint8)


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "Segmenter", Answers)
    folder = tmp_path / "slices"
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for case in GROUPS:
        label = np.zeros((20, 20, 1), np.uint8)
        label[:] = LABELS["ground_glass"]
        if case == "medseg_018":
            label[:5] = LABELS["consolidation"]
        nib.save(nib.Nifti1Image(np.full((20, 20, 1), -800.0), np.eye(4)), folder / f"images/{case}.nii.gz")
        nib.save(nib.Nifti1Image(label, np.eye(4)), folder / f"labels/{case}.nii.gz")
    cases = [{"id": case, "group": group} for case, group in GROUPS.items()]
    (folder / "dataset.json").write_text(json.dumps({"cases": cases}))
    return folder


def score(data, tmp_path, **flags):
    bench_segmentation(output=tmp_path / "out.json", published="infnet", data=data, **flags)
    return read_json(tmp_path / "out.json")


def test_test_slices_are_scored_as_is_and_with_the_lung_known(data, tmp_path, capsys):
    found = score(data, tmp_path)
    assert set(found["ours"]) == {"test slices", "without near-duplicates of training slices", "all slices"}
    test = found["ours"]["test slices"]
    assert test["as is"]["ground_glass"]["slices"] == 3
    # 200 voxels are called ground glass, of 400, 300 (200 - 100 of them right) and 400
    assert test["as is"]["ground_glass"]["mean"] == pytest.approx((2 / 3 + 2 * 100 / 500 + 2 / 3) / 3)
    assert test["lung known"]["ground_glass"]["mean"] == pytest.approx((1 + 600 / 700 + 1) / 3)
    assert test["as is"]["consolidation"] == {"mean": 0.0, "slices": 1}
    assert test["as is"]["consolidation inside"]["mean"] == 1 and test["as is"]["lung"]["mean"] == pytest.approx(2 / 3)
    apart = found["ours"]["without near-duplicates of training slices"]  # medseg_006 is like medseg_000
    assert apart["as is"]["ground_glass"]["slices"] == 2
    assert found["test_slices"] == "3 of 48 are here"
    printed = capsys.readouterr().out
    assert "FSS-2019-nCov (published)" in printed and "test slices, lung known" in printed


def test_fine_tuning_trains_on_the_other_slices_and_is_not_repeated(data, tmp_path, monkeypatch):
    runs = []

    def trained(bundle, configs, overrides, log):
        runs.append((configs, overrides, read_json(f"{overrides['dataset_dir']}/datalist.json")["training"]))
        (log.parent / "training").mkdir(parents=True)
        torch.save({"a": torch.ones(2)}, log.parent / "training/model.pt")

    monkeypatch.setattr(module, "run_bundle", trained)
    mix = tmp_path / "mix"
    mix.mkdir()
    drawn = [{"image": "images/d.nii.gz", "label": "labels/d.nii.gz", "patient": "d", "fold": 2}]
    (mix / "datalist.json").write_text(json.dumps({"training": drawn}))
    weights = tmp_path / "start.pt"
    for _ in range(2):
        found = score(data, tmp_path, weights=weights, steps=100, mix=mix)
    assert found["fine_tuning"] == {"steps": 100, "slices": 2, "mixed": True} and "all slices" not in found["ours"]
    ((configs, overrides, items),) = runs
    assert configs == ["train.json", "whole_slices.yaml", "fine_tune.yaml"]
    assert (overrides["start"], overrides["extra_ratio"]) == (str(weights), 1.0)
    assert overrides["max_epochs"] * overrides["epoch_length"] == 100
    trained_on = {item["patient"]: item["fold"] for item in items}
    assert trained_on == {"medseg_000": 1, "medseg_001": 1, "d": -1, "validation": 0}
    card = read_json(tmp_path / "out/card.json")
    assert card["trained_on"] == "drawings; then 2 labelled slices for 100 steps" and card["spacing_mm"] == [2, 2, -1]


@pytest.mark.parametrize(("flags", "told"), [
    ({"published": "outfnet"}, "published must be one of infnet, not outfnet"),
    ({"steps": -1}, "steps must be at least 0, not -1"),
    ({"mix": "drawn"}, "steps must be at least 1, not 0"),
    ({"data": None}, "--published needs --data"),
    ({"published": None}, "--data, --weights, --steps, --mix and --mirror belong to --published infnet"),
])  # fmt: skip
def test_wrong_calls_are_refused(data, tmp_path, flags, told):
    with pytest.raises(InputError, match=told):
        bench_segmentation(**({"output": tmp_path / "out.json", "published": "infnet", "data": data} | flags))
    assert not (tmp_path / "out.json").exists()


def test_folders_that_are_not_the_split_are_refused(data, tmp_path):
    (data / "labels/medseg_021.nii.gz").unlink()
    with pytest.raises(InputError, match="labels/medseg_021.nii.gz does not exist, but dataset.json names it"):
        score(data, tmp_path)
    (data / "dataset.json").write_text(json.dumps({"cases": [{"id": "medseg_000", "group": 0}]}))
    with pytest.raises(InputError, match="holds none of the test slices of infnet, such as medseg_006"):
        score(data, tmp_path)
    (data / "dataset.json").write_text(json.dumps({"cases": [{"id": "medseg_000"}]}))
    with pytest.raises(InputError, match="dataset.json lacks cases with id and group each"):
        score(data, tmp_path)

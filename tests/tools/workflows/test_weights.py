"""Weights from normal CT: what is trained on, what is kept out, and that an interrupted making goes on."""

import contextlib
import json

import pytest
import torch

from tests.tools.phantom.test_draw_into_ct import chest, write_ct
from tools.io.files import InputError, RunError, read_json, sha256
from tools.painting.one_ct import OneCtPainter
from tools.segmenting.segmenter import Segmenter
from tools.workflows import weights as module
from tools.workflows.segmenter import SEGMENTER
from tools.workflows.synthesizer import SYNTHESIZER
from tools.workflows.weights import weights, write_weights


@pytest.fixture
def hosts(tmp_path):
    for number in range(2):
        write_ct(tmp_path / f"cts/host{number}.nii.gz", chest(number)[0])
    return tmp_path / "cts"


@pytest.fixture
def trained(monkeypatch):
    """Stands in for the bundle's training; returns the overrides of each start."""
    starts = []

    def run(bundle, configs, overrides, log):
        starts.append(overrides)
        folder = log.parent
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "training.pt").write_bytes(b"state")
        if len(starts) == 1:
            raise RunError("killed")
        torch.save({"a.weight": torch.ones(2, 2), "a.batches": torch.tensor(3)}, folder / "model.pt")

    monkeypatch.setattr(module, "run_bundle", run)
    monkeypatch.setattr(module, "phantom", small_phantom)
    return starts


def small_phantom(output, patients, seed):
    for kind in ("images", "labels"):
        (output / kind).mkdir(parents=True)
        for number in range(patients):
            (output / kind / f"phantom{number:03d}.nii.gz").touch()


def make(hosts, output, **changed):
    weights(hosts, output, **({"bundle": SEGMENTER, "cases_per_ct": 1, "phantoms": 3, "steps": 100} | changed))


def test_interrupted_making_goes_on_and_writes_weights_with_their_origin(hosts, tmp_path, trained):
    with pytest.raises(RunError):
        make(hosts, tmp_path / "out", keep_out="host1")
    drawn = (tmp_path / "out/lung_tissue_seg/drawn/datalist.json").stat().st_mtime_ns
    make(hosts, tmp_path / "out", keep_out="host1")
    assert [start["resume"] for start in trained] == [False, True]
    assert (tmp_path / "out/lung_tissue_seg/drawn/datalist.json").stat().st_mtime_ns == drawn
    folds = {
        item["patient"]: item["fold"] for item in read_json(tmp_path / "out/lung_tissue_seg/datalist.json")["training"]
    }
    assert folds == {"host0": -1, "host1": 0, "phantom000": 0, "phantom001": 0, "phantom002": -1}
    state = torch.load(tmp_path / "out/lung_tissue_seg/model.pt", weights_only=True)
    assert state["a.weight"].dtype == torch.float16 and state["a.batches"].dtype == torch.int64
    card = json.loads((tmp_path / "out/lung_tissue_seg/card.json").read_text())
    digest = sha256(hosts / "host0.nii.gz")
    assert len(card["cases"]) == 1 and len(card["cases"][0]["content_sha256"]) == 64
    assert card["cases"][0].items() >= {"case": "host0", "patient": "host0", "image_sha256": digest}.items()
    assert card["keep_out"] == ["host1"] and card["drawn_cases"] == 2  # one of them a phantom
    assert card["spacing_mm"] == [2.0, 2.0, -1] and len(card["overrides"]["network_channels"]) == 6
    assert str(tmp_path) not in json.dumps(card)


def test_weights_to_start_from_reach_the_training_and_the_card(hosts, tmp_path, trained):
    (tmp_path / "earlier.pt").write_bytes(b"earlier")
    for _ in range(2):
        with contextlib.suppress(RunError):
            make(hosts, tmp_path / "out", start=tmp_path / "earlier.pt")
    assert trained[-1]["start"] == str(tmp_path / "earlier.pt")
    card = read_json(tmp_path / "out/lung_tissue_seg/card.json")
    assert card["start"] == {"file": "earlier.pt", "sha256": sha256(tmp_path / "earlier.pt")}


def test_other_settings_are_refused(hosts, tmp_path, trained):
    with pytest.raises(RunError):
        make(hosts, tmp_path / "out")
    with pytest.raises(InputError, match="steps was 100, now 50"):
        make(hosts, tmp_path / "out", steps=50)


def test_unknown_patient_to_keep_out_is_refused(hosts, tmp_path, trained):
    with pytest.raises(InputError, match="keep_out names host7, but the patients are host0, host1"):
        make(hosts, tmp_path / "out", keep_out="host0, host7")


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"phantoms": 2}, "phantoms must be at least 3, not 2"), ({"steps": 0}, "steps must be at least 1, not 0")],
)
def test_wrong_numbers_are_refused(hosts, tmp_path, trained, changed, message):
    with pytest.raises(InputError, match=message):
        make(hosts, tmp_path / "out", **changed)


def test_weights_in_half_precision_load_into_the_network(tmp_path):
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    torch.save(network.state_dict(), tmp_path / "full.pt")
    write_weights(tmp_path / "full.pt", tmp_path / "half.pt")
    other = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    other.load_state_dict(torch.load(tmp_path / "half.pt", weights_only=True))
    assert torch.allclose(other[0].weight, network[0].weight, atol=1e-3)
    assert other[0].weight.dtype == torch.float32


def test_large_variances_stay_finite(tmp_path):
    network = torch.nn.BatchNorm2d(2)
    network.running_var.fill_(3e6)  # above the largest number of half precision
    torch.save(network.state_dict(), tmp_path / "full.pt")
    write_weights(tmp_path / "full.pt", tmp_path / "half.pt")
    assert (torch.load(tmp_path / "half.pt", weights_only=True)["running_var"] == 3e6).all()
    network.weight.data.fill_(1e5)
    torch.save(network.state_dict(), tmp_path / "full.pt")
    with pytest.raises(RunError, match="not finite in half precision: weight"):
        write_weights(tmp_path / "full.pt", tmp_path / "half.pt")


@pytest.mark.slow
def test_two_steps_make_weights_that_both_bundles_load(hosts, tmp_path):
    weights(
        hosts, tmp_path / "out", cases_per_ct=1, phantoms=3, steps=2, synthesis_steps=2, keep_out="host1", device="cpu"
    )
    for bundle in (SEGMENTER, SYNTHESIZER):
        state = torch.load(tmp_path / "out" / bundle / "model.pt", weights_only=True)
        assert all(value.isfinite().all() for value in state.values())
        card = read_json(tmp_path / "out" / bundle / "card.json")
        assert [row["patient"] for row in card["cases"]] == ["host0"]
    assert 0.5 < card["voxel_mm"][0] <= card["voxel_mm"][1] < 2.3
    Segmenter(tmp_path / "out" / SEGMENTER / "model.pt", "cpu")
    OneCtPainter(tmp_path / "out" / SYNTHESIZER / "model.pt", steps=2, device="cpu", density=None)

"""The bench: what it compares, what it writes, what it refuses. Speed itself is not tested."""

import json
import sys

import nibabel as nib
import numpy as np
import pytest
import torch

import tools.__main__ as cli
import tools.bench.synthesis_speed as module
from tools.bench import segmentation_speed
from tools.bench.machine import choose_device
from tools.bench.networks import build_reference, count, reference_widths, shipped_contender
from tools.bench.segmentation_speed import bench_segmentation
from tools.bench.synthesis_speed import bench_synthesis, measure_networks, measure_painting, table, write_case
from tools.bundles import BUNDLES
from tools.io.files import InputError
from tools.phantom.phantom import describe_patient, draw_patient
from tools.workflows.synthesizer import SYNTHESIZER

CPU = torch.device("cpu")
TINY = {"network_channels": [16, 16], "network_def::num_head_channels": 16}


def small(device, patch, batch, repeats, **overrides) -> dict:
    return measure_networks(device, patch=32, batch=2, repeats=1, **TINY)


@pytest.fixture(scope="module")
def measured() -> dict:
    pytest.importorskip("diffusers")
    return small(CPU, 64, 16, 7)


@pytest.mark.slow
def test_three_networks_are_measured_side_by_side(measured):
    rows = {row["name"]: row for row in measured["networks"]}
    assert list(rows) == ["shipped", "same, plain float32", "Konz style"]
    assert all(row[kind] > 0 for row in rows.values() for kind in ("step_seconds", "forward_seconds", "gigaflops"))
    assert rows["shipped"]["gigaflops"] == pytest.approx(
        rows["same, plain float32"]["gigaflops"], rel=0.03
    )  # the prior beside the network
    assert rows["Konz style"]["parameters"] == pytest.approx(rows["shipped"]["parameters"], rel=0.4)
    ratio = rows["Konz style"]["step_seconds"] / rows["shipped"]["step_seconds"]
    assert measured["ratios"]["Konz style"]["step"] == pytest.approx(ratio)


@pytest.mark.slow
def test_cost_of_a_painted_patch_is_the_forward_pass_times_the_steps(measured):
    rows = {row["name"]: row["forward_seconds"] / measured["batch"] for row in measured["networks"]}
    painted = measured["painted_patch_seconds"]
    assert painted["shipped, 10 steps"] == pytest.approx(10 * rows["shipped"])
    assert painted["shipped, 8 steps"] == pytest.approx(8 * rows["shipped"])
    assert painted["Konz style, 1000 steps"] == pytest.approx(1000 * rows["Konz style"])


@pytest.mark.slow
def test_the_table_holds_every_network(measured):
    text = table(measured)
    assert all(f"{row['name']:22s}{row['parameters']:12,d}" in text for row in measured["networks"])
    assert "computed from the forward passes" in text


@pytest.mark.slow
def test_the_reference_has_as_many_parameters_as_the_shipped_network():
    unet = pytest.importorskip("diffusers").UNet2DModel
    shipped = shipped_contender(CPU, 64, 1, {})
    widths = reference_widths(unet, shipped.parameters)
    assert count(build_reference(unet, widths)) == pytest.approx(shipped.parameters, rel=0.05)
    assert widths[0] == widths[1] == widths[2] / 2 == widths[3] / 2
    assert all(abs(deep - 4 * widths[0]) <= 8 for deep in widths[4:])


def test_the_shipped_network_is_the_one_of_the_config():
    shipped = shipped_contender(CPU, 64, 1, {})
    config = json.loads((BUNDLES / SYNTHESIZER / "configs/train.json").read_text())
    assert list(shipped.network.unet.block_out_channels) == config["network_channels"]
    assert shipped.network.unet.conv_in.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert shipped.optimizer.defaults["fused"] is True and shipped.network.amp is True


@pytest.mark.slow
def test_command_writes_what_it_measured(tmp_path, monkeypatch, capsys):
    pytest.importorskip("diffusers")
    monkeypatch.setattr(module, "measure_networks", small)
    output = tmp_path / "bench.json"
    assert cli.main(["bench_synthesis", "--output", str(output), "--device", "cpu", "--paint", "False"]) == 0
    written = json.loads(output.read_text())
    assert written["painted_ct"] is None
    assert set(written["machine"]) == {"device", "cores", "threads", "torch"}
    assert capsys.readouterr().out.splitlines()[-1] == f"wrote {output}"


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["bench_synthesis", "twice"], 2, "cannot place 'twice'; each value follows its flag, as in --output VALUE"),
        (["bench_synthesis", "--device", "tpu"], 1, "device must be cpu or cuda, not 'tpu'"),
        (["bench_synthesis", "--repeats", "0"], 1, "repeats must be a whole number of at least 1, not 0"),
        (["bench_synthesis", "--ct", "ct.nii"], 2, "bench_synthesis has no flag --ct"),
        (["bench_segmentation", "--ct", "ct.nii"], 1, "ct ct.nii does not exist; it is a NIfTI file or a folder with"),
    ],
)
def test_wrong_calls_are_refused(words, code, told, tmp_path, capsys):
    assert cli.main([*words, "--output", str(tmp_path / "bench.json")]) == code
    assert told in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_missing_diffusers_is_told_with_the_way_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(InputError, match=r"cannot be imported \(.*\); pip install -r requirements-dev.txt"):
        bench_synthesis(output=tmp_path / "bench.json", device="cpu", paint=False)
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_absent_gpu_is_refused():
    with pytest.raises(InputError, match="device is cuda, but PyTorch finds no GPU here"):
        choose_device("cuda")


def test_the_share_of_the_lung_to_paint_is_asked_for(tmp_path):
    region = write_case(tmp_path, (64, 64, 8), 0.05)
    assert sorted(path.parent.name for path in tmp_path.rglob("*.nii.gz")) == ["images", "labels", "targets"]
    assert 0.02 < region.sum() / (64 * 64 * 8) / 0.1 < 0.1  # about a tenth of the box is lung


@pytest.mark.slow
def test_painting_is_measured_in_a_process_of_its_own():
    painted = measure_painting(CPU, (64, 64, 8), 0.05)
    assert painted["painted_voxels"] > 16 and 0 < painted["painted_slices"] <= 8
    assert painted["seconds"] > 1 and 0.2 < painted["peak_memory_gb"] < 8


class Peer(torch.nn.Module):
    """Stands for lungmask's network; the real one is not among the packages."""

    def __init__(self, **settings):
        super().__init__()
        self.settings, self.layer, self.shapes = settings, torch.nn.Conv2d(1, 3, 1), []

    def forward(self, x):
        self.shapes.append(tuple(x.shape))
        return self.layer(x)


def test_lungmask_is_asked_for_when_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lungmask", None)
    with pytest.raises(InputError, match="bench_segmentation compares with lungmask, which cannot be imported"):
        bench_segmentation(output=tmp_path / "bench.json", device="cpu")
    assert not any(tmp_path.iterdir())


def test_the_peer_sees_every_slice_of_the_ct_as_lungmask_makes_it():
    hu = np.full((40, 30, 45), -2000, np.int16)
    hu[10:, :, 44] = 600
    slices, peer = segmentation_speed.slices_of(hu), Peer()
    assert slices.shape == (45, 1, 256, 256) and slices[0].unique().tolist() == [0] and slices[44].max() == 1
    assert segmentation_speed.forward(peer, slices, CPU) > 0
    assert [shape[0] for shape in peer.shapes] == [20, 20, 5]


@pytest.mark.slow
@pytest.mark.parametrize("given", [False, True])
def test_segmenting_is_measured_from_file_to_file(tmp_path, monkeypatch, capsys, given):
    monkeypatch.setattr(segmentation_speed, "peer_class", lambda: Peer)
    monkeypatch.setattr(segmentation_speed, "CT_SIZE", (64, 64, 8))
    path, words = tmp_path / "ct.nii.gz", []
    if given:
        hu, _, affine = draw_patient(describe_patient(1, 0), 0, (48, 56, 5))
        nib.save(nib.Nifti1Image(hu, affine), path)
        words = ["--ct", str(path)]
    output = tmp_path / "bench.json"
    assert cli.main(["bench_segmentation", "--output", str(output), "--device", "cpu", *words]) == 0
    written = json.loads(output.read_text())
    assert written["size"] == ([48, 56, 5] if given else [64, 64, 8])
    assert written["seconds"] > 1 and 0.2 < written["peak_memory_gb"] < 8 and written["parameters"] > 500_000
    assert written["ratio"] == pytest.approx(written["peer_seconds"] / written["seconds"])
    assert "s from file to file" in capsys.readouterr().out

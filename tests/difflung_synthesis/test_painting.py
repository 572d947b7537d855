"""Painting: only the region changes, windows leave no seams, and a case's noise is its own."""

import json
import math
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scripts.attributes import Attributes
from scripts.autoencoder import TissueAutoencoder
from scripts.batch import CaseDataset
from scripts.cases import datalist_cases, painting_cases
from scripts.network import TissueDenoiser
from scripts.painting import PaintInferer, window_corners
from scripts.tissue_channels import DENSITY_GAIN, UNKNOWN

from tests.dicom import write_series

LABELS = {"background": 0, "healthy": 1, "ground_glass": 2, "emphysema": 4}


def volume(size=(100, 90, 3)):
    """A CT in [-1, 1], its target map, and a region larger than a window, in the two outer slices."""
    generator = torch.Generator().manual_seed(1)
    image = torch.rand((1, 1, *size), generator=generator) * 2 - 1
    target = torch.ones((1, 1, *size))
    region = torch.zeros((1, 1, *size))
    region[:, :, 5:95, 20:85, 0::2] = 1
    target[region > 0] = 2
    return image, target, region


class Pointwise(torch.nn.Module):
    """Stand-in for the network: its answer depends on each voxel alone, so windows cannot matter."""

    objective, spatial_dims, stride, downsampling, data_channels, autoencoder = "flow", 2, 4, 1, 1, None

    voxel_mm = torch.zeros(2)

    def __init__(self, answer=None, **attributes):
        super().__init__()
        self.answer = answer or (lambda image, t, attributes, interval: 0.5 * image[:, :1] + image[:, 3:4] - t)
        self.evaluations = 0
        for name, value in attributes.items():
            setattr(self, name, value)

    def pool(self, maps):
        return maps

    def encode(self, image):
        return image

    def decode(self, sample):
        return sample

    def forward(self, image, timesteps, attributes=None, interval=None):
        self.evaluations += len(image)
        return self.answer(image, timesteps.view(-1, *[1] * (image.ndim - 1)), attributes, interval)


def pooled(maps):
    return torch.nn.functional.avg_pool2d(maps, 2)


def paint(image, target, region, seeds=(0,), network=None, patch_size=(32, 32, 1), num_steps=2, given=None, **settings):
    inferer = PaintInferer(LABELS, patch_size, num_steps=num_steps, **settings)
    return inferer(image, network or Pointwise(), target, region, list(seeds), **(given or {}))


def test_outside_the_region_every_voxel_is_the_inputs():
    image, target, region = volume()
    painted = paint(image, target, region)
    assert torch.equal(painted[region == 0], image[region == 0])
    assert (painted[region > 0] != image[region > 0]).float().mean() > 0.99


@pytest.mark.parametrize("network", [Pointwise(), Pointwise(spatial_dims=3)])
def test_windows_leave_no_trace_where_the_velocity_is_local(network):
    image, target, region = volume((60, 50, 9))
    depth = 1 if network.spatial_dims == 2 else 4
    small = paint(image, target, region, network=network, patch_size=(24, 24, depth), num_steps=3, overlap=0.5)
    whole = paint(image, target, region, network=network, patch_size=(64, 64, max(depth, 9)), num_steps=3, overlap=0.5)
    if network.spatial_dims == 2:  # the box is another, so the noise is
        assert small.shape == whole.shape
    mean = [painted[region > 0].mean().item() for painted in (small, whole)]
    assert mean[0] == pytest.approx(mean[1], abs=0.02)
    assert torch.equal(small[region == 0], image[region == 0])


@pytest.mark.parametrize(("network", "depth"), [
    (Pointwise(), 1), (Pointwise(spatial_dims=3), 4), (Pointwise(downsampling=2, pool=pooled), 1),
])  # fmt: skip
def test_windows_are_counted_where_they_paint(network, depth):
    image, target, region = volume((60, 50, 9))
    inferer = PaintInferer(LABELS, (24, 24, depth), overlap=0.25)
    counts = inferer.window_counts(region[0, 0] > 0, network)
    assert counts.shape == region.shape[2:] and (counts[region[0, 0] > 0] > 0).all()
    if depth == 1:
        assert not counts[:, :, 1].any()  # a slice without region
    assert len(counts.unique()) > 2
    whole = PaintInferer(LABELS, (64, 64, 12 if depth > 1 else 1)).window_counts(region[0, 0] > 0, network)
    assert set(whole.unique().tolist()) <= {0, 1}


def test_painting_does_not_depend_on_batches():
    image, target, region = volume()
    results = [
        paint(image, target, region, sw_batch_size=batch, slices_per_pass=slices, slice_correlation_mm=1.0)
        for batch, slices in ((1, 16), (64, 1))
    ]
    assert torch.allclose(*results, atol=1e-6)


def test_seed_belongs_to_the_volume():
    image, target, region = volume()
    both = [torch.cat([v, v]) for v in (image, target, region)]
    first, second = paint(*both, seeds=(7, 8))
    alone = paint(image, target, region, seeds=(8,))
    assert torch.equal(second, alone[0])
    assert not torch.equal(first, second)


def test_samples_of_one_map_differ_and_the_first_is_the_single_one():
    image, target, region = volume()
    two = paint(image, target, region, samples=2)
    assert two.shape == (1, 2, *image.shape[2:])
    assert torch.equal(two[:, :1], paint(image, target, region))
    assert not torch.equal(two[:, 0], two[:, 1])


def test_metadata_by_which_the_result_is_turned_back_is_kept():
    image, target, region = volume()
    affine = torch.diag(torch.tensor([-2.0, 2.0, 5.0, 1.0])).double()
    painted = paint(MetaTensor(image, affine=affine), target, region)
    assert torch.equal(painted.affine, affine)
    assert torch.equal(painted.as_tensor(), paint(image, target, region))


@pytest.mark.parametrize("dims", [2, 3])
def test_image_smaller_than_a_window(dims):
    image, target, region = (v[:, :, :20, :27] for v in volume())
    painted = paint(
        image, target, region, patch_size=(32, 32, 1 if dims == 2 else 8), network=Pointwise(spatial_dims=dims)
    )
    assert painted.shape == image.shape
    assert torch.equal(painted[region == 0], image[region == 0])


def test_noise_of_neighbouring_slices_is_correlated_as_asked():
    image = torch.zeros(1, 1, 64, 64, 8)
    target, region = torch.full_like(image, 2), torch.ones_like(image)
    echo = Pointwise(lambda image, t, a, i: torch.zeros_like(image[:, :1]))  # the noise itself comes out
    for length, gap, wanted in ((0.0, 1.0, 0.0), (2.0, 1.0, math.exp(-0.5)), (2.0, 4.0, math.exp(-2))):
        given = {"slice_mm": [gap]}
        noise = paint(image, target, region, network=echo, slice_correlation_mm=length, given=given, slices_per_pass=3)
        first, second = noise[0, 0, ..., :-1].flatten(), noise[0, 0, ..., 1:].flatten()
        assert torch.corrcoef(torch.stack([first, second]))[0, 1].item() == pytest.approx(wanted, abs=0.03)
        assert noise.std().item() == pytest.approx(1, abs=0.03)


def test_guidance_weighs_what_each_tissue_adds():
    """The stand-in's velocity is 1 where ground glass is told; guidance s makes it s, without it nothing changes."""
    image, target, region = volume((40, 40, 1))
    told = Pointwise(lambda image, t, a, i: image[:, 3:4])
    plain, guided, overall, other = (
        paint(image, target, region, network=told, **settings)[region > 0].mean().item()
        for settings in (
            {},
            {"tissue_guidance": {"ground_glass": 3.0}},
            {"guidance": 2.0},
            {"tissue_guidance": {"emphysema": 3.0}},
        )
    )
    assert plain - guided == pytest.approx(2, abs=1e-4)
    assert plain - overall == pytest.approx(1, abs=1e-4)
    assert other == plain


def test_attributes_are_guided_and_the_scan_is_not():
    """The stand-in's velocity is severity plus sharpness; scale 3 makes it three times the one plus the other."""
    image, target, region = volume((40, 40, 1))
    network = Pointwise(lambda image, t, a, i: image[:, :1] * 0 + (a[:, 1] + a[:, 3]).view(-1, 1, 1, 1))
    told = {"attributes": torch.tensor([[1.0, 0.25, 1.0, 0.5, 1.0, 0.1]])}
    plain, guided = (
        paint(image, target, region, network=network, given=told, attribute_guidance=scale)[region > 0].mean().item()
        for scale in (1.0, 3.0)
    )
    assert plain - guided == pytest.approx(0.5, abs=1e-4)
    before = network.evaluations
    paint(image, target, region, network=network, given={"attributes": torch.tensor([[0, 0, 1.0, 0.5, 1.0, 0.1]])})
    once = network.evaluations - before
    unknown = {"attributes": torch.tensor([[0, 0, 1.0, 0.5, 1.0, 0.1]])}
    paint(image, target, region, network=network, given=unknown, attribute_guidance=3.0)
    assert network.evaluations - before == 2 * once  # nothing to guide costs nothing


def test_density_and_attributes_reach_the_network():
    image, target, region = volume((40, 40, 1))
    seen = []

    def answer(image, t, attributes, interval):
        seen.append((image[:, -2:], attributes))
        return image[:, :1] * 0

    density = torch.tensor([[math.nan, 0.25, math.nan]])
    paint(image, target, region, network=Pointwise(answer), given={"density": density, "attributes": torch.ones(1, 3)})
    channels, attributes = seen[0]
    assert channels[:, 0].unique().tolist() == [0, DENSITY_GAIN * 0.25]
    assert channels[:, 1].unique().tolist() == [0, 1]
    assert attributes.unique().tolist() == [1] and attributes.shape[1] == 3


def test_unknown_tissue_is_shown_as_unknown_and_hidden_once_for_all_steps():
    image, target, region = volume((40, 40, 1))
    target[region > 0] = UNKNOWN
    seen = []

    def answer(image, t, attributes, interval):
        seen.append(image[:, 1:6])
        return image[:, :1] * 0

    paint(image, target, region, network=Pointwise(answer), num_steps=4)
    assert len(seen) == 4 and all(torch.equal(seen[0], later) for later in seen)
    assert torch.equal(seen[0][:, 4], seen[0][:, 0])  # UNKNOWN just where the region is


@pytest.mark.parametrize(("sampler", "objective", "steps"), [
    ("dpm_solver_flow", "flow", 5), ("heun", "flow", 5), ("few_step", "few_step", 2), ("euler", "few_step", 4),
    ("ddim", "ddpm", 3), ("ancestral", "ddpm", 3), ("dpm_solver", "ddpm", 3),
])  # fmt: skip
def test_every_sampler_takes_as_many_evaluations_as_asked(sampler, objective, steps):
    image, target, region = volume((40, 40, 1))
    network = Pointwise(objective=objective)
    settings = {"network": network, "sampler": sampler, "num_steps": steps, "patch_size": (64, 64, 1)}
    first = paint(image, target, region, **settings)
    assert network.evaluations == steps
    assert torch.equal(first, paint(image, target, region, **settings))
    assert torch.equal(first[region == 0], image[region == 0])


def test_sampler_of_another_objective_and_too_many_steps_are_refused():
    image, target, region = volume((40, 40, 1))
    with pytest.raises(ValueError, match="sampler ddim needs a network of objective ddpm, but this one's is flow"):
        paint(image, target, region, sampler="ddim")
    with pytest.raises(ValueError, match="at most the 1000 steps of training, not 1001"):
        paint(image, target, region, sampler="ddim", num_steps=1001, network=Pointwise(objective="ddpm"))


def test_region_smaller_than_a_cell_of_the_network_is_refused():
    image, target, region = volume((40, 40, 1))
    region[:] = 0
    region[..., 3:6, 4:8, :] = 1
    with pytest.raises(ValueError, match="the region to paint has 12 voxels .* fewer than the 16 of one cell"):
        paint(image, target, region)


@pytest.mark.parametrize("dims", [2, 3])
def test_latent_painting_keeps_the_surroundings(dims):
    torch.manual_seed(0)
    autoencoder = TissueAutoencoder(spatial_dims=dims, channels=(8, 8), latent_channels=2)
    autoencoder(torch.randn(2, 1, *[16] * dims))
    network = TissueDenoiser(LABELS, dims, channels=(16, 16), num_head_channels=16, autoencoder=autoencoder, amp=False)
    image, target, region = volume((45, 39, 7))
    painted = paint(image, target, region, network=network.eval(), patch_size=(16, 16, 1 if dims == 2 else 8))
    assert torch.equal(painted[region == 0], image[region == 0])
    assert painted.isfinite().all() and (painted[region > 0] != image[region > 0]).float().mean() > 0.99


@pytest.mark.parametrize("corner", [0, 68, 40])
def test_windows_cover_the_region_and_touch_it(corner):
    region = torch.zeros(100, 100)
    region[corner : corner + 32, corner] = 1
    region[corner, corner : corner + 32] = 1
    covered = torch.zeros(100, 100)
    for i, j in window_corners(region, (24, 24), overlap=0.25):
        assert 0 <= i <= 76 and 0 <= j <= 76
        assert region[i : i + 24, j : j + 24].any()
        covered[i : i + 24, j : j + 24] = 1
    assert covered[region > 0].all()


@pytest.mark.parametrize(("settings", "message"), [
    ({"overlap": 1}, "overlap must be at least 0 and below 1, not 1"),
    ({"sampler": "rk4"}, "sampler must be one of euler, heun, .*, not rk4"),
    ({"samples": 0}, "samples=0 at least 1"),
    ({"tissue_guidance": {"oedema": 2}}, r"tissue_guidance names \['oedema'\]"),
])  # fmt: skip
def test_setting_out_of_range_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PaintInferer(LABELS, **settings)


def folders(folder, names=("a",)):
    for kind in ("images", "labels", "targets"):
        (folder / kind).mkdir()
        for name in names:
            (folder / kind / f"{name}.nii.gz").touch()
    return str(folder), 0, LABELS, [-1024, 300], {"age": [0, 120], "history": ["none", "smoker"]}


def test_files_without_a_partner_are_named(tmp_path):
    given = folders(tmp_path)
    (tmp_path / "images" / "b.nii").touch()
    with pytest.raises(ValueError, match="b has no file in .*labels"):
        painting_cases(*given)
    (tmp_path / "images" / "b.nii").unlink()
    assert [case["image"] for case in painting_cases(*given)] == [str(tmp_path / "images/a.nii.gz")]
    with pytest.raises(ValueError, match="images holds no .nii"):
        painting_cases(str(tmp_path / "images"), *given[1:])


def test_files_are_paired_without_pydicom(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    assert len(painting_cases(*folders(tmp_path))) == 1


def test_a_series_is_a_case_with_its_folders_name_if_it_is_whole(tmp_path):
    given = folders(tmp_path)
    (tmp_path / "images/a.nii.gz").unlink()
    series = write_series(tmp_path / "images/a", np.zeros((8, 9, 6), np.int16), np.diag([-0.8, -0.8, 2.5, 1]))
    assert [case["image"] for case in painting_cases(*given)] == [str(series)]
    (tmp_path / "images/a.nii").touch()
    with pytest.raises(ValueError, match="images holds both a.nii and a, which are one case, a; remove one"):
        painting_cases(*given)
    (tmp_path / "images/a.nii").unlink()
    (series / "IM0002").unlink()
    dataset = CaseDataset(painting_cases(*given), None)  # in which others go on
    assert "images/a: slices IM0001 and IM0003 lie 5 mm apart, the others 2.5 mm" in dataset[0]["failure"]
    item = {"image": "images/a", "label": "labels/a.nii.gz", "fold": 1}
    (tmp_path / "datalist.json").write_text(json.dumps({"training": [item]}))
    with pytest.raises(ValueError, match="images/a: slices IM0001 and IM0003 lie 5 mm apart, the others 2.5 mm"):
        datalist_cases(str(tmp_path / "datalist.json"), 0, False)


def test_conditions_of_a_case_are_encoded_and_others_are_unknown(tmp_path):
    given = folders(tmp_path, ("a", "b"))
    (tmp_path / "conditions.csv").write_text("case,age,history,density_ground_glass\na,90,smoker,-362\n")
    first, second = painting_cases(*given)
    encoder = Attributes({"age": [0, 120], "history": ["none", "smoker"]})
    assert first["attributes"].tolist() == pytest.approx(encoder.encode({"age": 90, "history": "smoker"}))
    assert first["density"][1] == 0 and np.isnan(first["density"][[0, 2]]).all()
    assert second["attributes"].tolist() == [0] * encoder.size and np.isnan(second["density"]).all()


@pytest.mark.parametrize(("table", "message"), [
    ("case,weight\na,80\n", r"has columns \['case', 'weight'\]; expected case and any of seed, age, history"),
    ("case,age\nc,80\n", "line 2 names case c, which has no image"),
    ("case,age\na,300\n", "age of a is 300, but must be a number from 0 to 120"),
    ("case,history\na,miner\n", "history of a is miner, but must be one of none, smoker"),
    ("case,density_emphysema\na,2000\n", "density_emphysema of a is 2000, but must be a number of HU from"),
])  # fmt: skip
def test_unusable_conditions_are_refused(tmp_path, table, message):
    given = folders(tmp_path)
    (tmp_path / "conditions.csv").write_text(table)
    with pytest.raises(ValueError, match=message):
        painting_cases(*given)


def test_an_evaluation_is_told_the_densities_that_a_datalist_gives(tmp_path):
    for folder, voxel in (("images", -700), ("labels", 1)):
        (tmp_path / folder).mkdir()
        for name in ("a", "b"):
            nib.Nifti1Image(np.full((4, 4, 2), voxel, np.int16), np.eye(4)).to_filename(
                tmp_path / folder / f"{name}.nii.gz"
            )
    items = [{"image": f"images/{name}.nii.gz", "label": f"labels/{name}.nii.gz", "fold": 0} for name in ("a", "b")]
    items[0] |= {"density_ground_glass": -362, "density_healthy": 0.0}
    path = tmp_path / "datalist.json"
    path.write_text(json.dumps({"training": items}))
    first, second = datalist_cases(str(path), 0, True, labels=LABELS)
    assert first["density"][1] == 0 and first["density"][0] == pytest.approx(2 * 1024 / 1324 - 1)
    assert np.isnan(first["density"][2]) and np.isnan(second["density"]).all()
    path.write_text(json.dumps({"training": [items[0] | {"density_ground_glass": [3]}]}))
    with pytest.raises(ValueError, match=r"density_ground_glass of a.nii.gz is \[3\], but must be a number of HU"):
        datalist_cases(str(path), 0, True, labels=LABELS)

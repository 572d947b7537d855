"""Emphysema beside real patches: what is compared with what, with a stand-in for the synthesizer."""

from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from tools.evaluation import emphysema as module
from tools.evaluation.emphysema import bench_emphysema, compare_tiles
from tools.io.files import InputError, read_json
from tools.phantom.phantom import phantom


class HolesOfAir:
    """In place of the synthesizer: paints air."""

    def __init__(self, weights, steps, device, density):
        self.weights = SimpleNamespace(sentences=lambda: ["air"])

    def paint(self, hu, own, target, affine, seed):
        noise = np.random.default_rng(seed).normal(0, 10, hu.shape)
        return np.where(own != target, noise - 990, hu).astype(np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of two CTs and a file of patches: emphysema is darker than normal lung."""
    folder = tmp_path_factory.mktemp("emphysema")
    phantom(folder / "drawn", patients=2, size=(256, 256, 8))
    rng = np.random.default_rng(0)
    hu = rng.normal(-870, 25, (120, 11, 11))
    hu[:60] -= 80
    np.savez(folder / "patches.npz", patches=hu.astype(np.int16).clip(-1024), labels=["PL"] * 60 + ["NT"] * 60)
    return folder


@pytest.mark.slow
def test_painted_drawn_and_unchanged_lung_are_set_beside_real_patches(files, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "OneCtPainter", HolesOfAir)
    bench_emphysema(files / "patches.npz", files / "drawn/images", tmp_path / "out.json", patches_share=0.1)
    rows = read_json(tmp_path / "out.json")["rows"]
    painted, floor = rows["painted"], rows["real emphysema, one half beside the other"]
    assert painted["laa950"] == 1 and painted["laa950_real"] == pytest.approx(0.5, abs=0.1)
    assert painted["hu_wasserstein"] > 30 > 5 > floor["hu_wasserstein"]
    assert painted["texture_distance"] > floor["texture_distance"]
    assert rows["unchanged lung beside normal patches"]["laa950"] < 0.1
    assert (tmp_path / "out.png").stat().st_size > 10000


def test_a_set_beside_itself_scores_the_floor_and_another_one_not():
    rng = np.random.default_rng(0)
    halves = [rng.normal(-900, 30, (40, 12, 12)) for _ in range(2)]
    same, other = compare_tiles(halves, halves), compare_tiles([half + 50 for half in halves], halves)
    assert same["hu_wasserstein"] < 3 and same["auc"] == pytest.approx(0.5, abs=0.02)
    assert other["hu_wasserstein"] == pytest.approx(50, abs=3) and other["auc"] > 0.95
    assert other["texture_distance"] > 3 * same["texture_distance"]


def test_too_few_cts_or_squares_are_refused(files, tmp_path):
    one = tmp_path / "one"
    one.mkdir()
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), one / "a.nii.gz")
    with pytest.raises(InputError, match="holds 1 CT, but two halves are compared"):
        bench_emphysema(files / "patches.npz", one, tmp_path / "out.json")
    with pytest.raises(InputError, match="a half has 3 squares, fewer than 16"):
        compare_tiles([np.zeros((3, 8, 8))] * 2, [np.zeros((20, 8, 8))] * 2)
    assert not (tmp_path / "out.json").exists()

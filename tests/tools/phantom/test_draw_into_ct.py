"""Disease drawn into real CT: what is written, what stays the host's, and what is refused."""

import json

import nibabel as nib
import numpy as np
import pandas
import pytest
from scipy import ndimage

from tools.__main__ import main
from tools.io.files import InputError, sha256
from tools.phantom.disease import Case, describe_case, draw_disease
from tools.phantom.draw_into_ct import VOXEL_MM as VOXEL_MM_DRAWN
from tools.phantom.draw_into_ct import draw_into_ct, read_host
from tools.phantom.lungs import lung_mask
from tools.phantom.publication import change_look
from tools.phantom.real_patches import Patches, read_patches, set_patches
from tools.phantom.surroundings import draw_surroundings
from tools.tissues import tissue_labels

pytestmark = pytest.mark.slow  # the file takes seconds: make check leaves it to make test

LABELS = tissue_labels()
VOXEL_MM = (2.0, 2.0, 8.0)
KINDS = ("images", "labels")
INFECTION = Case("post-infection", 0.5, {"ground_glass": 0.4, "consolidation": 0.6})


def chest(seed: int = 0, lung_hu: float = -860.0) -> tuple[np.ndarray, np.ndarray]:
    """Return HU and lungs of a body with two lungs, a trachea, vessels and noise, shape (150, 110, 6)."""
    rng = np.random.default_rng(seed)
    x, y = (np.arange(150)[:, None] - 75) * 2.0, (np.arange(110) - 55) * 2.0
    hu = np.full((150, 110, 6), -1000.0)
    hu[(x / 140) ** 2 + (y / 100) ** 2 < 1] = 40
    lung = np.zeros(hu.shape, bool)
    for side in (-1, 1):
        lung[((x - side * 65) / 50) ** 2 + (y / 75) ** 2 < 1] = True
    hu[lung] = lung_hu
    dots = ndimage.gaussian_filter(rng.random(hu.shape), (1, 1, 0))
    hu[lung & (dots > np.quantile(dots, 0.98))] = 30
    trachea = np.hypot(x, y + 20) < 9
    hu[trachea] = -1000
    lung[trachea] = False
    return (hu + rng.normal(0, 15, hu.shape)).astype(np.float32), lung


def write_ct(path, hu, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-2.0, -2.0, 8.0, 1.0]) if affine is None else affine
    nib.save(nib.Nifti1Image(np.rint(hu).astype(np.int16), affine), path)


@pytest.fixture
def hosts(tmp_path):
    for number in range(2):
        write_ct(tmp_path / f"cts/host{number}.nii.gz", chest(number)[0])
    return tmp_path / "cts"


def test_lungs_are_found_with_vessels_and_without_trachea():
    hu, lung = chest()
    found = lung_mask(hu, VOXEL_MM)
    assert 2 * (found & lung).sum() / (found.sum() + lung.sum()) > 0.97
    assert not found[74:77, 43:47].any()  # trachea
    vessels = (hu > -300) & ndimage.binary_erosion(lung, np.ones((7, 7, 1)))
    assert found[vessels].mean() > 0.95


def test_ct_without_lung_has_none():
    assert not lung_mask(np.full((60, 60, 4), 40.0), VOXEL_MM).any()


def test_drawing_keeps_what_lies_outside_and_fills_what_is_dense():
    hu, lung = chest()
    drawn, label = draw_disease(np.random.default_rng(1), hu, lung, VOXEL_MM, INFECTION, LABELS)
    assert ((label > 0) == lung).all()
    assert abs((label[lung] != LABELS["healthy"]).mean() - 0.5) < 0.02
    far = ndimage.distance_transform_edt(~lung, sampling=(2, 2, 100)) > 6
    assert np.array_equal(drawn[far], hu[far])
    medians = {name: np.median(drawn[label == LABELS[name]]) for name in ("healthy", "ground_glass", "consolidation")}
    assert medians["healthy"] < -800 < medians["ground_glass"] < medians["consolidation"]


def test_noise_stays_the_hosts():
    hu, lung = chest()
    drawn, label = draw_disease(
        np.random.default_rng(2), hu, lung, VOXEL_MM, Case("none", 0.3, {"ground_glass": 1.0}), LABELS
    )
    inside = ndimage.binary_erosion(label == LABELS["ground_glass"], np.ones((3, 3, 1)))
    fine = [volume - ndimage.gaussian_filter(volume, (0.6, 0.6, 0)) for volume in (hu, drawn)]
    assert np.corrcoef(fine[0][inside], fine[1][inside])[0, 1] > 0.7


def test_textures_differ_between_patients():
    hu, lung = chest()
    medians = []
    for seed in range(6):
        case = Case("none", 0.3, {"ground_glass": 1.0})
        drawn, label = draw_disease(np.random.default_rng(seed), hu, lung, VOXEL_MM, case, LABELS)
        medians.append(np.median(drawn[label == LABELS["ground_glass"]]))
    assert np.ptp(medians) > 60


@pytest.mark.parametrize("kind", ["none", "smoker", "exposure", "post-infection"])
def test_a_kind_is_drawn(kind):
    case = describe_case(np.random.default_rng(0), kind)
    assert case.kind == kind and sum(case.mixture.values()) == pytest.approx(1)


def test_framed_case_is_cut_to_the_lungs_and_enlarged():
    hu, lung = chest()
    label = lung.astype(np.uint8)
    rng = np.random.default_rng(0)
    seen, tissue, _, voxel_mm, look = change_look(rng, hu, label, VOXEL_MM, framed=1.0, windowed=1.0)
    columns = np.flatnonzero(tissue.any((1, 2)))
    assert 265 < columns[-1] - columns[0] < 465
    assert voxel_mm == (1.0, 1.0, 8.0) and look.framed > 1
    assert len(np.unique(seen)) <= 256
    assert seen.shape == tissue.shape


def test_cohort_is_labelled_marked_and_traceable(hosts, tmp_path):
    draw_into_ct(hosts, tmp_path / "out", cases_per_ct=2, slices=4, framed=0.5, seed=3)
    table = pandas.read_csv(tmp_path / "out/patients.csv")
    datalist = json.loads((tmp_path / "out/datalist.json").read_text())
    records = json.loads((tmp_path / "out/provenance.json").read_text())
    assert list(table["patient"]) == ["host0", "host0", "host1", "host1"]
    assert datalist["labels"] == LABELS and len(datalist["training"]) == len(records) == 4
    assert table.groupby("patient")["fold"].nunique().max() == 1 and table["fold"].nunique() == 2
    for item, record in zip(datalist["training"], records):
        image, label = (nib.load(tmp_path / "out" / item[key]) for key in ("image", "label"))
        assert image.header["descrip"].tobytes().startswith(b"SYNTHETIC")
        assert image.shape == label.shape and image.shape[2] == 4 and np.allclose(image.affine, label.affine)
        assert record["sha256"] == sha256(hosts / record["source"]) and record["seed"] == 3


@pytest.mark.parametrize("surrounded", [0.0, 1.0])
def test_unframed_case_lies_where_its_host_does(hosts, tmp_path, surrounded):
    looks = {"framed": 0.0, "windowed": 0.0, "surrounded": surrounded}
    draw_into_ct(hosts, tmp_path / "out", cases_per_ct=1, slices=3, kind="none", **looks)
    host = nib.load(hosts / "host0.nii.gz")
    drawn = nib.load(tmp_path / "out/images/host0_drawn000.nii.gz")
    start, _, step = json.loads((tmp_path / "out/provenance.json").read_text())[0]["slices"]
    at = np.rint(nib.affines.apply_affine(np.linalg.inv(drawn.affine) @ host.affine, [75, 20, start + step]))
    assert at[2] == 1 and (drawn.shape == host.shape[:2] + (3,)) == (surrounded == 0)
    there = nib.affines.apply_affine(np.linalg.inv(host.affine), nib.affines.apply_affine(drawn.affine, at))
    assert np.allclose(there, [75, 20, start + step])
    image, label = (np.asarray(nib.load(tmp_path / f"out/{kind}/host0_drawn000.nii.gz").dataobj) for kind in KINDS)
    assert label[label > 0].size and abs(image[label == LABELS["healthy"]].mean() + 860) < 60
    assert image[int(at[0]), int(at[1]), 1] > -100  # the chest wall in front


def test_resampled_case_keeps_its_place_and_says_its_voxels(hosts, tmp_path):
    draw_into_ct(hosts, tmp_path / "out", cases_per_ct=2, slices=3, framed=0.0, windowed=0.0, surrounded=0.0,
                 resampled=1.0, kind="none")  # fmt: skip
    middle = {}
    for record in json.loads((tmp_path / "out/provenance.json").read_text()):
        label = nib.load(tmp_path / f"out/labels/{record['case']}.nii.gz")
        assert np.allclose(label.header.get_zooms()[:2], record["voxel_mm"], atol=1e-3)
        assert VOXEL_MM_DRAWN[0] <= record["voxel_mm"] <= VOXEL_MM_DRAWN[1]
        found = np.argwhere(np.asarray(label.dataobj) > 0).mean(0)
        middle.setdefault(record["source"], []).append(nib.affines.apply_affine(label.affine, found)[:2])
    for one, other in middle.values():
        assert np.abs(one - other).max() < 1.0  # mm


def test_same_seed_draws_the_same_whatever_else_there_is(hosts, tmp_path):
    draw_into_ct(hosts, tmp_path / "both", cases_per_ct=1, slices=2, seed=5)
    (hosts / "host0.nii.gz").unlink()
    draw_into_ct(hosts, tmp_path / "one", cases_per_ct=1, slices=2, seed=5)
    name = "images/host1_drawn000.nii.gz"
    one, both = (np.asarray(nib.load(tmp_path / run / name).dataobj) for run in ("one", "both"))
    assert np.array_equal(one, both)


def test_patients_with_several_cts_share_a_fold(hosts, tmp_path):
    write_ct(hosts / "host2.nii.gz", chest(2)[0])
    (tmp_path / "who.csv").write_text("case,patient\nhost0,a\nhost1,a\nhost2,b\n")
    draw_into_ct(hosts, tmp_path / "out", patients=tmp_path / "who.csv", cases_per_ct=1, slices=2)
    table = pandas.read_csv(tmp_path / "out/patients.csv")
    assert table.groupby("patient")["fold"].nunique().max() == 1 and set(table["patient"]) == {"a", "b"}


def test_ct_without_lung_is_refused(hosts, tmp_path):
    write_ct(hosts / "belly.nii.gz", np.where(np.arange(40)[:, None, None] < 3, -1000, np.full((40, 40, 4), 40)))
    with pytest.raises(InputError, match="belly.nii.gz holds 0 ml of lung.*--lung_dir"):
        draw_into_ct(hosts, tmp_path / "out", cases_per_ct=1)
    assert not (tmp_path / "out").exists()


def test_diseased_host_is_warned_of_and_used(tmp_path, capsys):
    hu, lung = chest()
    hu[lung & (np.arange(110)[:, None] > 60)] = -420
    write_ct(tmp_path / "ct.nii.gz", hu)
    write_ct(tmp_path / "mask.nii.gz", lung)
    host = read_host("ct", tmp_path / "ct.nii.gz", tmp_path / "mask.nii.gz")
    assert host.lung.sum() == lung.sum()
    assert "is dense (above -500 HU) in" in capsys.readouterr().err


def test_mask_of_another_grid_is_refused(tmp_path):
    hu, lung = chest()
    write_ct(tmp_path / "ct.nii.gz", hu)
    write_ct(tmp_path / "mask.nii.gz", lung, np.diag([-2.0, -2.0, 5.0, 1.0]))
    with pytest.raises(InputError, match="mask.nii.gz has another affine than"):
        read_host("ct", tmp_path / "ct.nii.gz", tmp_path / "mask.nii.gz")


def test_masks_of_other_names_are_refused(hosts, tmp_path):
    write_ct(tmp_path / "masks/other.nii.gz", chest()[1])
    with pytest.raises(InputError, match="holds no mask of the name of any CT"):
        draw_into_ct(hosts, tmp_path / "out", lung_dir=tmp_path / "masks")


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--cases_per_ct", "0", "cases_per_ct must be a whole number from 1 up, not 0"),
        ("--slices", "-1", "slices must be a whole number from 0 up, not -1"),
        ("--framed", "1.5", "framed is a probability and must be from 0 to 1, not 1.5"),
        ("--kind", "asthma", "kind must be one of none, smoker, exposure, post-infection, not asthma"),
    ],
)
def test_wrong_values_are_refused(hosts, tmp_path, capsys, flag, value, message):
    assert main(["draw_into_ct", "--ct", str(hosts), "--output", str(tmp_path / "out"), flag, value]) == 1
    assert message in capsys.readouterr().err


def test_real_patches_are_set_into_healthy_lung(tmp_path):
    hu, lung = chest()
    label = lung.astype(np.uint8)
    content = np.full((6, 31, 31), -890, np.int16)
    content[3:] = -970
    np.savez(tmp_path / "patches.npz", patches=content, labels=np.array(["NT"] * 3 + ["CL3"] * 3))
    patches = read_patches(tmp_path / "patches.npz", share=0.67)
    assert len(patches.hu) == 4 and patches.emphysema.tolist() == [False, False, True, True]
    count = set_patches(np.random.default_rng(0), hu, label, VOXEL_MM, patches, LABELS)
    assert count > 4
    assert np.allclose(hu[label == LABELS["emphysema"]], -970)
    assert (label[~lung] == 0).all()


def test_patches_that_are_no_patches_are_refused(tmp_path):
    np.savez(tmp_path / "patches.npz", patches=np.zeros((2, 31, 31)), labels=np.array(["NT", "PL"]))
    with pytest.raises(InputError, match="not n squares in HU"):
        read_patches(tmp_path / "patches.npz")
    with pytest.raises(InputError, match="must be above 0 and at most 1, not 0"):
        read_patches(tmp_path / "patches.npz", share=0)


def test_nothing_fits_into_no_lung():
    patches = Patches(np.full((1, 31, 31), -950, np.int16), np.array([True]), 0.6)
    label = np.zeros((40, 40, 2), np.uint8)
    assert set_patches(np.random.default_rng(0), np.zeros(label.shape), label, VOXEL_MM, patches, LABELS) == 0


def test_surroundings_change_nothing_of_the_body_and_add_no_lung():
    hu, _ = chest()
    kinds = set()
    for seed in range(8):
        wide, pads, around = draw_surroundings(np.random.default_rng(seed), hu, VOXEL_MM)
        part = tuple(slice(before, before + length) for (before, _), length in zip(pads, hu.shape))
        assert np.array_equal(wide[part][hu > -300], hu[hu > -300])  # chest wall, vessels
        inside = np.zeros(hu.shape[:2], bool)
        inside[40:110, 30:80] = True
        assert np.array_equal(wide[part][inside], hu[inside])
        assert wide.shape[:2] == tuple(round(around.field_mm / 2) for _ in range(2))
        kinds.add((around.table, around.blankets > 0, around.round_field))
    assert len(kinds) > 2

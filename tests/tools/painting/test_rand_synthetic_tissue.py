"""Painting on the fly, with a small network that no training has seen but that has the tissues' HU."""

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
import types

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, get_track_meta, set_track_meta
from monai.transforms import Compose, Orientationd, ScaleIntensityRanged

from tools.bundles import BUNDLES
from tools.io.files import InputError, write_json
from tools.painting import painter
from tools.painting.rand_synthetic_tissue import RandSyntheticTissued
from tools.tissues import tissue_labels
from tools.workflows import in_process
from tools.workflows.synthesizer import painted_region

ROOT = BUNDLES / "difflung_synthesis"
SMALL = {"network_channels": [8, 16, 16], "patch_size": [32, 32, 1], "num_steps": 2, "attributes": {"age": [0, 100]}}
AFFINE = np.diag([2.0, 2.0, 5.0, 1.0])
HU = torch.tensor([40.0, -860, -600, -500, -950, 10])


def chest(shape=(64, 60, 4), lesions=True, seed=0):
    """Return HU and tissue map of one lung with a lesion of each kind, shape (1, W, H, D)."""
    x, y, _ = np.meshgrid(*(np.arange(size) for size in shape), indexing="ij")
    label = (((x - 32) / 29) ** 2 + ((y - 30) / 27) ** 2 < 1).astype(np.uint8)
    for value, corner in ((2, 16), (3, 24), (4, 32), (5, 40)) if lesions else ():
        label[corner : corner + 6, 26:34, 1 : shape[2] - 1] = value
    label = torch.from_numpy(label)[None]
    noise = torch.randn(label.shape, generator=torch.Generator().manual_seed(seed))
    return (HU[label.long()] + 30 * noise).round(), label


def sample(**given):
    image, label = chest(**given)
    return {"image": MetaTensor(image, affine=AFFINE), "label": MetaTensor(label, affine=AFFINE)}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Weights that paint each tissue's HU and heed the patient's age, their card, and a folder of maps."""
    folder = tmp_path_factory.mktemp("painting")
    write_json(folder / "card.json", {"cases": [{"patient": "p0"}], "overrides": SMALL})
    (folder / "model.pt").touch()
    network = build(painter.read_settings(ROOT, folder / "model.pt", {}))
    torch.manual_seed(0)
    for parameter in network.unet.parameters():
        if not parameter.any():  # MONAI's zeros, from which nothing would come out
            torch.nn.init.normal_(parameter, std=0.1)
    network.tissue_mean.copy_(4 * ((HU[1:] + 1024) / 662 - 1).view(1, 5, 1))
    network.tissue_deviation.fill_(0.1)
    torch.save(network.state_dict(), folder / "model.pt")
    (folder / "maps").mkdir()
    nib.save(nib.Nifti1Image(chest()[1][0].numpy(), AFFINE), folder / "maps/case.nii.gz")
    return folder


def build(settings):
    package = in_process.import_scripts(ROOT)
    return in_process.ConfigParser(in_process.rename_targets(settings, package)).get_parsed_content("network_def")


@pytest.fixture
def make(files):
    def make(**given):
        settings = {"bundle_root": ROOT, "lesions": files, "checkpoint": files / "model.pt", "prob": 1.0}
        return RandSyntheticTissued(["image", "label"], **settings | given)

    return make


def same(one, other):
    return all(torch.equal(one[key], other[key]) for key in ("image", "label")) and one["painted"] == other["painted"]


@pytest.mark.parametrize("tissue", ["ground_glass", "emphysema", "consolidation"])
def test_tissue_is_painted_and_entered_into_the_map_and_nothing_else_changes(make, tissue):
    before = sample(lesions=False)
    after = make(tissues={tissue: 1}).set_random_state(1)(before)
    region = after["label"] != before["label"]
    assert after["painted"]["outcome"] == "painted" and after["painted"]["tissue"] == tissue
    assert after["painted"]["voxels"] == region.sum() > 64 and after["painted"]["lesions"] >= 1
    assert set(after["label"][region].tolist()) == {tissue_labels()[tissue]}
    assert set(before["label"][region].tolist()) == {tissue_labels()["healthy"]}
    maps = (part["label"][0].numpy() for part in (before, after))
    wide = torch.from_numpy(painted_region(*maps, before["label"].affine.numpy(), 2))[None]
    assert torch.equal(after["image"][~wide], before["image"][~wide]) and wide.sum() > region.sum()
    assert not torch.equal(after["image"][wide & ~region], before["image"][wide & ~region])  # the margin is painted
    assert abs(after["image"][region].mean() - HU[tissue_labels()[tissue]]) < 60
    assert torch.equal(after["image"], after["image"].round())  # whole HU stay whole
    for key in ("image", "label"):
        assert isinstance(after[key], MetaTensor) and after[key].dtype == before[key].dtype
        assert torch.equal(after[key].affine, before[key].affine)
    assert after["synthetic"] and after["image"].meta["synthetic"]
    untouched = sample(lesions=False)  # a cache may hold the sample
    assert all(torch.equal(before[key], untouched[key]) for key in untouched)
    assert "synthetic" not in before and "synthetic" not in before["image"].meta


def test_the_seed_decides_everything_and_the_record_replays_it(make):
    transform, before = make(), sample()
    first, second = transform.set_random_state(5)(before), transform(before)
    assert not same(first, second)
    again = pickle.loads(pickle.dumps(transform)).set_random_state(5)
    assert same(again(before), first) and same(again(before), second)
    assert same(transform.paint(before, second["painted"]["seed"]), second)


def test_probability_and_what_happened_are_counted(make):
    lungless = {"image": torch.zeros(1, 8, 8, 1), "label": torch.zeros(1, 8, 8, 1)}
    transform = make(prob=0.3, spacing_mm=(1, 1, 1)).set_random_state(0)
    outcomes = [transform(lungless)["painted"]["outcome"] for _ in range(100)]
    assert 20 <= outcomes.count("no room") <= 40 and outcomes.count("not asked") == 100 - outcomes.count("no room")
    assert transform.outcomes == {"no room": outcomes.count("no room"), "not asked": outcomes.count("not asked")}
    assert make(prob=0)(sample())["synthetic"] is False
    assert make(prob=0)(sample() | {"synthetic": True})["synthetic"] is True  # painted earlier, by augment


def test_a_map_without_lung_is_returned_unchanged(make):
    before = {"image": torch.full((1, 64, 60, 4), 40.0), "label": torch.zeros(1, 64, 60, 4)}
    after = make(spacing_mm=(2, 2, 5))(before)
    assert after["painted"]["outcome"] == "no room" and not after["synthetic"]
    assert after["image"] is before["image"] and after["label"] is before["label"]


def test_the_orientation_of_the_file_does_not_matter(make):
    before, transform = sample(), make()
    affine = AFFINE @ np.array([[-1, 0, 0, 63], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    mirrored = {key: MetaTensor(before[key].as_tensor().flip(1), affine=affine) for key in before}
    painted, other = transform.paint(before, 9), transform.paint(mirrored, 9)
    assert painted["painted"]["outcome"] == "painted"
    assert all(torch.equal(painted[key].as_tensor(), other[key].as_tensor().flip(1)) for key in before)


@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_a_slice_without_metadata_is_painted(make, kind):
    image, label = chest((64, 60, 1), lesions=False)
    transform = make(spacing_mm=(2, 2, 5))
    expected = transform.paint({"image": MetaTensor(image, affine=AFFINE), "label": label}, 1)
    given = {"image": image.numpy(), "label": label.numpy()} if kind == "array" else {"image": image, "label": label}
    set_track_meta(False)  # as the segmenter's Untracked does
    try:
        painted = transform.paint(given, 1)
        assert not get_track_meta()
    finally:
        set_track_meta(True)
    assert painted["painted"]["outcome"] == "painted" and painted["painted"] == expected["painted"]
    for key in given:
        assert type(painted[key]) is type(given[key]) and painted[key].dtype == given[key].dtype
        assert np.array_equal(painted[key], expected[key])


def test_what_came_before_can_still_be_undone(make):
    chain = Compose([Orientationd(["image", "label"], "LPS", labels=None), make()])
    before = sample()
    painted = chain(before)
    back = chain.inverse(painted)
    assert torch.equal(back["image"].affine, before["image"].affine)
    assert (back["label"] != before["label"]).sum() == painted["painted"]["voxels"] > 0


def test_what_is_known_of_the_patient_is_told(make):
    before, transform = sample(), make()
    young, old, impossible, unknown = (transform.paint(before | {"age": age}, 3) for age in (20, 90, 900, None))
    assert torch.equal(young["label"], old["label"]) and not torch.equal(young["image"], old["image"])
    assert same(impossible, unknown)


def test_chosen_tissues_are_drawn_by_their_weights(make):
    transform = make(tissues={"fibrosis": 3, "emphysema": 1})
    label = sample()["label"][0].numpy().astype(np.int16)
    drawn = [transform.draw(label, AFFINE, np.random.default_rng(seed))[1] for seed in range(40)]
    assert 23 <= drawn.count("fibrosis") <= 37 and drawn.count("emphysema") == 40 - drawn.count("fibrosis")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_paint_what_the_main_process_paints(make, method):
    transform = make(prob=0.8)
    scaled = ScaleIntensityRanged("image", -1024, 300, 0, 1)
    cases = Dataset([sample(seed=seed) for seed in range(4)], Compose([transform, scaled]))
    loader = DataLoader(cases, batch_size=2, num_workers=2, multiprocessing_context=method)
    seeds, threads = set(), torch.get_num_threads()
    torch.manual_seed(1)
    torch.set_num_threads(1)  # as in a worker: with more, sums are rounded in another order
    for number, batch in enumerate(loader):
        for n in range(2):
            seed, before = int(batch["painted"]["seed"][n]), sample(seed=2 * number + n)
            if batch["painted"]["outcome"][n] == "painted":
                seeds.add(seed)
                expected = scaled(transform.paint(before, seed))
                assert batch["synthetic"][n]
                assert torch.equal(batch["image"][n], expected["image"])
                assert torch.equal(batch["label"][n], expected["label"])
    torch.set_num_threads(threads)
    assert len(seeds) >= 2


def test_another_bundle_may_have_taken_the_name_scripts(make, files, monkeypatch):
    others = types.ModuleType("scripts")
    for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "scripts", others)
    painter.load_painter.cache_clear()
    assert make()(sample())["synthetic"]
    assert [name for name in sys.modules if name.partition(".")[0] == "scripts"] == ["scripts"]
    assert sys.modules["scripts"] is others


def test_loading_the_network_leaves_the_random_numbers_of_a_training_alone(make):
    painter.load_painter.cache_clear()
    transform = make()
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    transform(sample())
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.slow
def test_the_bundle_itself_paints_the_same(make, files, tmp_path):
    before = sample() | {"age": 40}
    after = make().paint(before, 77)
    for kind, volume in (("images", before["image"]), ("labels", before["label"]), ("targets", after["label"])):
        (tmp_path / kind).mkdir()
        nib.save(nib.Nifti1Image(volume[0].numpy(), AFFINE), tmp_path / kind / "case.nii.gz")
    (tmp_path / "conditions.csv").write_text("case,seed,age\ncase,77,40\n")
    line = [sys.executable, "-m", "monai.bundle", "run", "inferring", "--bundle_root", str(ROOT)]
    line += ["--config_file", str(ROOT / "configs/inference.json"), "--dataset_dir", str(tmp_path), "--device", "cpu"]
    line += ["--output_dir", str(tmp_path / "out"), "--checkpoint", str(files / "model.pt")]
    for key, value in SMALL.items():
        line += [f"--{key}", str(value)]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(line, capture_output=True, text=True, env=os.environ | threads)
    assert done.returncode == 0, done.stderr[-3000:]
    painted = nib.load(tmp_path / "out/case.nii.gz").get_fdata(dtype=np.float32)
    assert np.array_equal(painted, after["image"][0].numpy())


def broken(**changes):
    data = sample()
    return data | {key: change(data[key]) for key, change in changes.items()}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (broken(image=lambda hu: (hu + 1024) / 1324), "image has a mean of 0.12.* in healthy lung, which cannot be HU"),
        (broken(image=lambda hu: hu * torch.nan), "image has a mean of nan"),
        (broken(label=lambda label: label + 3), "label holds label 6, but labels name only"),
        (broken(image=lambda hu: hu[..., 0]), r"image has shape \(1, 64, 60\); expected \(1, W, H, D\)"),
        (broken(label=lambda label: label[:, :9]), r"label has shape \(1, 9, 60, 4\), but image has \(1, 64, 60, 4\)"),
        (broken(image=lambda hu: hu.as_tensor(), label=lambda label: label.as_tensor()), "carries no metadata, so its"),
        (broken(label=lambda label: MetaTensor(label.as_tensor(), affine=np.eye(4))), "has another affine than image"),
    ],
)
def test_a_sample_that_cannot_be_painted_is_refused(make, data, message):
    with pytest.raises(InputError, match=message):
        make()(data)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prob": 3}, "prob must be from 0 to 1, not 3"),
        ({"procedural": -1}, "procedural must be from 0 to 1, not -1"),
        ({"max_lesions": 0}, "max_lesions must be at least 1, not 0"),
        ({"device": "cuda"}, "device cuda is not available here"),
        ({"checkpoint": "absent/model.pt"}, "absent/model.pt does not exist"),
        ({"bundle_root": "absent"}, "absent/configs/inference.json does not exist"),
        ({"overrides": {"steps": 4}}, "inference.json has no id 'steps' to override"),
        ({"tissues": {"cyst": 1}}, "tissues names cyst, but .* has lesions of consolidation, emphysema, fibrosis"),
        ({"tissues": {"fibrosis": 0}}, "tissues must hold weights of at least 0, one of them above"),
        ({"lesions": "absent"}, "absent does not exist"),
    ],
)
def test_wrong_settings_are_refused(make, given, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=message):
        make(**given)


def test_labels_near_whole_numbers_are_whole(make):
    given = sample()
    near = given | {"label": given["label"] * 0.99999994}
    one, other = (make().paint(item, 5) for item in (given, near))
    assert one["painted"] == other["painted"] and torch.equal(one["image"], other["image"])
    with pytest.raises(InputError, match="holds label 1.0099"):
        make().paint(given | {"label": given["label"] * 1.00999}, 5)


def test_programs_of_another_bundle_run_only_with_trust(make, files, tmp_path):
    root = tmp_path / ROOT.name
    shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns("models", "__pycache__"))
    (root / "scripts/__pycache__").mkdir()  # no source, so nobody would see what is in it
    same = make(bundle_root=root)
    assert same.bundle_root == root and same._programs.resolve() == ROOT.resolve()
    (root / "scripts/painting.py").write_text("raise SystemExit('it ran')", encoding="utf-8")
    with pytest.raises(InputError, match="differs from the packaged bundle in scripts/painting.py; .* trust=True"):
        make(bundle_root=root)
    with pytest.raises(Exception, match="it ran"):
        make(bundle_root=root, trust=True)(sample())


def test_keys_are_the_ct_and_its_map():
    with pytest.raises(InputError, match=r"keys must be the CT and its tissue map, two names, not \('image',\)"):
        RandSyntheticTissued("image", ROOT, "bank")


def test_maps_without_lesions_are_refused(make, tmp_path):
    nib.save(nib.Nifti1Image(chest(lesions=False)[1][0].numpy(), AFFINE), tmp_path / "case.nii.gz")
    with pytest.raises(InputError, match="holds maps without any lesion"):
        make(lesions=tmp_path)


def test_weights_of_another_scheme_are_refused(make, files, tmp_path):
    state = torch.load(files / "model.pt", weights_only=True)
    kind = json.loads(bytes(state["_extra_state"].tolist()))
    kind["label scheme"] = {"background": 0, "healthy": 1, "tumour": 2}
    state["_extra_state"] = torch.tensor(list(json.dumps(kind).encode()), dtype=torch.uint8)
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(InputError, match="model.pt does not fit .*trained for label scheme .*tumour"):
        make(checkpoint=tmp_path / "model.pt", overrides=SMALL)(sample())


def test_a_gpu_is_not_used_by_workers(make, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    transform = make(device="cuda")
    monkeypatch.setattr("tools.painting.rand_synthetic_tissue.get_worker_info", lambda: "a worker's")
    with pytest.raises(InputError, match="device cuda paints in the main process only; set num_workers 0"):
        transform(sample())


def test_a_missing_key_is_named(make):
    with pytest.raises(KeyError, match="label"):
        make()({"image": copy.copy(sample()["image"])})

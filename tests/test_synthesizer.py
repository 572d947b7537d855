"""The synthesizer bundle run as its users run it: train, paint, evaluate, from another folder, on oblique CTs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.utils import set_determinism
from scripts.network import TissueDenoiser
from scripts.scan import TYPICAL_MM, append_scan

from tests.dicom import write_series
from tools.workflows.synthesizer import painted_region

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundles/difflung_synthesis"
TINY = {
    "max_epochs": 1,
    "epoch_length": 2,
    "batch_size": 2,
    "patches_per_case": 2,
    "patch_size": [32, 32, 1],
    "network_channels": [16, 16],
    "network_def#num_head_channels": 16,
    "warmup_steps": 1,
    "measured_patches": 256,
    "num_steps": 2,
    "device": "cpu",
}
SETTINGS = json.loads((BUNDLE / "configs/train.json").read_text())
LABELS = SETTINGS["labels"]


def oblique(angle=0.2):
    """Return an affine that is turned about two axes, with the first axis flipped and 2 x 1.8 x 7 mm voxels."""
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-2, 1.8, 7])
    affine[:3, 3] = [31.5, -12.25, 100]
    return affine


def write_case(folder, name, seed, size=(45, 39, 5)):
    """Write a CT with lung of HU -850 and three kinds of lesion, and its map."""
    rng = np.random.default_rng(seed)
    hu = rng.normal(40, 10, size)
    label = np.zeros(size, np.uint8)
    label[6:-6, 6:-6] = 1
    label[10:20, 10:30], label[25:33, 10:20, 1:], label[25:33, 22:30, :3] = 2, 3, 4
    if seed % 2:
        label[20:25, 10:20] = 5
    for value, mean in {1: -850, 2: -600, 3: -550, 4: -960, 5: 20}.items():
        hu[label == value] = rng.normal(mean, 40, (label == value).sum())
    for kind, array in (("images", hu.round().astype(np.int16)), ("labels", label)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, oblique()), folder / kind / f"{name}.nii.gz")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A datalist of four cases in two folds, and targets for painting two of them."""
    folder = tmp_path_factory.mktemp("data")
    items = []
    for number in range(4):
        write_case(folder, f"case{number}", number)
        items.append({"image": f"images/case{number}.nii.gz", "label": f"labels/case{number}.nii.gz",
                      "fold": number // 2, "patient": f"p{number}", "age": 60 if number else None,
                      "history": "smoker" if number % 2 else ""})  # fmt: skip
    (folder / "datalist.json").write_text(json.dumps({"training": items}))
    return folder


def arguments(overrides):
    words = []
    for key, value in overrides.items():
        words += [f"--{key}", value if isinstance(value, str) else repr(value)]
    return words


def bundle(run_id, configs, cwd, *words, launcher=(), **overrides):
    files = [str(BUNDLE / "configs" / name) for name in configs]
    command = [sys.executable, *launcher, "-m", "monai.bundle", "run", *run_id, "--bundle_root", str(BUNDLE)]
    command += ["--config_file", files[0] if len(files) == 1 else str(files), *words, *arguments(overrides)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """Weights of a tiny training, started from another folder by `run training`."""
    folder = tmp_path_factory.mktemp("run")
    places = {"dataset_dir": str(data), "model_dir": str(folder), "output_dir": str(folder / "eval"), "val_interval": 1}
    result = bundle(["training"], ["train.json"], folder, **TINY, **places)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def painting(data, tmp_path_factory):
    """images, labels and targets: ground glass put into healthy lung, more than a window wide; case1 is one slice."""
    folder = tmp_path_factory.mktemp("painting")
    for number, slices in ((0, 5), (1, 1)):
        write_case(folder, f"case{number}", number, size=(45, 39, slices))
        label = nib.load(folder / f"labels/case{number}.nii.gz")
        target = np.asarray(label.dataobj).copy()
        target[target == 1] = 2
        (folder / "targets").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(target, label.affine), folder / f"targets/case{number}.nii.gz")
    return folder


def config(*names, **overrides):
    files = [str(BUNDLE / "configs" / name) for name in names]
    return ConfigWorkflow(
        config_file=files, meta_file=str(BUNDLE / "configs/metadata.json"),
        workflow_type="infer" if names == ("inference.json",) else "train", logging_file=False, **overrides,
    )  # fmt: skip


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_patches_are_balanced_or_follow_the_lung(data, probability, monkeypatch):
    monkeypatch.chdir(BUNDLE)
    parser = ConfigParser(SETTINGS | {"dataset_dir": str(data), "fold": 1, "marginal_probability": probability})
    parser.update({"patch_size": [1, 1, 1], "patches_per_case": 300})
    dataset = parser.get_parsed_content("train::dataset")
    voxels = [patch for number in (0, 0, 0, 0) for patch in dataset[number]]
    shown = {int(voxel["label"].item()) for voxel in voxels}
    glass = np.mean([-0.55 < voxel["image"].item() < -0.2 for voxel in voxels])  # -726 to -495 HU
    label = np.asarray(nib.load(data / "labels/case0.nii.gz").dataobj)
    lung = np.isin(label, (2, 3)).sum() / (label > 0).sum()
    assert shown == ({-1, -2, -3, -4} if probability else {1, 2, 3, 4})
    assert glass == pytest.approx(lung if probability else 0.5, abs=0.06)


@pytest.mark.parametrize("names", [("train.json",), ("train.json", "evaluate.json"), ("inference.json",)])
def test_no_property_is_missing(names, monkeypatch, data, painting, tmp_path):
    monkeypatch.chdir(BUNDLE)
    places = {"dataset_dir": str(painting if names == ("inference.json",) else data), "output_dir": str(tmp_path)}
    workflow = config(*names, bundle_root=str(BUNDLE), **places)
    workflow.initialize()
    assert workflow.check_properties() == []
    set_determinism(None)


@pytest.mark.slow
def test_training_writes_plain_weights_with_the_measured_presence(trained):
    weights = torch.load(trained / "model.pt", weights_only=True)
    presence = weights["tissue_presence"]
    assert presence.shape == (5,)
    hu = (weights["tissue_mean"][0] / 4 + 1) / 2 * 1324 - 1024  # of the slices of each tissue's histogram
    assert hu[:4].mean(dim=1).tolist() == pytest.approx([-850, -600, -550, -960], abs=12)
    assert hu[:3].std(dim=1).tolist() == pytest.approx([40] * 3, abs=12)
    assert (hu.diff(dim=1) > 0).all() and (weights["tissue_deviation"] > 0).all()
    assert (presence[:4] > 0.2).all() and presence.max() <= 1
    assert (trained / "eval/metrics.csv").is_file()
    assert list((trained / "eval").glob("events.out.tfevents*"))


@pytest.mark.slow
def test_shares_of_the_tissues_are_those_of_the_patients_with_a_history(trained, data):
    network = TissueDenoiser(LABELS, attributes=SETTINGS["attributes"], channels=(16, 16), num_head_channels=16)
    network.load_state_dict(torch.load(trained / "model.pt", weights_only=True))
    size_mm = nib.load(data / "images/case3.nii.gz").header.get_zooms()[0]  # as every CT with an affine tells it
    scan = torch.tensor([[np.nan, np.log2(size_mm / TYPICAL_MM)]])
    told = append_scan(torch.tensor([network.attributes.encode({"history": "smoker"})]), scan)
    shares = network.patient_logits(told)[1][0, 1].softmax(dim=0)  # where nothing is told of the tissues
    label = np.asarray(nib.load(data / "labels/case3.nii.gz").dataobj)  # the only smoker who is not held out
    real = [(label == value).sum() / (label > 0).sum() for value in range(1, 6)]
    assert shares.tolist() == pytest.approx(real, abs=0.08)


@pytest.mark.slow
def test_painting_changes_nothing_outside_the_region_of_an_oblique_ct(trained, painting, tmp_path):
    places = {"dataset_dir": str(painting), "output_dir": str(tmp_path), "checkpoint": str(trained / "model.pt")}
    tiny = {key: value for key, value in TINY.items() if key.startswith(("network", "patch_size", "num", "device"))}
    (painting / "conditions.csv").write_text("case,age,history,density_ground_glass\ncase0,70,smoker,-640\n")
    result = bundle(["inferring"], ["inference.json"], tmp_path, **tiny, **places)
    assert result.returncode == 0, result.stderr[-3000:]
    for name in ("case0", "case1"):
        painted, image = nib.load(tmp_path / f"{name}.nii.gz"), nib.load(painting / f"images/{name}.nii.gz")
        label = np.asarray(nib.load(painting / f"labels/{name}.nii.gz").dataobj)
        target = np.asarray(nib.load(painting / f"targets/{name}.nii.gz").dataobj)
        assert painted.shape == image.shape
        assert np.allclose(painted.affine, image.affine, atol=1e-5)
        assert painted.header["descrip"].item().startswith(b"SYNTHETIC") and painted.get_data_dtype() == np.float32
        after, before = np.asarray(painted.dataobj), np.asarray(image.dataobj)
        region, wide = target != label, painted_region(label, target, image.affine, margin=2)
        assert np.array_equal(after[~wide], before[~wide])
        assert (after[region] != before[region]).mean() > 0.9
        assert (after[wide & ~region] != before[wide & ~region]).mean() > 0.9
        assert after[region].min() >= -1024 and after[region].max() <= 300


def test_what_the_network_paints_lands_where_it_was_asked(painting, tmp_path):
    """An inferer that gives back its input must reproduce the CT: nothing is flipped, shifted or rescaled."""
    torch.save(TissueDenoiser(LABELS, attributes=SETTINGS["attributes"]).state_dict(), tmp_path / "model.pt")
    workflow = config(
        "inference.json", dataset_dir=str(painting), output_dir=str(tmp_path), checkpoint=str(tmp_path / "model.pt"),
        inferer="$lambda inputs, network, **given: torch.as_tensor(inputs)", device="cpu", bundle_root=str(BUNDLE),
    )  # fmt: skip
    workflow.initialize()
    workflow.run()
    set_determinism(None)
    for name in ("case0", "case1"):
        after = np.asarray(nib.load(tmp_path / f"{name}.nii.gz").dataobj)
        before = np.asarray(nib.load(painting / f"images/{name}.nii.gz").dataobj)
        label = np.asarray(nib.load(painting / f"labels/{name}.nii.gz").dataobj)
        region = label == 1  # the fixture turns healthy lung into ground glass
        assert np.array_equal(after[region], before[region].clip(-1024, 300))


@pytest.mark.slow
def test_a_dicom_series_is_painted_as_the_file_of_the_same_ct(trained, painting, tmp_path):
    folder = tmp_path / "series"
    shutil.copytree(painting, folder, ignore=shutil.ignore_patterns("images", "case1*"))
    image = nib.load(painting / "images/case0.nii.gz")
    write_series(folder / "images/case0", np.asarray(image.dataobj), image.affine)
    settings = {key: value for key, value in TINY.items() if key.startswith(("network", "patch_size", "num", "device"))}
    settings |= {"checkpoint": str(trained / "model.pt")}
    for dataset_dir, output in ((painting, tmp_path / "of_file"), (folder, tmp_path / "of_series")):
        places = {"dataset_dir": str(dataset_dir), "output_dir": str(output)}
        result = bundle(["inferring"], ["inference.json"], tmp_path, **settings, **places)
        assert result.returncode == 0, result.stderr[-3000:]
    of_file, of_series = (nib.load(tmp_path / name / "case0.nii.gz") for name in ("of_file", "of_series"))
    of_file, of_series = map(
        nib.as_closest_canonical, (of_file, of_series)
    )  # a series is stored from its first slice up
    assert np.allclose(of_series.affine, of_file.affine, atol=1e-4)
    assert np.abs(np.asarray(of_series.dataobj) - np.asarray(of_file.dataobj)).max() <= 1


@pytest.mark.slow
def test_evaluation_scores_the_held_out_cases(trained, data, tmp_path):
    places = {"dataset_dir": str(data), "model_dir": str(trained), "output_dir": str(tmp_path)}
    result = bundle([], ["train.json", "evaluate.json"], tmp_path, **TINY, **places)
    assert result.returncode == 0, result.stderr[-3000:]
    metrics = dict(line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines())
    tissues = ("ground_glass", "fibrosis", "emphysema", "consolidation")
    assert all(float(metrics[f"hu_wasserstein_{tissue}"]) > 0 for tissue in tissues[:3])
    assert "hu_wasserstein_consolidation" not in metrics  # one case holds it: there is no other half to compare with
    assert all(float(metrics[f"hu_wasserstein_floor_{tissue}"]) < 30 for tissue in tissues[:3])
    quality = pandas.read_csv(tmp_path / "quality.csv", index_col="tissue")
    assert set(tissues) == set(quality.index)
    assert (quality["diversity"] > 0).all() and (quality["voxels"] > 100).all()
    assert (tmp_path / "quality.png").is_file() and json.loads((tmp_path / "quality.json").read_text())


VOLUME = {"patch_size": [32, 32, 8], "batch_size": 1}
VARIANTS = {
    "latent": (["latent.yaml"], {}),
    "volume": (["volume.yaml"], VOLUME),
    "latent volume": (["volume.yaml", "latent.yaml"], VOLUME),
    "ddpm": (["ddpm.yaml"], {}),
    "few-step": (["few_step.yaml"], {}),
    "fine-tune": (["fine_tune.yaml"], {"learning_rate": 1e-12}),
    "konz": (["konz_ablation.yaml"], {}),
    "no ablation": (["no_ablation.yaml"], {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_trains_resumes_evaluates_and_paints(variant, trained, data, painting, tmp_path):
    overlays, changes = VARIANTS[variant]
    tiny = TINY | changes
    places = {
        "dataset_dir": str(data),
        "model_dir": str(tmp_path),
        "output_dir": str(tmp_path / "eval"),
        "val_interval": 9,
    }
    extra = {}
    if "latent" in variant:
        names = ["train.json", *[name for name in overlays if name != "latent.yaml"], "autoencoder.yaml"]
        small = extra = {"autoencoder_channels": [8, 8], "latent_channels": 2}
        small = small | {key: value for key, value in tiny.items() if not key.startswith("network")} | places
        result = bundle([], names, tmp_path, **small)
        assert result.returncode == 0, result.stderr[-3000:]
        result = bundle(["evaluating"], [*names, "evaluate.json"], tmp_path, **small)
        assert result.returncode == 0, result.stderr[-3000:]
        assert "hu_wasserstein_fibrosis" in (tmp_path / "eval/metrics.csv").read_text()
        extra = extra | {"autoencoder_weights": str(tmp_path / "autoencoder.pt")}
    if variant in ("few-step", "fine-tune"):
        extra = {"start": str(trained / "model.pt")}
    result = bundle([], ["train.json", *overlays], tmp_path, **tiny, **places, **extra)
    assert result.returncode == 0, result.stderr[-3000:]
    if variant == "fine-tune":
        before, after = (torch.load(folder / "model.pt", weights_only=True) for folder in (trained, tmp_path))
        assert all(
            torch.allclose(before[key], after[key]) for key in before if key not in ("_extra_state", "tissue_presence")
        )
    extra.pop("autoencoder_weights", None)
    overrides = tiny | {"samples": 1}
    result = bundle([], ["train.json", *overlays, "evaluate.json"], tmp_path, **overrides, **places, **extra)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "quality_diversity" not in (tmp_path / "eval/metrics.csv").read_text()
    kept = ("network", "patch_size", "num", "device", "autoencoder", "latent")
    settings = {key: value for key, value in (tiny | extra).items() if key.startswith(kept)}
    settings |= {"ddpm": {"objective": "ddpm", "sampler": "ddim"},
                 "few-step": {"objective": "few_step", "sampler": "few_step"}}.get(variant, {})  # fmt: skip
    shared = [name for name in overlays if name in ("latent.yaml", "volume.yaml")]
    settings |= {"dataset_dir": str(painting), "output_dir": str(tmp_path / "out")}
    result = bundle([], ["inference.json", *shared], tmp_path, **settings, checkpoint=str(tmp_path / "model.pt"))
    assert result.returncode == 0, result.stderr[-3000:]
    painted = np.asarray(nib.load(tmp_path / "out/case0.nii.gz").dataobj)
    assert painted.shape == (45, 39, 5) and painted.min() >= -1100


@pytest.mark.slow
def test_training_goes_on_where_it_was_stopped(data, tmp_path):
    """Two epochs at once, and one epoch with the schedule of two followed by --resume, end with the same weights."""
    weights = []
    for folder, runs in (("straight", [{}]), ("stopped", [{"train::trainer::max_epochs": 1}, {"resume": True}])):
        for changes in runs:
            places = {
                "dataset_dir": str(data),
                "model_dir": str(tmp_path / folder),
                "output_dir": str(tmp_path / "eval"),
            }
            settings = TINY | {"max_epochs": 2, "val_interval": 9} | changes
            result = bundle([], ["train.json"], tmp_path, **settings, **places)
            assert result.returncode == 0, result.stderr[-3000:]
        weights.append(torch.load(tmp_path / folder / "model.pt", weights_only=True))
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0] if key != "_extra_state")


@pytest.mark.slow
def test_weights_of_another_dimension_are_refused(trained, painting, tmp_path):
    settings = {key: value for key, value in TINY.items() if key.startswith(("network", "device"))}
    settings |= {
        "dataset_dir": str(painting),
        "output_dir": str(tmp_path / "out"),
        "checkpoint": str(trained / "model.pt"),
    }
    result = bundle([], ["inference.json", "volume.yaml"], tmp_path, **settings)
    assert result.returncode != 0
    assert "the weights were trained for dimension 2, but the configuration has 3" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_missing_weights_are_an_error(painting, tmp_path):
    places = {"dataset_dir": str(painting), "output_dir": str(tmp_path / "out")}
    places["checkpoint"] = str(tmp_path / "none.pt")
    result = bundle([], ["inference.json"], tmp_path, device="cpu", **places)
    assert result.returncode != 0
    assert "none.pt" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_same_seed_gives_the_same_weights(trained, data, tmp_path):
    places = {"dataset_dir": str(data), "model_dir": str(tmp_path), "output_dir": str(tmp_path), "val_interval": 9}
    result = bundle([], ["train.json"], tmp_path, **TINY, **places)
    assert result.returncode == 0, result.stderr[-3000:]
    first, second = (torch.load(folder / "model.pt", weights_only=True) for folder in (trained, tmp_path))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first if key != "_extra_state")


@pytest.mark.slow
def test_two_processes_train_on_cpu(data, tmp_path):
    places = {"dataset_dir": str(data), "model_dir": str(tmp_path), "output_dir": str(tmp_path), "val_interval": 9}
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    tiny = {key: value for key, value in TINY.items() if key != "device"}
    result = bundle(["training"], ["train.json", "multi_gpu_train.json"], tmp_path, launcher=launcher, **tiny, **places)
    assert result.returncode == 0, result.stderr[-3000:]
    assert torch.load(tmp_path / "model.pt", weights_only=True)["tissue_presence"].sum() > 0


@pytest.mark.slow
def test_two_processes_evaluate_like_one(trained, data, tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    overlays, tables = ["train.json", "evaluate.json"], []
    for names, how in ((overlays, {}), ([*overlays, "multi_gpu_evaluate.json"], {"launcher": launcher})):
        folder = tmp_path / str(len(names))
        places = {"dataset_dir": str(data), "model_dir": str(trained), "output_dir": str(folder)}
        settings = {key: value for key, value in TINY.items() if key != "device" or not how}
        result = bundle(["evaluating"], names, tmp_path, **settings, **places, **how)
        assert result.returncode == 0, result.stderr[-3000:]
        tables.append(pandas.read_csv(folder / "quality.csv"))
    pandas.testing.assert_frame_equal(*tables)

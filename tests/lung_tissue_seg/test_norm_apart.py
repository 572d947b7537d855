"""Batch norm that takes synthetic cases apart: what the network keeps of a training is of the real ones alone."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.networks.nets import UNet

from tests.lung_tissue_seg.bundle import TINY, load, run, workflow

apart = load("norm_apart")
CASES = [{"fold": 1}, {"fold": -1}]


def unet(norm="batch"):
    torch.manual_seed(0)
    return UNet(2, 1, 6, (4, 8), (2,), num_res_units=1, norm=norm)


def batch(folds):
    image = torch.rand(len(folds), 1, 16, 16, generator=torch.Generator().manual_seed(0))
    label = torch.arange(len(folds)).view(-1, 1, 1, 1) * torch.ones_like(image)
    return {"image": image, "label": label, "fold": torch.tensor(folds), "case": [str(fold) for fold in folds]}


def answer(network, prepare, given):
    return network.train()(prepare(apart.real_first(given))[0])


def test_each_kind_is_normalised_by_itself_and_the_statistics_are_of_the_real_cases():
    plain, network = unet(), unet()
    prepare = apart.NormApart(network, CASES)
    given = batch([-1, 0, -1, 2, 0])
    image, label = prepare(apart.real_first(given))
    assert label[:, 0, 0, 0].tolist() == [1, 3, 4, 0, 2] and torch.equal(image, given["image"][[1, 3, 4, 0, 2]])
    found = network.train()(image)
    real = plain.train()(image[:3])
    kept = {name: value.clone() for name, value in plain.state_dict().items()}
    assert torch.allclose(found[:3], real, atol=1e-6) and torch.allclose(found[3:], plain(image[3:]), atol=1e-6)
    state = network.state_dict()
    assert state.keys() == kept.keys() and all(torch.allclose(state[name], kept[name], atol=1e-7) for name in kept)
    found.sum().backward()
    assert all(weight.grad is not None for weight in network.parameters())
    plain.load_state_dict(state)
    assert torch.equal(network.eval()(image), plain.eval()(image)), "it answers as any network"


@pytest.mark.parametrize("folds", [[0, 1, 2], [-1, -1]])
def test_a_batch_of_one_kind_is_one_batch(folds):
    plain, network = unet(), unet()
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    given = batch(folds)
    found = answer(network, apart.NormApart(network, CASES), given)
    assert torch.allclose(found, plain.train()(given["image"]), atol=1e-6)
    kept = plain.state_dict() if 0 in folds else before
    assert all(torch.allclose(value, kept[name]) for name, value in network.state_dict().items())


def test_what_cannot_be_taken_apart_is_refused():
    with pytest.raises(ValueError, match="norm_apart needs a network with batch norm; set network_def::norm to batch"):
        apart.NormApart(unet("instance"), CASES)
    with pytest.raises(ValueError, match="from others, but 0 of 2 are in fold -1"):
        apart.NormApart(unet(), [{"fold": 0}, {"image": "of MONAI Label"}])
    with pytest.raises(ValueError, match="from others, but 1 of 1 are in fold -1"):
        apart.NormApart(unet(), CASES[1:])


def trained(cohort, folder, denser=0, **settings):
    """Train in this process, with the synthetic CT by so many HU ``denser``; return model.pt."""
    folder.mkdir(exist_ok=True)
    content = json.loads((cohort / "datalist.json").read_text())
    items = [item | {key: str(cohort / item[key]) for key in ("image", "label")} for item in content["training"]]
    image = nib.load(items[-1]["image"])
    items[-1]["image"] = str(folder / "synthetic.nii.gz")
    hu = (np.asarray(image.dataobj) + denser).astype(np.int16)
    nib.save(nib.Nifti1Image(hu, image.affine), folder / "synthetic.nii.gz")
    (folder / "datalist.json").write_text(json.dumps(content | {"training": items}))
    places = {"dataset_dir": str(folder), "model_dir": str(folder), "output_dir": str(folder / "eval")}
    given = TINY | {"batch_size": 8, "extra_ratio": 1.0, "progress_bar": False} | settings
    flow = workflow("train", "train", **places, **given)
    flow.initialize()
    flow.run()
    return torch.load(folder / "model.pt", weights_only=True)


@pytest.mark.slow
def test_no_average_that_is_saved_holds_anything_of_the_synthetic_cases_but_what_was_learned(cohort, tmp_path):
    """Nothing is learned at a rate of 0, so that another synthetic CT must change nothing."""
    still = {"learning_rate": 0.0, "ema_momentum": 0.5, "epoch_length": 4}
    one, other = (trained(cohort, tmp_path / str(hu), hu, norm_apart=True, **still) for hu in (0, 150))
    assert all(torch.equal(one[name], other[name]) for name in one)
    mixed = [trained(cohort, tmp_path / f"mixed{hu}", hu, **still) for hu in (0, 150)]
    assert not all(torch.equal(mixed[0][name], mixed[1][name]) for name in one)
    assert one.keys() == mixed[0].keys()


@pytest.mark.slow
def test_it_goes_on_where_it_was_stopped_and_its_weights_label(cohort, tmp_path):
    """Other batches, of one kind in the first epochs, and the same weights as in one go."""
    settings = {"norm_apart": True, "extra_schedule": "synthetic_first", "real_share": 0.4, "total_epochs": 3}
    settings |= {"val_interval": 9, "max_epochs": 3}
    straight = trained(cohort, tmp_path / "straight", **settings)
    plain = trained(cohort, tmp_path / "plain", **settings | {"norm_apart": False})
    assert not all(torch.equal(plain[name], straight[name]) for name in plain)
    trained(cohort, tmp_path / "stopped", **settings | {"max_epochs": 2})
    resumed = trained(cohort, tmp_path / "stopped", **settings, resume=True)
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    tiny = {key: TINY[key] for key in ("device", "window_size", "network_channels", "find_lung")}
    places = {"dataset_dir": str(cohort / "images"), "model_dir": str(tmp_path / "stopped")}
    places |= {"output_dir": str(tmp_path / "e")}
    run(["run", "inferring"], ["inference"], tmp_path, **places, **tiny)
    assert len(list((tmp_path / "e").glob("*_tissues.nii.gz"))) == 4


@pytest.mark.slow
def test_two_processes_take_them_apart(cohort, tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    folders = {"dataset_dir": str(cohort), "model_dir": str(tmp_path), "output_dir": str(tmp_path)}
    more = TINY | {"norm_apart": True, "extra_ratio": 1.0}
    run(["run", "training"], ["train", "multi_gpu_train"], tmp_path, launcher, **folders, **more)
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in weights.values())

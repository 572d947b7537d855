"""Training that is stopped and resumed ends with the weights of training that was not."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Events
from ignite.handlers import EMAHandler
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor, get_track_meta
from monai.engines import SupervisedTrainer
from monai.handlers import LrScheduleHandler
from monai.transforms import Compose, DeleteItemsd, RandFlipd, RandGaussianNoised, RandSpatialCropd, ToTensord
from scripts.gradients import ClipGradients
from scripts.seeded_loader import SeededLoader
from scripts.training_state import TrainingState, Untracked, hold, save_atomically
from torch.utils.data import RandomSampler

from tests.fake_gpu import GPU, FakeGpu


class Killed(Exception):
    """Stands for a process that dies."""


def train(folder, max_epochs=4, resume=False, die_in=None, seed=3, max_norm=1.0, workers=0):
    """Train a line with random data, dropout, EMA and a schedule; optionally die in the middle of an epoch."""
    torch.manual_seed(seed)
    network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 4))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    ema = EMAHandler(network, momentum=0.1)
    transform = Compose([RandFlipd("image", prob=0.5, spatial_axis=0), RandGaussianNoised("image", prob=0.9)])
    items = [{"image": torch.full((1, 4), float(n)), "label": torch.ones(1, 4)} for n in range(6)]
    loader = SeededLoader(Dataset(items, transform), batch_size=2, shuffle=True, num_workers=workers)
    state = TrainingState(network, ema, optimizer, schedule, loader, folder, seed=seed, resume=resume)
    trainer = SupervisedTrainer(
        device="cpu", max_epochs=max_epochs, epoch_length=5, train_data_loader=loader, network=network,
        optimizer=optimizer, loss_function=torch.nn.MSELoss(), decollate=False,
        train_handlers=[ema, LrScheduleHandler(schedule, epoch_level=False), ClipGradients(network, max_norm), state],
    )  # fmt: skip

    def die(engine):
        if engine.state.iteration == die_in:
            raise Killed

    trainer.add_event_handler(Events.ITERATION_COMPLETED, die)
    trainer.run()
    return network, optimizer


def test_resumed_training_equals_training_that_was_not_stopped(tmp_path):
    straight, first = train(tmp_path / "straight")
    with pytest.raises(Killed):
        train(tmp_path / "stopped", die_in=13)
    resumed, second = train(tmp_path / "stopped", resume=True)
    for a, b in zip(straight.parameters(), resumed.parameters()):
        assert torch.equal(a, b)
    moments = [[s["exp_avg"] for s in optimizer.state.values()] for optimizer in (first, second)]
    assert all(torch.equal(a, b) for a, b in zip(*moments))
    averages = [torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("straight", "stopped")]
    assert all(torch.equal(averages[0][key], averages[1][key]) for key in averages[0])
    assert not torch.equal(averages[0]["0.weight"], straight[0].weight)  # it is the moving average that is saved
    assert not list(tmp_path.glob("*/*.partial"))


@pytest.mark.slow
def test_any_number_of_workers_ends_with_the_same_weights(tmp_path):
    weights = [list(train(tmp_path / str(workers), workers=workers)[0].parameters()) for workers in (0, 1, 2)]
    for other in weights[1:]:
        assert all(torch.equal(a, b) for a, b in zip(weights[0], other))
    another = list(train(tmp_path / "another", seed=4)[0].parameters())
    assert not torch.equal(weights[0][0], another[0])


def test_a_case_that_comes_twice_in_an_epoch_is_drawn_anew():
    dataset = Dataset([{"image": torch.zeros(1, 4)}], Compose([RandGaussianNoised("image", prob=1.0)]))
    torch.manual_seed(0)
    loader = SeededLoader(dataset, sampler=RandomSampler(dataset, replacement=True, num_samples=3))
    one, other, third = (batch["image"] for batch in loader)
    assert not torch.equal(one, other) and not torch.equal(other, third)


def test_a_folder_into_which_another_process_trains_is_refused(tmp_path):
    program = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX); print(flush=True)"
    words = [sys.executable, "-c", f"{program}; sys.stdin.read()", str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(ValueError, match="another process trains into model_dir .*; wait for it, or name another"):
            train(tmp_path)
        other.kill()
    hold(tmp_path)
    hold(tmp_path)  # a process may train twice


def test_a_checkpoint_that_finds_no_room_is_told_in_a_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    save_atomically({"a": 1}, tmp_path / "model.pt")
    before = (tmp_path / "model.pt").read_bytes()

    def full(content, path):
        path.write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file data/7: file write failed\nand a trace")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ValueError, match="cannot be written; is the disk full. PytorchStreamWriter .* failed$"):
        save_atomically({"a": 2}, tmp_path / "model.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
    assert (tmp_path / "model.pt").read_bytes() == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run_with_the_cases_and_the_last_good_weights(tmp_path, value):
    items = [{"image": torch.ones(1, 4), "label": torch.ones(1, 4), "case": f"case{n}.nii.gz"} for n in range(4)]
    network = torch.nn.Linear(4, 4)
    loader = DataLoader(Dataset(items), batch_size=2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    ema = EMAHandler(network, momentum=0.1)
    steps = []

    def loss(pred, label):
        steps.append(0)
        return (pred - label).square().mean() * (value if len(steps) == 4 else 1)

    trainer = SupervisedTrainer(
        device="cpu", max_epochs=5, epoch_length=2, train_data_loader=loader, network=network, optimizer=optimizer,
        loss_function=loss, decollate=False,
        train_handlers=[ema, TrainingState(network, ema, optimizer, schedule, loader, str(tmp_path))],
    )  # fmt: skip
    told = f"the loss is {value:g} in step 4 on case2.nii.gz, case3.nii.gz; .*model.pt keeps the last good weights"
    with pytest.raises(ValueError, match=told):
        trainer.run()
    saved = torch.load(tmp_path / "model.pt", weights_only=True)
    assert torch.load(tmp_path / "training.pt", weights_only=True)["epoch"] == 1
    assert all(value.isfinite().all() for value in [*saved.values(), *network.parameters()])


def test_on_a_gpu_the_losses_of_several_steps_are_looked_at_together(tmp_path):
    state = TrainingState(None, SimpleNamespace(ema_model=None), None, None, None, str(tmp_path))
    gpu = FakeGpu()
    with gpu.working():
        for step in range(1, 50):
            loss = torch.tensor(1.0).to(GPU, non_blocking=True)
            engine = SimpleNamespace(state=SimpleNamespace(output={"loss": loss}, iteration=step, batch={}))
            state.check_loss(engine)
        assert sum(gpu.waits.values()) == 2
        engine.state.output["loss"] = loss / 0
        state.check_loss(engine)
        with pytest.raises(ValueError, match="the loss is inf in step 49 on a batch that names no case; no weights"):
            state.save(engine)
    assert not list(tmp_path.iterdir())


def test_randomness_differs_between_epochs_and_seeds(tmp_path):
    one = train(tmp_path / "a", max_epochs=1)[0][0].weight
    assert torch.equal(one, train(tmp_path / "b", max_epochs=1)[0][0].weight)
    assert not torch.equal(one, train(tmp_path / "c", max_epochs=1, seed=4)[0][0].weight)


def test_resuming_nothing_or_another_seed_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is nothing to resume: .*training.pt does not exist"):
        train(tmp_path, resume=True)
    with pytest.raises(ValueError, match="resume must be True or False, not 'true'"):
        train(tmp_path, resume="true")
    train(tmp_path, max_epochs=1)
    with pytest.raises(ValueError, match="is of a run with seed 3, not 5"):
        train(tmp_path, resume=True, seed=5)


def test_gradients_are_clipped(tmp_path):
    free, clipped = (train(tmp_path / str(norm), max_epochs=1, max_norm=norm)[1] for norm in (1e9, 1e-4))
    norms = [
        torch.cat([s["exp_avg"].flatten() for s in optimizer.state.values()]).norm() for optimizer in (free, clipped)
    ]
    assert norms[0] > 1e-2 and norms[1] < 1.01e-4
    with pytest.raises(ValueError, match="max_norm must be above 0, not 0"):
        ClipGradients(None, 0)


def test_patches_without_metadata_hold_the_same_voxels():
    cuts = [RandSpatialCropd("image", (4, 4), random_size=False), RandFlipd("image", prob=0.5, spatial_axis=0)]
    cuts.append(ToTensord("image", track_meta=False))
    whole = MetaTensor(torch.rand(1, 9, 9))
    untouched = whole.clone()
    tracked, plain = (Compose([kind(cuts)]) for kind in (Compose, Untracked))
    cached = CacheDataset([{"image": whole}], plain, copy_cache=False, progress=False)
    for draw in range(8):
        expected = tracked.set_random_state(draw)({"image": whole})["image"]
        plain.set_random_state(draw)
        drawn = cached[0]["image"]
        assert type(drawn) is torch.Tensor
        torch.testing.assert_close(drawn, expected, rtol=0, atol=0)
    torch.testing.assert_close(whole, untouched, rtol=0, atol=0)
    assert len(whole.applied_operations) == 0


def test_tracking_goes_on_after_an_error():
    with pytest.raises(RuntimeError):
        Untracked([RandSpatialCropd("image", (4, 4), random_size=False), DeleteItemsd("missing")])({"image": 1})
    assert get_track_meta()

"""The GPU that is not there notices what a real one would refuse or wait for."""

import numpy as np
import pytest
import torch

from tests.fake_gpu import GPU, FakeGpu


@pytest.fixture
def gpu():
    fake = FakeGpu()
    with fake.working():
        yield fake


def test_tensors_lie_where_they_were_put(gpu):
    here = torch.ones(2, 3, device="cuda")
    there = torch.ones(2, 3)
    assert here.device == GPU and here.is_cuda and (here + 1)[0].device == GPU
    assert there.device.type == "cpu" and there.to(GPU).device == GPU and there.device.type == "cpu"
    assert here.cpu().device.type == "cpu" and torch.zeros_like(here).device == GPU
    network = torch.nn.Linear(3, 4).to("cuda", memory_format=torch.channels_last)
    network(here).sum().backward()
    assert network.weight.grad.device == GPU and not gpu.mixed


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: bool((x > 0).any()), lambda x: x.sum().item(), lambda x: x.tolist(), lambda x: x.cpu(),
        lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: x.unique(), lambda x: x.to("cpu"),
        lambda x: torch.ones(2).to(x.device), lambda x: torch.as_tensor([1, 2], device=x.device),
        lambda x: x[torch.tensor([0])], lambda x: torch.equal(x, x + 1),
    ],
)  # fmt: skip
def test_what_the_host_waits_for_is_counted(gpu, ask):
    x = torch.ones(4, device=GPU)
    ask(x)
    assert sum(gpu.waits.values()) == 1


def test_kernels_are_counted_and_views_are_free(gpu):
    x = torch.ones(4, device=GPU)
    y = (x.view(2, 2)[0] * 2).unsqueeze(0)
    y.masked_fill_(y > 3, 0.0)
    torch.ones(4).to(GPU, non_blocking=True)
    assert gpu.kernels == {"mul": 1, "gt": 1, "masked_fill_": 1} and not gpu.waits and not gpu.mixed
    torch.ones(2) * 2  # on the CPU
    assert sum(gpu.kernels.values()) == 3


def test_a_mixture_of_devices_is_noticed(gpu):
    x = torch.ones(4, device=GPU)
    assert (x + torch.tensor(1.0)).device == GPU and not gpu.mixed, "a number may lie on the CPU"
    x + torch.ones(4)
    (told,) = gpu.mixed
    assert told.startswith("add ")
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        np.asarray(x)

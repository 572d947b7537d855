"""The loss asks where the lung ends apart from which tissue it is; tissue weights do not move the border."""

import pytest
import torch

from tests.lung_tissue_seg.bundle import load

lung_loss, precision = load("lung_loss"), load("precision")
WEIGHT = [0.0, 0.5, 1.0, 1.0]


class NoDice(torch.nn.Module):
    """Leaves the cross-entropies alone, whose best answer is known."""

    def forward(self, *_):
        return 0.0


def target(seed=0):
    torch.manual_seed(seed)
    return torch.randint(0, 4, (2, 1, 16, 16))


def logits_of(label, certainty=20.0):
    return certainty * torch.nn.functional.one_hot(label.clamp(max=3)[:, 0], 4).movedim(-1, 1).float()


def test_right_answer_costs_almost_nothing_and_wrong_one_much():
    loss = lung_loss.LungTissueLoss(WEIGHT)
    truth = target()
    assert loss(logits_of(truth), truth) < 1e-3
    assert loss(logits_of((truth + 1) % 4), truth) > 5


def test_what_nobody_labelled_teaches_nothing():
    loss = lung_loss.LungTissueLoss(WEIGHT)
    truth = target()
    truth[:, :, :8] = 255
    logits = torch.randn(2, 4, 16, 16, requires_grad=True)
    loss(logits, truth).backward()
    assert logits.grad[:, :, :8].abs().max() == 0 < logits.grad[:, :, 8:].abs().max()
    assert loss(logits, torch.full_like(truth, 255)).isfinite()


def test_weights_of_tissues_do_not_move_the_lungs_border():
    """Of voxels that are lung as often as not, the best answer is one half, whatever a tissue's weight is."""
    truth = torch.zeros(1, 1, 40, 40, dtype=torch.long)
    truth[..., ::2] = 2
    best = []
    for weight in ([0.0, 0.1, 1.0, 1.0], [0.0, 1.0, 10.0, 1.0]):
        shared = torch.zeros(1, 4, 1, 1, requires_grad=True)
        optimizer = torch.optim.Adam([shared], lr=0.1)
        loss = lung_loss.LungTissueLoss(weight)
        loss.dice = loss.lung_dice = NoDice()
        for _ in range(200):
            optimizer.zero_grad()
            loss(shared.expand(1, 4, 40, 40), truth).backward()
            optimizer.step()
        best.append(1 - float(shared.detach().softmax(1)[0, 0]))
    assert best == pytest.approx([0.5, 0.5], abs=0.02)


def test_dense_lung_counts_more_in_the_question_of_lung():
    """Weighted three times, voxels that are dense lung one time in four are called lung as often as not."""
    truth = torch.zeros(1, 1, 40, 40, dtype=torch.long)
    truth[..., ::4] = 3
    shared = torch.zeros(1, 4, 1, 1, requires_grad=True)
    optimizer = torch.optim.Adam([shared], lr=0.1)
    loss = lung_loss.LungTissueLoss(WEIGHT, dense=3, dense_weight=3.0)
    loss.dice = loss.lung_dice = NoDice()
    for _ in range(200):
        optimizer.zero_grad()
        loss(shared.expand(1, 4, 40, 40), truth).backward()
        optimizer.step()
    assert 1 - float(shared.detach().softmax(1)[0, 0]) == pytest.approx(0.5, abs=0.02)


def test_forward_pass_with_half_the_bits_answers_in_float32():
    torch.manual_seed(0)
    network = torch.nn.Conv2d(1, 3, 3, padding=1)
    image = torch.rand(2, 1, 12, 12)
    answer, exact = (
        precision.BFloat16Inferer()(image, network),
        precision.BFloat16Inferer(enabled=False)(image, network),
    )
    assert answer.dtype == exact.dtype == torch.float32
    assert 0 < (answer - exact).abs().max() < 0.02

"""Which cases an epoch draws: all alike, or those of fold -1 in a ratio to the others, in all epochs or in some."""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch.utils.data import RandomSampler, Sampler

EXTRA = -1  # the fold of cases that are only ever trained on, as synthetic ones
WEIGHT = "draw_weight"  # of an extra case: how often it is drawn relative to the other extra ones, 1 if absent
SCHEDULES = ("mixed", "synthetic_first", "real_last")


class RatioSampler(Sampler):
    """Draws case numbers from two groups in a fixed ratio, in random order; each group is gone round evenly.

    Args:
        extra: Numbers of the one group.
        others: Numbers of the other.
        num_samples: Number of draws per epoch.
        share: Share of the draws that falls to ``extra``, rounded to a whole number of draws.
        weights: How often each of ``extra`` is drawn relative to the others; None for all alike.
        schedule: When ``extra`` is drawn: "mixed" has the share in every epoch, "real_last" none of it in the last
            ones, and "synthetic_first" nothing but it before those.
        last: Number of the first of the last epochs, from 1 up.
    """

    def __init__(
        self, extra: Sequence[int], others: Sequence[int], num_samples: int, share: float,
        weights: Sequence[float] | None = None, schedule: str = "mixed", last: float = math.inf,
    ) -> None:  # fmt: skip
        self.extra, self.others, self.num_samples, self.share = list(extra), list(others), num_samples, share
        self.weights, self.schedule, self.last, self.epoch = weights, schedule, last, 1

    def __len__(self) -> int:
        return self.num_samples

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes, from 1 up."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        share = self.share
        if self.schedule != "mixed" and self.epoch >= self.last:
            share = 0.0
        elif self.schedule == "synthetic_first":
            share = 1.0
        drawn = round(self.num_samples * share)
        picks = self._weighted(drawn) if self.weights else _round(self.extra, drawn)
        picks += _round(self.others, self.num_samples - drawn)
        return iter([picks[index] for index in torch.randperm(len(picks)).tolist()])

    def _weighted(self, count: int) -> list[int]:
        """Draw from ``extra`` by weight: each as often as it should be, or once more (systematic sampling)."""
        order = torch.randperm(len(self.extra))
        upper = torch.tensor(self.weights, dtype=torch.float64)[order].cumsum(0)
        places = (torch.arange(count, dtype=torch.float64) + torch.rand(1, dtype=torch.float64)) / max(count, 1)
        found = torch.searchsorted(upper, places * upper[-1], right=True).clamp(max=len(order) - 1)
        return [self.extra[index] for index in order[found].tolist()]


def _round(group: list[int], count: int) -> list[int]:
    """Go round a group in random order until so many are drawn."""
    picks: list[int] = []
    while len(picks) < count:
        picks += [group[index] for index in torch.randperm(len(group))[: count - len(picks)].tolist()]
    return picks


def case_sampler(
    cases: Sequence[Mapping], num_samples: int, extra_ratio: float | None = None, schedule: str = "mixed",
    real_share: float = 0.25, epochs: int = 1,
) -> Sampler:  # fmt: skip
    """Return a sampler of case numbers; the number of draws does not depend on the number of cases.

    Args:
        cases: Cases with a ``fold`` each, and perhaps a ``draw_weight``.
        num_samples: Number of draws per epoch.
        extra_ratio: Cases of fold -1 drawn per other case; None goes round all cases alike.
        schedule: When cases of fold -1 are drawn; see ``RatioSampler``.
        real_share: Share of the epochs, at the end, without cases of fold -1, where the schedule is not mixed.
        epochs: Number of all epochs.

    Raises:
        ValueError: If the ratio is negative, asks for cases of a kind that is not there, the schedule is unknown or
            leaves no epoch to one of the two.

    Example: three cases of fold -1 share what one other case gets
        >>> cases = [{"fold": 0}, {"fold": -1}, {"fold": -1}, {"fold": -1}]
        >>> sorted(case_sampler(cases, 6, extra_ratio=1.0))
        [0, 0, 0, 1, 2, 3]
    """
    if extra_ratio is None:
        return RandomSampler(cases, num_samples=num_samples)
    if isinstance(extra_ratio, bool) or not isinstance(extra_ratio, int | float) or not 0 <= extra_ratio < float("inf"):
        raise ValueError(f"extra_ratio must be None or a number from 0 up, not {extra_ratio!r}")
    extra = [number for number, case in enumerate(cases) if case["fold"] == EXTRA]
    others = [number for number, case in enumerate(cases) if case["fold"] != EXTRA]
    if not others or (extra_ratio > 0 and not extra):
        raise ValueError(
            f"extra_ratio is {extra_ratio}, but {len(extra)} cases are in fold -1 and {len(others)} in others"
        )
    if schedule not in SCHEDULES:
        raise ValueError(f"extra_schedule must be one of {', '.join(SCHEDULES)}, not {schedule!r}")
    alone = round(real_share * epochs)
    if schedule != "mixed" and extra and not 0 < alone < epochs:
        raise ValueError(
            f"real_share {real_share} of {epochs} epochs leaves {schedule} {alone} of them with real cases"
        )
    weights = [float(cases[number].get(WEIGHT, 1)) for number in extra]
    if any(weight < 0 for weight in weights) or (weights and not sum(weights)):
        raise ValueError(f"{WEIGHT} must not be negative, and one of them above 0")
    uneven = weights if len(set(weights)) > 1 else None
    return RatioSampler(
        extra, others, num_samples, extra_ratio / (1 + extra_ratio), uneven, schedule if extra else "mixed",
        epochs - alone + 1,
    )  # fmt: skip

"""Which cases an epoch draws: all alike, or those of fold -1 in a ratio to the others."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch.utils.data import RandomSampler, Sampler

EXTRA = -1  # the fold of cases that are only ever trained on, as synthetic ones


class RatioSampler(Sampler):
    """Draws case numbers from two groups in a fixed ratio, in random order; each group is gone round evenly.

    Args:
        extra: Numbers of the one group.
        others: Numbers of the other.
        num_samples: Number of draws per epoch.
        share: Share of the draws that falls to ``extra``, rounded to a whole number of draws.
    """

    def __init__(self, extra: Sequence[int], others: Sequence[int], num_samples: int, share: float) -> None:
        drawn = round(num_samples * share)
        self.groups = [(list(extra), drawn), (list(others), num_samples - drawn)]
        self.num_samples = num_samples

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        picks = []
        for group, count in self.groups:
            while count > 0:
                some = torch.randperm(len(group))[:count].tolist()
                picks += [group[index] for index in some]
                count -= len(some)
        return iter([picks[index] for index in torch.randperm(len(picks)).tolist()])


def case_sampler(cases: Sequence[Mapping], num_samples: int, extra_ratio: float | None = None) -> Sampler:
    """Return a sampler of case numbers; the number of draws does not depend on the number of cases.

    Args:
        cases: Cases with a ``fold`` each.
        num_samples: Number of draws per epoch.
        extra_ratio: Cases of fold -1 drawn per other case; None goes round all cases alike.

    Raises:
        ValueError: If the ratio is negative, or asks for cases of a kind that is not there.

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
    return RatioSampler(extra, others, num_samples, extra_ratio / (1 + extra_ratio))

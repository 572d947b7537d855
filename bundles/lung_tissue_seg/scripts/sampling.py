"""Which cases an epoch draws: all alike, or those of fold -1 in a ratio to the others."""

from collections.abc import Mapping, Sequence

from torch.utils.data import RandomSampler, Sampler, WeightedRandomSampler

EXTRA = -1  # the fold of cases that are only ever trained on, as synthetic ones


def case_sampler(cases: Sequence[Mapping], num_samples: int, extra_ratio: float | None = None) -> Sampler:
    """Return a sampler of case numbers; the number of draws does not depend on the number of cases.

    Args:
        cases: with a ``fold`` each.
        num_samples: draws per epoch.
        extra_ratio: cases of fold -1 drawn per other case, on average; None goes round all cases alike.

    Raises:
        ValueError: if the ratio is negative, or asks for cases of a kind that is not there.

    Example: three cases of fold -1 share what one other case gets
        >>> cases = [{"fold": 0}, {"fold": -1}, {"fold": -1}, {"fold": -1}]
        >>> case_sampler(cases, 8, extra_ratio=1.0).weights.tolist()
        [1.0, 0.3333333333333333, 0.3333333333333333, 0.3333333333333333]
    """
    if extra_ratio is None:
        return RandomSampler(cases, num_samples=num_samples)
    if isinstance(extra_ratio, bool) or not isinstance(extra_ratio, int | float) or not 0 <= extra_ratio < float("inf"):
        raise ValueError(f"extra_ratio must be None or a number from 0 up, not {extra_ratio!r}")
    extra = [case["fold"] == EXTRA for case in cases]
    count, others = sum(extra), len(extra) - sum(extra)
    if not others or (extra_ratio > 0 and not count):
        raise ValueError(f"extra_ratio is {extra_ratio}, but {count} cases are in fold -1 and {others} in others")
    return WeightedRandomSampler([extra_ratio / count if own else 1 / others for own in extra], num_samples)

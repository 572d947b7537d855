"""How painted cases are drawn among the real ones: how often each, and in which part of the training."""

from dataclasses import asdict, dataclass, field, replace

import numpy as np
from scipy.optimize import nnls

from tools.data.datalist import Case, presence, split
from tools.io.files import InputError
from tools.tissues import pathological_tissues
from tools.workflows.segmenter import epochs

SCHEDULES = ("mixed", "synthetic_first", "real_last")
WEIGHT = "draw_weight"  # of a datalist's item, as the segmenter's sampler reads it
EVEN = 0.1  # how much an even use of all painted cases counts, against a prevalence


@dataclass(frozen=True)
class Mixing:
    """How painted cases are drawn.

    Attributes:
        ratios: Tissue to painted cases with it that are drawn per real case; the arm's ratio holds for the others.
        prevalence: Whether each tissue lies in as large a share of the painted draws as of the real cases.
        schedule: When painted cases are drawn: in all epochs, alone before the last ones, or in all but the last ones.
        real_share: Share of the epochs, at the end, with real cases alone, where the schedule is not mixed.
        norm_apart: Whether batch norm takes painted cases apart, so that the segmenter keeps real statistics alone.
    """

    ratios: dict[str, float] = field(default_factory=dict)
    prevalence: bool = False
    schedule: str = "mixed"
    real_share: float = 0.25
    norm_apart: bool = False

    def check(self, real: list[Case], labels: dict[str, int], iterations: int) -> None:
        """Raise InputError for a mixing that cannot be made of these real cases in so many steps."""
        present = dict(
            zip([n for n in labels if n not in ("background", "healthy")], presence(real, labels).any(axis=0))
        )
        for name, ratio in self.ratios.items():
            if name not in present:
                raise InputError(f"ratio_per_tissue names {name}; the tissues are {', '.join(pathological_tissues())}")
            if not present[name]:
                raise InputError(f"ratio_per_tissue names {name}, which no case has, so none is painted with it")
            if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio < float("inf"):
                raise InputError(f"ratio_per_tissue must give {name} a number from 0 up, not {ratio}")
        if self.ratios and self.prevalence:
            raise InputError("give either ratio_per_tissue or prevalence")
        if self.schedule not in SCHEDULES:
            raise InputError(f"schedule must be one of {', '.join(SCHEDULES)}, not {self.schedule}")
        if isinstance(self.real_share, bool) or not 0 < self.real_share < 1:
            raise InputError(f"real_share must be above 0 and below 1, not {self.real_share}")
        number = epochs(iterations)[0]
        alone = round(self.real_share * number)
        if self.schedule != "mixed" and not 0 < alone < number:
            raise InputError(
                f"schedule {self.schedule} with real_share {self.real_share:g} needs more than the {number} "
                f"epoch{'s' * (number > 1)} of {iterations} iterations; an epoch has 50 or more of them"
            )

    def settings(self) -> dict:
        """Return the ids of the segmenter's config, and their values, for an arm that mixes painted and real cases."""
        told = {} if self.schedule == "mixed" else {"extra_schedule": self.schedule, "real_share": self.real_share}
        return told | ({"norm_apart": True} if self.norm_apart else {})

    def described(self) -> dict | None:
        """Return what differs from the defaults, or None."""
        mine, default = asdict(self), asdict(Mixing())
        return {key: value for key, value in mine.items() if value != default[key]} or None

    def weigh(self, source: dict, fold: int, ratio: float) -> tuple[dict, float]:
        """Give the painted cases of a datalist the weights by which they are drawn.

        Args:
            source: An augmented datalist, from ``read_datalist``.
            fold: The held-out fold.
            ratio: Painted cases per real one, of the arm.

        Returns:
            The datalist, and the painted cases to draw per real one.
        """
        training, _ = split(source, fold)
        painted = [case for case in training if case.synthetic]
        if not painted or not (self.ratios or self.prevalence):
            return source, ratio
        if self.prevalence:
            real = [case for case in training if not case.synthetic]
            labels = source["labels"]
            weights = prevalence_weights(presence(painted, labels), presence(real, labels).mean(axis=0))
        else:
            weights, ratio = ratio_weights([case.about.get("tissues") for case in painted], self.ratios, ratio)
        given = {case.image: round(float(weight), 6) for case, weight in zip(painted, weights)}
        cases = [
            replace(case, about=dict(case.about) | {WEIGHT: given[case.image]}) if case.image in given else case
            for case in source["training"]
        ]
        return source | {"training": cases}, ratio


def ratio_weights(added: list[list[str] | None], ratios: dict[str, float], ratio: float) -> tuple[np.ndarray, float]:
    """Return the weights of painted cases under ratios per tissue, and the painted cases to draw per real one.

    A case counts for that of its tissues which has the smallest ratio, so that no tissue is drawn more often than it
    should; the cases whose tissue has the arm's ratio are one group.

    Args:
        added: Per case the tissues that were painted.
        ratios: Tissue to painted cases per real one.
        ratio: The same of all tissues that ``ratios`` does not name.

    Raises:
        InputError: if a case does not say what was painted, or nothing would be drawn.

    Example:
        >>> ratio_weights([["consolidation", "fibrosis"], ["fibrosis"], ["fibrosis"]], {"consolidation": 0.25}, 1)
        (array([0.25, 0.5 , 0.5 ]), 1.25)
    """
    if None in added:
        raise InputError("painted cases of an earlier version do not say which tissues were added; augment them anew")
    groups = [min(names, key=lambda name: ratios.get(name, ratio)) for names in added]
    groups = [name if name in ratios else "" for name in groups]
    wanted = {name: ratios.get(name, ratio) for name in set(groups)}
    if not sum(wanted.values()):
        raise InputError("ratio_per_tissue leaves no painted case to draw")
    weights = np.array([wanted[name] / groups.count(name) for name in groups])
    return weights, float(sum(wanted.values()))


def prevalence_weights(present: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return weights of painted cases under which each tissue is as prevalent as it should be, as far as they allow.

    Non-negative least squares: the prevalences, and with little weight that all cases are used alike.

    Args:
        present: Which tissues each painted case holds, shape (cases, tissues).
        wanted: Share of the draws that should hold each tissue, shape (tissues,).

    Returns:
        Weights that sum to 1, shape (cases,).

    Example: one case of three has the tissue, and half of the draws should
        >>> prevalence_weights(np.array([[1], [0], [0]]), np.array([0.5])).round(2)
        array([0.5 , 0.25, 0.25])
    """
    present = np.asarray(present, float)
    count = len(present)
    rows = np.concatenate([present.T, np.ones((1, count)), EVEN * np.eye(count)])
    target = np.concatenate([wanted, [1.0], np.full(count, EVEN / count)])
    scale = np.concatenate([np.full(len(wanted) + 1, 10.0), np.ones(count)])
    weights, _ = nnls(rows * scale[:, None], target * scale)
    return weights / weights.sum()

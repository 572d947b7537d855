"""A classifier that tells two sets of tiles apart: the question that a reader asks of painted tissue.

Legend of shapes: N tiles, F features.
"""

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import mannwhitneyu

RIDGE = 1e-2  # weight of the squared coefficients beside the mean loss; keeps them finite where sets lie apart
FEWEST = 16  # tiles, below which a curve says more about the sample
LIMIT = 5.0  # deviations; features beyond are clipped, so that no single one decides alone


class Classifier:
    """Logistic regression on standardised features, their squares and their products with each other.

    Squares and products let it enclose a set that lies between others: real tissue is neither flat nor noisy. Both
    sets count alike, whatever their sizes.

    Args:
        first: Features of the set that gets scores above 0, shape (N, F).
        second: Features of the other set, another N.

    Raises:
        ValueError: if a set is empty.
    """

    def __init__(self, first: np.ndarray, second: np.ndarray) -> None:
        if not len(first) or not len(second):
            raise ValueError(f"a classifier needs tiles of both sets, not {len(first)} and {len(second)}")
        both = np.concatenate([first, second])
        self.centre = np.median(first, axis=0)
        deviation = both.std(axis=0)
        self.scale = np.where(deviation > 1e-9, deviation, 1.0)
        terms = self._terms(both)
        self.shift, self.spread = terms.mean(0), np.maximum(terms.std(0), 1e-9)
        terms = (terms - self.shift) / self.spread
        target = np.r_[np.ones(len(first)), np.zeros(len(second))]
        weight = np.where(target > 0, 0.5 / len(first), 0.5 / len(second))

        def loss(coefficients: np.ndarray) -> tuple[float, np.ndarray]:
            margin = terms @ coefficients[:-1] + coefficients[-1]
            left = weight * (expit(margin) - target)
            value = weight @ (np.logaddexp(0, margin) - target * margin)
            slope = np.r_[terms.T @ left + RIDGE * coefficients[:-1], left.sum()]
            return float(value + RIDGE / 2 * (coefficients[:-1] ** 2).sum()), slope

        start = np.zeros(terms.shape[1] + 1)
        self.coefficients = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200}).x

    def _terms(self, features: np.ndarray) -> np.ndarray:
        """Return standardised features, and their products, shape (N, F + F (F + 1) / 2)."""
        scaled = np.clip((features - self.centre) / self.scale, -LIMIT, LIMIT)
        first, second = np.triu_indices(scaled.shape[1])
        return np.hstack([scaled, scaled[:, first] * scaled[:, second]])

    def score(self, features: np.ndarray) -> np.ndarray:
        """Return the log odds of the first set, shape (N,)."""
        terms = (self._terms(features) - self.shift) / self.spread
        return terms @ self.coefficients[:-1] + self.coefficients[-1]


def area_under_curve(first: np.ndarray, second: np.ndarray) -> float:
    """Return the chance that a score of the first set is above one of the second; ties count half.

    Example:
        >>> area_under_curve(np.array([2.0, 3.0]), np.array([1.0, 2.0]))
        0.875
    """
    if not len(first) or not len(second):
        return float("nan")
    return float(mannwhitneyu(first, second, method="asymptotic").statistic / (len(first) * len(second)))


def crossed_auc(sides: list[list[np.ndarray]]) -> float:
    """Return how well real and painted tiles of patients that a classifier has not seen can be told apart.

    Args:
        sides: For each of two halves of the patients, features of the painted and of the real tiles.

    Returns:
        Area under the curve, trained on one half and taken on the other, averaged over both ways: 0.5 where they
        cannot be told apart, 1 where always. NaN with fewer than ``FEWEST`` tiles of either kind in a half.
    """
    if min(len(tiles) for side in sides for tiles in side) < FEWEST:
        return float("nan")
    found = []
    for trained, tested in (sides, sides[::-1]):
        model = Classifier(trained[1], trained[0])
        found.append(area_under_curve(model.score(tested[1]), model.score(tested[0])))
    return float(np.mean(found))

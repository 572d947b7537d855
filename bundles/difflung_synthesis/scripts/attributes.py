"""What is known about a patient (severity, age, history), as a vector in which anything may be unknown."""

import math
from collections.abc import Mapping, Sequence

import torch

WAVES = 4  # of a numeric attribute


class Attributes:
    """Encode the attributes of a patient for the synthesizer.

    A numeric attribute takes 1 + ``WAVES`` entries: known (1) or not (0), and cos(pi k u), k = 1, 2, ..., of its value
    scaled from its range to u in [0, 1]; one entry alone would be learned slowly, since patients fill little of the
    range (Tancik et al., NeurIPS 2020, arXiv 2006.10739). A category takes one entry per word. All entries of an
    unknown attribute are zero.

    Args:
        ranges: Attribute name to ``[lowest, highest]``, two numbers, or to its words, such as
            ``{"age": [0, 120], "history": ["none", "smoker"]}``.

    Raises:
        ValueError: If a range is neither.

    Example:
        >>> attributes = Attributes({"age": [0, 120], "history": ["none", "smoker"]})
        >>> attributes.encode({"age": 120, "history": "smoker"})
        [1.0, -1.0, 1.0, -1.0, 1.0, 0.0, 1.0]
        >>> attributes.encode({})
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    """

    def __init__(self, ranges: Mapping[str, Sequence]) -> None:
        self.ranges = {name: list(allowed) for name, allowed in ranges.items()}
        self.sizes = {}
        for name, allowed in self.ranges.items():
            words = all(isinstance(value, str) for value in allowed)
            if not allowed or (not words and (len(allowed) != 2 or not allowed[0] < allowed[1])):
                raise ValueError(f"attribute {name} must be [lowest, highest] or a list of words, not {allowed}")
            self.sizes[name] = len(allowed) if words else 1 + WAVES

    @property
    def size(self) -> int:
        """Entries of the vector."""
        return sum(self.sizes.values())

    def encode(self, values: Mapping[str, object], whose: str = "the patient") -> list[float]:
        """Return the vector of a patient; what is missing, None, NaN or an empty text is unknown.

        Args:
            values: Values by attribute name; names that are no attribute are passed over.
            whose: Whose values they are, for messages.

        Raises:
            ValueError: If a value is out of range or a word is not in the list.
        """
        vector: list[float] = []
        for name, allowed in self.ranges.items():
            value = values.get(name)
            if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
                vector += [0.0] * self.sizes[name]
            elif isinstance(allowed[0], str):
                if value not in allowed:
                    raise ValueError(f"{name} of {whose} is {value}, but must be one of {', '.join(allowed)}, or empty")
                vector += [float(value == word) for word in allowed]
            else:
                share = self._scale(name, value, whose)
                vector += [math.cos(math.pi * k * share) for k in range(1 + WAVES)]  # the first is 1: known
        return vector

    def _scale(self, name: str, value, whose: str) -> float:
        """Return a number scaled from its attribute's range to [0, 1]."""
        low, high = self.ranges[name]
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not low <= number <= high:
            raise ValueError(f"{name} of {whose} is {value}, but must be a number from {low} to {high}, or empty")
        return (number - low) / (high - low)

    def drop(self, vectors: torch.Tensor) -> torch.Tensor:
        """Make some attributes of each sample unknown: any number of them, from none to all, is equally likely.

        So the network is as used to one attribute alone, as a user may give it, as to all of them or to none.

        Args:
            vectors: Encoded attributes, shape (B, size).
        """
        kept, share = [], torch.rand(len(vectors), 1, device=vectors.device)
        for part in vectors.split(list(self.sizes.values()), dim=1):
            kept.append(part * (torch.rand(len(part), 1, device=part.device) >= share))
        return torch.cat(kept, dim=1) if kept else vectors

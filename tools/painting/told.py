"""What the synthesizer may be told of a patient once new tissue is painted: only what then still holds."""

import numpy as np

from tools.bundles import BUNDLES
from tools.data.datalist import Case, tissue_voxels
from tools.io.files import read_json
from tools.maps.bank import TOO_MUCH, PlannedCase
from tools.tissues import pathological_tissues, tissue_labels
from tools.workflows.synthesizer import DENSITY, SYNTHESIZER

SEVERITY, HISTORY = "severity", "history"
SHARE_AT_MOST = 0.02  # median difference of severity and diseased share of the lung, to take one for the other


def shares(counts: np.ndarray) -> dict[str, float]:
    """Return each pathological tissue's share of the lung, from the voxels of each label value.

    Example:
        >>> shares(np.array([9, 6, 2, 0, 0, 0]))["ground_glass"]
        0.25
    """
    lung = max(1, int(np.sum(counts[1:])))
    return {name: float(counts[tissue_labels()[name]]) / lung for name in pathological_tissues()}


class Densities:
    """Mean HU of each tissue in the training cases, told of a new map through the cases that its lesions come from.

    What is painted where none is told has the HU that the synthesizer learned of a tissue, which those of a strange
    scanner or of another disease are not.
    """

    def __init__(self, training: list[Case]) -> None:
        self._cases = {case.name: case for case in training}
        self._window = read_json(BUNDLES / SYNTHESIZER / "configs/train.json")["hu_window"]
        self._known: dict[str, dict[str, float]] = {}

    def told(self, planned: PlannedCase) -> dict[str, float]:
        """Return ``density_<tissue>``, the mean HU of a tissue in the donors of a map, weighted by their voxels.

        A tissue that no donor holds, such as one that grew from a model, is not told.
        """
        told = {}
        for tissue in planned.tissues:
            rows = [(self._of(donor["case"]).get(tissue), donor["voxels"]) for donor in planned.donors]
            found = [(hu, voxels) for hu, voxels in rows if hu is not None]
            if found:
                hu, voxels = zip(*found)
                told[f"{DENSITY}{tissue}"] = round(float(np.average(hu, weights=voxels)), 1)
        return told

    def _of(self, name: str) -> dict[str, float]:
        """Return tissue to mean HU in a training case, within the synthesizer's window."""
        if name not in self._known:
            label, hu, _ = self._cases[name].volumes()
            where = {tissue: label == tissue_labels()[tissue] for tissue in pathological_tissues()}
            self._known[name] = {
                tissue: float(hu[mask].clip(*self._window).mean()) for tissue, mask in where.items() if mask.any()
            }
        return self._known[name]


class Joint:
    """Histories, tissues and their volumes as they occur together in the training patients.

    Attributes:
        largest: History to tissue to the largest share of the lung that a case with that history holds.
        severity_is_share: Whether the cases' severity is the share of their lung that is diseased.
    """

    def __init__(self, training: list[Case]) -> None:
        self._histories = {case.name: case.about.get(HISTORY) for case in training}
        self.largest: dict[str, dict[str, float]] = {}
        differences = []
        for case in training:
            own = shares(np.array(tissue_voxels(case, tissue_labels())))
            history, severity = (case.about.get(name) for name in (HISTORY, SEVERITY))
            if history is not None:
                known = self.largest.setdefault(str(history), dict.fromkeys(own, 0.0))
                self.largest[str(history)] = {name: max(known[name], share) for name, share in own.items()}
            if severity is not None:
                differences.append(abs(float(severity) - sum(own.values())))
        self.severity_is_share = bool(differences) and float(np.median(differences)) <= SHARE_AT_MOST

    def holds(self, planned: PlannedCase) -> dict[str, object]:
        """Return what is known of a planned case's patient and still true of its target map.

        Severity is that of the target map where it is the diseased share of the lung, and withheld elsewhere, since it
        was told of the CT before. A patient without a history, such as a host that nobody labelled, gets that of the
        training case which the map follows. A history is withheld if no training case with it holds as much of each
        tissue; of a case that is followed ``TOO_MUCH`` times as much is allowed, since a lesion may be larger than what
        was lacking of its volume.
        """
        known = {key: value for key, value in planned.source.about.items() if key not in (SEVERITY, HISTORY)}
        counts = np.bincount(planned.maps()[1].ravel(), minlength=max(tissue_labels().values()) + 1)
        own, about = shares(counts), planned.source.about
        if about.get(SEVERITY) is not None and self.severity_is_share:
            known[SEVERITY] = round(sum(own.values()), 4)
        history, room = about.get(HISTORY), 1.0
        if history is None:
            history, room = self._histories.get(planned.follows), TOO_MUCH
        if history is not None:
            largest = self.largest.get(str(history), {})
            if all(share <= room * largest.get(name, 0.0) for name, share in own.items()):
                known[HISTORY] = history
        return known

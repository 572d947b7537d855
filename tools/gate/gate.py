"""The quality gate: whether painted tissue may be used, judged by what the fold's training patients are like.

Each measure of a painted tissue has a limit. The limits come from the real tissue of the training patients, each
measured as if it were painted and the other patients were the training set; held-out patients are not read.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from tools.data.datalist import Case
from tools.gate.copies import HU_WINDOW, TILES_KEPT, TileBank, box_of
from tools.gate.realness import Realness, Sample, sample, tile_features
from tools.gate.tissue import Tissue, card, describe, none_for_nan, out_of_distribution
from tools.io.files import InputError
from tools.io.volume import canonical, load_labels
from tools.tissues import tissue_labels

MIN_VOXELS = 24
HU_QUANTILES = (0.02, 0.98)  # the median must lie between these of the tissue's voxels, each case counting the same
CASE_QUANTILES = (0.02, 0.98)  # real cases beyond these do not set a limit: of fewer than fifty, the extreme ones do
# Measure to the factors by which its lowest and its highest limit lie beyond the real cases; None for no limit. Of few
# cases the extremes say little, so the factor is taken to the power of 1 + 2 / cases.
MARGINS = {
    "spread_hu": (2.0, 2.0),
    "seam_ratio": (1.25, 1.25),
    "ood": (None, 2.0),
    "region_distance": (2.0, None),
    "patch_distance": (2.0, None),
}
WITHOUT_CALIBRATION = 0.03  # limit of a distance to the nearest tile where no tissue is held by two patients
Limit = tuple[float | None, float | None]  # lowest and highest value allowed
REGION, PATCH = 16, 32  # edge of the tiles, voxels: painted voxels alone, and with their surroundings
AROUND = 2 * PATCH  # voxels in-plane beyond a tissue, that all measures look at


@dataclass(frozen=True)
class Looked:
    """What is known of a painted case by itself, before it is compared with those painted before."""

    case: str
    measured: dict[str, dict] = field(default_factory=dict)  # tissue to what needs no other case
    tissues: dict[str, Tissue] = field(default_factory=dict)  # those that could be measured
    nearest: dict[str, tuple[str, str]] = field(default_factory=dict)  # place of the region, and of the patch
    tiles: dict[str, TileBank] = field(default_factory=dict)  # to find near-duplicates of it


class Gate:
    """Measures and judges the painted tissue of one fold by its training cases.

    ``labels`` names the tissues that may be painted, and their values; 0 is left out. Raises InputError if the training
    cases hold none of them, or a file is unusable.
    """

    def __init__(self, training: list[Case], labels: Mapping[str, int]) -> None:
        self.labels = {name: value for name, value in labels.items() if value}
        self.cases = {case.name: case for case in training}
        self.owners = {case.name: case.patient for case in training}  # of every case that may be painted
        self.real: dict[str, list[Tissue]] = {name: [] for name in self.labels}
        self.painted: dict[str, list[Tissue]] = {name: [] for name in self.labels}
        most = max(2000, TILES_KEPT // max(len(self.cases), 1))
        self.regions = {name: TileBank(REGION, most=most) for name in self.labels}
        self.patches = {name: TileBank(PATCH, whole=True, most=most) for name in self.labels}
        self.earlier = {name: TileBank(REGION, most=2000) for name in self.labels}  # painted cases
        self.samples: dict[str, list[Sample]] = {name: [] for name in self.labels}
        for number, case in enumerate(tqdm(training, desc="learning what is real", unit="case", disable=None)):
            self._learn(case, number)
        self.real = {name: tissues for name, tissues in self.real.items() if tissues}
        if not self.real:
            raise InputError(f"the {len(training)} training cases hold none of {', '.join(self.labels)} to judge by")
        everything = [(name, tissue) for name, tissues in self.real.items() for tissue in tissues]
        for name, tissue in tqdm(everything, desc="calibrating the gate", unit="tissue", disable=None):
            self._compare(name, tissue, leave_out=tissue.owner)
            tissue.region = tissue.patch = None
        self.limits = {name: self._limits(name) for name in self.real}
        self._lend_limits()
        every = tqdm(self.real, desc="telling real tissue from fakes", unit="tissue", disable=None)
        self.realness = {name: Realness(self.samples[name], self._others(name)) for name in every}
        for name, realness in self.realness.items():
            self.limits[name] |= {f"realness_{edge}": (limit, None) for edge, limit in realness.limits.items()}

    def _others(self, name: str) -> list[Sample]:
        """Return what the training cases hold of other tissues."""
        return [one for other, samples in self.samples.items() if other != name for one in samples]

    def _learn(self, case: Case, number: int) -> None:
        """Keep what one training case holds of each tissue."""
        label, hu, _ = case.volumes()
        healthy = tile_features(hu, label == tissue_labels()["healthy"])
        for name, value in self.labels.items():
            where = label == value
            if np.count_nonzero(where) < MIN_VOXELS:
                continue
            self.samples[name].append(sample(case.patient, hu, where, healthy, number))
            box = box_of(where, AROUND)
            inside, shown = where[box], hu[box]
            tissue = self._describe(name, case.name, case.patient, shown, inside, (label[box] > 0) & ~inside)
            self.real[name].append(tissue)
            for bank in (self.regions[name], self.patches[name]):
                bank.add(case.name, tissue.owner, shown, inside)

    def _describe(
        self, name: str, case: str, owner: str, hu: np.ndarray, where: np.ndarray, around: np.ndarray
    ) -> Tissue:
        """Return one tissue of a case with the measures that need no other case, and the tiles to compare."""
        tissue = describe(case, owner, hu, where, around)
        tissue.region, tissue.patch = self.regions[name].ask(hu, where), self.patches[name].ask(hu, where)
        return tissue

    def _compare(self, name: str, tissue: Tissue, leave_out: str | None) -> tuple[str, str]:
        """Add the measures that need other cases; return the nearest place of the region and of the patch.

        The tissue's own patient is always left out where surroundings count (a painted case has those of its source),
        the patient ``leave_out`` in the other comparisons.
        """
        others = [other.textures for other in self.real[name] if other.owner != leave_out]
        region = self.regions[name].nearest(tissue.region, leave_out)
        patch = self.patches[name].nearest(tissue.patch, tissue.owner)
        tissue.measures |= {
            "ood": out_of_distribution(tissue.textures, np.concatenate(others)) if others else float("nan"),
            "region_distance": region.distance,
            "patch_distance": patch.distance,
        }
        return region.where, patch.where

    def _limits(self, name: str) -> dict[str, Limit]:
        """Return measure to limit for one tissue; a measure that no real case has is absent."""
        shares = np.cumsum(sum(tissue.counts / tissue.counts.sum() for tissue in self.real[name]))
        low, high = HU_WINDOW[0] + np.searchsorted(shares / shares[-1], HU_QUANTILES)
        limits: dict[str, Limit] = {"median_hu": (float(low), float(high))}
        for measure, (below, above) in MARGINS.items():
            values = np.array([tissue.measures[measure] for tissue in self.real[name]])
            values = values[np.isfinite(values)]
            if len(values):
                least, most = np.quantile(values, CASE_QUANTILES)
                power = 1 + 2 / len(values)
                limits[measure] = (below and float(least / below**power), above and float(most * above**power))
        return limits

    def _lend_limits(self) -> None:
        """Give a tissue whose distances cannot be calibrated, as that of a single patient, the others' lowest limit."""
        for measure in ("region_distance", "patch_distance"):
            known = [limits[measure][0] for limits in self.limits.values() if measure in limits]
            for limits in self.limits.values():
                limits.setdefault(measure, (min(known) if known else WITHOUT_CALIBRATION, None))

    def measure_real_recall(self, answers: Iterable[tuple[str, np.ndarray]]) -> None:
        """Measure the segmenter's recall of real tissue: case name, and its answer in canonical orientation.

        It stands beside that of painted tissue, and rejects nothing: what is hard to find may be what to learn from.

        Raises:
            InputError: if a case is not a training case or an answer has another shape than its map.
        """
        for case, answer in answers:
            if case not in self.cases:
                raise InputError(f"answer of {case}, which is not a training case")
            label, image = load_labels(self.cases[case].label, tissue_labels())
            label = canonical(label, image.affine)
            if answer.shape != label.shape:
                raise InputError(f"answer of {case} has shape {answer.shape}, but its map has {label.shape}")
            for name, tissues in self.real.items():
                for tissue in tissues:
                    if tissue.case == case:
                        tissue.measures["recall"] = recall(answer, self.labels[name], label == self.labels[name])

    def measure(
        self, case: str, source: str, hu: np.ndarray, target: np.ndarray, region: np.ndarray,
        answer: np.ndarray | None = None,
    ) -> dict[str, dict]:  # fmt: skip
        """Return what is measured of each painted tissue of a case: what :meth:`remember` makes of :meth:`look`."""
        return self.remember(self.look(case, source, hu, target, region, answer))

    def look(
        self, case: str, source: str, hu: np.ndarray, target: np.ndarray, region: np.ndarray,
        answer: np.ndarray | None = None,
    ) -> Looked:  # fmt: skip
        """Measure a painted case by itself, which can be done anywhere and in any order.

        Args:
            case: Its name.
            source: Name of the case that was painted: a training case, or one that ``owners`` knows, else InputError.
            hu: Painted CT in HU, canonical orientation, shape (W, H, D).
            target: Its tissue map, the same shape.
            region: Painted voxels, bool, the same shape.
            answer: The segmenter's tissue map of the painted CT, the same shape; without it faithfulness is unknown.
        """
        if source not in self.owners:
            raise InputError(f"source {source} of {case} is not a training case")
        looked, box = Looked(case), box_of(region, AROUND)
        hu, target, region = hu[box], target[box], region[box]
        answer = None if answer is None else answer[box]
        for name, value in self.labels.items():
            where = region & (target == value)
            if not where.any():
                continue
            measures = {"voxels": int(where.sum()), "not_finite": int((~np.isfinite(hu[where])).sum())}
            looked.measured[name] = measures
            if measures["not_finite"] or measures["voxels"] < MIN_VOXELS or name not in self.real:
                continue
            tissue = self._describe(name, case, self.owners[source], hu, where, (target > 0) & ~region)
            looked.nearest[name] = self._compare(name, tissue, leave_out=None)
            tissue.patch = None
            score, limit = self.realness[name].judge(tile_features(hu, where))
            tissue.measures |= {"earlier_distance": float("nan"), "realness": score, "realness_limit": limit}
            if answer is not None:
                tissue.measures["recall"] = recall(answer, value, where)
            looked.tissues[name], looked.tiles[name] = tissue, TileBank(REGION, most=self.earlier[name].most)
            looked.tiles[name].add(case, case, hu, where)
        return looked

    def remember(self, looked: Looked) -> dict[str, dict]:
        """Compare a case with those painted before, and remember it to find near-duplicates of it.

        Returns:
            Tissue to measures: ``voxels``; ``not_finite`` voxels, and if there are any nothing more; ``median_hu``,
            ``spread_hu``; ``seam_ratio``; ``ood``; ``realness`` and ``realness_limit``, mean log odds of its tiles;
            ``region_distance``, ``patch_distance`` and ``earlier_distance``
            (1 - r to the nearest tile of the training set, of other patients with surroundings, and of cases painted
            before), each with its ``_nearest``, such as "case007 slice 12"; ``recall``. None where unmeasurable.
        """
        measured = dict(looked.measured)
        for name, tissue in looked.tissues.items():
            twin = self.earlier[name].nearest(tissue.region, looked.case)
            tissue.region = None
            tissue.measures["earlier_distance"] = twin.distance
            self.earlier[name].extend(looked.tiles[name])
            self.painted[name].append(tissue)
            places = zip(("region_nearest", "patch_nearest", "earlier_nearest"), (*looked.nearest[name], twin.where))
            measured[name] = none_for_nan(measured[name] | tissue.measures | dict(places))
        return measured

    def forget(self) -> None:
        """Forget the painted cases, so that the next is not compared with them."""
        for name in self.labels:
            self.painted[name].clear()
            self.earlier[name] = TileBank(REGION, most=self.earlier[name].most)

    def judge(self, measured: Mapping[str, dict]) -> dict[str, dict]:
        """Return the measures of each tissue with ``accepted`` and ``reasons``, one sentence for each limit broken."""
        judged = {}
        for name, measures in measured.items():
            reasons = self._reasons(name, measures)
            judged[name] = {"accepted": not reasons, "reasons": reasons} | measures
        return judged

    def _reasons(self, name: str, measures: Mapping) -> list[str]:
        """Return why a tissue is rejected."""
        if measures["not_finite"]:
            return [f"{measures['not_finite']} voxels that are not finite"]
        if measures["voxels"] < MIN_VOXELS:
            return [f"only {measures['voxels']} voxels"]
        if name not in self.real:
            return ["no training case holds this tissue, so there is nothing to judge it by"]
        reasons = []
        limits = {measure: limit for measure, limit in self.limits[name].items() if measure in SENTENCES}
        limits |= {"earlier_distance": self.limits[name]["region_distance"]}
        if measures.get("realness_limit") is not None:
            limits = {"realness": (measures["realness_limit"], None)} | limits
        for measure, (low, high) in limits.items():
            value = measures.get(measure)
            if value is not None and ((low is not None and value < low) or (high is not None and value > high)):
                reasons.append(SENTENCES[measure].format(value=value, low=low, high=high, **measures))
        return reasons

    def card(self, accepted: Mapping[str, set[str]] | None = None) -> dict[str, dict]:
        """Return the card (:func:`tools.gate.tissue.card`) of each painted tissue, over all or the accepted cases."""
        cards = {}
        for name, tissues in self.painted.items():
            if tissues:
                chosen = [tissue for tissue in tissues if accepted is None or tissue.case in accepted.get(name, ())]
                cards[name] = card(self.real[name], chosen)
        return cards


SENTENCES = {
    "median_hu": "median {value:.0f} HU, outside {low:.0f} to {high:.0f}",
    "spread_hu": "spread {value:.0f} HU, outside {low:.0f} to {high:.0f}",
    "seam_ratio": "border {value:.2f} as abrupt as a jump, outside {low:.2f} to {high:.2f}",
    "ood": "texture {value:.2f} deviations from real tiles, above {high:.2f}",
    "realness": "not like real tissue of its kind: log odds {value:.1f}, below {low:.1f}",
    "region_distance": "a copy of {region_nearest} (1 - r = {value:.3f}, below {low:.3f})",
    "patch_distance": "with its surroundings a copy of {patch_nearest} (1 - r = {value:.3f}, below {low:.3f})",
    "earlier_distance": "almost the same as painted {earlier_nearest} (1 - r = {value:.3f}, below {low:.3f})",
}


def recall(answer: np.ndarray, value: int, where: np.ndarray) -> float:
    """Return the share of a tissue's voxels that the segmenter names so."""
    return float((answer[where] == value).mean())

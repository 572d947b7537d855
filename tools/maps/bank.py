"""A bank of new tissue maps: drawn, written with its card, and read again."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas
from tqdm import tqdm

from tools.data.datalist import Case
from tools.data.provenance import MAPS_CARD, cases_read, digest
from tools.io.files import InputError, read_json, sha256, write_json
from tools.io.volume import SYNTHETIC_MARK, case_name, load_labels, original, save_nifti
from tools.maps.check import check_map, list_maps
from tools.maps.followed import Followed, lung_ml
from tools.maps.growth import LesionModel
from tools.maps.lesions import MIN_LESION_VOXELS, Lesion, lesion_bank
from tools.maps.placement import Receiver
from tools.maps.statistics import lesion_row, table_of
from tools.tissues import tissue_labels, words

SCHEMA = 1
TOO_MUCH = 1.5  # of what is lacking of a tissue, in a lesion of several
FAILURES = 6  # lesions without a place, after which a case gets no more of a tissue


@dataclass(frozen=True)
class PlannedCase:
    """A new tissue map, and the case whose CT is painted after it.

    Attributes:
        name: Name of the painted case.
        source: The case that is painted.
        map: File of the target map.
        map_sha256: Its SHA-256.
        map_kind: One of transplanted, procedural and supplied.
        volume_ml: Volume that the map adds of each tissue, in ml.
        voxels: Number of voxels in which the target map differs from the source's map.
        donors: Per lesion that was moved, its case, tissue and voxels.
        grown: Per lesion that was grown, its tissue and voxels.
        follows: Name of the training case whose tissues and volumes it was given together, or None.
    """

    name: str
    source: Case
    map: Path
    map_sha256: str
    map_kind: str
    volume_ml: dict[str, float]
    voxels: int
    donors: list[dict] = field(default_factory=list)
    grown: list[dict] = field(default_factory=list)
    follows: str | None = None

    @property
    def tissues(self) -> list[str]:
        """Names of the tissues that the map adds."""
        return sorted(self.volume_ml)

    def maps(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the source's tissue map and the target map, shape (W, H, D), in the CT's order of axes."""
        image = nib.load(self.source.image)
        label, target = (
            load_labels(path, tissue_labels(), like=image, like_path=self.source.image)[0]
            for path in (self.source.label, self.map)
        )
        return label, target


@dataclass(frozen=True)
class Bank:
    """New tissue maps, and how their lesions compare with those of the training patients."""

    plan: list[PlannedCase]
    card: dict  # content of maps.json
    real: pandas.DataFrame  # lesions of the training patients, rows of ``statistics.lesion_row``
    new: pandas.DataFrame  # the same of the lesions that the maps add


def draw_bank(
    training: list[Case],
    folder: Path,
    balance: float,
    seed: int,
    max_cases: int,
    procedural: float = 0.0,
    pasted: Path | None = None,
    hosts: list[Case] | None = None,
    joint: Followed | None = None,
    context: bool = False,
) -> Bank:
    """Draw tissue maps until the tissues are balanced, and write them with a card that says what was read.

    Args:
        training: The cases that are read; no other is.
        folder: New folder for ``<case>.nii.gz``; the card, maps.json, is written beside it.
        balance: Volume that each pathological tissue shall reach, as a share of the most frequent one's.
        seed: Seed for all random draws.
        max_cases: Largest number of maps.
        procedural: Share of the lesions that are grown by the procedural model instead of transplanted.
        pasted: Folder for the sources' CTs with the donors' HU pasted in, under the same names; none are written if it
            is not given.
        joint: Chooses a training case for each map, whose tissues and volumes it gets; then ``balance`` plays no part.
        context: Whether lesions are moved with what touches them, so that halos and mixtures stay together.
        hosts: Cases that receive the lesions instead of the training cases; they get as much as fits their lungs.

    Raises:
        InputError: if the training cases hold no pathological tissue, no map could be drawn, or HU are to be pasted
            into procedural lesions, which have no donor.
    """
    if not 0 <= procedural <= 1:
        raise InputError(f"procedural must be from 0 to 1, not {procedural}")
    if pasted and procedural:
        raise InputError(
            f"lesions with procedural {procedural} have no donor's HU to paste; set it to 0 for copy_paste"
        )
    folder = Path(folder)
    lesions, volumes = lesion_bank(training, bool(pasted), context)
    if not lesions:
        raise InputError("the training cases hold no pathological tissue, so there are no shapes to draw from")
    receivers = hosts or training
    typical_ml = float(np.median([lung_ml(case) for case in training])) if hosts else None
    placer = LesionPlacer(lesions, volumes, tissue_labels(), procedural, typical_ml)
    total = {tissue: sum(amounts) for tissue, amounts in volumes.items() if sum(amounts) > 0}
    wanted = balance * max(total.values())
    rng = np.random.default_rng(seed)
    waiting: list[int] = []
    plan: list[PlannedCase] = []
    added: list[dict] = []
    progress = tqdm(desc="drawing maps", unit="map", total=max_cases, disable=None)
    for _ in range(3 * max_cases):
        if len(plan) == max_cases:
            break
        short = {tissue: total[tissue] / wanted for tissue in total if total[tissue] < wanted and tissue in lesions}
        if not (short or joint):
            break
        waiting = waiting or list(rng.permutation(len(receivers)))
        source, followed = receivers[waiting.pop()], None
        if joint:
            followed, held = joint.draw(training, rng)
            wanted_ml = {name: ml for name, ml in held.items() if name in lesions}
        else:
            rarest = sorted(short, key=short.get)
            wanted_ml = dict.fromkeys(rarest[: 1 + int(len(rarest) > 1 and rng.random() < 0.5)])
        receiver, painted = placer.draw(source, wanted_ml, rng, bool(pasted))
        if not painted:
            continue
        for tissue, volume_ml in painted.items():
            total[tissue] += volume_ml
        planned = _write_map(f"{source.name}_s{len(plan):03d}", source, receiver, painted, folder, pasted)
        plan.append(replace(planned, follows=followed.name if followed else None))
        added += [lesion_row(lesion, source.patient) for lesion in receiver.new_lesions(planned.name)]
        progress.update()
    progress.close()
    small = [name for name, amount in total.items() if (joint or amount < wanted) and name not in lesions]
    why = (
        f"all lesions of {' and '.join(map(words, small))} have less than the {MIN_LESION_VOXELS} voxels that one "
        "needs to be moved"
    )
    if small and plan:
        print(f"no new map holds {' or '.join(map(words, small))}: {why}", flush=True)
    if not plan and (joint or any(amount < wanted for amount in total.values())):
        if small and not short and not joint:
            raise InputError(f"no new map could be drawn: {why}")
        raise InputError("no new map could be drawn: the lungs have too little healthy room for the lesions")
    patients = {case.name: case.patient for case in training}
    shown = lesion_bank(training)[0] if context else lesions  # the table compares lesions of one tissue
    known = [lesion_row(lesion, patients[lesion.case]) for some in shown.values() for lesion in some]
    real, new = pandas.DataFrame(known), pandas.DataFrame(added)
    settings = {"seed": seed, "balance": balance, "max_cases": max_cases, "procedural": procedural}
    settings |= {"context": True} if context else {}
    settings |= {"mixture": "joint", **asdict(joint)} if joint else {}
    card = maps_card(training, plan, settings) | {"table": table_of(real, new)}
    write_json(folder.with_name(MAPS_CARD), card)
    return Bank(plan, card, real, new)


def part_ml(lesion: Lesion, value: int) -> float:
    """Return the volume in ml of one tissue in a lesion of several."""
    return np.count_nonzero(lesion.values == value) * float(np.prod(lesion.spacing)) / 1000


class LesionPlacer:
    """Places lesions of the training patients, and some from the procedural model, in a CT.

    ``lesions`` holds them per tissue, ``volumes`` the ml per tissue and training case that has it; ``procedural`` is
    the share of the lesions that come from the model. With ``typical_ml``, the lung of a typical training case, a CT
    with less lung gets less.
    """

    def __init__(
        self, lesions: dict, volumes: dict, labels: dict[str, int], procedural: float, typical_ml: float | None = None
    ) -> None:
        self.lesions, self.volumes, self.labels, self.procedural = lesions, volumes, labels, procedural
        self.typical_ml = typical_ml
        self.models = {tissue: LesionModel(some) for tissue, some in lesions.items()} if procedural else {}

    def draw(
        self, case: Case, wanted_ml: dict[str, float | None], rng: np.random.Generator, with_hu: bool
    ) -> tuple[Receiver, dict[str, float]]:
        """Place lesions of some tissues in one CT until each has its volume in ml.

        For None that is the volume in a random case that holds the tissue. Returns the receiver (the donors' HU pasted
        too ``with_hu``), and the ml placed per tissue that found a place.
        """
        label, hu, spacing = case.volumes()
        receiver = Receiver(label, hu if with_hu else None, spacing, self.labels["healthy"])
        voxel_ml = float(np.prod(spacing)) / 1000
        scale = np.count_nonzero(label) * voxel_ml / self.typical_ml if self.typical_ml else 1.0
        painted: dict[str, float] = {}
        for tissue, given in wanted_ml.items():
            amount, failures = scale * (rng.choice(self.volumes[tissue]) if given is None else given), 0
            while painted.get(tissue, 0.0) < amount and failures < FAILURES:
                voxels = self.place(receiver, tissue, rng, amount - painted.get(tissue, 0.0))
                failures += voxels == 0
                if voxels:
                    painted = receiver.new_ml(self.labels)
        return receiver, painted

    def place(self, receiver: Receiver, tissue: str, rng: np.random.Generator, lacking_ml: float = float("inf")) -> int:
        """Enter one lesion of a tissue into a map, moved or grown; return its voxels, 0 if it found no place.

        Of lesions of several tissues only those are taken that hold not much more of it than is lacking, or else the
        one that holds least.
        """
        if self.procedural and rng.random() < self.procedural:
            voxels = self.models[tissue].grow(receiver, self.labels[tissue], rng)
            if voxels:
                receiver.grown.append({"tissue": tissue, "voxels": voxels})
            return voxels
        lesions: list[Lesion] = self.lesions[tissue]
        if lesions[0].values is not None:
            own_ml = [part_ml(lesion, self.labels[tissue]) for lesion in lesions]
            small = [lesion for lesion, ml in zip(lesions, own_ml) if ml <= TOO_MUCH * lacking_ml]
            lesions = small or [lesions[int(np.argmin(own_ml))]]
        return receiver.place(lesions[rng.integers(len(lesions))], self.labels[tissue], rng)


def _write_map(
    name: str, source: Case, receiver: Receiver, volume_ml: dict[str, float], folder: Path, pasted: Path | None
) -> PlannedCase:
    """Write a map, and the CT with pasted HU if wanted, in the geometry of the source's file."""
    image, path = nib.load(source.image), folder / f"{name}.nii.gz"
    mark = f"{SYNTHETIC_MARK} map for {source.name}"
    save_nifti(original(receiver.target, image.affine).astype(np.uint8), image, path, mark)
    if pasted:
        hu = original(receiver.pasted, image.affine)
        hu = np.round(hu) if np.array_equal(receiver.hu, np.round(receiver.hu)) else hu
        save_nifti(hu.astype(np.float32), image, Path(pasted) / path.name, f"{SYNTHETIC_MARK} copy_paste")
    kind = "procedural" if receiver.grown else "transplanted"
    voxels = int(np.count_nonzero(receiver.target != receiver.label))
    volume_ml = {tissue: round(amount, 2) for tissue, amount in volume_ml.items()}
    return PlannedCase(
        name, source, path, sha256(path), kind, volume_ml, voxels, receiver.donors, receiver.grown
    )  # fmt: skip


def maps_card(training: list[Case], plan: list[PlannedCase], settings: dict) -> dict:
    """Return the content of maps.json: the settings, the cases read, and per map its source, hashes and lesions."""
    patients = {case.name: case.patient for case in training}
    labels = {case.name: digest(case.label) for case in training}
    cases = [row | {"label_sha256": labels[row["case"]]} for row in cases_read(training)]
    maps = [
        {
            "case": planned.name,
            "source": planned.source.name,
            "patient": planned.source.patient,
            "map_sha256": planned.map_sha256,
            "map_kind": planned.map_kind,
            "tissues": planned.tissues,
            "volume_ml": planned.volume_ml,
            "image_sha256": digest(planned.source.image),
            "label_sha256": digest(planned.source.label),
            "donors": [donor | {"patient": patients[donor["case"]]} for donor in planned.donors],
            "procedural": planned.grown,
        }
        | ({"follows": planned.follows} if planned.follows else {})
        for planned in plan
    ]
    return {"schema": SCHEMA} | settings | {"patients": sorted(set(patients.values())), "cases": cases, "maps": maps}


def read_maps(folder: Path, training: list[Case]) -> list[PlannedCase]:
    """Read maps that were drawn earlier or by hand as a plan for painting; a drawn one's kind is what maps.json says.

    Maps are named after the CT they are for (``check.find_source``), one of the ``training`` cases; maps.json lies in
    their folder or beside it. A map that it does not know, or not with this content, is "supplied".

    Raises:
        InputError: naming every unusable map, or a case that the bank's lesions come from and ``training`` lacks.
    """
    paths = list_maps(folder)
    card = read_maps_card(paths[0].parent, training)
    drawn = {row["case"]: row for row in card.get("maps", [])}
    findings = [check_map(path, training) for path in tqdm(paths, desc="checking maps", unit="map", disable=None)]
    unusable = [f"{finding.path.name} {error}" for finding in findings for error in finding.errors]
    if unusable:
        raise InputError(f"{folder} holds maps that cannot be painted: " + "; ".join(unusable))
    cases = {case.name for case in training}
    plan = []
    for finding in findings:
        name, path, hashed = case_name(finding.path), finding.path, sha256(finding.path)
        known = drawn.get(name, {})
        donors = [{key: donor[key] for key in ("case", "tissue", "voxels")} for donor in known.get("donors", [])]
        kind = known["map_kind"] if known.get("map_sha256") == hashed else "supplied"
        name = f"{name}_supplied" if name in cases else name
        volume_ml = {tissue: round(amount, 2) for tissue, amount in finding.volume_ml.items()}
        follows = None if kind == "supplied" else known.get("follows")
        plan.append(
            PlannedCase(name, finding.case, path, hashed, kind, volume_ml, finding.voxels, donors, follows=follows)
        )
    return plan


def read_maps_card(folder: Path, training: list[Case]) -> dict:
    """Return what maps.json in a folder of maps or beside it says, or an empty dictionary if there is none.

    Raises:
        InputError: if the bank was drawn from lesions of a case that is not in ``training``.
    """
    places = [place / MAPS_CARD for place in (folder, folder.parent) if (place / MAPS_CARD).is_file()]
    card = read_json(places[0]) if places else {}
    allowed = {digest(case.image) for case in training} if card else set()
    foreign = [row for row in card.get("cases", []) if row["image_sha256"] not in allowed]
    if foreign:
        raise InputError(
            f"{places[0]} says that the maps were drawn from lesions of {foreign[0]['case']}, patient "
            f"{foreign[0]['patient']}, which is no training case here; draw them for this fold"
        )
    return card

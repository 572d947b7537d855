"""A bank of new tissue maps: drawn, written with its card, and read again."""

from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

from tools.data.provenance import MAPS_CARD, cases_read, digest
from tools.io.files import InputError, read_json, sha256, write_json
from tools.io.volume import SYNTHETIC_MARK, case_name, load_case, original, save_nifti
from tools.maps.check import check_map, list_maps
from tools.maps.growth import LesionModel
from tools.maps.lesions import Lesion, lesion_bank
from tools.maps.placement import Host
from tools.tissues import tissue_labels

SCHEMA = 1


FAILURES = 6  # lesions without a place, after which a case gets no more of a tissue


def draw_bank(
    training: list[dict],
    folder: Path,
    balance: float,
    seed: int,
    max_cases: int,
    procedural: float = 0.0,
    pasted: Path | None = None,
    lesions: tuple[dict, dict] | None = None,
) -> tuple[list[dict], dict]:
    """Draw tissue maps until the tissues are balanced, and write them with a card that says what was read.

    Args:
        training: datalist items with absolute paths; nothing else is read.
        folder: new folder for ``<case>.nii.gz``; the card, maps.json, is written beside it.
        balance: volume that each pathological tissue shall reach, as a share of the most frequent one's.
        seed: of all draws.
        max_cases: at most so many maps are drawn.
        procedural: share of the lesions that are grown by the procedural model instead of transplanted.
        pasted: folder for the hosts' CTs with the donors' HU pasted in, under the same names; none are written if it is
            not given.
        lesions: of ``lesion_bank``, if they were read already.

    Returns:
        One row per map (case, source, patient, tissues, volume_ml, donors, image, label, map, map_sha256, map_kind),
        and the card.

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
    folder, labels = Path(folder), tissue_labels()
    bank, volumes = lesions or lesion_bank(training, bool(pasted))
    if not bank:
        raise InputError("the training cases hold no pathological tissue, so there are no shapes to draw from")
    artist = LesionPlacer(bank, volumes, labels, procedural)
    total = {tissue: sum(amounts) for tissue, amounts in volumes.items() if sum(amounts) > 0}
    wanted = balance * max(total.values())
    rng = np.random.default_rng(seed)
    hosts: list[int] = []
    plan: list[dict] = []
    grown: list[list[dict]] = []
    progress = tqdm(desc="drawing maps", unit="map", total=max_cases)
    for _ in range(3 * max_cases):
        short = {tissue: total[tissue] / wanted for tissue in total if total[tissue] < wanted and tissue in bank}
        if not short or len(plan) == max_cases:
            break
        hosts = hosts or list(rng.permutation(len(training)))
        item = training[hosts.pop()]
        rarest = sorted(short, key=short.get)
        chosen = rarest[: 1 + int(len(rarest) > 1 and rng.random() < 0.5)]
        host, painted = artist.draw(item, chosen, rng, bool(pasted))
        if not painted:
            continue
        for tissue, volume_ml in painted.items():
            total[tissue] += volume_ml
        case = f"{case_name(item['image'])}_s{len(plan):03d}"
        path, kind = _write_map(case, item, host, folder, pasted), "procedural" if host.grown else "transplanted"
        plan.append(_row(case, item, painted, host.donors, path, kind))
        grown.append(host.grown)
        progress.update()
    progress.close()
    if not plan and any(amount < wanted for amount in total.values()):
        raise InputError("no new map could be drawn: the training lungs have too little healthy room for the lesions")
    settings = {"seed": seed, "balance": balance, "max_cases": max_cases, "procedural": procedural}
    card = maps_card(training, plan, grown, settings)
    write_json(folder.with_name(MAPS_CARD), card)
    return plan, card


class LesionPlacer:
    """Places lesions of the training patients, and some from the procedural model, in a CT.

    Args:
        bank: lesions per tissue.
        volumes: volume in ml per tissue and training case that has it.
        labels: tissue name to value.
        procedural: share of the lesions that come from the procedural model.
    """

    def __init__(self, bank: dict, volumes: dict, labels: dict[str, int], procedural: float) -> None:
        self.bank, self.volumes, self.labels, self.procedural = bank, volumes, labels, procedural
        self.models = {tissue: LesionModel(lesions) for tissue, lesions in bank.items()} if procedural else {}

    def draw(
        self, item: dict, tissues: list[str], rng: np.random.Generator, with_hu: bool
    ) -> tuple[Host, dict[str, float]]:
        """Place lesions of some tissues in one CT until each has the volume it has in a random case that holds it.

        Args:
            item: datalist item of the CT.
            tissues: names.
            rng: source of randomness.
            with_hu: whether the donors' HU are pasted too.

        Returns:
            The host, and the volume placed in ml per tissue that found a place.
        """
        label, hu, spacing = load_case(item)
        host = Host(label, hu if with_hu else None, spacing, self.labels["healthy"])
        voxel_ml = float(np.prod(spacing)) / 1000
        painted: dict[str, float] = {}
        for tissue in tissues:
            amount, failures = rng.choice(self.volumes[tissue]), 0
            while painted.get(tissue, 0.0) < amount and failures < FAILURES:
                voxels = self.place(host, tissue, rng)
                failures += voxels == 0
                if voxels:
                    painted[tissue] = painted.get(tissue, 0.0) + voxels * voxel_ml
        return host, painted

    def place(self, host: Host, tissue: str, rng: np.random.Generator) -> int:
        """Enter one lesion of a tissue into a host's map, moved or grown; return its voxels, 0 if it found no place."""
        if self.procedural and rng.random() < self.procedural:
            voxels = self.models[tissue].grow(host, self.labels[tissue], rng)
            if voxels:
                host.grown.append({"tissue": tissue, "voxels": voxels})
            return voxels
        lesions: list[Lesion] = self.bank[tissue]
        return host.place(lesions[rng.integers(len(lesions))], self.labels[tissue], rng)


def _row(case: str, item: dict, volume_ml: dict[str, float], donors: list[dict], path: Path, kind: str) -> dict:
    return {
        "case": case,
        "source": case_name(item["image"]),
        "patient": item["patient"],
        "tissues": sorted(volume_ml),
        "volume_ml": {tissue: round(amount, 2) for tissue, amount in volume_ml.items()},
        "donors": donors,
        "image": item["image"],
        "label": item["label"],
        "map": str(path),
        "map_sha256": sha256(path),
        "map_kind": kind,
    }


def _write_map(case: str, item: dict, host: Host, folder: Path, pasted: Path | None) -> Path:
    """Write a map, and the CT with pasted HU if wanted, in the geometry of the host's file; return the map's path."""
    image, path = nib.load(item["image"]), folder / f"{case}.nii.gz"
    mark = f"{SYNTHETIC_MARK} map for {case_name(item['image'])}"
    save_nifti(original(host.target, image.affine).astype(np.uint8), image, path, mark)
    if pasted:
        hu = original(host.pasted, image.affine)
        hu = np.round(hu) if np.array_equal(host.hu, np.round(host.hu)) else hu
        save_nifti(hu.astype(np.float32), image, Path(pasted) / path.name, f"{SYNTHETIC_MARK} copy_paste")
    return path


def maps_card(training: list[dict], plan: list[dict], grown: list[list[dict]], settings: dict) -> dict:
    """Return the content of maps.json: the settings, the cases read, and per map its host, hashes and lesions.

    Args:
        training: datalist items that were read.
        plan: rows as ``draw_bank`` returns them.
        grown: per row, its procedural lesions.
        settings: of the draws.
    """
    patients = {case_name(item["image"]): item["patient"] for item in training}
    labels = {case_name(item["image"]): digest(item["label"]) for item in training}
    cases = [row | {"label_sha256": labels[row["case"]]} for row in cases_read(training)]
    digests = {row["case"]: row for row in cases}
    maps = [
        {key: row[key] for key in ("case", "source", "patient", "map_sha256", "map_kind", "tissues", "volume_ml")}
        | {key: digests[row["source"]][key] for key in ("image_sha256", "label_sha256")}
        | {"donors": [donor | {"patient": patients[donor["case"]]} for donor in row["donors"]], "procedural": lesions}
        for row, lesions in zip(plan, grown)
    ]
    return {"schema": SCHEMA} | settings | {"patients": sorted(set(patients.values())), "cases": cases, "maps": maps}


def read_maps(folder: Path, training: list[dict]) -> list[dict]:
    """Read maps that were drawn earlier or by hand, as a plan for painting.

    Args:
        folder: of maps, named after the CT they are for (``map_check.find_host``); maps.json in it or beside it says
            from which cases a drawn bank comes.
        training: datalist items with absolute paths, whose CTs may be painted.

    Returns:
        Rows as those of ``draw_bank``; map_kind is what maps.json says of an unchanged file, else "supplied".

    Raises:
        InputError: naming every unusable map, or a case that the bank's lesions come from and ``training`` lacks.
    """
    paths = list_maps(folder)
    card = read_card(paths[0].parent, training)
    drawn = {row["case"]: row for row in card.get("maps", [])}
    findings = [check_map(path, training) for path in tqdm(paths, desc="checking maps", unit="map")]
    unusable = [f"{finding.path.name} {error}" for finding in findings for error in finding.errors]
    if unusable:
        raise InputError(f"{folder} holds maps that cannot be painted: " + "; ".join(unusable))
    cases = {case_name(item["image"]) for item in training}
    rows = []
    for finding in findings:
        name, item, digits = case_name(finding.path), finding.item, sha256(finding.path)
        known = drawn.get(name, {})
        donors = [{key: donor[key] for key in ("case", "tissue", "voxels")} for donor in known.get("donors", [])]
        kind = known["map_kind"] if known.get("map_sha256") == digits else "supplied"
        case = f"{name}_supplied" if name in cases else name
        rows.append(_row(case, item, finding.volume_ml, donors, finding.path, kind))
    return rows


def read_card(folder: Path, training: list[dict]) -> dict:
    """Return what maps.json in a folder of maps or beside it says, or an empty dictionary if there is none.

    Raises:
        InputError: if the bank was drawn from lesions of a case that is not in ``training``.
    """
    places = [place / MAPS_CARD for place in (folder, folder.parent) if (place / MAPS_CARD).is_file()]
    card = read_json(places[0]) if places else {}
    allowed = {digest(item["image"]) for item in training} if card else set()
    foreign = [row for row in card.get("cases", []) if row["image_sha256"] not in allowed]
    if foreign:
        raise InputError(
            f"{places[0]} says that the maps were drawn from lesions of {foreign[0]['case']}, patient "
            f"{foreign[0]['patient']}, which is no training case here; draw them for this fold"
        )
    return card

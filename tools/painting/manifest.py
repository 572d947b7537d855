"""The manifest of painted cases: how each was made, and whether the quality gate accepted it."""

import hashlib
import json
import platform
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
from tqdm import tqdm

from tools.bundles import BUNDLES
from tools.data.provenance import digest
from tools.data.twins import content_digest
from tools.io.files import InputError, RunError, check_settings, read_json, write_text
from tools.io.volume import SYNTHETIC_MARK, load_ct, relative, save_nifti
from tools.maps.bank import PlannedCase
from tools.workflows.cluster import Job, parts, perform
from tools.workflows.run import versions
from tools.workflows.synthesizer import SYNTHESIZER, painted_region, region_margin

if TYPE_CHECKING:
    from distributed import Client

MANIFEST_SCHEMA = 2
FREE_METHODS = ("copy_paste", "drawn")  # of ``augment``, without a synthesizer
TERMS = ("sampler", "region_margin", "guidance", "attribute_guidance", "tissue_guidance")


def read_manifest(path: Path) -> list[dict]:
    """Read the manifest that ``augment`` wrote, one dict per painted case.

    Raises:
        InputError: if it is missing, a line is damaged, names a case that is a path, or holds an expression.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; run augment again")
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            line["case"], line["source"], line["tissues"], line["accepted"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} line {number} is damaged: {error!r}") from None
        if Path(str(line["case"])).name != line["case"] or "\\" in line["case"]:
            raise InputError(f"{path} line {number}: case {line['case']!r} is no plain name, and leaves its folder")
        check_settings(line.get("painting"), f"{path} line {number}")
        lines.append(line)
    return lines


def write_manifest(path: Path, rows: list[dict]) -> None:
    """Write a manifest, one line per painted case."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_painted(
    plan: list[PlannedCase], told: dict[str, dict], checks: dict[str, dict], output: Path, work: Path, made_by: dict,
    special: dict[str, dict] | None = None, client: "Client | None" = None,
) -> list[dict]:  # fmt: skip
    """Write each painted case and the manifest, and return the manifest's rows.

    Args:
        plan: What was painted.
        told: Case to what the synthesizer was told of its patient.
        checks: From ``check_painted``.
        output: Folder of ``augment``.
        work: Folder with ``painted``.
        made_by: What the rows say of the method, its settings and its weights.
        special: Case to what its row says otherwise.
        client: From ``cluster``; its workers write the cases, this process the manifest.

    Raises:
        RunError: if a case differs from its source outside the region.
    """
    about = {"versions": versions(), "processor": platform.processor() or platform.machine()}
    if made_by["steps"]:
        about |= painting_terms(made_by["painting"])
    written: dict[str, dict] = {}
    if client is None:
        written = write_cases(tqdm(plan, desc="writing", unit="case", disable=None), output, work, made_by)
    else:
        jobs = [
            Job(f"writing {part[0].name} and {len(part) - 1} more", partial(write_cases, part, output, work, made_by))
            for part in parts(plan, client)
        ]
        found, failed = perform(jobs, client)
        if failed:
            raise RunError(next(iter(failed.values())))
        for part in found.values():
            written |= part
    rows = []
    for planned in plan:
        name, row = planned.name, written[planned.name]
        case_checks = checks.get(name, {})
        reasons = [f"{tissue}: {reason}" for tissue, check in case_checks.items() for reason in check["reasons"]]
        voxels = {"voxels_sha256": row.pop("voxels_sha256")}
        verdict = {"accepted": not reasons, "reason": "; ".join(reasons), "checks": case_checks}
        own = (special or {}).get(name, {})
        rows.append(row | {"conditions": told.get(name, {})} | made_by | about | own | voxels | verdict)
    write_manifest(output / "manifest.jsonl", rows)
    return rows


def write_cases(plan: Iterable[PlannedCase], output: Path, work: Path, made_by: dict) -> dict[str, dict]:
    """Write painted cases, and return case to what the manifest says of its files; see :func:`write_painted`."""
    written = {}
    for planned in plan:
        name, source = planned.name, planned.source
        hu, image = load_ct(source.image)
        label, target = planned.maps()
        painted = nib.load(work / "painted" / f"{name}.nii.gz").get_fdata(dtype=np.float32)
        margin = 0 if made_by["method"] == "copy_paste" else region_margin(made_by.get("painting", {}))
        region = painted_region(label, target, image.affine, margin)
        if not np.array_equal(painted[~region], hu[~region]):
            raise RunError(f"{name} changed outside its painted region")
        voxels = as_stored(painted, image)
        mark = f"{SYNTHETIC_MARK} {made_by['method']} of {source.name}"
        save_nifti(voxels, image, output / "images" / f"{name}.nii.gz", mark)
        save_nifti(target.astype(np.uint8), image, output / "labels" / f"{name}.nii.gz", mark)
        written[name] = {
            "schema": MANIFEST_SCHEMA,
            "case": name,
            "source": source.name,
            "patient": source.patient,
            "tissues": planned.tissues,
            "volume_ml": planned.volume_ml,
            "donors": planned.donors,
            "map_sha256": planned.map_sha256,
            "map_kind": planned.map_kind,
            "source_sha256": digest(source.image),
            "source_content_sha256": content_digest(source.image),
            "label_sha256": digest(source.label),
            "image_file": relative(source.image, output),
            "label_file": relative(source.label, output),
            "map_file": relative(planned.map, output),
            "voxels_sha256": voxels_sha256(voxels),
        }
    return written


def painting_terms(painting: dict) -> dict:
    """Return sampler, margin and guidance of a painting, by its settings or else by the config's defaults."""
    config = read_json(BUNDLES / SYNTHESIZER / "configs/inference.json") | painting
    return {key: config[key] for key in TERMS}


def as_stored(painted: np.ndarray, source: nib.Nifti1Image) -> np.ndarray:
    """Return painted HU as they are written: whole numbers where the source has whole numbers, else float32."""
    whole = np.issubdtype(source.get_data_dtype(), np.integer) and np.array_equal(painted, np.round(painted))
    return painted.astype(np.int16) if whole and np.abs(painted).max() < 32767 else painted.astype(np.float32)


def voxels_sha256(voxels: np.ndarray) -> str:
    """Return the SHA-256 of an array's type, shape and values."""
    digest = hashlib.sha256(f"{voxels.dtype.str} {voxels.shape}".encode())
    digest.update(np.ascontiguousarray(voxels).tobytes())
    return digest.hexdigest()

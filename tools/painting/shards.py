"""Painting the maps of ``augment`` in parts, on the workers of a cluster or here; what is painted stays painted."""

import hashlib
import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tools.gate.run import candidate_folder
from tools.io.files import RunError, sha256
from tools.maps.bank import PlannedCase
from tools.workflows.cluster import Job, parts, perform
from tools.workflows.run import versions
from tools.workflows.synthesizer import paint, write_conditions

if TYPE_CHECKING:
    from distributed import Client


@dataclass(frozen=True)
class Painting:
    """How maps are painted.

    Attributes:
        weights: Weights of the synthesizer.
        settings: From ``painting_overrides``, one for each candidate.
        threads: Threads of the CPU, the same on all workers; sums in another order round differently.
        attributes: What the synthesizer can be told, as in its config.
        told: Case to what it is told.
    """

    weights: Path
    settings: list[dict]
    threads: int
    attributes: dict[str, list]
    told: dict[str, dict]


def paint_all(plan: list[PlannedCase], how: Painting, output: Path, work: Path, client: "Client | None") -> None:
    """Paint every map, each candidate of it, and link the painted CTs into the folders of ``candidate_folder``.

    The CTs lie in ``painted/`` of the output until the command is done, so an interrupted one goes on with the rest.

    Args:
        plan: The maps.
        how: How they are painted.
        output: Folder of ``augment``.
        work: Folder for what is between.
        client: From ``cluster``.

    Raises:
        RunError: if any could not be painted; the others are kept.
    """
    kept = output / "painted" / _digest(plan, how)
    for other in kept.parent.glob("*"):  # of other maps, weights or versions
        if other != kept:
            shutil.rmtree(other)
    jobs = []
    for number, settings in enumerate(how.settings):
        done = kept / str(number)
        done.mkdir(parents=True, exist_ok=True)
        left = [planned for planned in plan if not _file(done, planned).is_file()]
        for part in parts(left, client):
            place = len(jobs)
            log = output / (f"paint{place}.log" if place else "paint.log")
            do = partial(paint_shard, part, how, settings, work / f"shard{place}", done, log)
            jobs.append(Job(f"painting {part[0].name} and {len(part) - 1} more, candidate {number}", do))
    print(f"painting in {len(jobs)} parts; the log is {output / 'paint.log'}", flush=True)
    _, failed = perform(jobs, client)
    if failed:
        raise RunError(f"{len(failed)} of {len(jobs)} parts could not be painted: {next(iter(failed.values()))}")
    for number in range(len(how.settings)):
        folder = candidate_folder(work, number)
        folder.mkdir(parents=True)
        for planned in plan:
            _file(folder, planned).symlink_to(_file(kept / str(number), planned).absolute())


def paint_shard(part: list[PlannedCase], how: Painting, settings: dict, shard: Path, done: Path, log: Path) -> None:
    """Paint some maps in one process, and move each painted CT into ``done`` once all are there."""
    shutil.rmtree(shard, ignore_errors=True)  # of a worker that died
    for planned in part:
        lay_out(planned, shard)
    write_conditions(
        {planned.name: how.told[planned.name] for planned in part}, how.attributes, shard / "conditions.csv"
    )
    paint(shard, how.weights, settings, how.threads, log)
    for planned in part:
        _file(shard / "painted", planned).replace(_file(done, planned))
    shutil.rmtree(shard)


def lay_out(planned: PlannedCase, work: Path) -> None:
    """Link what painting a case needs into ``work``: its CT, its map and the map wanted."""
    files = {"images": planned.source.image, "labels": planned.source.label, "targets": planned.map}
    for kind, file in files.items():
        folder = work / kind
        folder.mkdir(parents=True, exist_ok=True)
        suffix = ".nii.gz" if file.name.endswith(".gz") else ".nii"
        (folder / (planned.name + suffix)).symlink_to(file.absolute())


def _file(folder: Path, planned: PlannedCase) -> Path:
    return folder / f"{planned.name}.nii.gz"


def _digest(plan: list[PlannedCase], how: Painting) -> str:
    """Return a digest of all that decides what is painted."""
    maps = [[planned.name, str(planned.source.image), planned.map_sha256] for planned in plan]
    about = [maps, sha256(how.weights), how.settings, how.threads, how.attributes, how.told, versions()]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]

"""Make synthetic cases for one fold: train the synthesizer on the fold's training patients, draw maps, paint, check."""

import shutil
from functools import partial
from pathlib import Path

import torch

from tools.data.datalist import SYNTHETIC, Case, read_fold, within
from tools.data.provenance import HOSTS_CARD, MAPS_CARD, SYNTHESIZER_CARD, read_card
from tools.flags import check_numbers
from tools.gate.run import check_painted
from tools.io.files import InputError, open_run, read_json, sha256, write_json
from tools.io.volume import relative
from tools.maps.bank import PlannedCase, draw_bank, maps_card, read_maps
from tools.maps.followed import Followed, read_dice, read_look_alikes
from tools.painting.drawn import draw_cases
from tools.painting.hosts import check_hosts, cut_hosts
from tools.painting.manifest import FREE_METHODS, MANIFEST_SCHEMA, write_painted
from tools.painting.shards import Painting, paint_all
from tools.painting.told import Densities, Joint
from tools.workflows.cluster import check_cluster, cluster, everywhere, perform_one, threads_on
from tools.workflows.origin import named_weights
from tools.workflows.run import check_overrides
from tools.workflows.segmenter import SEGMENTER
from tools.workflows.synthesizer import (
    CONFIGS,
    SYNTHESIZER,
    check_tuning,
    known_attributes,
    painting_overrides,
    smallest_region,
    train_synthesizer,
)

METHODS = (*CONFIGS, *FREE_METHODS)
CANDIDATE_SEEDS = 1_000_003  # from one candidate's seed to the next's, far beyond the seeds that people give
MIXTURES = ("balanced", "joint")


def augment(
    datalist: Path,
    fold: int | None,
    output: Path,
    method: str = "cbmat",
    balance: float = 1.0,
    mixture: str = "balanced",
    dice: Path | None = None,
    look_alikes: Path | None = None,
    context: bool = False,
    densities: bool = False,
    steps: int = 8,
    seed: int = 0,
    maps: Path | None = None,
    procedural: float = 0.0,
    segmenter: Path | None = None,
    synthesizer: Path | None = None,
    tune_steps: int = 0,
    candidates: int = 1,
    max_cases: int | None = None,
    hosts: Path | None = None,
    overrides: dict | None = None,
    workers: int = 1,
    scheduler: str | None = None,
) -> None:
    """Paint synthetic cases for one fold until its rare tissues are balanced.

    Only the fold's training patients are read: the synthesizer is trained on them, the lesions that give the new maps
    their shapes are theirs, and so are the CTs that are painted. Started again with the same settings it goes on.

    Args:
        datalist: The datalist.json that `dataset` writes.
        fold: The fold that is held out; none to train on every case, as the last step after a verdict.
        output: New folder for images, labels, datalist.json, manifest.jsonl and the synthesizer.
        method: How the synthesizer is trained: cbmat, konz or no_ablation; or, without one, copy_paste to fill the same
            maps with the donors' own HU, or drawn to fill them with the phantom's tissues (the free rivals).
        balance: Volume that each pathological tissue shall reach, as a share of the most frequent one's.
        mixture: What a new case gets: balanced adds the rarest tissues until balance is reached; joint gives each case
            the tissues and volumes that a random training case has together, so that all are as frequent as there, and
            a host without a history that case's.
        dice: JSON file with the Dice per tissue of a segmenter of other patients, such as plateau.json of compare; with
            joint, training cases whose tissues it finds badly are followed more often.
        look_alikes: JSON file with the tissues that such a segmenter takes one for, plateau.json too; with joint, cases
            are followed more often that show what it takes for another tissue and lack that one.
        context: Whether lesions are moved with what touches them, halos and mixtures, instead of tissue by tissue.
        densities: Whether each tissue is told the mean HU that it has in the cases whose lesions make the new map.
        steps: Network evaluations per painted window.
        seed: Seed for the maps, the training and the painting.
        maps: Folder of maps to paint, as the command `maps` writes them or drawn by hand, instead of drawing new ones.
        procedural: Share of the lesions whose shape is drawn by a model of the training lesions instead of moved.
        segmenter: Weights of this fold's segmenter, card.json beside them, for the gate's test of faithfulness.
        synthesizer: Weights made by an earlier `augment`, to use instead of training new ones, or shipped for those
            that come with the bundle.
        tune_steps: Optimizer steps that these weights go on with on the fold's training cases before they paint.
        candidates: Number of paintings of each map, each of other noise. The one is kept that the gate accepts and of
            which the segmenter finds least; this needs a segmenter.
        max_cases: Largest number of painted cases; the number of training cases if not given.
        hosts: Folder of CTs of normal lungs that nobody labelled, to paint into instead of the training cases: NIfTI
            files and folders with a DICOM series. Its lungs/ may hold masks, else the lungs are found by HU; its
            patients.csv (case, patient) says who they belong to.
        overrides: Config ids of the synthesizer's train.json and their values, such as "{max_epochs: 4}".
        workers: Processes that share the cases, on a cluster of Dask on this machine; each gets a GPU of its own where
            there are several. The voxels are the same for any number.
        scheduler: Address of a scheduler of Dask whose workers share the cases instead, or the JSON file that says it.

    Raises:
        InputError: if the input is unusable, a patient is on both sides, or the output holds something else.
        RunError: if training or painting fails.
    """
    overrides = dict(overrides or {})
    segmenter, synthesizer = named_weights(SEGMENTER, segmenter), named_weights(SYNTHESIZER, synthesizer)
    if scheduler is not None:
        places = everywhere(datalist, output, maps, segmenter, synthesizer, hosts)
        datalist, output, maps, segmenter, synthesizer, hosts = places
    _check(
        method, balance, mixture, dice or look_alikes, steps, candidates, max_cases, procedural, maps, hosts, overrides
    )
    check_numbers({"workers": workers})
    found = read_dice(dice) if dice else None
    taken = read_look_alikes(look_alikes) if look_alikes else None
    check_tuning(tune_steps, synthesizer)
    if candidates > 1 and (segmenter is None or method in FREE_METHODS):
        raise InputError(
            "candidates are compared by a segmenter that is asked what it finds; give --segmenter, and paint"
        )
    training, held_out = read_fold(datalist, fold)
    strangers = check_hosts(hosts, training, held_out) if hosts else []
    for stage, weights in (("segmenter", segmenter), ("synthesizer", synthesizer)):
        if weights:
            read_card(weights, held_out, stage)
    settings = {
        "command": "augment", "schema": MANIFEST_SCHEMA, "datalist_sha256": sha256(datalist), "fold": fold,
        "balance": balance, "steps": steps, "seed": seed, "method": method, "max_cases": max_cases,
        "procedural": procedural, "maps": relative(maps, output) if maps else None, "overrides": overrides,
        "synthesizer": sha256(synthesizer) if synthesizer else None,
        "segmenter": sha256(segmenter) if segmenter else None, "hosts": relative(hosts, output) if hosts else None,
        "mixture": None if mixture == "balanced" else mixture, "dice": found, "look_alikes": taken,
        "context": context or None, "candidates": candidates if candidates > 1 else None,
        "tune_steps": tune_steps or None, "densities": densities or None,
    }  # fmt: skip
    check_cluster(workers, scheduler, output)
    output = open_run(output, settings)
    if (output / "datalist.json").is_file():
        print(f"{output} is complete already")
        return
    with cluster(workers, scheduler, output, [datalist, maps, segmenter, synthesizer, hosts]) as client:
        work = output / "work"
        shutil.rmtree(work, ignore_errors=True)
        if maps:
            plan = read_maps(Path(maps), training)
            write_json(output / MAPS_CARD, maps_card(training, plan, {"supplied": str(maps)}))
        else:
            pasted, most = work / "painted" if method == "copy_paste" else None, max_cases or len(training)
            cut = cut_hosts(strangers, training, output / "hosts", most, seed) if hosts else None
            if hosts:
                rows = [{key: value for key, value in row.items() if key != "path"} for row in strangers]
                write_json(output / HOSTS_CARD, {"cases": rows})
            joint = Followed(found, taken) if mixture == "joint" else None
            plan = draw_bank(
                training, output / "maps", balance, seed, most, procedural, pasted, cut, joint, context
            ).plan
        told: dict[str, dict] = {}
        made_by: dict = {"method": method, "seed": seed, "steps": None, "checkpoint_sha256": None}
        if not plan:
            print("the tissues are balanced already, so nothing was painted")
        if plan and method == "drawn":
            draw_cases(plan, work, seed)
        if method not in FREE_METHODS:
            plan = large_enough(plan, smallest_region(overrides))
        if plan and method not in FREE_METHODS:
            threads = torch.get_num_threads()  # of this process, not of a worker: the voxels depend on it
            overrides["attributes"] = known_attributes(training, synthesizer, overrides)
            if synthesizer and not tune_steps:
                weights = synthesizer
                write_json(
                    output / SYNTHESIZER_CARD, read_json(weights.with_name("card.json"))
                )  # leaks are sought there
            else:
                given = (
                    training,
                    output,
                    seed,
                    method,
                    overrides,
                    synthesizer,
                    tune_steps,
                    threads_on(client, threads),
                )
                do = partial(train_synthesizer, *given)
                weights = perform_one("training the synthesizer", do, client)
            made_by |= {"steps": steps, "checkpoint": relative(weights, output), "checkpoint_sha256": sha256(weights)}
            made_by |= {"painting": painting_overrides(overrides, steps, seed), "threads": threads}
            joint, known = Joint(training), Densities(training)
            for planned in plan:
                told[planned.name] = within(joint.holds(planned), overrides["attributes"])
                told[planned.name] |= known.told(planned) if densities else {}
            settings = [of_candidate(made_by["painting"], number) for number in range(candidates)]
            how = Painting(weights, settings, made_by["threads"], overrides["attributes"], told)
            paint_all(plan, how, output, work, client)
        judged = plan and method not in FREE_METHODS
        checks, tried = (
            check_painted(plan, training, output, work, segmenter, candidates, client) if judged else ({}, {})
        )
        special = {
            name: {
                "candidates": rows,
                "painting": of_candidate(made_by["painting"], [row["kept"] for row in rows].index(True)),
            }
            for name, rows in tried.items()
        }
        rows = write_painted(plan, told, checks, output, work, made_by, special, client)
    write_datalists(Path(datalist), training, held_out, rows, fold, output)
    for folder in (work, output / "painted"):
        shutil.rmtree(folder, ignore_errors=True)
    accepted = sum(row["accepted"] for row in rows)
    print(
        f"painted {len(rows)} cases in {output}, {accepted} accepted (manifest.jsonl says why any was not); "
        f"next: python -m tools compare --datalist {datalist} --output COMPARISON, or train on {output}/datalist.json"
    )


def _check(method, balance, mixture, errors, steps, candidates, max_cases, procedural, maps, hosts, overrides) -> None:
    """Raise InputError for a setting that is out of range."""
    if method not in METHODS:
        raise InputError(f"method must be one of {', '.join(METHODS)}, not {method}")
    if not 0 < balance <= 1:
        raise InputError(f"balance must be above 0 and at most 1, not {balance}")
    if mixture not in MIXTURES:
        raise InputError(f"mixture must be one of {', '.join(MIXTURES)}, not {mixture}")
    if errors and mixture != "joint":
        raise InputError(
            "--dice and --look_alikes decide which training cases are followed, so they need --mixture joint"
        )
    if not 0 <= procedural <= 1:
        raise InputError(f"procedural must be from 0 to 1, not {procedural}")
    if method == "copy_paste" and (procedural or maps):
        raise InputError("copy_paste pastes the HU of donors, which procedural and supplied maps do not have")
    if hosts and maps:
        raise InputError("maps are drawn for the training cases; leave out --maps or --hosts")
    check_numbers({"steps": steps, "candidates": candidates, "max_cases": 1 if max_cases is None else max_cases})
    check_overrides(SYNTHESIZER, ["train.json"], overrides)


def of_candidate(painting: dict, number: int) -> dict:
    """Return the settings of one of several paintings of the same maps: those of the first with another seed."""
    return painting | {"seed": painting["seed"] + CANDIDATE_SEEDS * number}


def large_enough(plan: list[PlannedCase], least: int) -> list[PlannedCase]:
    """Return the maps with at least so many voxels to paint, and name those left out."""
    kept = []
    for planned in plan:
        if planned.voxels >= least:
            kept.append(planned)
        else:
            print(f"map {planned.name} is left out: {planned.voxels} voxels to paint, fewer than {least}")
    return kept


def write_datalists(
    datalist: Path, training: list[Case], held_out: list[Case], rows: list[dict], fold: int, output: Path
) -> None:
    """Write the fold's datalists: real cases keep their fold, painted ones have fold -1.

    ``datalist_unfiltered.json`` holds every painted case, ``datalist.json``, written last, the accepted ones.
    """
    real = [case.item(output) for case in training + held_out]
    content = {key: value for key, value in read_json(datalist).items() if key not in ("training", "numTraining")}
    for name, kept in (
        ("datalist_unfiltered.json", rows),
        ("datalist.json", [row for row in rows if row["accepted"]]),
    ):
        painted = [
            {"image": f"images/{row['case']}.nii.gz", "label": f"labels/{row['case']}.nii.gz", "fold": SYNTHETIC,
             "patient": row["patient"], "synthetic": True, "source": row["source"], "tissues": row["tissues"]}
            for row in kept
        ]  # fmt: skip
        items = real + painted
        write_json(output / name, content | {"held_out_fold": fold, "numTraining": len(items), "training": items})

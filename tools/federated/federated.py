"""``python -m tools federated``: one network from several sites' patients, whom no site shows to another."""

import itertools
import json
import sys
from pathlib import Path

import pandas
from monai.bundle import ConfigParser

from tools.bundles import BUNDLES
from tools.data.datalist import check_real, read_datalist, split
from tools.data.provenance import cases_read, check_twins, find_twin
from tools.flags import check_numbers
from tools.io.files import InputError, check_new_directory, read_json, sha256, write_json, write_text
from tools.workflows.run import check_overrides, check_python, run_worker
from tools.workflows.segmenter import SEGMENTER
from tools.workflows.synthesizer import SYNTHESIZER

CONFIGS = ["train.json", "federated.yaml"]
OWN = ("max_epochs", "dataset_dir", "datalist", "fold", "seed", "model_dir", "output_dir", "bundle_root")
WORKER = Path(__file__).with_name("worker.py")
MODULES = "nvflare, monai.fl.client, ignite, tensorboard, nibabel"
REMEDY = "name the Python in which they are by --python (make .venv-federated/.ready makes one)"


def federated(
    datalists: str,
    bundle: str,
    output: Path,
    rounds: int = 2,
    local_epochs: int = 1,
    fold: int = 0,
    seed: int = 0,
    overrides: dict | None = None,
    python: Path | None = None,
    site_file: Path = Path("/srv/federated/site.json"),
) -> None:
    """Train a bundle by federated averaging over several data sets, in NVFlare's simulator, and write the job for real.

    Each data set is a site with a process of its own (NVFlare's client, in it MONAI's MonaiAlgo), which reads no other;
    the server sees weights, mean scores and numbers of cases. Writes model.pt, which the bundle's inference loads,
    rounds.csv (what each site did in each round), card.json (who was trained on) and job/, the same federation as a job
    that a real one takes: there each site keeps its bundle and data, and says in ``site_file`` where they are.

    Args:
        datalists: The datalist.json of each site, separated by commas, from `python -m tools dataset`.
        bundle: The bundle, lung_tissue_seg or difflung_synthesis.
        output: Folder to create.
        rounds: Number of times that the sites train and their weights are averaged.
        local_epochs: Epochs of a site in a round; epoch_length steps each.
        fold: Fold of each site that is held out; the shared weights are validated on its patients.
        seed: Seed of the starting weights, and of the training.
        overrides: Config ids of the bundle and their values, such as "{epoch_length: 60}"; the same for all sites.
        python: Interpreter of the environment in which nvflare and monai are installed; this one by default.
        site_file: Place where each real site keeps its own file; needed for job/ alone.

    Raises:
        InputError: if there are fewer than two sites, they share a patient or a CT, or an argument cannot be used.
        RunError: if the federation fails.
    """
    overrides = dict(overrides or {})
    if bundle not in (SEGMENTER, SYNTHESIZER):
        raise InputError(f"bundle is {bundle!r}, but can be {SEGMENTER} or {SYNTHESIZER}")
    check_numbers({"rounds": rounds, "local_epochs": local_epochs})
    own = [name for name in overrides if name in OWN]
    if own:
        raise InputError(f"overrides hold {own[0]}, which federated sets itself (rounds, local_epochs, fold and seed)")
    check_overrides(bundle, CONFIGS, overrides)
    sites = read_sites(datalists, fold)
    python = Path(python or sys.executable)
    check_python("python", python, MODULES, REMEDY)
    output = check_new_directory(output).absolute()

    root = BUNDLES / bundle
    overrides |= {"seed": seed, "max_epochs": rounds * local_epochs}
    files = {}
    for name, datalist in sites.items():
        folder = output / "sites" / name
        here = {"dataset_dir": str(datalist["path"].parent), "datalist": str(datalist["path"]), "fold": fold}
        here |= {"output_dir": str(folder), "model_dir": str(folder / "models")}
        write_json(folder / "site.json", {"bundle_root": str(root), "overrides": here})
        files[name] = str(folder / "site.json")
    configs = [f"configs/{name}" for name in CONFIGS]
    # rounds without a step, with which the bundle begins
    preparing = ConfigParser.load_config_file(str(root / configs[-1]))["preparing_rounds"]
    settings = output / "federated_settings.json"
    write_json(settings, {"configs": configs, "local_epochs": local_epochs, "overrides": overrides})
    job = {
        "name": bundle, "bundle_root": str(root), "configs": configs, "overrides": overrides,
        "rounds": preparing + rounds, "clients": len(sites),
        "settings": str(settings), "site_files": files, "site_file": str(site_file),
        "start": str(output / "start.pt"), "weights": str(output / "model.pt"), "export": str(output / "job"),
        "workspace": str(output / "nvflare"),
    }  # fmt: skip
    print(f"training at {len(sites)} sites for {rounds} rounds; the log is {output / 'federated.log'}", flush=True)
    write_json(output / "job.json", job)
    run_worker("the federation", python, WORKER, output / "job.json", output / "federated.log")
    write_text(output / "rounds.csv", table(output / "sites").to_csv(index=False))
    write_json(output / "card.json", card(job, sites, fold))
    print(f"wrote {output / 'model.pt'}, {output / 'rounds.csv'} and, for real sites, {output / 'job' / bundle}")


def read_sites(datalists: str, fold: int) -> dict[str, dict]:
    """Return site to its datalist, with its ``path``; InputError unless two or more can be trained on together."""
    paths = [Path(word) for word in datalists.split(",") if word]
    if len(paths) < 2:
        raise InputError(f"datalists is {datalists!r}, but a federation needs two sites at least, separated by a comma")
    sites = {}
    for number, path in enumerate(paths, 1):
        datalist = read_datalist(path)
        check_real(datalist, path, [fold])
        check_twins(datalist, path)
        sites[f"site-{number}"] = datalist | {"path": path.absolute()}
    for (one, first), (other, second) in itertools.combinations(sites.items(), 2):
        if first["labels"] != second["labels"]:
            raise InputError(f"{first['path']} has labels {first['labels']}, but {second['path']} {second['labels']}")
        check_apart(one, first, other, second)
    return sites


def check_apart(one: str, first: dict, other: str, second: dict) -> None:
    """Raise InputError if two sites have a patient or, under whatever name, a CT in common."""
    rows, others = cases_read(first["training"]), cases_read(second["training"])
    shared = sorted({row["patient"] for row in rows} & {row["patient"] for row in others})
    if shared:
        raise InputError(f"{one} and {other} share patient {shared[0]}; a patient can be held out at one site only")
    for row in others:
        twin = find_twin(row, rows)
        if twin:
            raise InputError(f"case {twin['case']} of {one} and case {row['case']} of {other} are the same CT")


def table(sites: Path) -> pandas.DataFrame:
    """Return a row per round and site: its steps, the weights received and sent, and the scores of those received."""
    lines = [
        line
        for site in sorted(sites.iterdir())
        for line in (site / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    rows = [json.loads(line) for line in lines]
    return pandas.DataFrame([row | (row.pop("metrics") or {}) for row in rows]).sort_values(["round", "site"])


def card(job: dict, sites: dict[str, dict], fold: int) -> dict:
    """Return who was trained on at which site, as the cards of other weights say it, and how."""
    training = {name: split(datalist, fold)[0] for name, datalist in sites.items()}
    return {
        "bundle": job["name"],
        "sites": {name: [row["case"] for row in cases_read(items)] for name, items in training.items()},
        "cases": cases_read(list(itertools.chain(*training.values()))),
        "attributes": read_json(BUNDLES / job["name"] / "configs/train.json").get("attributes"),
        "overrides": job["overrides"],
        "rounds": job["rounds"],
        "sha256": sha256(Path(job["weights"])),
    }

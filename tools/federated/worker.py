"""Does the work of a federation where NVFlare is installed: ``PYTHON worker.py JOB.json``.

With ``FL_global_model.pt model.pt`` after it, it writes the weights for a bundle that a real federation came to.
It imports nothing of this project, since NVFlare's environment does not hold it.
"""

import json
import os
import shlex
import sys
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from monai.utils import set_determinism
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe import SimEnv
from nvflare.recipe.utils import set_per_site_config

CLIENT = Path(__file__).with_name("client.py")
# the server holds no network, which would be code of the bundle; it takes names and shapes from the starting weights
NO_NETWORK = {"class_path": "torch.nn.Identity", "args": {}}
GLOBAL_WEIGHTS = "FL_global_model.pt"


def shared(job: dict):
    """Return what the bundle's federated.yaml shares, network and average, with the weights that the seed gives."""
    sys.path.insert(0, job["bundle_root"])
    parser = ConfigParser()
    parser.read_config([str(Path(job["bundle_root"], name)) for name in job["configs"]])
    for name, value in job["overrides"].items():
        parser[name] = value
    set_determinism(parser.get_parsed_content("seed"))
    return parser.get_parsed_content("shared")


def recipe(job: dict, python: str, site_files: dict[str, str] | str) -> FedAvgRecipe:
    """Return the federation as NVFlare wants it: FedAvg on the server, the client in a process of its own.

    ``python`` is the interpreter at the sites; ``site_files`` has the path of each site's own file, or is one path that
    holds at every site. Rounds without steps count too, and the job's settings travel with the client.
    """
    common = isinstance(site_files, str)
    made = FedAvgRecipe(
        name=job["name"], model=NO_NETWORK, initial_ckpt=os.path.relpath(job["start"]),
        min_clients=job["clients"], num_rounds=job["rounds"],
        train_script=str(CLIENT), train_args=shlex.join(["--site", site_files]) if common else "",
        launch_external_process=True, command=shlex.join([python, "-u"]),
    )  # fmt: skip
    if not common:
        arguments = {site: {"train_args": shlex.join(["--site", path])} for site, path in site_files.items()}
        set_per_site_config(made, arguments)
    made.add_client_file(job["settings"])
    return made


def write_weights(job: dict, source: Path, output: Path) -> None:
    """Turn the weights that the server wrote last into the weights that the bundle's inference loads."""
    both = shared(job)
    both.load_state_dict(torch.load(source, weights_only=True)["model"])
    torch.save(both.average.state_dict(), output)


def simulate(job: dict) -> None:
    """Write starting weights and a job for real sites, then simulate the sites and write the weights they end with."""
    torch.save(shared(job).state_dict(), job["start"])
    recipe(job, "python3", job["site_file"]).export(job["export"])
    sites = SimEnv(clients=list(job["site_files"]), workspace_root=job["workspace"])
    recipe(job, sys.executable, job["site_files"]).run(sites)
    write_weights(job, next(Path(job["workspace"]).rglob(GLOBAL_WEIGHTS)), Path(job["weights"]))


def main() -> None:
    """Simulate a federation, or turn the weights that the server of a real one wrote into the bundle's."""
    job, *files = map(Path, sys.argv[1:])
    content = json.loads(job.read_text(encoding="utf-8"))
    write_weights(content, *files) if files else simulate(content)


if __name__ == "__main__":
    main()

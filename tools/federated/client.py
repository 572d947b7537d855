"""The client of a federation: NVFlare runs it at each site, where MONAI's MonaiAlgo trains one of our bundles.

It imports nothing of this project: a job carries this file and its settings alone, while bundle and data lie at the
site, whose own file says where: {"bundle_root": ..., "overrides": {"datalist": ..., "output_dir": ..., ...}}.

To the server go weights, the mean figures of a validation, and the number of training cases, by which sites weigh.
"""

import argparse
import hashlib
import json
import math
import os
import sys
import time
from pathlib import Path

import nvflare.client as flare
import torch
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject
from nvflare.apis.fl_constant import FLMetaKey

SETTINGS = Path(__file__).with_name("federated_settings.json")


def build(site: dict, settings: dict) -> MonaiAlgo:
    """Return MONAI's client for the site's copy of the bundle; what the site says comes before what the job says."""
    sys.path.insert(0, site["bundle_root"])  # its configs name scripts
    overrides = settings["overrides"] | site["overrides"]
    algo = MonaiAlgo(
        bundle_root=site["bundle_root"], local_epochs=settings["local_epochs"], send_weight_diff=False,
        config_train_filename=settings["configs"], train_kwargs=dict(overrides),
        config_evaluate_filename=settings["configs"], eval_kwargs=dict(overrides),
    )  # fmt: skip
    algo.initialize({ExtraItems.CLIENT_NAME: flare.get_site_name()})
    return algo


def train_round(algo: MonaiAlgo, received: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict | None]:
    """Validate the shared weights here, train on from them; return the new ones, and metrics or, at first, None."""
    metrics = None
    if algo.trainer.state.iteration:
        found = algo.evaluate(ExchangeObject(weights=received)).metrics
        metrics = {name: float(value) for name, value in found.items() if math.isfinite(value)}
    algo.train(ExchangeObject(weights=received))
    weights = algo.get_weights().weights
    return {name: value.clone(memory_format=torch.contiguous_format) for name, value in weights.items()}, metrics


def digest(weights: dict[str, torch.Tensor]) -> str:
    """Return the SHA-256 of weights."""
    return hashlib.sha256(b"".join(weights[name].numpy().tobytes() for name in sorted(weights))).hexdigest()


def main() -> None:
    """Train as long as the server asks; each round becomes a line of ``rounds.jsonl`` in the site's ``output_dir``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--site", type=Path, required=True, help="the site's own file")
    site = json.loads(parser.parse_args().site.read_text(encoding="utf-8"))
    flare.init()
    algo = build(site, json.loads(SETTINGS.read_text(encoding="utf-8")))
    cases = len(algo.train_workflow.train_dataset_data)
    records = Path(site["overrides"]["output_dir"]) / "rounds.jsonl"
    records.parent.mkdir(parents=True, exist_ok=True)
    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        began, steps = time.monotonic(), algo.trainer.state.iteration
        sent, metrics = train_round(algo, received.params)
        record = {
            "round": received.current_round, "site": flare.get_site_name(), "process": os.getpid(), "cases": cases,
            "steps": algo.trainer.state.iteration - steps, "seconds": round(time.monotonic() - began, 1),
            "received_sha256": digest(received.params), "sent_sha256": digest(sent), "metrics": metrics,
        }  # fmt: skip
        with open(records, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
        flare.send(flare.FLModel(params=sent, metrics=metrics, meta={FLMetaKey.NUM_STEPS_CURRENT_ROUND: cases}))
    algo.finalize()


if __name__ == "__main__":
    main()

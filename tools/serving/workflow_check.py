"""Can a bundle's workflows be built as consumers build them, and do its weights fit its network?"""

import contextlib
import io
import logging
import multiprocessing
import os
import pickle
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from monai.bundle import ConfigWorkflow

from tools.io.files import first_line
from tools.workflows.run import end_with_parent

# Workflow to its config files and to MONAI's name for its kind.
WORKFLOWS = {
    "train": (["train.json"], "train"),
    "evaluate": (["train.json", "evaluate.json"], "train"),
    "inference": (["inference.json"], "infer"),
}


def workflow_problems(root: Path, dataset_dir: Path, cases_dir: Path, output_dir: Path) -> list[str]:
    """Build a bundle's workflows and load its weights, in a process of its own; return what is wrong."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with_parent, (os.getpid(),)) as pool:
        return pool.submit(_problems, root, dataset_dir, cases_dir, output_dir).result()


def _problems(root: Path, dataset_dir: Path, cases_dir: Path, output_dir: Path) -> list[str]:
    sys.dont_write_bytecode = True
    logging.disable(logging.WARNING)
    sys.path.insert(0, str(root))
    problems = []
    for name, (files, kind) in WORKFLOWS.items():
        given = {"dataset_dir": str(cases_dir if kind == "infer" else dataset_dir), "output_dir": str(output_dir)}
        given |= {"bundle_root": str(root), "logging_file": False, "device": "cpu"}
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                workflow = ConfigWorkflow([str(root / "configs" / file) for file in files], workflow_type=kind, **given)
                workflow.initialize()
                lacking = workflow.check_properties()
        except Exception as error:  # whatever a config raises when it is built is wrong with it
            problems.append(f"{name} cannot be built: {type(error).__name__}: {first_line(error)}")
        else:
            problems += [f"{name} lacks {id}, which consumers read" for id in lacking]
    return problems + weight_problems(root)


def weight_problems(root: Path) -> list[str]:
    """Return why models/model.pt does not load into network_def of inference.json."""
    try:
        weights = torch.load(root / "models/model.pt", map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, OSError) as error:
        return [f"models/model.pt does not load with weights_only=True: {type(error).__name__}: {first_line(error)}"]
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        return ["models/model.pt is not a plain state dict of tensors"]
    places = {"bundle_root": str(root), "logging_file": False, "device": "cpu"}
    workflow = ConfigWorkflow(config_file=str(root / "configs/inference.json"), **places)
    try:
        network = workflow.parser.get_parsed_content("network_def")
    except Exception:  # the workflow's own problem, told already
        return []
    try:
        network.load_state_dict(weights)
    except (RuntimeError, ValueError) as error:
        return [f"models/model.pt does not fit network_def: {' '.join(str(error).split())[:300]}"]
    return []

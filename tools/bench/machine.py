"""The machine that is measured, and a bundle's inference on it."""

import os
from pathlib import Path

import torch
from monai.bundle import ConfigParser

from tools.io.files import InputError
from tools.workflows.run import read_bundle, run_measured


def choose_device(device: str | None) -> torch.device:
    """Return the device asked for, or the GPU if there is one; InputError if there is no such device."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cpu", "cuda"):
        raise InputError(f"device must be cpu or cuda, not {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device is cuda, but PyTorch finds no GPU here; leave --device out or write --device cpu")
    return torch.device(device)


def machine(device: torch.device) -> dict:
    """Return what kind of machine this is; nothing that names it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cores": cores,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def time_inference(
    bundle: str, dataset_dir: Path, folder: Path, device: torch.device, **places: str
) -> tuple[ConfigParser, dict]:
    """Return the config of a bundle's inference, and the seconds and memory of a process that runs it on a folder.

    Its weights, ``folder/model.pt``, are random, on which the time does not depend; ``places`` names them as the bundle
    does. The seconds hold the start, reading and writing.
    """
    parser = read_bundle(bundle, "inference.json")
    torch.save(parser.get_parsed_content("network_def").state_dict(), folder / "model.pt")
    overrides = {"dataset_dir": str(dataset_dir), "output_dir": str(folder / "answers"), "device": str(device)}
    seconds, peak = run_measured(bundle, overrides | places, folder / "inference.log")
    return parser, {"seconds": seconds, "peak_memory_gb": peak}

"""The machine that is measured."""

import os

import torch

from tools.io.files import InputError


def choose_device(device: str | None) -> torch.device:
    """Return the device asked for, or the GPU if there is one.

    Raises:
        InputError: if there is no such device.
    """
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

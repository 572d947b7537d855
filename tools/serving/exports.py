"""Exported networks, freed of the paths of the machine that exported them."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from tools.io.files import RunError, atomic_file
from tools.workflows.run import first_error


def export(root: Path, metadata: dict, folder: Path) -> None:
    """Write model.ts and model.onnx, in processes of their own: two bundles in one would share ``scripts``.

    A bundle with configs/export.json exports itself; of others MONAI's own commands export ``network_def``.

    Args:
        root: folder of the bundle.
        metadata: the bundle's; a network that MONAI exports has one input.
        folder: where to write.

    Raises:
        RunError: if an export fails.
    """
    root, folder = Path(root).resolve(), Path(folder).resolve()
    if (root / "configs/export.json").is_file():
        both = str([str(root / "configs" / name) for name in ("inference.json", "export.json")])
        places = ["--torchscript", folder / "model.ts", "--onnx", folder / "model.onnx"]
        _monai_bundle(root, "run", "--config_file", both, *places)
        strip_torchscript(folder / "model.ts")
    else:
        export_torchscript(root, folder / "model.ts")
        image = metadata["network_data_format"]["inputs"]["image"]
        axes = {0: "batch"} | {2 + axis: f"side_{axis}" for axis in range(len(image["spatial_shape"]))}
        # no two sizes alike: one that the export froze would show
        sides = (multiple(side) * (4 + 2 * n) for n, side in enumerate(image["spatial_shape"]))
        names = {"input_names": ["image"], "output_names": ["pred"], "dynamic_axes": {"image": axes}}
        more = ["--input_shape", [2, image["num_channels"], *sides], "--converter_kwargs", names]
        _monai_bundle(root, "onnx_export", "network_def", *_network(root), "--filepath", folder / "model.onnx", *more)
    strip_onnx(folder / "model.onnx")


def export_torchscript(root: Path, path: Path) -> None:
    """Write a bundle's ``network_def`` with its weights and configs as TorchScript; RunError if MONAI cannot."""
    root, path = Path(root).resolve(), Path(path).resolve()
    _monai_bundle(root, "ckpt_export", "network_def", *_network(root), "--filepath", path)
    strip_torchscript(path)


def _network(root: Path) -> list:
    return ["--config_file", root / "configs/inference.json", "--ckpt_file", root / "models/model.pt"]


def _monai_bundle(root: Path, *words: object) -> None:
    words = [*words, "--bundle_root", root, "--meta_file", root / "configs/metadata.json"]
    command = [sys.executable, "-m", "monai.bundle", *map(str, words)]
    # nothing is left in the bundle's folder
    environment = {"PYTHONWARNINGS": "ignore"} | os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment)
    if done.returncode:
        cause = first_error(done.stdout + done.stderr)
        raise RunError(f"monai.bundle {words[0]} of {root} failed (exit {done.returncode}): {cause}")


def multiple(side: str | int) -> int:
    """Return what a side must be a multiple of, as metadata writes it.

    Example:
        >>> multiple("16*n")
        16
    """
    return int(str(side).removesuffix("*n"))


def strip_torchscript(path: Path) -> None:
    """Take the debugging records, which name source files of this machine, out of a TorchScript file."""
    with atomic_file(path) as partial, zipfile.ZipFile(path) as old, zipfile.ZipFile(partial, "w") as new:
        for record in old.infolist():
            if not record.filename.endswith(".debug_pkl"):
                new.writestr(record, old.read(record))


def strip_onnx(path: Path) -> None:
    """Take the notes about where each node comes from, stack traces of this machine among them, out of an ONNX file."""
    import onnx  # among the requirements of development only

    model = onnx.load(path)
    for node in [*model.graph.node, *(node for function in model.functions for node in function.node)]:
        node.ClearField("metadata_props")
    with atomic_file(path) as partial:
        onnx.save(model, os.fspath(partial))

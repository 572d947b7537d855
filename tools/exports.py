"""Exported networks, freed of the paths of the machine that exported them."""

import os
import zipfile
from pathlib import Path

from tools.files import atomic_file


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

"""Exported networks, freed of the paths of the machine that exported them."""

import os
import subprocess
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

from tools.io.files import RunError, atomic_file, read_json
from tools.workflows.run import bound_command, first_error

KINDS = {"torchscript": "model.ts", "onnx": "model.onnx"}  # what MONAI's loaders and the exports call them
SIDES = ("width", "height", "depth")


def export(
    root: Path, folder: Path, kinds: Iterable[str] = tuple(KINDS), run: Callable[[str, list, Path], None] | None = None
) -> dict[str, Path]:
    """Write a bundle's network with its weights as TorchScript and ONNX, and return kind to file.

    Each is made by a command in a process of its own; RunError if one fails. A bundle with configs/export.json exports
    itself, both kinds at once. Of others MONAI's own commands export ``network_def``, which has one input. ``run`` runs
    a command of ``monai.bundle``, given its name, its words, and the file that it writes.
    """
    root, folder = Path(root).resolve(), Path(folder).resolve()
    run = run or (lambda name, words, makes: monai_bundle(root, words))
    made = {kind: folder / name for kind, name in KINDS.items()}
    bundle = ["--bundle_root", root, "--meta_file", root / "configs/metadata.json"]
    if (root / "configs/export.json").is_file():
        both = str([str(root / "configs" / name) for name in ("inference.json", "export.json")])
        places = [word for kind, path in made.items() for word in (f"--{kind}", path)]
        run("export", ["run", *bundle, "--config_file", both, *places], made["onnx"])
    else:
        made = {kind: path for kind, path in made.items() if kind in kinds}
        commands = {"torchscript": ("ckpt_export", []), "onnx": ("onnx_export", _onnx_words(root))}
        network = ["--config_file", root / "configs/inference.json", "--ckpt_file", root / "models/model.pt"]
        for kind, path in made.items():
            command, more = commands[kind]
            run(kind, [command, "network_def", *bundle, *network, "--filepath", path, *more], path)
    for kind, path in made.items():
        (strip_onnx if kind == "onnx" else strip_torchscript)(path)
    return made


def _onnx_words(root: Path) -> list:
    """Return what onnx_export has to know of the network's input, as metadata.json describes it."""
    image = read_json(root / "configs/metadata.json")["network_data_format"]["inputs"]["image"]
    axes = {0: "batch"} | {2 + axis: side for axis, side in zip(range(len(image["spatial_shape"])), SIDES)}
    # no two sizes alike: one that the export froze would show
    sides = (multiple(side) * (4 + 2 * n) for n, side in enumerate(image["spatial_shape"]))
    names = {"input_names": ["image"], "output_names": ["pred"], "dynamic_axes": {"image": axes}}
    return ["--input_shape", [2, image["num_channels"], *sides], "--converter_kwargs", names]


def monai_bundle(root: Path, words: list) -> None:
    """Run a command of ``monai.bundle`` in a bundle's folder and leave nothing there; RunError if it fails."""
    command = bound_command([str(word) for word in words])
    environment = {"PYTHONWARNINGS": "ignore"} | os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", cwd=root, env=environment)
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

"""Model repositories for Triton: a bundle's network as ONNX and as TorchScript, each with its configuration."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.bundle import first_error
from tools.exports import strip_onnx, strip_torchscript
from tools.files import InputError, RunError, check_new_directory, new_directory, read_json, write_text

# kind of model: Triton's backend, the file that it looks for, and what the exports call it
KINDS = {"onnx": ("onnxruntime", "model.onnx", "model.onnx"), "torchscript": ("pytorch", "model.pt", "model.ts")}
MAX_BATCH = 16  # windows, what both bundles send at most as they come


def triton(bundle_root: Path, output: Path) -> None:
    """Export a bundle's network for Triton Inference Server: as ONNX and as TorchScript, with config.pbtxt.

    Args:
        bundle_root: folder of the bundle, with weights in models/model.pt.
        output: the model repository; it may hold the models of another bundle.

    Raises:
        InputError: if the weights are missing, onnx is not installed, or the repository holds such a model already.
        RunError: if an export fails.
    """
    write_repository(bundle_root, output)
    print(f"wrote {' and '.join(model_names(bundle_root))} in {output}; now: tritonserver --model-repository={output}")


def write_repository(bundle_root: Path, output: Path) -> None:
    """Write ``<bundle>_onnx`` and ``<bundle>_torchscript`` into a model repository, see :func:`triton`."""
    root = Path(bundle_root).resolve()
    metadata = read_json(root / "configs/metadata.json")
    if not (root / "models/model.pt").is_file():
        raise InputError(f"{root} has no weights in models/model.pt; train it first")
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise InputError(f"{package} is not installed; ONNX export needs pip install -r requirements-dev.txt")
    folders = {kind: check_new_directory(Path(output) / name) for kind, name in zip(KINDS, model_names(root))}
    texts = {kind: configuration(folder.name, kind, metadata) for kind, folder in folders.items()}
    with tempfile.TemporaryDirectory() as exported:
        export(root, metadata, Path(exported))
        for kind, folder in folders.items():
            _, wanted, written = KINDS[kind]
            strip = strip_onnx if kind == "onnx" else strip_torchscript
            strip(Path(exported) / written)
            with new_directory(folder) as partial:
                (partial / "1").mkdir()
                shutil.move(Path(exported) / written, partial / "1" / wanted)
                write_text(partial / "config.pbtxt", texts[kind])


def model_names(bundle_root: Path) -> list[str]:
    """Return the names of a bundle's models in a repository, in the order of KINDS."""
    return [f"{Path(bundle_root).resolve().name}_{kind}" for kind in KINDS]


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
    config, overlay = root / "configs/inference.json", root / "configs/export.json"
    common = ["--bundle_root", root, "--meta_file", root / "configs/metadata.json"]
    if overlay.is_file():
        both = str([str(config), str(overlay)])
        places = ["--torchscript", folder / "model.ts", "--onnx", folder / "model.onnx"]
        _monai_bundle(root, "run", "--config_file", both, *common, *places)
        return
    common += ["--config_file", config, "--ckpt_file", root / "models/model.pt"]
    _monai_bundle(root, "ckpt_export", "network_def", *common, "--filepath", folder / "model.ts")
    image = metadata["network_data_format"]["inputs"]["image"]
    axes = {0: "batch"} | {2 + axis: f"side_{axis}" for axis in range(len(image["spatial_shape"]))}
    # no two sizes alike: one that the export froze would show
    shape = [2, image["num_channels"], *(multiple(side) * (4 + 2 * n) for n, side in enumerate(image["spatial_shape"]))]
    names = {"input_names": ["image"], "output_names": ["pred"], "dynamic_axes": {"image": axes}}
    more = ["--input_shape", shape, "--converter_kwargs", names]
    _monai_bundle(root, "onnx_export", "network_def", *common, "--filepath", folder / "model.onnx", *more)


def _monai_bundle(root: Path, *words: object) -> None:
    command = [sys.executable, "-m", "monai.bundle", *map(str, words)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=root, env={"PYTHONWARNINGS": "ignore"} | os.environ
    )
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


def configuration(name: str, kind: str, metadata: dict) -> str:
    """Return the text of a model's ``config.pbtxt``.

    Args:
        name: of the model.
        kind: one of KINDS.
        metadata: the bundle's, whose ``network_data_format`` has the tensors.

    Raises:
        InputError: if a tensor is not float32.
    """
    backend, _, _ = KINDS[kind]
    tensors = metadata["network_data_format"]
    inputs = ",\n".join(_tensor(key, value) for key, value in tensors["inputs"].items())
    outputs = ",\n".join(_tensor(key, value) for key, value in tensors["outputs"].items())
    sides = " x ".join(map(str, tensors["inputs"]["image"]["spatial_shape"]))
    return f"""# {metadata["name"]} {metadata["version"]}, exported by python -m tools triton. Research use only.
# Sides of an image: {sides}. Requests of the same sides become one batch.
name: "{name}"
backend: "{backend}"
max_batch_size: {MAX_BATCH}
input [
{inputs}
]
output [
{outputs}
]
dynamic_batching {{ }}
# KIND_AUTO: on every GPU, or on the CPU where there is none; KIND_CPU keeps a GPU free, count starts more at a time
instance_group [ {{ count: 1, kind: KIND_AUTO }} ]
"""


def _tensor(name: str, tensor: dict) -> str:
    dims = [tensor["num_channels"], *(-1 for _ in tensor["spatial_shape"])]
    if tensor["dtype"] != "float32":
        raise InputError(f"tensor {name} of metadata.json is {tensor['dtype']}, but the exported networks take float32")
    # the network takes one number a sample, shape (B,); Triton wants a second dimension in a request
    reshape = ", reshape: { shape: [ ] }" if dims == [1] else ""
    return f'  {{ name: "{name}", data_type: TYPE_FP32, dims: {dims}{reshape} }}'

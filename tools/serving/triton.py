"""Model repositories for Triton: a bundle's network as ONNX and as TorchScript, each with its configuration."""

import importlib.util
import shutil
import tempfile
from pathlib import Path

from tools.io.files import InputError, check_new_directory, new_directory, read_json, write_text
from tools.serving.exports import export
from tools.workflows.trusted import PARTS, check_trusted

# kind of model: Triton's backend, and the file that it looks for
KINDS = {"onnx": ("onnxruntime", "model.onnx"), "torchscript": ("pytorch", "model.pt")}
MAX_BATCH = 16  # windows, what both bundles send at most as they come
HERE = "--grpc-address=127.0.0.1 --http-address=127.0.0.1"  # a server without a password is for this machine alone


def triton(bundle_root: Path, output: Path, trust: bool = False) -> None:
    """Export a bundle's network for Triton Inference Server: as ONNX and as TorchScript, with config.pbtxt.

    Args:
        bundle_root: Folder of the bundle, with weights in models/model.pt.
        output: The model repository; it may hold the models of another bundle.
        trust: Whether to run configs and scripts that differ from the packaged bundle's.

    Raises:
        InputError: if configs or scripts differ and are not trusted, the weights are missing, onnx is not installed, or
            the repository holds such a model already.
        RunError: if an export fails.
    """
    check_trusted(bundle_root, trust)
    write_repository(bundle_root, output)
    names = " and ".join(model_names(bundle_root))
    print(f"wrote {names} in {output}; now: tritonserver --model-repository={output} {HERE}")


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
    with tempfile.TemporaryDirectory() as scratch:
        made = export(_without_compiled(root, Path(scratch)), Path(scratch))
        for kind, folder in folders.items():
            with new_directory(folder) as partial:
                (partial / "1").mkdir()
                shutil.move(made[kind], partial / "1" / KINDS[kind][1])
                write_text(partial / "config.pbtxt", texts[kind])


def _without_compiled(root: Path, scratch: Path) -> Path:
    """Return a copy of a bundle whose scripts are compiled anew: compiled files beside them may say something else."""
    copy = scratch / root.name
    for part in [part for part in PARTS if (root / part).is_dir()]:
        shutil.copytree(root / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "models").symlink_to(root / "models")
    return copy


def model_names(bundle_root: Path) -> list[str]:
    """Return the names of a bundle's models in a repository, in the order of KINDS."""
    return [f"{Path(bundle_root).resolve().name}_{kind}" for kind in KINDS]


def configuration(name: str, kind: str, metadata: dict) -> str:
    """Return the text of the ``config.pbtxt`` of a model of one of the KINDS; InputError if a tensor is not float32."""
    backend, _ = KINDS[kind]
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

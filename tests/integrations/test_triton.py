"""Triton: the exports against PyTorch, config.pbtxt by Triton's own protobuf, and the clients against a Triton server.

The server is NVIDIA's, from nvidia-pytriton; triton_backend.py stands where its backends onnxruntime and pytorch would.
"""

import json
import shutil
import socket
import subprocess
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import onnxruntime
import pytest
import torch
from monai.bundle import ConfigParser

from tests.integrations.consumers import python_of, run, run_workflow
from tools.serving.triton import write_repository
from tools.tissues import tissue_labels

pytestmark = pytest.mark.triton

SEGMENTERS = ["lung_tissue_seg_onnx", "lung_tissue_seg_torchscript"]
SYNTHESIZERS = ["difflung_synthesis_onnx", "difflung_synthesis_torchscript"]
# batch and sides, none of them the export's
SIZES = [(1, 64, 64), (2, 96, 64), (3, 32, 160), (5, 32, 32), (16, 64, 64)]
TYPES = {"TYPE_FP32": "tensor(float)"}
PARSE = """
import json, sys
from pathlib import Path
from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig
config = text_format.Parse(Path(sys.argv[1]).read_text(), ModelConfig())
print(json.dumps(json_format.MessageToDict(config, preserving_proto_field_name=True)))
"""
ASK = """
import sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from tritonclient import grpc
url, model = sys.argv[1:]
client = grpc.InferenceServerClient(url)
images = [np.random.default_rng(seed).random((1 + seed % 3, 1, 256, 256), np.float32) for seed in range(12)]
def ask(image):
    given = grpc.InferInput("image", image.shape, "FP32")
    given.set_data_from_numpy(image)
    return client.infer(model, [given]).as_numpy("pred")
def calls():
    return int(client.get_inference_statistics(model).model_stats[0].execution_count)
alone = [ask(image) for image in images]
before = calls()
with ThreadPoolExecutor(len(images)) as pool:
    together = list(pool.map(ask, images))
print(calls() - before, max(np.abs(one - other).max() for one, other in zip(alone, together)))
"""


@pytest.fixture(scope="module")
def repository(segmenter, synthesizer, tmp_path_factory) -> Path:
    """A model repository with both networks."""
    folder = tmp_path_factory.mktemp("triton") / "repository"
    write_repository(segmenter, folder)
    write_repository(synthesizer, folder)
    return folder


@pytest.fixture(scope="module")
def server(repository, tmp_path_factory):
    """Yield host and port of a Triton server with the repository as it is."""
    python, log = python_of("triton"), tmp_path_factory.mktemp("server") / "server.log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, Path(__file__).with_name("triton_server.py"), repository, port]
    with open(log, "wb") as stream:
        process = subprocess.Popen(list(map(str, command)), stdout=stream, stderr=subprocess.STDOUT)
    try:
        for _ in range(300):
            if "Started GRPCInferenceService" in log.read_text() or process.poll() is not None:
                break
            time.sleep(1)
        assert "Started GRPCInferenceService" in log.read_text(), log.read_text()[-6000:]
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def run_client(root: Path, server: str, model: str, check: bool = True, **overrides) -> subprocess.CompletedProcess:
    """Run a bundle's inference with a network that a server computes."""
    configs = [str(root / f"configs/{name}.json") for name in ("inference", "inference_triton")]
    words = ["--bundle_root", root, "--config_file", configs, "--device", "cpu", "--url", server, "--model_name", model]
    words += [word for key, value in overrides.items() for word in (f"--{key}", value)]
    return run(python_of("triton"), "-m", "monai.bundle", "run", *words, check=check)


def network(root: Path) -> torch.nn.Module:
    """Return a bundle's trained network, in float32."""
    parser = ConfigParser()
    parser.read_config(str(root / "configs/inference.json"))
    parser["amp"] = False
    built = parser.get_parsed_content("network_def").eval()
    built.load_state_dict(torch.load(root / "models/model.pt", weights_only=True))
    return built


def slices(cohort: Path, batch: int, width: int, height: int) -> torch.Tensor:
    """Return slices of a drawn CT as the segmenter takes them, repeated and cut to a size."""
    hu = nib.load(sorted((cohort.parent / "images").glob("*.nii.gz"))[0]).get_fdata(dtype=np.float32)
    scaled = np.tile((hu.clip(-1024, 300) + 1024) / 1324, (2, 2, 2))[20 : 20 + width, 10 : 10 + height, :batch]
    return torch.from_numpy(scaled.transpose(2, 0, 1)[:, None].copy())


def steps(cohort: Path, batch: int, width: int, height: int, attributes: int) -> list[torch.Tensor]:
    """Return what painting gives the synthesizer: x_t with region, tissues and density, time, attributes, interval."""
    torch.manual_seed(batch * width + height)
    tissues = torch.randint(0, 7, (batch, width // 8, height // 8)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    shown = torch.nn.functional.one_hot(tissues, 7).movedim(-1, 1)[:, 1:].float()  # the tissues, and UNKNOWN
    region = (tissues > 0)[:, None] & (torch.rand(batch, 1, width, height) < 0.7)
    told = region & (tissues == 2)[:, None]
    ct = slices(cohort, batch, width, height) * 8 - 4
    x_t = torch.where(region, torch.randn_like(ct), ct)
    image = torch.cat([x_t, region.float(), shown, told * 0.5, told.float()], dim=1)
    return [image, torch.rand(batch), torch.randn(batch, attributes), torch.rand(batch)]


def answers(folder: Path, given: list[torch.Tensor]) -> np.ndarray:
    """Return what a model of the repository makes of its inputs."""
    if folder.name.endswith("torchscript"):
        return torch.jit.load(folder / "1/model.pt")(*given).numpy()
    session = onnxruntime.InferenceSession(folder / "1/model.onnx", providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    return session.run(["pred"], {name: tensor.numpy() for name, tensor in zip(names, given, strict=True)})[0]


@pytest.mark.parametrize("name", SEGMENTERS)
@torch.no_grad()
def test_exported_segmenter_gives_the_labels_of_pytorch(name, repository, segmenter, cohort):
    eager, seen = network(segmenter), set()
    for size in SIZES:
        image = slices(cohort, *size)
        wanted, found = eager(image).numpy(), answers(repository / name, [image])
        difference = np.abs(found - wanted).max()
        differing = int((found.argmax(1) != wanted.argmax(1)).sum())
        print(f"{name} {size}: largest difference {difference:.2g} of {np.abs(wanted).max():.3g}, {differing} labels")
        assert difference <= 1e-5 * np.abs(wanted).max() and differing == 0
        seen |= set(np.unique(wanted.argmax(1)))
    assert len(seen) > 1


@pytest.mark.parametrize("name", SYNTHESIZERS)
@torch.no_grad()
def test_exported_step_gives_the_velocity_of_pytorch(name, repository, synthesizer, cohort):
    eager = network(synthesizer)
    for size in SIZES:
        given = steps(cohort, *size, eager.attribute_entries)
        for number, other in enumerate([None, (1, 1.0), (1, 0.0), (2, 0.0)]):  # pure noise, no noise, nothing known
            changed = [tensor.clone() for tensor in given]
            if other:
                changed[other[0]].fill_(other[1])
            wanted, found = eager(*changed).numpy(), answers(repository / name, changed)
            difference = np.abs(found - wanted).max()
            print(f"{name} {size} {number}: largest difference {difference:.2g} of {np.abs(wanted).max():.3g}")
            assert difference <= 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("name", SEGMENTERS + SYNTHESIZERS)
def test_configuration_is_read_by_triton_and_agrees_with_the_onnx_file(name, repository):
    config = json.loads(run(python_of("triton"), "-c", PARSE, repository / name / "config.pbtxt").stdout)
    kind = name.rpartition("_")[2]
    assert config["name"] == name and config["backend"] == {"onnx": "onnxruntime", "torchscript": "pytorch"}[kind]
    assert config["max_batch_size"] == 16 and "dynamic_batching" in config
    onnx = repository / f"{name.rpartition('_')[0]}_onnx/1/model.onnx"
    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    for tensors, entries in ((config["input"], session.get_inputs()), (config["output"], session.get_outputs())):
        assert [tensor["name"] for tensor in tensors] == [entry.name for entry in entries]
        for tensor, entry in zip(tensors, entries):
            dims = tensor["reshape"].get("shape", []) if "reshape" in tensor else tensor["dims"]
            sides = [side if isinstance(side, int) else -1 for side in entry.shape]
            assert sides == [-1, *map(int, dims)], entry.name  # the batch is variable and not among the dims
            assert TYPES[tensor["data_type"]] == entry.type


@pytest.mark.parametrize("name", SEGMENTERS)
def test_whole_ct_is_labelled_by_a_triton_server_as_by_the_bundle(name, server, segmenter, cohort, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for path in sorted((cohort.parent / "images").glob("*.nii.gz"))[:2]:
        ct = nib.load(path)
        array = np.swapaxes(ct.get_fdata(dtype=np.float32), 0, 1)[:-3]  # axes in another order, odd sides
        nib.save(nib.Nifti1Image(array, ct.affine @ np.eye(4)[:, [1, 0, 2, 3]]), images / path.name)
    settings = {"dataset_dir": images, "window_size": "[64,64]", "find_lung": False}
    run_workflow(segmenter, ["inference.json"], output_dir=tmp_path / "here", **settings)
    run_client(segmenter, server, name, output_dir=tmp_path / "served", **settings)
    differing, voxels, tissues = 0, 0, set()
    for path in sorted((tmp_path / "here").glob("*.nii.gz")):
        here, served = nib.load(path), nib.load(tmp_path / "served" / path.name)
        assert np.array_equal(here.affine, served.affine)
        differing += int((np.asarray(here.dataobj) != np.asarray(served.dataobj)).sum())
        voxels, tissues = voxels + int(np.prod(here.shape)), tissues | set(np.unique(here.dataobj))
    print(f"{name}: {differing} of {voxels} voxels differ")
    # ONNX Runtime rounds otherwise in the last digit, which may decide where two tissues are as likely
    assert len(tissues) > 1 and differing <= (1e-4 * voxels if name.endswith("onnx") else 0)


@pytest.mark.parametrize("name", SYNTHESIZERS)
def test_ct_is_painted_by_a_triton_server_as_by_the_bundle(name, server, synthesizer, cohort, tmp_path):
    case = sorted((cohort.parent / "images").glob("*.nii.gz"))[0].name
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        shutil.copy(cohort.parent / folder / case, tmp_path / folder / case)
    label = nib.load(tmp_path / "labels" / case)
    target, labels = np.asarray(label.dataobj).copy(), tissue_labels()
    half = target[: len(target) // 2]
    half[half == labels["healthy"]] = labels["ground_glass"]
    (tmp_path / "targets").mkdir()
    nib.save(nib.Nifti1Image(target, label.affine), tmp_path / "targets" / case)
    (tmp_path / "conditions.csv").write_text(f"case,severity,age\n{case.removesuffix('.nii.gz')},0.8,71\n")
    settings = {"dataset_dir": tmp_path, "num_steps": 3, "amp": False, "attribute_guidance": 2.0}
    run_workflow(synthesizer, ["inference.json"], output_dir=tmp_path / "here", **settings)
    run_client(synthesizer, server, name, output_dir=tmp_path / "served", **settings)
    here, served = (nib.load(tmp_path / folder / case).get_fdata() for folder in ("here", "served"))
    original = nib.load(tmp_path / "images" / case).get_fdata()
    painted, difference = int((here != original).sum()), np.abs(here - served).max()
    print(f"{name}: {painted} voxels painted, largest difference {difference} HU")
    assert painted > 1000 and difference <= 1


@pytest.mark.parametrize("name", SEGMENTERS)
def test_server_makes_one_batch_of_waiting_requests(name, server):
    calls, difference = map(float, run(python_of("triton"), "-c", ASK, server, name).stdout.split())
    assert 1 <= calls < 12 and difference < 1e-4


def test_client_names_a_missing_model_and_a_missing_server(server, segmenter, cohort):
    settings = {"dataset_dir": cohort.parent / "images", "check": False}
    done = run_client(segmenter, server, "other", **settings)
    assert done.returncode and f"the Triton server at {server} has no model other ready" in done.stderr
    done = run_client(segmenter, "127.0.0.1:1", "other", **settings)
    assert done.returncode and "no Triton server answers at 127.0.0.1:1 by gRPC" in done.stderr

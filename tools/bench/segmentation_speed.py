"""How long the segmenter takes for a CT from file to file, and lungmask's network and nnU-Net for its slices."""

import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from skimage.transform import resize
from torch import nn
from tqdm import tqdm

from tools.bench import nnunet_runs
from tools.bench.machine import choose_device, machine, time_inference
from tools.bench.networks import count
from tools.bench.published import bench_published
from tools.data.datalist import Case
from tools.io.files import InputError, check_writable, read_json, write_json
from tools.io.volume import load_ct, save_nifti
from tools.phantom.phantom import DESCRIPTION, describe_patient, draw_patient
from tools.tissues import tissue_labels
from tools.workflows.segmenter import SEGMENTER

CT_SIZE = (512, 512, 300)
NNUNET_SLICES = 8  # it takes about a minute for them
PEER_PIXELS, PEER_BATCH, PEER_HU = 256, 20, (-1024, 600)  # as lungmask prepares slices


def bench_segmentation(
    output: Path,
    ct: Path | None = None,
    device: str | None = None,
    nnunet: Path | None = None,
    published: str | None = None,
    data: Path | None = None,
    weights: Path | None = None,
    steps: int = 0,
    mix: Path | None = None,
    seed: int = 0,
    mirror: bool = False,
) -> None:
    """Measure the speed of the segmenter beside that of lungmask's network, or its Dice beside published figures.

    The segmenter's inference labels a CT from file to file, with random weights, on which the time does not depend.
    Then lungmask's R231 network (Hofmanninger et al. 2020; random weights too) answers the slices of the same CT; its
    own reading, resampling and writing are left out. It needs lungmask (pip install lungmask==0.2.22).

    With ``--published`` nothing is timed: the weights label the test slices of a published split, as they are and with
    the lung known (the likeliest tissue inside the reference lung), and the table has the published figures too.

    Args:
        output: JSON file to write.
        ct: The CT to segment, NIfTI or the folder of a DICOM series; a drawn one of 512 x 512 x 300 if not given.
        device: The device, cpu or cuda; the GPU if there is one by default.
        nnunet: Python of an environment with nnunetv2 (pip install nnunetv2==2.8.1), whose predictor then labels eight
            of the slices too.
        published: Split to score, infnet; ``data`` is then required.
        data: Folder of the split's slices: images, labels, and dataset.json with id and group of each.
        weights: Weights of the segmenter with their card; those of the bundle if not given.
        steps: Steps of fine-tuning on the slices that are not tested, 0 for none; it lies beside ``output``.
        mix: Folder with a datalist.json of other cases, mixed in one to one while fine-tuning.
        seed: Seed of the fine-tuning.
        mirror: Whether answers are averaged over mirrored slices, which takes four times as long.

    Raises:
        InputError: if the device or the CT does not exist, lungmask is missing, or the file cannot be written.
        RunError: if segmenting fails.
    """
    if published is not None:
        if data is None:
            raise InputError("--published needs --data, the folder of the split's slices")
        check_writable(Path(output).parent)
        bench_published(published, data, output, weights, steps, mix, seed, device, mirror)
        return
    if any((data, weights, steps, mix, mirror)):
        raise InputError("--data, --weights, --steps, --mix and --mirror belong to --published infnet")
    if ct is not None and not Path(ct).exists():
        raise InputError(f"ct {ct} does not exist; it is a NIfTI file or a folder with a DICOM series")
    chosen = choose_device(device)
    check_writable(Path(output).parent)
    result = {"machine": machine(chosen)} | time_labelling(chosen, ct, CT_SIZE, nnunet)
    print(lines(result))
    write_json(Path(output), result)
    print(f"wrote {output}")


def peer_class() -> type[nn.Module]:
    """Return lungmask's U-Net; InputError if it cannot be imported."""
    try:
        from lungmask.resunet import UNet
    except ImportError as error:
        raise InputError(f"bench_segmentation compares with lungmask, which cannot be imported ({error})") from None
    return UNet


def time_labelling(device: torch.device, ct: Path | None, size: tuple[int, int, int], python: Path | None) -> dict:
    """Time the segmenter's inference on a CT, drawn if None, then lungmask's network and nnU-Net on its slices."""
    unet = peer_class()
    if python is not None:
        nnunet_runs.check(python)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "images/case.nii.gz"
        path.parent.mkdir()
        if ct is None:
            hu, _, affine = draw_patient(describe_patient(0, 0), 0, size)
            save_nifti(hu, nib.Nifti1Image(hu, affine), path, DESCRIPTION)
        else:
            path = path.with_name(Path(ct).name)
            path.symlink_to(Path(ct).absolute())
        hu, file = load_ct(path)
        parser, spent = time_inference(SEGMENTER, path.parent, folder, device, model_dir=str(folder))
    peer = unet(n_classes=3, padding=True, depth=5, up_mode="upsample", batch_norm=True, residual=False)  # as R231
    peer_seconds = forward(peer.eval().to(device), slices_of(hu), device)
    per_slice = None if python is None else nnunet_seconds(python, hu, file.affine, device)
    parameters = count(parser.get_parsed_content("network_def"))
    result = {"size": list(hu.shape), "nnunet_seconds_per_slice": per_slice} | spent | {"parameters": parameters}
    return result | {
        "peer_parameters": count(peer), "peer_seconds": peer_seconds, "ratio": peer_seconds / spent["seconds"],
    }  # fmt: skip


def slices_of(hu: np.ndarray) -> torch.Tensor:
    """Return the slices as lungmask's network takes them: cut to HU, scaled, 256 by 256; shape (N, 1, 256, 256)."""
    low, high = PEER_HU
    scaled = (np.clip(hu, low, high).astype(np.float32) - low) / (high - low)
    shape = (PEER_PIXELS, PEER_PIXELS)
    return torch.from_numpy(np.stack([resize(scaled[..., z], shape, order=1) for z in range(hu.shape[2])]))[:, None]


@torch.no_grad()
def forward(network: nn.Module, slices: torch.Tensor, device: torch.device) -> float:
    """Return the seconds that all forward passes take."""
    start = time.perf_counter()
    for batch in tqdm(slices.split(PEER_BATCH), desc="lungmask's network", unit="batch", disable=None):
        network(batch.to(device)).argmax(1).cpu()
    return time.perf_counter() - start


def nnunet_seconds(python: Path, hu: np.ndarray, affine: np.ndarray, device: torch.device) -> float:
    """Return nnU-Net's seconds per slice, array to array and mirrored, with what it plans for this CT, in HU."""
    start = max(0, (hu.shape[2] - NNUNET_SLICES) // 2)
    part = hu[..., start : start + NNUNET_SLICES].astype(np.int16)
    lung = (part < -500).astype(np.uint8)  # its planning wants labels
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = [(folder / f"image{number}.nii.gz", folder / f"label{number}.nii.gz") for number in range(2)]
        cases = [Case(image, label, f"p{number}", number) for number, (image, label) in enumerate(files)]
        for case in cases:
            nib.save(nib.Nifti1Image(part, affine), case.image)
            nib.save(nib.Nifti1Image(lung, affine), case.label)
        nnunet_runs.prepare(folder, python, {"labels": tissue_labels(), "training": cases}, [0, 1], None)
        np.save(folder / "slices.npy", part.transpose(2, 1, 0).astype(np.float32))
        spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)[::-1].tolist()
        job = {"task": "predict", "folder": name, "slices": str(folder / "slices.npy"), "spacing_mm": spacing_mm}
        nnunet_runs.run_job(python, folder / "predict", job | {"device": str(device)})
        done = read_json(folder / "predict/done.json")
    return done["seconds"] / done["slices"]


def lines(result: dict) -> str:
    """Return what was measured in words."""
    size = " x ".join(map(str, result["size"]))
    told = result["nnunet_seconds_per_slice"]
    nnunet_line = ""
    if told is not None:
        nnunet_line = f"\nnnU-Net's predictor: {told:.1f} s a slice, {told * result['size'][2]:.0f} s computed for all"
    return (
        f"a CT of {size}: {result['seconds']:.0f} s from file to file and {result['peak_memory_gb']:.1f} GB "
        f"({result['parameters']:,d} parameters)\n"
        f"lungmask's R231 network ({result['peer_parameters']:,d} parameters), its slices alone: "
        f"{result['peer_seconds']:.0f} s, {result['ratio']:.1f} times as long{nnunet_line}"
    )

"""How fast the synthesizer learns and paints, beside a reference, in one run."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from tqdm import tqdm

from tools.bench import networks
from tools.bench.machine import choose_device, machine, time_inference
from tools.flags import check_numbers
from tools.io.files import check_writable, write_json
from tools.io.volume import save_nifti
from tools.phantom.phantom import DESCRIPTION, describe_patient, draw_patient
from tools.tissues import tissue_labels
from tools.workflows.run import read_bundle
from tools.workflows.synthesizer import SYNTHESIZER

PATCH, BATCH = 64, 16
WARM_UP = 2
REFERENCE_STEPS = 1000  # of a DDPM sampled with every step it was trained with
CT_SIZE = (512, 512, 64)
LUNG_SHARE = 0.05


def bench_synthesis(output: Path, device: str | None = None, paint: bool = True, repeats: int = 7) -> None:
    """Measure the speed of the synthesizer beside that of a reference, on this machine.

    Three networks take turns on the same random patches (64 x 64, batch 16). The first is the one that train.json
    builds. The second is the same one in float32, PyTorch's default memory layout and a plain AdamW, which shows what
    the computing gains. The third is one in the style of Konz et al. (MICCAI 2024, arXiv 2402.05210: diffusers
    UNet2DModel of six levels, the mask as one more channel) in float32, as wide as it takes to have as many parameters.
    Medians of the repeats are compared.

    Args:
        output: JSON file to write.
        device: The device, cpu or cuda; the GPU if there is one by default.
        paint: Whether to paint 5 % of the lung of a drawn CT of 512 x 512 x 64 with the inference too; takes minutes.
        repeats: How often each network has its turn.

    Raises:
        InputError: if the device does not exist, the reference is not installed, or the file cannot be written.
        RunError: if painting fails.
    """
    check_numbers({"repeats": repeats})
    chosen = choose_device(device)
    check_writable(Path(output).parent)
    result = {"machine": machine(chosen)} | measure_networks(chosen, PATCH, BATCH, repeats)
    print(table(result), flush=True)
    result["painted_ct"] = measure_painting(chosen, CT_SIZE, LUNG_SHARE) if paint else None
    if painted := result["painted_ct"]:
        print(
            f"painting {painted['painted_voxels']} voxels on {painted['painted_slices']} slices of a CT of "
            f"{' x '.join(map(str, painted['size']))}: {painted['seconds']:.0f} s, {painted['peak_memory_gb']:.1f} GB"
        )
    write_json(Path(output), result)
    print(f"wrote {output}")


def measure_networks(device: torch.device, patch: int, batch: int, repeats: int, **overrides: object) -> dict:
    """Measure a training step and a forward pass of the three networks on square patches.

    ``patch`` is a multiple of 32 pixels (the reference halves it five times); ``overrides`` are ids of train.json and
    their values. The seconds of a painted patch are computed: forward passes times their number.
    """
    unet = networks.reference_class()
    torch.manual_seed(0)
    shipped = networks.shipped_contender(device, patch, batch, overrides)
    contenders = [shipped, networks.plain_contender(shipped), networks.reference_contender(unet, shipped)]
    target = torch.randn(batch, 1, patch, patch, device=device)
    times = torch.rand(batch, device=device)
    kinds = {"step": networks.train_step, "forward": networks.forward_pass}
    turns = [
        {
            (contender.name, kind): timed(lambda: work(contender, times, target), device)  # noqa: B023  called at once
            for contender in contenders
            for kind, work in kinds.items()
        }
        for _ in tqdm(range(WARM_UP + repeats), desc="bench", unit="turn", disable=None)
    ]
    rows = []
    for contender in contenders:
        row = {"name": contender.name, "parameters": contender.parameters}
        row["gigaflops"] = networks.gigaflops(contender, times)
        for kind in kinds:
            row[f"{kind}_seconds"] = statistics.median(turn[contender.name, kind] for turn in turns[WARM_UP:])
        rows.append(row)
    ratios = {
        row["name"]: {kind: row[f"{kind}_seconds"] / rows[0][f"{kind}_seconds"] for kind in kinds} for row in rows[1:]
    }
    steps = sorted({8, 10, read_bundle(SYNTHESIZER, "inference.json")["num_steps"]})
    per_patch = {row["name"]: row["forward_seconds"] / batch for row in rows}
    painted = {f"{rows[0]['name']}, {n} steps": n * per_patch[rows[0]["name"]] for n in steps}
    painted[f"{rows[-1]['name']}, {REFERENCE_STEPS} steps"] = REFERENCE_STEPS * per_patch[rows[-1]["name"]]
    return {
        "patch": patch, "batch": batch, "repeats": repeats, "networks": rows, "ratios": ratios,
        "painted_patch_seconds": painted,
    }  # fmt: skip


def timed(work: Callable[[], None], device: torch.device) -> float:
    """Return the seconds that some work takes, until the device has done it."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def measure_painting(device: torch.device, size: tuple[int, int, int], share: float) -> dict:
    """Paint a share of the lung of a drawn CT with the inference bundle in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        region = write_case(folder, size, share)
        parser, spent = time_inference(SYNTHESIZER, folder, folder, device, checkpoint=str(folder / "model.pt"))
    return {
        "size": list(size),
        "painted_voxels": int(region.sum()),
        "painted_slices": int(region.any(axis=(0, 1)).sum()),
        "num_steps": parser["num_steps"],
    } | spent


def write_case(folder: Path, size: tuple[int, int, int], share: float) -> np.ndarray:
    """Draw a patient and ask for a ball of new ground glass in the healthy lung; return which voxels change."""
    hu, label, affine = draw_patient(describe_patient(0, 0), 0, size)
    labels = tissue_labels()
    healthy = np.argwhere(label == labels["healthy"])
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    distance = np.linalg.norm((healthy - healthy[len(healthy) // 2]) * spacing_mm, axis=1)
    number = min(round(share * np.count_nonzero(label)), len(healthy))
    nearest = healthy[np.argpartition(distance, number - 1)[:number]]
    target = label.copy()
    target[tuple(nearest.T)] = labels["ground_glass"]
    like = nib.Nifti1Image(hu, affine)
    for kind, array in (("images", hu), ("labels", label), ("targets", target)):
        save_nifti(array, like, folder / kind / "case.nii.gz", DESCRIPTION)
    return target != label


def table(result: dict) -> str:
    """Return what was measured as lines of text."""
    lines = [f"{'network':22s}{'parameters':>12s}{'GFLOP':>8s}{'step':>10s}{'ratio':>7s}{'forward':>10s}{'ratio':>7s}"]
    for row in result["networks"]:
        ratios = result["ratios"].get(row["name"], {"step": 1.0, "forward": 1.0})
        lines.append(
            f"{row['name']:22s}{row['parameters']:12,d}{row['gigaflops']:8.1f}"
            f"{row['step_seconds'] * 1e3:7.1f} ms{ratios['step']:7.2f}"
            f"{row['forward_seconds'] * 1e3:7.1f} ms{ratios['forward']:7.2f}"
        )
    lines.append(f"a painted patch of {result['patch']} x {result['patch']}, computed from the forward passes:")
    lines += [f"  {name:30s}{seconds:9.3f} s" for name, seconds in result["painted_patch_seconds"].items()]
    return "\n".join(lines)

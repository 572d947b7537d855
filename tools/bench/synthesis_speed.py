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

from tools.bench.machine import choose_device, machine
from tools.bench.networks import (
    forward_pass,
    gigaflops,
    plain_contender,
    reference_class,
    reference_contender,
    shipped_contender,
    train_step,
)
from tools.flags import check_numbers
from tools.io.files import check_writable, write_json
from tools.io.volume import save_nifti
from tools.phantom.phantom import DESCRIPTION, describe_patient, draw_patient
from tools.tissues import tissue_labels
from tools.workflows.run import read_bundle, run_measured
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
    if paint:
        print(painting_line(result["painted_ct"]))
    write_json(Path(output), result)
    print(f"wrote {output}")


def measure_networks(device: torch.device, patch: int, batch: int, repeats: int, **overrides: object) -> dict:
    """Measure a training step and a forward pass of the three networks.

    Args:
        device: Device of the networks.
        patch: Edge of the square patches in pixels, a multiple of 32 (the reference halves it five times).
        batch: Patches per call.
        repeats: Turns that are counted, after two that are not.
        **overrides: Ids of train.json with the values to take instead.

    Returns:
        patch, batch, repeats; networks: one row each with name, parameters, gigaflops (of the forward pass of a batch),
        step_seconds and forward_seconds; ratios: seconds of the other networks over those of the shipped one;
        painted_patch_seconds: forward passes times their number, which is computed and not measured.

    Raises:
        InputError: if diffusers is not installed.
    """
    unet = reference_class()
    torch.manual_seed(0)
    shipped = shipped_contender(device, patch, batch, overrides)
    contenders = [shipped, plain_contender(shipped), reference_contender(unet, shipped)]
    target = torch.randn(batch, 1, patch, patch, device=device)
    times = torch.rand(batch, device=device)
    seconds: dict[tuple[str, str], list[float]] = {}
    for turn in tqdm(range(WARM_UP + repeats), desc="bench", unit="turn"):
        for contender in contenders:
            for kind, work in (("step", train_step), ("forward", forward_pass)):
                spent = timed(lambda: work(contender, times, target), device)  # noqa: B023  called at once
                if turn >= WARM_UP:
                    seconds.setdefault((contender.name, kind), []).append(spent)
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    rows = [
        {
            "name": contender.name,
            "parameters": contender.parameters,
            "gigaflops": gigaflops(contender, times),
            "step_seconds": medians[contender.name, "step"],
            "forward_seconds": medians[contender.name, "forward"],
        }
        for contender in contenders
    ]
    ratios = {
        row["name"]: {kind: row[f"{kind}_seconds"] / rows[0][f"{kind}_seconds"] for kind in ("step", "forward")}
        for row in rows[1:]
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
    """Paint a share of the lung of a drawn CT with the inference bundle in a process of its own.

    The weights are random, on which the time does not depend.

    Returns:
        size, painted_voxels, painted_slices, num_steps, seconds (start of the process, reading and writing included)
        and peak_memory_gb of the process.

    Raises:
        RunError: if the bundle fails.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        region = write_case(folder, size, share)
        parser = read_bundle(SYNTHESIZER, "inference.json")
        torch.save(parser.get_parsed_content("network_def").state_dict(), folder / "model.pt")
        overrides = {
            "dataset_dir": str(folder),
            "output_dir": str(folder / "painted"),
            "checkpoint": str(folder / "model.pt"),
            "device": str(device),
        }
        seconds, peak = run_measured(SYNTHESIZER, overrides, folder / "inference.log")
    return {
        "size": list(size),
        "painted_voxels": int(region.sum()),
        "painted_slices": int(region.any(axis=(0, 1)).sum()),
        "num_steps": parser["num_steps"],
        "seconds": seconds,
        "peak_memory_gb": peak,
    }


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


def painting_line(painted: dict) -> str:
    """Return what painting a CT took, as one line."""
    return (
        f"painting {painted['painted_voxels']} voxels on {painted['painted_slices']} slices of a CT of "
        f"{' x '.join(map(str, painted['size']))}: {painted['seconds']:.0f} s, {painted['peak_memory_gb']:.1f} GB"
    )

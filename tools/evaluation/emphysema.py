"""How near painted and drawn emphysema come to real emphysema, which readers labelled in patches of real CT."""

import dataclasses
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.stats import wasserstein_distance
from tqdm import tqdm

from tools import plotting
from tools.bench.machine import choose_device
from tools.bundles import load_script
from tools.flags import check_numbers
from tools.io.files import InputError, atomic_file, check_writable, write_json
from tools.io.markdown import table
from tools.io.volume import list_cts
from tools.painting.one_ct import OneCtPainter
from tools.phantom.disease import Case, draw_disease
from tools.phantom.draw_into_ct import read_host
from tools.phantom.real_patches import DENSE_HU, Patches, read_patches, resized
from tools.tissues import tissue_labels
from tools.workflows.synthesizer import SYNTHESIZER

SEVERITY = 0.5  # share of the lung that becomes emphysema
SLICES = 8  # of each CT, around the lungs' middle
MOST_TILES = 60  # of one CT and kind
WINDOW = (-1024, 300)
DENSE_SHARE = 0.08  # of a real patch above DENSE_HU; beyond it shows pleura or wall, which no other square does


def bench_emphysema(
    patches: Path, ct: Path, output: Path, weights: Path | None = None, patches_share: float = 0.6,
    steps: int = 8, seed: int = 0, device: str | None = None,
) -> None:  # fmt: skip
    """Compare painted and drawn emphysema with patches of real emphysema that neither has seen.

    One map per CT, drawn at random, says where emphysema is wanted in its lungs; it is painted there by the
    synthesizer and drawn there by ``draw_into_ct``. Squares of the patches' size and voxels are cut from both, and from
    the same places of the unchanged CT. Each kind is set beside real patches: HU (Wasserstein-1 distance and the share
    below -950), texture (Frechet distance of radiomic features) and a classifier's area under the curve, trained on one
    half of CTs and patches and taken on the other. Two halves of the real patches give the floor. The unchanged lung is
    set beside patches of normal lung: what differs there is the scanner, not the disease.

    Writes a JSON file, and a PNG of its name with the CT of most tiles, its map, and both kinds beside real patches.

    Args:
        patches: File of real patches, as for draw_into_ct.
        ct: Folder of normal CTs, at least two, best of patients whom the weights have not seen.
        output: JSON file to write.
        weights: Weights of the synthesizer with their card; those of the bundle if absent.
        patches_share: Share of each class of patches that training used; the rest are compared with.
        steps: Number of network evaluations per window.
        seed: Seed of maps and noise.
        device: Device of the network; the bundle's own choice if absent.

    Raises:
        InputError: if a file is wrong, or there are too few CTs or patches.
    """
    check_numbers({"steps": steps})
    check_writable(Path(output).parent)
    cts = list_cts(ct)
    if len(cts) < 2:
        raise InputError(f"{ct} holds {len(cts)} CT, but two halves are compared; give at least two")
    real = _inside_lung(read_patches(patches, patches_share, rest=True))
    painter = OneCtPainter(weights, steps, None if device is None else str(choose_device(device)), None)
    tiles: dict[str, list[list[np.ndarray]]] = {"painted": [[], []], "drawn": [[], []], "unchanged": [[], []]}
    shown = None
    for number, name in enumerate(tqdm(sorted(cts), desc="painting", unit="CT", disable=None)):
        volumes, label, voxel_mm = _one_ct(name, cts[name], painter, np.random.default_rng([seed, *name.encode()]))
        where = _places(label == tissue_labels()["emphysema"], real, voxel_mm, np.random.default_rng(seed))
        for kind, hu in volumes.items():
            tiles[kind][number % 2] += [resized(hu[place], real.hu.shape[1]) for place in where]
        if shown is None or len(where) > shown[0]:
            shown = (len(where), name, volumes, label)
    by_class = {"emphysema": real.hu[real.emphysema], "normal": real.hu[~real.emphysema]}
    halves = {name: [hu[: len(hu) // 2], hu[len(hu) // 2 :]] for name, hu in by_class.items()}
    rows = {
        "real emphysema, one half beside the other": compare_tiles(halves["emphysema"], halves["emphysema"]),
        "painted": compare_tiles(tiles["painted"], halves["emphysema"]),
        "drawn": compare_tiles(tiles["drawn"], halves["emphysema"]),
        "unchanged lung beside normal patches": compare_tiles(tiles["unchanged"], halves["normal"]),
        "real normal, one half beside the other": compare_tiles(halves["normal"], halves["normal"]),
    }
    write_json(Path(output), {"weights": painter.weights.sentences(), "cts": sorted(cts), "seed": seed, "rows": rows})
    _picture(Path(output).with_suffix(".png"), shown, by_class["emphysema"], np.random.default_rng(seed))
    head = ["", "tiles", "HU", "below -950 HU (real)", "texture", "AUC"]
    print(table(head, [_cells(name, row) for name, row in rows.items()]))
    print(f"wrote {output}")


def _inside_lung(real: Patches) -> Patches:
    """Return the patches that show lung alone."""
    kept = (real.hu > DENSE_HU).mean((1, 2)) < DENSE_SHARE
    return dataclasses.replace(real, hu=real.hu[kept], emphysema=real.emphysema[kept])


def _one_ct(name: str, path: Path, painter: OneCtPainter, rng: np.random.Generator) -> tuple[dict, np.ndarray, tuple]:
    """Return some slices of a CT unchanged, drawn and painted, their map, and the voxel size in mm."""
    host = read_host(name, path)
    held = np.flatnonzero(host.lung.any((0, 1)))
    first = max(0, int(held[len(held) // 2]) - SLICES // 2)
    part = slice(first, first + SLICES)
    hu, lung = host.hu[..., part], host.lung[..., part]
    labels = tissue_labels()
    drawn, label = draw_disease(
        rng, hu, lung, host.voxel_mm, Case("smoker", SEVERITY, {"emphysema": 1.0}), labels
    )  # fmt: skip
    own = np.where(lung, labels["healthy"], 0).astype(np.uint8)
    affine = host.affine.copy()
    affine[:3, 3] += affine[:3, 2] * first
    painted = painter.paint(hu.astype(np.float32), own, label, affine, int(rng.integers(2**31)))
    return {"unchanged": hu, "drawn": drawn, "painted": painted}, label, host.voxel_mm


def _places(region: np.ndarray, real: Patches, voxel_mm: tuple, rng: np.random.Generator) -> list[tuple]:
    """Return squares of the patches' size in mm that lie in a region and do not overlap, at most MOST_TILES."""
    side = round(real.hu.shape[1] * real.pixel_mm / voxel_mm[0])
    found = []
    for k in range(region.shape[2]):
        free = ndimage.minimum_filter(region[..., k].view(np.uint8), side)
        while len(places := np.flatnonzero(free)):
            x, y = np.unravel_index(rng.choice(places), free.shape)
            x, y = max(int(x) - side // 2, 0), max(int(y) - side // 2, 0)
            found.append((slice(x, x + side), slice(y, y + side), k))
            free[max(0, x - side // 2) : x + side + side // 2 + 1, max(0, y - side // 2) : y + side + side // 2 + 1] = 0
    return [found[index] for index in rng.permutation(len(found))[:MOST_TILES]]


def compare_tiles(given: list, real: list) -> dict[str, float]:
    """Return how far tiles lie from real ones.

    Args:
        given: Two halves of tiles in HU, each (N, T, T).
        real: Two halves of real tiles. Each half of ``given`` is set beside the other half of these.

    Returns:
        ``tiles``, ``hu_wasserstein`` (HU), ``laa950`` and ``laa950_real`` (shares), ``texture_distance`` and ``auc``.

    Raises:
        InputError: if a half has fewer tiles than a texture distance needs.
    """
    texture, classifier = (load_script(SYNTHESIZER, name) for name in ("texture", "classifier"))
    given, real = ([np.clip(np.asarray(half, np.float32), *WINDOW) for half in sides] for sides in (given, real))
    fewest = min(len(half) for half in given + real)
    if fewest < texture.FEWEST_TILES:
        raise InputError(f"a half has {fewest} squares, fewer than {texture.FEWEST_TILES}; give more or larger CTs")
    features = [
        [texture.tile_features(half, np.ones(half.shape, bool), WINDOW) for half in sides] for sides in (given, real)
    ]
    reference = np.concatenate(features[1])
    ways = [(0, 1), (1, 0)]
    return {
        "tiles": sum(len(half) for half in given),
        "hu_wasserstein": float(np.mean([wasserstein_distance(given[a].ravel(), real[b].ravel()) for a, b in ways])),
        "laa950": float(np.mean(np.concatenate(given) < -950)),
        "laa950_real": float(np.mean(np.concatenate(real) < -950)),
        "texture_distance": float(
            np.mean([texture.frechet_distance(features[1][b], features[0][a], reference) for a, b in ways])
        ),
        "auc": classifier.crossed_auc([[features[0][half], features[1][half]] for half in (0, 1)]),
    }


def _cells(name: str, row: dict) -> list[str]:
    """Return a row of the printed table."""
    share = f"{row['laa950']:.2f} ({row['laa950_real']:.2f})"
    parts = [str(row["tiles"]), f"{row['hu_wasserstein']:.0f}", share, f"{row['texture_distance']:.1f}"]
    return [name, *parts, f"{row['auc']:.2f}"]


def _picture(path: Path, shown: tuple, real: np.ndarray, rng: np.random.Generator) -> None:
    """Draw one CT unchanged, drawn and painted on one map, and squares of real emphysema."""
    _, name, volumes, label = shown
    value = tissue_labels()["emphysema"]
    k = int(np.argmax((label == value).sum((0, 1))))
    box = ndimage.find_objects((label[..., k] > 0).astype(np.uint8))[0]
    figure = plotting.new_figure(14, 4.6)
    axes = figure.subplots(1, 4)
    for place, kind in zip(axes, ("unchanged", "drawn", "painted")):
        # towards right and front, as show_ct wants it
        plotting.show_ct(place, volumes[kind][..., k][box][::-1, ::-1], aspect=1.0, interpolation="bilinear")
        place.contour((label[..., k] == value)[box][::-1, ::-1].T, [0.5], colors="tab:orange", linewidths=0.5)
        place.set_title(f"{name}, {kind}", fontsize=8.5, color=plotting.INK)
    some = real[rng.permutation(len(real))[:36]]
    side = some.shape[1]
    wall = (
        some.reshape(-1, 6, side, side)[:6].transpose(0, 2, 1, 3).reshape(-1, 6 * side) if len(some) == 36 else some[0]
    )
    plotting.show_ct(axes[3], wall, aspect=1.0, interpolation="bilinear")
    axes[3].set_title("real emphysema, patches", fontsize=8.5, color=plotting.INK)
    figure.suptitle("SYNTHETIC: drawn and painted emphysema on one map, research use only", fontsize=9.5)
    with atomic_file(path) as temporary:
        temporary.write_bytes(plotting.png_bytes(figure))

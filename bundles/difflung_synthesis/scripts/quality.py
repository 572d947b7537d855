"""Whether painted tissue passes for real: HU, texture, diversity, seams; beside what real tissue scores itself."""

import csv
import json
import math
import os
from collections.abc import Callable, Mapping
from itertools import chain, zip_longest
from pathlib import Path

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine
from ignite.metrics import Metric

from .classifier import crossed_auc
from .hu_distance import wasserstein_1
from .pictures import Crops, draw_grid
from .texture import FEATURES, LOW_ATTENUATION_HU, cut_tiles, frechet_distance, mmd, prdc, tile_features
from .tissue_channels import plain, tissue_values
from .voxel_measures import hu_counts, painted_box, quantiles, ssim_maps, voxel_measures, voxel_sums

QUANTILES = (5, 25, 50, 75, 95)  # per cent
TILES_PER_CASE = 400  # of one tissue; more are thinned out
TILES_IN_PAIRS = 2000  # of one half of the cases, in the measures that compare each tile with each
HEADLINES = ("texture_distance", "texture_floor", "auc", "diversity", "border_gradient", "seam_gradient")


class TissueQuality(Metric):
    """Measures painted against real tissue, per tissue, with the real-versus-real floor.

    HU are clipped to ``hu_window`` first. Measures are :func:`~scripts.voxel_measures.voxel_measures` and

    - ``hu_wasserstein``, ``hu_wasserstein_floor`` (HU): as :class:`~scripts.hu_distance.HuWasserstein`;
    - ``hu_q05`` ... ``hu_q95``, each ``_painted`` and ``_real`` (HU);
    - ``laa950_painted``, ``laa950_real``: share of voxels below -950 HU;
    - ``texture_distance``, ``texture_floor``: :func:`~scripts.texture.frechet_distance`;
    - ``auc``: how well a classifier tells painted tiles from real ones of patients it has not seen, ``auc_floor`` (0.5)
      where it cannot: :func:`~scripts.classifier.crossed_auc`;
    - ``mmd``, ``precision``, ``recall``, ``density``, ``coverage``, each with its ``_floor``.

    Measures depend on the patients, those of texture on the number of tiles too. So the cases that hold a tissue are
    taken alternately in two halves; the floor compares the real tissue of one half with the real tissue of the other,
    and painting is compared just so: painted tissue of one half with real tissue of the other, both ways round,
    averaged. So a network that repeats each patient's own histogram gains nothing by it. Painting that cannot be told
    from real tissue scores the floor, not 0. All these need two cases at the least; those of texture are NaN below
    ``texture.FEWEST_TILES`` tiles in a half. Of several samples each slice shows its tiles from one, in turn.

    Of all this ``<name>_<measure>_<tissue>`` goes into the engine's metrics for the ``HEADLINES`` that are not NaN;
    ``<output_dir>/quality.csv``, ``quality.json`` (null for what is not finite) and ``quality.png`` have the rest.

    Args:
        labels: Label values by tissue name.
        hu_window: Lowest and highest HU that count, whole numbers.
        output_dir: Folder of the files; None for no files.
        tile: Edge of a tile of texture, voxels.
        seed: Seed for the choice of tiles where there are too many.
        inferer: Inferer that painted; a :class:`~scripts.painting.PaintInferer` tells where its windows lay.
        network: Network with which it painted.
        output_transform: As in ignite; must give lists of painted CTs, shape (S, W, H, D), HU, S samples of one map,
            and of references, shape (2, W, H, D): real CT in HU and the tissue of each painted voxel (0 where nothing
            was painted).

    Raises:
        ValueError: If ``hu_window`` or ``tile`` is out of range; on update, if shapes do not match, HU are
            not finite, or a reference holds a tissue without a name.
    """

    def __init__(
        self,
        labels: Mapping[str, int],
        hu_window: tuple[int, int] = (-1024, 300),
        output_dir: str | None = None,
        tile: int = 16,
        seed: int = 0,
        inferer=None,
        network=None,
        output_transform: Callable = lambda output: output,
    ) -> None:
        low, high = hu_window
        if not low < LOW_ATTENUATION_HU < high or (low, high) != (int(low), int(high)):
            raise ValueError(f"hu_window must be two whole HU around {LOW_ATTENUATION_HU}, not {list(hu_window)}")
        if tile < 4:
            raise ValueError(f"tile must be at least 4 voxels, not {tile}")
        self.labels, self.window, self.output_dir = labels, (int(low), int(high)), output_dir
        self.tile, self.seed = tile, seed
        self.window_counts = getattr(inferer, "window_counts", None)
        self.network = getattr(network, "module", network)
        super().__init__(output_transform=output_transform)

    def reset(self) -> None:
        """Forget all cases."""
        self.cases: list[dict] = []
        self.crops = Crops(self.labels)
        super().reset()

    def update(self, output) -> None:
        """Add the cases of one iteration."""
        for painted, reference in zip(*output, strict=True):
            self._check(painted, reference)
            painted, reference = (plain(volume).detach().cpu().float().numpy() for volume in (painted, reference))
            tissue = reference[1].astype(np.int16)
            if not tissue.any():
                self.cases.append({"samples": len(painted), "tissues": {}})
                continue
            painted, real = np.clip(painted, *self.window), np.clip(reference[0], *self.window)
            self.crops.add(painted[0], real, tissue)
            box = painted_box(tissue)
            windows = None
            if self.window_counts:
                windows = self.window_counts(torch.from_numpy(tissue > 0), self.network).numpy()[box]
            self.cases.append(self._measure(painted[:, *box], real[box], tissue[box], windows))

    def _check(self, painted: torch.Tensor, reference: torch.Tensor) -> None:
        """Raise ValueError if shapes or tissues are not as documented."""
        case = f"case {len(self.cases)}"
        if reference.ndim != 4 or len(reference) != 2:
            raise ValueError(f"reference of {case} has shape {tuple(reference.shape)}, expected (2, W, H, D)")
        if painted.ndim != 4 or not len(painted) or painted.shape[1:] != reference.shape[1:]:
            expected = f"(samples, {', '.join(str(length) for length in reference.shape[1:])}) like its reference"
            raise ValueError(f"painting of {case} has shape {tuple(painted.shape)}, expected {expected}")
        for what, volume in (("painting", painted), ("reference", reference)):
            if not plain(volume).isfinite().all():
                raise ValueError(f"{what} of {case} holds values that are not finite, expected HU")
        unnamed = set(plain(reference[1]).unique().tolist()) - {0, *tissue_values(self.labels)}
        if unnamed:
            named = ", ".join(f"{name}={value}" for name, value in self.labels.items())
            raise ValueError(f"reference of {case} holds tissue {min(unnamed):g}, but labels name only {named}")

    def _measure(self, painted: np.ndarray, real: np.ndarray, tissue: np.ndarray, windows: np.ndarray | None) -> dict:
        """Return what one case adds: per tissue its sums, HU counts and texture features."""
        similarity = ssim_maps(painted, real, tissue, self.window[1] - self.window[0])
        tissues = {}
        for value in tissue_values(self.labels):
            where = tissue == value
            if where.any():
                tissues[value] = {
                    "sums": voxel_sums(painted, real, where, similarity, windows),
                    "counts": [hu_counts(hu, self.window) for hu in (painted[:, where], real[where])],
                    "textures": self._textures(painted, real, where),
                }
        return {"samples": len(painted), "tissues": tissues}

    def _textures(self, painted: np.ndarray, real: np.ndarray, where: np.ndarray) -> list[np.ndarray]:
        """Return the features of at most TILES_PER_CASE tiles, painted and real, at the same places."""
        cut = [[], []]
        for z in np.flatnonzero(where.any((0, 1))):
            for tiles, volume in zip(cut, (painted[z % len(painted)], real)):
                tiles.append(cut_tiles(volume[..., z], where[..., z], self.tile))
        textures = []
        for tiles in cut:
            values, inside = (self._thin(np.concatenate(arrays), TILES_PER_CASE) for arrays in zip(*tiles))
            textures.append(tile_features(values, inside, self.window))
        return textures

    def _thin(self, rows: np.ndarray, most: int) -> np.ndarray:
        """Return at most so many rows; of two arrays of one length the same ones."""
        if len(rows) <= most:
            return rows
        return rows[np.sort(np.random.default_rng(self.seed).choice(len(rows), most, replace=False))]

    def _gathered(self) -> list[dict]:
        """Return the cases of all processes, in the order in which a distributed sampler dealt them out."""
        if idist.get_world_size() == 1:
            return self.cases
        dealt = zip_longest(*idist.all_gather(self.cases))
        return [case for case in chain.from_iterable(dealt) if case is not None]

    def compute(self) -> dict[str, dict[str, float]]:
        """Return tissue name to measure to value; tissues that do not occur are absent."""
        return self._summarise(self._gathered())

    def _summarise(self, cases: list[dict]) -> dict[str, dict[str, float]]:
        """Return what :meth:`compute` returns."""
        measures = {}
        for name, value in sorted(self.labels.items(), key=lambda item: item[1]):
            having = [case["tissues"][value] for case in cases if value in case["tissues"]]
            halves = [having[0::2], having[1::2]]
            if any(halves):
                measures[name] = self._tissue_measures(halves)
        return measures

    def _tissue_measures(self, halves: list[list[dict]]) -> dict[str, float]:
        """Return the measures of one tissue from what the cases of either half added."""
        every = halves[0] + halves[1]
        sums = {key: sum(case["sums"][key] for case in every) for key in every[0]["sums"]}
        counts = np.zeros((2, 2, self.window[1] - self.window[0]))  # half, painted or real, HU
        tiles = []  # per half: painted, real
        for half, count in zip(halves, counts):
            count += sum((np.stack(case["counts"]) for case in half), start=np.zeros_like(count))
            textures = zip(*(case["textures"] for case in half)) if half else [[np.zeros((0, len(FEATURES)))]] * 2
            tiles.append([np.concatenate(features) for features in textures])
        thin = [[self._thin(features, TILES_IN_PAIRS) for features in half] for half in tiles]
        told_apart = {"auc": crossed_auc(thin), "auc_floor": 0.5}
        size = {"cases": len(every), "voxels": int(counts[:, 1].sum()), "tiles": sum(len(real) for _, real in tiles)}
        hu_range = self.window[1] - self.window[0]
        texture = self._texture_measures(tiles) | told_apart
        return size | texture | self._hu_measures(counts) | voxel_measures(sums, hu_range)

    def _hu_measures(self, counts: np.ndarray) -> dict[str, float]:
        """Return the measures of HU from counts of shape (2 halves, painted and real, bins)."""
        painted, real = counts.sum(0)
        crossed = [self._distance(counts[half, 0], counts[1 - half, 1]) for half in (0, 1)]
        measures = {"hu_wasserstein": float(np.mean(crossed))}
        measures["hu_wasserstein_floor"] = self._distance(counts[0, 1], counts[1, 1])
        for name, hist in (("painted", painted), ("real", real)):
            hu = quantiles(hist, tuple(q / 100 for q in QUANTILES), self.window)
            measures |= {f"hu_q{q:02d}_{name}": at for q, at in zip(QUANTILES, hu)}
            measures[f"laa950_{name}"] = float(hist[: LOW_ATTENUATION_HU - self.window[0]].sum() / hist.sum())
        return measures

    def _distance(self, first: np.ndarray, second: np.ndarray) -> float:
        """Return the Wasserstein-1 distance of two histograms in HU, NaN if one is empty."""
        return float(wasserstein_1(torch.from_numpy(first), torch.from_numpy(second), bin_width=1))

    def _texture_measures(self, tiles: list[list[np.ndarray]]) -> dict[str, float]:
        """Return the measures of texture from the painted and the real tiles of both halves."""
        reference = np.concatenate([real for _, real in tiles])
        thinned = [[self._thin(features, TILES_IN_PAIRS) for features in half] for half in tiles]

        def averaged(kind: int, sets: list, measure: Callable):
            """Return the mean over both ways of setting one half's ``kind`` against the other half's real tissue."""
            return np.mean([measure(sets[1 - i][1], sets[i][kind], reference) for i in (0, 1)], axis=0)

        def paired(real: np.ndarray, other: np.ndarray, reference: np.ndarray) -> list[float]:
            return [mmd(real, other, reference), *prdc(real, other, reference).values()]

        measures = {}
        for kind, distance, suffix in ((0, "texture_distance", ""), (1, "texture_floor", "_floor")):
            measures[distance] = float(averaged(kind, tiles, frechet_distance))
            names = ("mmd", "precision", "recall", "density", "coverage")
            measures |= {name + suffix: float(v) for name, v in zip(names, averaged(kind, thinned, paired))}
        return measures

    def completed(self, engine: Engine, name: str) -> None:
        """Store the headlines in the engine's metrics, and write the files."""
        cases = self._gathered()
        measures = self._summarise(cases)
        for tissue, values in measures.items():
            for key in HEADLINES:
                if not math.isnan(values[key]):
                    engine.state.metrics[f"{name}_{key}_{tissue}"] = values[key]
        if self.output_dir is not None:
            crops = Crops(self.labels)
            for kept in idist.all_gather(self.crops.kept) if idist.get_world_size() > 1 else [self.crops.kept]:
                crops.merge(kept)
            if idist.get_rank() == 0:
                write_quality(Path(self.output_dir), measures, [case["samples"] for case in cases], crops)


def write_quality(folder: Path, measures: Mapping[str, Mapping[str, float]], samples: list[int], crops: Crops) -> None:
    """Write ``quality.csv``, ``quality.json`` and, where anything was painted, ``quality.png``.

    Args:
        folder: Folder to write to; it is made if it does not exist.
        measures: Values by tissue and measure, the same measures for each tissue.
        samples: Number of samples painted per case.
        crops: Crops for the picture.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def write_csv(path: Path) -> None:
        columns = next(iter(measures.values()), {})
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["tissue", *columns])
            writer.writeheader()
            for tissue, values in measures.items():
                writer.writerow({"tissue": tissue} | {key: f"{value:.6g}" for key, value in values.items()})

    def write_json(path: Path) -> None:
        finite = {
            tissue: {key: value if math.isfinite(value) else None for key, value in values.items()}
            for tissue, values in measures.items()
        }
        report = {"cases": len(samples), "samples": sum(samples), "features": FEATURES, "tissues": finite}
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")

    writers = {"quality.csv": write_csv, "quality.json": write_json}
    if crops.named():
        writers["quality.png"] = lambda path: draw_grid(crops.named(), path)
    for name, write in writers.items():
        temporary = folder / f".{name}.{os.getpid()}"
        write(temporary)
        os.replace(temporary, folder / name)

"""Whether painted tissue is a copy: the nearest kept tile, at any place and mirrored, and how near it is.

Legend of shapes: W, H and D voxels; N kept tiles, each of SAMPLES smoothed samples; Q tiles asked, each in V variants,
moved by up to half of STRIDE and mirrored left to right, as training mirrors.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage

HU_WINDOW = (-1024, 300)  # beyond it is bone and metal, which would outshine the lung
GRID = 8  # samples along the edge of a tile
SAMPLES = GRID * GRID
CORE = 16  # voxels along the edge of the square that tissue must fill
FILLED = 0.5  # the share of it
STRIDE = 4  # voxels between kept tiles
MOVES = np.argwhere(np.ones((STRIDE, STRIDE))) - STRIDE // 2
COARSE = np.tile((MOVES % 2 == 0).all(1), 2)  # of the variants, those that every kept tile is compared with
CANDIDATES = 16  # kept tiles per tile asked that are compared in all variants
TILES_ASKED = 24  # of one tissue of one case, spread evenly
SLICES_ASKED = 48  # among which they are looked for
TILES_KEPT = 200_000  # of one tissue of a training set, 26 MB
QUARTILE = 0.25  # of the tiles asked
FLAT_HU = 2.0  # a deviation below this is taken for this: flat tissue resembles nothing
CHUNK = 8192  # kept tiles compared at a time


@dataclass(frozen=True)
class Asked:
    """Tiles of one tissue of one case that can be looked for in a bank."""

    values: np.ndarray  # samples in HU, float32, shape (Q, V, SAMPLES)
    inside: np.ndarray | None  # which samples count, bool, the same shape; None where all do


@dataclass(frozen=True)
class Nearest:
    """How near the tissue of one case lies to kept tiles, so that a copy in a quarter of the tiles asked shows."""

    distance: float  # 1 - r to the nearest kept tile, QUARTILE over the tiles asked; NaN if there are none
    where: str  # case and slice in which most of that quarter's nearest tiles lie, such as ``case007 slice 12``


@dataclass
class TileBank:
    """Smoothed tiles of one tissue of many cases."""

    edge: int  # of a tile in in-plane voxels, a multiple of GRID
    whole: bool = False  # compare whole tiles; else only the voxels inside the tissue asked about
    most: int = TILES_KEPT  # tiles of one case, roughly; of a larger lesion every second, third, ... slice is kept
    tiles: list[np.ndarray] = field(default_factory=list)  # per case, float16, shape (N, SAMPLES), HU less their mean
    slices: list[np.ndarray] = field(default_factory=list)
    cases: list[str] = field(default_factory=list)
    owners: list[str] = field(default_factory=list)

    def add(self, case: str, owner: str, hu: np.ndarray, where: np.ndarray) -> None:
        """Keep the tiles of a tissue, bool, in a patient's (``owner``) CT in HU, both of shape (W, H, D)."""
        box = box_of(where, 2 * self.edge)  # what the tiles reach
        hu, where = hu[box], where[box]
        occupied = np.flatnonzero(where.any((0, 1)))
        expected = np.count_nonzero(where) / STRIDE**2
        tiles, slices = [np.zeros((0, SAMPLES), np.float16)], [np.zeros(0, np.int32)]
        for z in spread(occupied, max(1, int(len(occupied) * self.most / max(expected, 1)))):
            values, _ = self._cut(hu[..., z], where[..., z], dense_corners(where[..., z], self.edge))
            tiles.append((values - values.mean(1, keepdims=True)).astype(np.float16))
            slices.append(np.full(len(values), z, np.int32))
        self.tiles.append(np.concatenate(tiles))
        self.slices.append(np.concatenate(slices))
        self.cases.append(case)
        self.owners.append(owner)

    def extend(self, other: "TileBank") -> None:
        """Keep what another bank of the same kind keeps."""
        for mine, its in zip(*([bank.tiles, bank.slices, bank.cases, bank.owners] for bank in (self, other))):
            mine += its

    def _cut(self, hu: np.ndarray, where: np.ndarray, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the samples of the tiles with the given corners in one slice, and which lie in the tissue."""
        step = self.edge // GRID
        hu = np.clip(hu, *HU_WINDOW).astype(np.float32)
        smooth = ndimage.gaussian_filter(hu, step / 2)
        if not self.whole:  # smooth the tissue by itself: what surrounds it differs between a copy and its original
            weight = ndimage.gaussian_filter(where.astype(np.float32), step / 2)
            inner = ndimage.gaussian_filter(np.where(where, hu, 0), step / 2) / np.maximum(weight, 1e-6)
            smooth = np.where(where, inner, smooth)
        cuts = []
        for array in (np.pad(smooth, self.edge, mode="edge"), np.pad(where, self.edge)):
            windows = sliding_window_view(array, (self.edge, self.edge))[..., step // 2 :: step, step // 2 :: step]
            x, y = (corners + self.edge).T
            cuts.append(windows[x, y].reshape(len(corners), SAMPLES))
        return cuts[0], cuts[1]

    def ask(self, hu: np.ndarray, where: np.ndarray) -> Asked:
        """Return tiles of a tissue, bool, in a CT in HU, both of shape (W, H, D), to look for in a bank."""
        box = box_of(where, 2 * self.edge)  # what the tiles reach
        hu, where = hu[box], where[box]
        corners = np.zeros((0, 3), int)
        for z in spread(np.flatnonzero(where.any((0, 1))), SLICES_ASKED):
            found = tile_corners(where[..., z], self.edge)
            corners = np.concatenate([corners, np.column_stack([np.full(len(found), z), found])])
        corners = spread(corners, TILES_ASKED)
        shape = (-1, 2 * len(MOVES), SAMPLES)
        values, inside = [np.zeros((0, SAMPLES), np.float32)], [np.zeros((0, SAMPLES), bool)]
        for z in np.unique(corners[:, 0]):
            moved = (corners[corners[:, 0] == z, 1:][:, None] + MOVES).reshape(-1, 2)
            moved = moved.clip(-self.edge, where.shape[:2])
            for cut, parts in zip(self._cut(hu[..., z], where[..., z], moved), (values, inside)):
                cut = cut.reshape(-1, len(MOVES), GRID, GRID)
                parts.append(np.concatenate([cut, cut[:, :, ::-1]], axis=1).reshape(-1, SAMPLES))
        return Asked(
            np.concatenate(values).reshape(shape), None if self.whole else np.concatenate(inside).reshape(shape)
        )

    def nearest(self, asked: Asked, leave_out: str | None = None) -> Nearest:
        """Return how near tiles lie to the kept ones, those of the owner ``leave_out`` not counted.

        A tile is compared by Pearson's correlation r over its samples inside the tissue, at every place to the voxel
        and mirrored. So neither a shift nor another density or contrast hides a copy; a turn or a scaling does.
        """
        chosen = [index for index, owner in enumerate(self.owners) if owner != leave_out and len(self.tiles[index])]
        if not len(asked.values) or not chosen:
            return Nearest(float("nan"), "")
        tiles = torch.from_numpy(np.concatenate([self.tiles[index] for index in chosen]))
        similarity, at = best_matches(asked, tiles)
        distance = np.quantile(1 - similarity, QUARTILE)
        starts = np.cumsum([0, *(len(self.tiles[index]) for index in chosen)])
        places = []
        for tile in at[1 - similarity <= distance]:
            place = int(np.searchsorted(starts, tile, side="right")) - 1
            index = chosen[place]
            places.append(f"{self.cases[index]} slice {self.slices[index][tile - starts[place]]}")
        return Nearest(max(float(distance), 0.0), max(sorted(set(places)), key=places.count))


def best_matches(asked: Asked, tiles: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the correlation of each tile asked with its nearest tile, and the index of that one, both shape (Q,).

    ``tiles`` are kept samples, shape (N, SAMPLES), each with mean 0.
    """
    values = torch.from_numpy(asked.values)
    inside = None if asked.inside is None else torch.from_numpy(asked.inside).float()
    queries, coarse = len(values), int(COARSE.sum())
    best, at = torch.full((queries, 0), -1.0), torch.zeros((queries, 0), dtype=torch.long)
    few = [None if part is None else part[:, COARSE].flatten(0, 1) for part in (values, inside)]
    for first in range(0, len(tiles), CHUNK):
        found = correlate(*few, tiles[first : first + CHUNK].float()).view(queries, coarse, -1).amax(1)
        found, where = found.topk(min(CANDIDATES, found.shape[1]))
        best, at = torch.cat([best, found], 1), torch.cat([at, where + first], 1)
        best, kept = best.topk(min(CANDIDATES, best.shape[1]))
        at = at.gather(1, kept)
    similarity = torch.empty(queries)
    for query in range(queries):
        every = correlate(values[query], None if inside is None else inside[query], tiles[at[query]].float()).amax(0)
        similarity[query], kept = every.max(0)
        at[query, 0] = at[query, kept]
    return similarity.numpy(), at[:, 0].numpy()


def correlate(values: torch.Tensor, inside: torch.Tensor | None, tiles: torch.Tensor) -> torch.Tensor:
    """Return Pearson's correlation of each query with each tile over the query's samples inside, shape (Q, N).

    ``values`` and ``inside`` (1 where a sample counts, else 0; None where all count) have shape (Q, SAMPLES), ``tiles``
    (N, SAMPLES), each with mean 0.
    """
    count = values.shape[1] if inside is None else inside.sum(1, keepdim=True).clamp(min=1)
    if inside is None:
        centred = values - values.mean(1, keepdim=True)
        variance = (tiles * tiles).mean(1)[None]
    else:
        centred = (values - (values * inside).sum(1, keepdim=True) / count) * inside
        variance = (inside @ (tiles * tiles).T / count).sub_((inside @ tiles.T / count).square_())
    own = (centred * centred).sum(1, keepdim=True) / count
    scale = own.clamp(min=FLAT_HU**2).rsqrt() / count
    return ((centred * scale) @ tiles.T).mul_(variance.clamp(min=FLAT_HU**2).rsqrt())


def dense_corners(where: np.ndarray, edge: int) -> np.ndarray:
    """Return the corners, STRIDE voxels apart, of tiles whose middle tissue fills well enough, shape (N, 2)."""
    share = ndimage.uniform_filter(np.pad(where, CORE).astype(np.float32), CORE, mode="constant")
    middles = np.argwhere(share[::STRIDE, ::STRIDE] >= 0.8 * FILLED) * STRIDE - CORE
    return middles - edge // 2


def tile_corners(where: np.ndarray, edge: int) -> np.ndarray:
    """Return the corners of tiles whose middles are disjoint and well filled by one piece of tissue, shape (N, 2)."""
    corners = []
    pieces, _ = ndimage.label(where)
    for piece, box in enumerate(ndimage.find_objects(pieces), start=1):
        starts = []
        for side in box:
            count = max(1, round((side.stop - side.start) / CORE))
            first = (side.start + side.stop - count * CORE) // 2
            starts.append(range(first, first + count * CORE, CORE))
        for i in starts[0]:
            for j in starts[1]:
                part = pieces[max(i, 0) : max(i + CORE, 0), max(j, 0) : max(j + CORE, 0)] == piece
                if part.sum() >= FILLED * CORE**2:
                    corners.append((i + (CORE - edge) // 2, j + (CORE - edge) // 2))
    return np.array(corners, int).reshape(-1, 2)


def box_of(where: np.ndarray, margin: int) -> tuple[slice, slice, slice]:
    """Return the box of all slices that holds a tissue (bool, shape (W, H, D)) and a margin in-plane, in voxels."""
    box, flat = [], where.any(axis=2)
    for axis in (0, 1):
        occupied = np.flatnonzero(flat.any(axis=1 - axis))
        first, last = (occupied[0], occupied[-1]) if len(occupied) else (0, 0)
        box.append(slice(max(int(first) - margin, 0), min(int(last) + 1 + margin, where.shape[axis])))
    return (*box, slice(0, where.shape[2]))


def spread(rows: np.ndarray, most: int) -> np.ndarray:
    """Return at most so many rows, evenly spread."""
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).round().astype(int)]

"""Where the lungs are, by HU alone, and inference that looks nowhere else."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, combinations

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.inferers import Inferer, sliding_window_inference
from monai.transforms import MapTransform
from scipy import ndimage

AIR_HU = -500.0
MARGIN_MM = (10.0, 10.0, 40.0)  # the last above and below the air, for lung that holds none
STEP_MM = 3.0  # the test is made on every so many mm of an axial slice
NO_LUNG = "no lung was found, so the map is empty; find_lung: false labels the whole CT"
LEAST_CM2, SOME_CM2 = 8.0, 1.0  # air in the slice that holds most, and in the outermost ones that count


def find_lungs(hu: np.ndarray, voxel_mm: Sequence[float]) -> tuple[slice, slice, slice] | None:
    """Return the box that holds the lungs: the body, as far up and down as there is air inside it.

    Within a slice nothing of the body is left out, since consolidated lung cannot be told from it by HU.

    Args:
        hu: CT in HU, shape (W, H, D), the first two axes axial.
        voxel_mm: Size of a voxel, three numbers.

    Returns:
        Slices along the three axes, or None where no lung is found.

    Example:
        >>> ct = np.full((60, 60, 30), -1000.0)
        >>> ct[5:55, 10:50] = 40
        >>> ct[15:25, 20:40, 12:20] = -850
        >>> find_lungs(ct, (5.0, 5.0, 5.0))
        (slice(3, 57, None), slice(8, 52, None), slice(4, 28, None))
        >>> find_lungs(np.full((60, 60, 3), 40.0), (5.0, 5.0, 5.0)) is None
        True
    """
    steps = [max(1, round(STEP_MM / size)) for size in voxel_mm[:2]]
    air = hu[:: steps[0], :: steps[1]] < AIR_HU
    body, thick = (ndimage.binary_opening(~air, np.ones((side, side, 1), bool)) for side in (3, 7))
    for axis in (0, 1):  # air that has body to its left, right, front and back
        flipped = np.flip(np.logical_or.accumulate(np.flip(body, axis), axis), axis)
        air &= np.logical_or.accumulate(body, axis) & flipped
    air = ndimage.binary_opening(air, np.ones((3, 3, 1), bool))
    areas = air.sum((0, 1)) * math.prod(steps) * voxel_mm[0] * voxel_mm[1] / 100
    if areas.max(initial=0) < LEAST_CM2:
        return None
    inside = (thick | air)[..., areas >= SOME_CM2]  # the table is thin
    sides = [_extent(inside.any((1, 2))), _extent(inside.any((0, 2))), _extent(areas >= SOME_CM2)]
    box = []
    for (first, end), step, size_mm, margin_mm, size in zip(sides, (*steps, 1), voxel_mm, MARGIN_MM, hu.shape):
        margin = margin_mm / size_mm
        box.append(slice(max(0, math.floor(first * step - margin)), min(size, math.ceil(end * step + margin))))
    return tuple(box)


def find_islands(lung: np.ndarray, share: float) -> np.ndarray:
    """Return the connected pieces of a mask that are smaller than a share of all of it.

    Example:
        >>> find_islands(np.array([[[1, 1, 1, 1, 0, 1]]], bool), 0.3).astype(int)
        array([[[0, 0, 0, 0, 0, 1]]])
    """
    pieces, _ = ndimage.label(lung, np.ones((3, 3, 3), bool))
    sizes = np.bincount(pieces.ravel())
    small = sizes < share * sizes[1:].sum()
    small[0] = False
    return small[pieces]


def _extent(occupied: np.ndarray) -> tuple[int, int]:
    """Return the first occupied place, and the one after the last."""
    places = np.flatnonzero(occupied)
    return int(places[0]), int(places[-1]) + 1


class LungInferer(Inferer):
    """Sliding windows with Gaussian weights over the lungs alone; what lies outside is background.

    Windows shrink to the box of the lungs, so that small ones cost little. In two dimensions the classes of a few
    slices are held at a time, of blocks those of the box.

    Args:
        roi_size: Sides of a window, two for a network of axial slices, three for one of blocks.
        sw_batch_size: Windows per forward pass.
        overlap: Overlap of neighbouring windows, from 0 to below 1.
        mirror: Whether to average the probabilities over all flips of a window's first two axes, at four times the
            cost.
        find_lung: Whether to look for the lungs first; False labels the whole CT, for CTs that show nothing round the
            lungs.
        hu_window: HU that are 0 and 1 in the input.
        multiple: Number of which a window's sides must be multiples.
        fit_windows: Whether to shrink windows to the box; False for networks that take one size only, as TensorRT's do.
        probabilities: Whether to return probabilities instead of labels.
        island_share: Pieces of lung smaller than this share of all lung found become background, where the lungs are
            looked for: blankets, bowel and the air round a patient. 0 keeps them.
        tissues: Whether to return, as a second channel, the likeliest label but background, for :class:`LungKnownd`.

    Raises:
        ValueError: If a setting is out of its range.
    """

    def __init__(
        self, roi_size: Sequence[int], sw_batch_size: int = 8, overlap: float = 0.25, mirror: bool = False,
        find_lung: bool = True, hu_window: Sequence[float] = (-1024, 300), multiple: int = 16,
        probabilities: bool = False, fit_windows: bool = True, tissues: bool = False, island_share: float = 0.01,
    ) -> None:  # fmt: skip
        self.roi_size = [int(side) for side in roi_size]
        if len(self.roi_size) not in (2, 3) or any(side < 1 or side % multiple for side in self.roi_size[:2]):
            raise ValueError(f"a window has two or three sides, the first two multiples of {multiple}, not {roi_size}")
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap must be from 0 to below 1, not {overlap}")
        if not 0 <= island_share < 1:
            raise ValueError(f"island_share must be from 0 to below 1, not {island_share}")
        if sw_batch_size < 1:
            raise ValueError(f"sw_batch_size must be at least 1, not {sw_batch_size}")
        switches = {
            "mirror": mirror,
            "find_lung": find_lung,
            "probabilities": probabilities,
            "fit_windows": fit_windows,
            "tissues": tissues,
        }
        for name, switch in switches.items():
            if not isinstance(switch, bool):  # the command line makes text of "false"
                raise ValueError(f"{name} must be True or False, not {switch!r}")
        self.sw_batch_size, self.overlap, self.mirror, self.find_lung = sw_batch_size, overlap, mirror, find_lung
        self.hu_window, self.multiple, self.probabilities = hu_window, multiple, probabilities
        self.fit_windows, self.island_share = fit_windows, island_share
        self.tissues = tissues
        if probabilities and tissues:
            raise ValueError("tissues adds a channel to labels; probabilities has one per label already")

    def __call__(self, inputs: torch.Tensor, network: Callable, *args, **kwargs) -> torch.Tensor:  # noqa: D417
        """Label CTs.

        Args:
            inputs: CTs scaled to 0..1, shape (N, 1, W, H, D); a MetaTensor tells the voxel size, else it is 1 mm.
            network: Network that returns logits, shape (N, classes, ...).

        Returns:
            Labels as uint8, shape (N, 1, W, H, D), or (N, 2, W, H, D) with ``tissues``; or probabilities, shape (N,
            classes, W, H, D).
        """
        if inputs.ndim != 5 or inputs.shape[1] != 1:
            raise ValueError(f"the input must have the shape (N, 1, W, H, D), not {tuple(inputs.shape)}")
        if not isinstance(inputs, MetaTensor):
            return torch.cat([self._one(volume[None], [1.0] * 3, "", network, *args, **kwargs) for volume in inputs])
        affines = inputs.affine.reshape(-1, 4, 4).expand(len(inputs), 4, 4)
        sizes = [affine_to_spacing(affine).tolist() for affine in affines]
        names = inputs.meta.get("filename_or_obj", "")
        names = [f"{name}: " if name else "" for name in (names if isinstance(names, list) else [names] * len(inputs))]
        parts = zip(inputs.as_tensor(), sizes, names, strict=True)
        answers = [self._one(volume[None], *known, network, *args, **kwargs) for volume, *known in parts]
        return MetaTensor(torch.cat(answers), meta=inputs.meta)

    def _one(self, volume: torch.Tensor, voxel_mm: list[float], name: str, network, *args, **kwargs) -> torch.Tensor:
        box = tuple(slice(0, side) for side in volume.shape[2:])
        if self.find_lung:
            low, high = self.hu_window
            box = find_lungs((volume[0, 0] * (high - low) + low).cpu().numpy(), voxel_mm)
            if box is None:
                warnings.warn(name + NO_LUNG, stacklevel=3)
                box = (slice(0, 0),) * 3
        cut = volume[(slice(None), slice(None), *box)]
        whole = [math.ceil(size / self.multiple) * self.multiple for size in cut.shape[2:]]
        sides = [min(pair) if self.fit_windows else pair[0] for pair in zip(self.roi_size, whole)]
        settings = {"roi_size": sides, "sw_batch_size": self.sw_batch_size, "overlap": self.overlap, "mode": "gaussian"}
        settings["predictor"] = lambda window: self._probabilities(window, network, *args, **kwargs)
        answer = None
        for part in self._parts(cut):
            if len(sides) == 2:  # slices are a batch
                found = sliding_window_inference(cut[0, :, :, :, part].movedim(-1, 0), **settings).movedim(0, -1)[None]
            else:
                found = sliding_window_inference(cut, **settings)
            if answer is None:
                answer = self._background(volume, found.shape[1])
            place = (slice(None), slice(None), *box[:2], slice(box[2].start + part.start, box[2].start + part.stop))
            answer[place] = self._answer(found)
        if self.find_lung and self.island_share and not self.probabilities and answer is not None:
            inside = answer[(0, 0, *box)]
            inside[torch.from_numpy(find_islands(inside.cpu().numpy() > 0, self.island_share)).to(inside.device)] = 0
        if answer is None:  # nothing to look at: as many classes as the network has
            classes = network(volume.new_zeros(1, 1, *self.roi_size), *args, **kwargs).shape[1]
            answer = self._background(volume, classes)
        return answer

    def _answer(self, found: torch.Tensor) -> torch.Tensor:
        """Return what is wanted of probabilities, shape (N, classes, W, H, D)."""
        if self.probabilities:
            return found
        labels = found.max(1, keepdim=True).indices  # argmax is slower
        return torch.cat([labels, found[:, 1:].max(1, keepdim=True).indices + 1], 1) if self.tissues else labels

    def _parts(self, cut: torch.Tensor) -> list[slice]:
        """Return which slices are labelled together: some in two dimensions, all in three."""
        if not cut.numel():
            return []
        depth = cut.shape[-1]
        many = self.sw_batch_size if len(self.roi_size) == 2 else depth
        return [slice(start, min(start + many, depth)) for start in range(0, depth, many)]

    def _background(self, volume: torch.Tensor, classes: int) -> torch.Tensor:
        shape = volume.shape[2:]
        if not self.probabilities:
            return torch.zeros((1, 1 + self.tissues, *shape), dtype=torch.uint8, device=volume.device)
        answer = torch.zeros((1, classes, *shape), dtype=volume.dtype, device=volume.device)
        answer[:, 0] = 1
        return answer

    def _probabilities(self, window: torch.Tensor, network: Callable, *args, **kwargs) -> torch.Tensor:
        axes = (2, 3) if self.mirror else ()
        flips = list(chain.from_iterable(combinations(axes, count) for count in range(len(axes) + 1)))
        found = [network(window.flip(flip), *args, **kwargs).float().softmax(1).flip(flip) for flip in flips]
        return sum(found) / len(found)


class LungKnownd(MapTransform):
    """Part the two channels of a :class:`LungInferer` with ``tissues``: the answer, and the answer with the lung known.

    The latter, ``lung_known``, has at each voxel of the reference lung the likeliest tissue, and background elsewhere.
    Where it scores well and the answer does not, the error is the lung's border, not its tissue.

    Args:
        keys: Key of the answer, shape (2, W, H, D); it keeps the first channel.
        label_key: Key of the reference map, shape (1, W, H, D), 0 outside the lung.
    """

    def __init__(self, keys: KeysCollection, label_key: str = "label") -> None:
        super().__init__(keys)
        self.label_key = label_key

    def __call__(self, data: Mapping) -> dict:
        """Return the sample with ``lung_known``."""
        sample = dict(data)
        for key in self.keys:
            answer, inside = sample[key], sample[self.label_key] > 0
            sample[key], tissue = answer[:1], answer[1:]
            sample["lung_known"] = tissue * inside.to(device=tissue.device, dtype=tissue.dtype)
        return sample

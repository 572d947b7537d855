"""Pictures of painted beside real tissue: the crops, the file, and the images in TensorBoard."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ignite.engine import Engine, Events
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from monai.handlers import from_engine
from scipy import ndimage
from torch.utils.tensorboard import SummaryWriter

from .tissue_channels import plain, tissue_values

LUNG_WINDOW = (-1350, 150)  # HU shown as black and as white
GAP = 3  # white voxels between real and painted
PRED_AND_LABEL = from_engine(["pred", "label"])


@dataclass(frozen=True)
class Crop:
    """One place in one slice, real and painted.

    Args:
        real: Real HU, shape (size, size), in the axes of the volume.
        painted: Painted HU, the same shape.
        region: Where the tissue lies, bool, the same shape.
        voxels: Number of the tissue's voxels in the slice.
        rank: Rank of the slice in its case: 0 where most of the tissue is, 1 for the next one, and so on.
    """

    real: np.ndarray
    painted: np.ndarray
    region: np.ndarray
    voxels: int
    rank: int

    def side_by_side(self) -> np.ndarray:
        """Return real and painted in the lung window, 0 to 1, as rows from front to back, the patient's right left."""
        low, high = LUNG_WINDOW
        scaled = [_as_seen(np.clip((hu - low) / (high - low), 0, 1)) for hu in (self.real, self.painted)]
        return np.hstack([scaled[0], np.ones((len(scaled[0]), GAP)), scaled[1]])

    def outline(self) -> np.ndarray:
        """Return the region where it lies in the real half of :meth:`side_by_side`, bool."""
        return _as_seen(self.region)


def _as_seen(image: np.ndarray) -> np.ndarray:
    """Turn an image with RAS axes into the rows and columns that radiologists look at."""
    return image.T[::-1, ::-1]


class Crops:
    """Collects, per tissue, crops round its largest regions, of different cases where there are enough.

    Args:
        labels: Label values by tissue name.
        number: Number of crops kept per tissue.
        size: Edge of a crop, voxels.
    """

    def __init__(self, labels: Mapping[str, int], number: int = 4, size: int = 64) -> None:
        self.labels, self.number, self.size = labels, number, size
        self.kept: dict[int, list[Crop]] = {value: [] for value in tissue_values(labels)}

    def add(self, painted: np.ndarray, real: np.ndarray, tissue: np.ndarray) -> None:
        """Add one case.

        Args:
            painted: Painted CT in HU, shape (W, H, D).
            real: Real CT in HU, the same shape.
            tissue: Tissue of each painted voxel, 0 where nothing was painted, the same shape.
        """
        for value in self.kept:
            voxels = (tissue == value).sum((0, 1))
            best = np.argsort(-voxels, kind="stable")[: self.number]
            crops = []
            for rank, z in enumerate(best[voxels[best] > 0]):
                region = tissue[..., z] == value
                window = self._window(region)
                real_cut, painted_cut = (
                    _take(volume[..., z], window, self.size, LUNG_WINDOW[0]) for volume in (real, painted)
                )
                region_cut = _take(region, window, self.size, False)
                crops.append(Crop(real_cut, painted_cut, region_cut, voxels=int(voxels[z]), rank=rank))
            self.merge({value: crops})

    def merge(self, others: Mapping[int, list[Crop]]) -> None:
        """Add what another collection has kept."""
        for value, crops in others.items():
            ordered = sorted(self.kept[value] + crops, key=lambda crop: (crop.rank, -crop.voxels))
            self.kept[value] = ordered[: self.number]

    def named(self) -> dict[str, list[Crop]]:
        """Return the tissues that occur, by name, in the order of their values."""
        names = {value: name for name, value in self.labels.items()}
        return {names[value]: crops for value, crops in self.kept.items() if crops}

    def _window(self, mask: np.ndarray) -> list[slice]:
        """Return the window round the largest piece of a mask, moved inside the slice where that is large enough."""
        pieces, _ = ndimage.label(mask)
        largest = np.bincount(pieces.ravel())[1:].argmax()
        window = []
        for box, length in zip(ndimage.find_objects(pieces)[largest], mask.shape):
            start = max(0, min((box.start + box.stop - self.size) // 2, length - self.size))
            window.append(slice(start, start + self.size))
        return window


def _take(image: np.ndarray, window: list[slice], size: int, beyond: float) -> np.ndarray:
    """Return a copy of the window of an image, filled up where it reaches beyond."""
    cut = image[tuple(window)]
    return np.pad(cut, [(0, size - length) for length in cut.shape], constant_values=beyond)


def draw_grid(crops: Mapping[str, list[Crop]], path: Path) -> None:
    """Write a PNG with a row per tissue and pairs of real (the tissue outlined) and painted beside each other.

    Args:
        crops: Crops by tissue name, at least one each.
        path: File of the PNG.

    Raises:
        ValueError: If there is no crop at all.
    """
    if not crops:
        raise ValueError("there is no crop to draw: no case held painted tissue")
    columns = max(len(row) for row in crops.values())
    figure = Figure(figsize=(0.4 + 2.7 * columns, 0.3 + 1.35 * len(crops)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, row) in zip(figure.subplots(len(crops), columns, squeeze=False), crops.items()):
        axes[0].set_ylabel(name.replace("_", " "))
        for axis, crop in zip(axes, row):
            axis.imshow(crop.side_by_side(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.contour(crop.outline(), levels=[0.5], colors="tab:orange", linewidths=0.6)
        for axis in axes:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    for axis in figure.axes[:columns]:
        axis.set_title("real", loc="left", fontsize="medium")
        axis.set_title("painted", loc="right", fontsize="medium")
    figure.savefig(path, format="png", dpi=150)


class TissueGrid:
    """Adds a picture ``tissue/<name>`` per tissue to TensorBoard after each evaluation: pairs of real and painted.

    Args:
        labels: Label values by tissue name.
        log_dir: Folder of TensorBoard.
        step: Function that returns the number the pictures stand at; None for the evaluator's epoch, which
            ValidationHandler makes the trainer's.
        output_transform: As for :class:`~scripts.hu_distance.HuWasserstein`; of several samples the first is shown.
    """

    def __init__(
        self,
        labels: Mapping[str, int],
        log_dir: str,
        step: Callable[[], int] | None = None,
        output_transform: Callable = PRED_AND_LABEL,
    ) -> None:
        self.labels, self.log_dir, self.step, self.output_transform = labels, log_dir, step, output_transform
        self.crops = Crops(labels)
        self.writer: SummaryWriter | None = None

    def attach(self, engine: Engine) -> None:
        """Collect while the engine runs, write when it has completed."""
        engine.add_event_handler(Events.STARTED, self.reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def reset(self) -> None:
        """Forget all crops."""
        self.crops = Crops(self.labels)

    def collect(self, engine: Engine) -> None:
        """Add the cases of one iteration."""
        for painted, reference in zip(*self.output_transform(engine.state.output), strict=True):
            volumes = (plain(volume).cpu().numpy() for volume in (painted[0], reference[0], reference[1]))
            self.crops.add(*volumes)

    def write(self, engine: Engine) -> None:
        """Write one picture per tissue that occurred."""
        self.writer = self.writer or SummaryWriter(self.log_dir)
        step = engine.state.epoch if self.step is None else self.step()
        for name, crops in self.crops.named().items():
            rows = [np.pad(crop.side_by_side(), ((0, GAP), (0, 0)), constant_values=1) for crop in crops]
            picture = np.rint(255 * np.vstack(rows)).astype(np.uint8)
            self.writer.add_image(f"tissue/{name}", picture, step, dataformats="HW")
        self.writer.flush()

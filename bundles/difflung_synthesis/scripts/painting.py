"""Mask-aware generation: paint the region where a target tissue map differs from a CT's own, and nothing else."""

from collections.abc import Iterator, Mapping

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import compute_importance_map
from monai.engines import PrepareBatch
from monai.inferers import Inferer
from monai.transforms import MapTransform

from .condition import condition_channels
from .flow import euler, plain

AIR = -1.0  # intensity below the HU window, what lies beyond the edge of an image


class PaintRegiond(MapTransform):
    """Add the region to paint: where the target map differs from the CT's own, or where the CT holds given tissues.

    Args:
        keys: the target map, shape (1, W, H, D).
        label_key: the CT's own tissue map, the same shape.
        region_key: where the region goes, uint8 zeros and ones.
        labels: tissue name to value.
        image_key: the CT, whose shape and affine both maps must have.
        repaint: tissue names; where the target holds one of them is painted too, changed or not.

    Raises:
        ValueError: if shapes or affines differ, a map holds a value without a name, the target asks for tissue
            outside the lung or for background inside it, or there is nothing to paint.
    """

    def __init__(
        self,
        keys: KeysCollection,
        labels: Mapping[str, int],
        image_key: str = "image",
        label_key: str = "label",
        region_key: str = "region",
        repaint: tuple[str, ...] = (),
    ) -> None:
        super().__init__(keys)
        unknown = set(repaint) - set(labels)
        if unknown:
            raise ValueError(f"repaint names {sorted(unknown)}, but labels name only {', '.join(labels)}")
        self.labels, self.image_key, self.label_key, self.region_key = labels, image_key, label_key, region_key
        self.repaint = [labels[name] for name in repaint]

    def check_geometry(self, tissue_map: torch.Tensor, whose: str, image: torch.Tensor) -> None:
        """Raise ValueError if a map has another shape or another affine (by more than 0.01 mm) than its CT."""
        of_image = file_name(image, self.image_key)
        if tissue_map.shape != image.shape:
            raise ValueError(f"{whose} has shape {tuple(tissue_map.shape)}, but {of_image} has {tuple(image.shape)}")
        if isinstance(image, MetaTensor) and not torch.allclose(tissue_map.affine, image.affine, rtol=0, atol=0.01):
            raise ValueError(f"{whose} has another affine than {of_image}; resample it to the CT's voxels")

    def __call__(self, data: Mapping) -> dict:
        """Return the sample with the region added."""
        sample = dict(data)
        for key in self.key_iterator(sample):
            target, label = sample[key], sample[self.label_key]
            name, label_name = file_name(target, key), file_name(label, self.label_key)
            for tissue_map, whose in ((label, label_name), (target, name)):
                self.check_geometry(tissue_map, whose, sample[self.image_key])
                for value in plain(tissue_map).unique().tolist():
                    if value not in self.labels.values():
                        raise ValueError(f"{whose} holds label {value:g}, but labels name only {self.labels}")
            outside = int(((target != 0) & (label == 0)).sum())
            if outside:
                raise ValueError(f"{name} asks for tissue in {outside} voxels that are background in the CT's own map")
            cleared = int(((target == 0) & (label != 0)).sum())
            if cleared:
                raise ValueError(
                    f"{name} is background in {cleared} voxels of lung; tissue can be changed, not removed"
                )
            region = target != label
            if self.repaint:
                region |= torch.isin(plain(target), torch.as_tensor(self.repaint))
            if not region.any():
                raise ValueError(f"{name} equals the CT's own map, so there is nothing to paint")
            sample[self.region_key] = target.clone()
            sample[self.region_key].copy_(region)
        return sample


def file_name(image: torch.Tensor, otherwise: str) -> str:
    """Return the file an image was loaded from, for messages."""
    return str(getattr(image, "meta", {}).get("filename_or_obj", otherwise))


class PaintPrepareBatch(PrepareBatch):
    """Hand a volume, its target map and region to :class:`PaintInferer`.

    Args:
        label_key: what the engine's metrics see as ``label``.
    """

    def __init__(self, label_key: str = "target") -> None:
        self.label_key = label_key

    def __call__(self, batchdata, device=None, non_blocking: bool = False, **kwargs):
        """Return (image, label, (), inferer arguments); ``seed`` is the item's own, or 0.

        The image keeps its metadata, by which Invertd finds the way back to the file's geometry.
        """
        image = batchdata["image"].to(device, non_blocking=non_blocking)
        target, region = (plain(batchdata[key]).to(device, non_blocking=non_blocking) for key in ("target", "region"))
        seeds = [int(seed) for seed in batchdata.get("seed", [0] * len(image))]
        return image, plain(batchdata[self.label_key]), (), {"target": target, "region": region, "seeds": seeds}


class PaintInferer(Inferer):
    """Sample the flow inside the region of a volume, axial slice by axial slice, without seams.

    At every step the velocity is averaged over overlapping windows, with Gaussian weights, so a region larger than a
    window is one sample and not a mosaic. Only windows that touch the region are evaluated.

    Args:
        labels: tissue name to value.
        patch_size: edge of a window in voxels, the size the network was trained at.
        num_steps: network evaluations per window.
        overlap: share of a window that it has in common with its neighbour, at least 0 and below 1.
        sw_batch_size: windows per call of the network.
        slices_per_pass: slices in work at a time, which bounds memory.

    Raises:
        ValueError: if ``overlap`` is out of range.
    """

    def __init__(
        self,
        labels: Mapping[str, int],
        patch_size: int = 64,
        num_steps: int = 10,
        overlap: float = 0.25,
        sw_batch_size: int = 16,
        slices_per_pass: int = 16,
    ) -> None:
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap must be at least 0 and below 1, not {overlap}")
        self.labels, self.patch_size, self.num_steps, self.overlap = labels, patch_size, num_steps, overlap
        self.sw_batch_size, self.slices_per_pass = sw_batch_size, slices_per_pass

    @torch.no_grad()
    def __call__(self, inputs, network, target, region, seeds):
        """Return the painted volumes.

        Args:
            inputs: CT scaled to [-1, 1], shape (B, 1, W, H, D).
            network: :class:`TissueDenoiser`.
            target: tissue maps, shape (B, 1, W, H, D).
            region: M, shape (B, 1, W, H, D).
            seeds: one per volume; a volume's noise depends on its own seed only.

        Returns:
            Shape (B, 1, W, H, D), with the metadata of ``inputs``; outside the region equal to them.
        """
        painted = inputs.clone()  # Invertd passes over a prediction without metadata, silently
        for volume, own_target, own_region, seed in zip(plain(painted), target, region, seeds):
            generator = torch.Generator().manual_seed(seed)
            slices = own_region[0].flatten(0, 1).any(dim=0).nonzero().flatten()
            for chunk in slices.split(self.slices_per_pass):
                # (1, W, H, n) to (n, 1, W, H)
                x_0, m, tissues = (v[..., chunk].permute(3, 0, 1, 2) for v in (volume, own_region, own_target))
                volume[..., chunk] = self.paint_slices(x_0, m, tissues, network, generator).permute(1, 2, 3, 0)
        return painted

    def paint_slices(self, x_0, region, tissues, network, generator: torch.Generator) -> torch.Tensor:
        """Paint a stack of slices, each of shape (n, 1, W, H), and return it in the same shape."""
        width, height = x_0.shape[2:]
        noise = torch.stack([torch.randn(x.shape, generator=generator) for x in x_0]).to(x_0.device)
        pad = (0, max(0, self.patch_size - height), 0, max(0, self.patch_size - width))
        x_0, region, tissues, noise = (
            torch.nn.functional.pad(volume.float(), pad, value=fill)
            for volume, fill in ((x_0, AIR), (region, 0), (tissues, 0), (noise, 0))
        )
        known = torch.cat([region, condition_channels(tissues, self.labels)], dim=1)
        size = (self.patch_size, self.patch_size)
        weight = compute_importance_map(size, mode="gaussian", sigma_scale=0.25, device=x_0.device)
        windows = [(n, *corner) for n in range(len(region)) for corner in self.window_corners(region[n, 0])]
        total = torch.zeros_like(x_0)
        for n, i, j in windows:
            total[n, 0, i : i + self.patch_size, j : j + self.patch_size] += weight
        total.clamp_(min=1e-6)  # voxels that no window covers lie outside the region

        def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
            summed = torch.zeros_like(x)
            stacked = torch.cat([x, known], dim=1)
            for start in range(0, len(windows), self.sw_batch_size):
                batch = windows[start : start + self.sw_batch_size]
                crops = [stacked[n, :, i : i + self.patch_size, j : j + self.patch_size] for n, i, j in batch]
                times = torch.full((len(batch),), t, device=x.device)
                for (n, i, j), v in zip(batch, network(torch.stack(crops), times)):
                    summed[n, 0, i : i + self.patch_size, j : j + self.patch_size] += v[0] * weight
            return summed / total * region

        painted = euler(velocity, torch.where(region > 0, noise, x_0), self.num_steps)
        return torch.where(region > 0, painted, x_0)[..., :width, :height]

    def window_corners(self, region: torch.Tensor) -> Iterator[tuple[int, int]]:
        """Yield the first voxel of each window that touches the region, shape (W, H); together they cover it."""
        voxels = region.nonzero()
        if not len(voxels):
            return
        stride = max(1, round(self.patch_size * (1 - self.overlap)))
        starts = []
        for axis, length in enumerate(region.shape):
            low, high = int(voxels[:, axis].min()), int(voxels[:, axis].max()) + 1
            windows = max(0, -(-(high - low - self.patch_size) // stride)) + 1
            first = (low + high - self.patch_size - (windows - 1) * stride) // 2  # as much real CT on either side
            starts.append(sorted({min(max(first + k * stride, 0), length - self.patch_size) for k in range(windows)}))
        for i in starts[0]:
            for j in starts[1]:
                if region[i : i + self.patch_size, j : j + self.patch_size].any():
                    yield i, j


class PasteRegiond(MapTransform):
    """Put the painted region into the untouched CT: outside the region every voxel is the input's, bit for bit.

    Painted voxels are rounded to whole HU where the CT itself holds whole HU.

    Args:
        keys: the painted CT in HU in the CT's own geometry, shape (1, W, H, D).
        original_key: the CT as loaded, the same shape.
        region_key: the region in the CT's own geometry.
    """

    def __init__(
        self, keys: KeysCollection, original_key: str = "original", region_key: str = "original_region"
    ) -> None:
        super().__init__(keys)
        self.original_key, self.region_key = original_key, region_key

    def __call__(self, data: Mapping) -> dict:
        """Return the sample with each painted CT completed by the original one."""
        sample = dict(data)
        for key in self.key_iterator(sample):
            original, painted = sample[self.original_key], plain(sample[key])
            if bool((plain(original) == plain(original).round()).all()):
                painted = painted.round()
            result = original.clone()
            result.copy_(torch.where(plain(sample[self.region_key]) > 0, painted.to(original.dtype), plain(original)))
            sample[key] = result
        return sample

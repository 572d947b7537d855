"""The region to paint: where a target tissue map differs from a CT's own, and a margin; its way back into the CT."""

from collections.abc import Mapping, Sequence

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from .tissue_channels import UNKNOWN, plain


def grow(region: torch.Tensor, inside: torch.Tensor, voxels: int, axial: int = 2) -> torch.Tensor:
    """Return a region grown by some voxels within axial slices, no farther than ``inside``.

    A lesion's border is blurred by the scanner. That blur lies outside the lesion's label; without a margin it could
    neither be learned nor painted.

    Args:
        region: Bool, shape (..., W, H, D).
        inside: Where it may grow, bool, the same shape.
        voxels: How far, counted along the axes and diagonals.
        axial: Which of the last three axes runs from slice to slice.

    Returns:
        Bool, the same shape; the region itself for 0 voxels.
    """
    if not voxels:
        return region
    shape, size = region.shape, 2 * voxels + 1
    volume = region.float().reshape(-1, *shape[-3:])[None]
    kernel = [1 if axis == axial else size for axis in range(3)]
    grown = torch.nn.functional.max_pool3d(volume, kernel, stride=1, padding=[side // 2 for side in kernel])
    return region | ((grown[0].reshape(shape) > 0) & inside)


def axial_axis(image: torch.Tensor) -> int:
    """Return which of a volume's three spatial axes runs from head to foot, by its affine; 2 without one."""
    if not isinstance(image, MetaTensor):
        return 2
    return int(image.affine[2, :3].abs().argmax())


class PaintRegiond(MapTransform):
    """Add the region to paint: where the target map differs from the CT's own, or where the CT holds given tissues.

    Args:
        keys: Key of the target map, shape (1, W, H, D).
        label_key: Key of the CT's own tissue map, the same shape.
        region_key: Key that the region gets, uint8 zeros and ones.
        labels: Label values by tissue name.
        image_key: Key of the CT, whose shape and affine both maps must have.
        repaint: Tissue names; where the target holds one of them is painted too, changed or not.
        replaceable: Tissue names that may be painted over; None for all.
        margin: In-plane voxels by which the region grows into the lung around, whose tissue stays what it is; see
            :func:`grow`. A tissue that may not be replaced is left out.
        core_key: Key that the region without its margin gets.
        hidden: Tissue names; where the target holds one of them it is not told which, to judge partial maps.
        unknown_value: What the target file holds where any tissue will do; it becomes UNKNOWN and is painted.

    Raises:
        ValueError: If shapes or affines differ, a map holds a value without a name, the target asks for tissue
            outside the lung, for background inside it or over a tissue that may not be replaced, or there is
            nothing to paint.
    """

    def __init__(
        self,
        keys: KeysCollection,
        labels: Mapping[str, int],
        image_key: str = "image",
        label_key: str = "label",
        region_key: str = "region",
        repaint: Sequence[str] = (),
        replaceable: Sequence[str] | None = None,
        hidden: Sequence[str] = (),
        unknown_value: int = 255,
        margin: int = 0,
        core_key: str = "core",
    ) -> None:
        super().__init__(keys)
        if margin < 0 or margin != int(margin):
            raise ValueError(f"margin must be a whole number of voxels from 0, not {margin}")
        self.margin, self.core_key = int(margin), core_key
        if unknown_value in labels.values():
            raise ValueError(f"unknown_value {unknown_value} is a label; choose one that labels do not name")
        for argument, names in (("repaint", repaint), ("replaceable", replaceable or ()), ("hidden", hidden)):
            unknown = set(names) - set(labels)
            if unknown:
                raise ValueError(f"{argument} names {sorted(unknown)}, but labels name only {', '.join(labels)}")
        self.labels, self.image_key, self.label_key, self.region_key = labels, image_key, label_key, region_key
        self.unknown_value = unknown_value
        self.hidden = [labels[name] for name in hidden]
        self.repaint = [labels[name] for name in repaint]
        self.kept = {} if replaceable is None else {n: v for n, v in labels.items() if v and n not in replaceable}

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
            target, label = sample[key].clone(), sample[self.label_key]
            name, label_name = file_name(target, key), file_name(label, self.label_key)
            for tissue_map, whose in ((label, label_name), (target, name)):
                self.check_geometry(tissue_map, whose, sample[self.image_key])
                for value in plain(tissue_map).unique().tolist():
                    if value not in self.labels.values() and not (tissue_map is target and value == self.unknown_value):
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
            for kept, value in self.kept.items():
                over = int((region & (label == value)).sum())
                if over:
                    raise ValueError(f"{name} paints over {kept} in {over} voxels, which replaceable does not name")
            if self.repaint:
                region |= torch.isin(plain(target), torch.as_tensor(self.repaint))
            if not region.any():
                raise ValueError(f"{name} equals the CT's own map, so there is nothing to paint")
            core, region = region, plain(region)
            kept = torch.isin(plain(label), torch.as_tensor(list(self.kept.values())))
            region = grow(region, (plain(label) != 0) & ~kept, self.margin, axial_axis(target))
            target[torch.isin(plain(target), torch.as_tensor([self.unknown_value, *self.hidden]))] = UNKNOWN
            sample[key] = target
            for name, where in ((self.region_key, region), (self.core_key, core)):
                sample[name] = target.clone()
                sample[name].copy_(where)
        return sample


def file_name(image: torch.Tensor, otherwise: str) -> str:
    """Return the file an image was loaded from, for messages."""
    return str(getattr(image, "meta", {}).get("filename_or_obj", otherwise))


class PasteRegiond(MapTransform):
    """Put the painted region into the untouched CT: outside the region every voxel is the input's, bit for bit.

    Painted voxels are rounded to whole HU where the CT itself holds whole HU.

    Args:
        keys: Key of the painted CT in HU in the CT's own geometry, shape (1, W, H, D).
        original_key: Key of the CT as loaded, the same shape.
        region_key: Key of the region in the CT's own geometry.
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
            painted = painted.to(plain(original))  # a GPU's answer comes back to the CPU
            result.copy_(torch.where(plain(sample[self.region_key]) > 0, painted, plain(original)))
            sample[key] = result
        return sample

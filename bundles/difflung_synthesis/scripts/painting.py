"""Mask-aware generation: sample inside the region of a CT, window by window, and nowhere else."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from monai.data import MetaTensor
from monai.data.utils import compute_importance_map
from monai.engines import PrepareBatch
from monai.inferers import Inferer, sliding_window_inference

from . import samplers
from .objectives import BLANK
from .scan import ENTRIES, append_scan, check_voxel_mm
from .tissue_channels import UNKNOWN, condition_channels, density_channels, plain, tissue_values

AIR = -1.0  # intensity below the HU window, what lies beyond the edge of an image
# Sampler and the objectives whose networks it can use.
SAMPLERS = {
    "euler": ("flow", "few_step"),
    "heun": ("flow", "few_step"),
    "dpm_solver_flow": ("flow", "few_step"),
    "few_step": ("few_step",),
    "ddim": ("ddpm",),
    "ancestral": ("ddpm",),
    "dpm_solver": ("ddpm",),
}


class PaintPrepareBatch(PrepareBatch):
    """Hand a volume, its target map, region and conditions to :class:`PaintInferer`.

    Args:
        label_key: Key of what the engine's metrics see as ``label``.
    """

    def __init__(self, label_key: str = "target") -> None:
        self.label_key = label_key

    def __call__(self, batchdata, device=None, non_blocking: bool = False, **kwargs):
        """Return (image, label, (), inferer arguments); ``seed`` is the item's own, or 0.

        The image keeps its metadata, by which Invertd finds the way back to the file's geometry.
        """
        image = batchdata["image"].to(device, non_blocking=non_blocking)
        given = {key: plain(batchdata[key]).to(device, non_blocking=non_blocking) for key in ("target", "region")}
        given["seeds"] = [int(seed) for seed in batchdata.get("seed", [0] * len(image))]
        if "density" in batchdata:
            given["density"] = torch.as_tensor(batchdata["density"]).float().to(device, non_blocking=non_blocking)
        known = torch.as_tensor(batchdata.get("attributes", torch.zeros(len(image), 0))).float()
        given["attributes"] = append_scan(known, batchdata.get("scan")).to(device, non_blocking=non_blocking)
        if isinstance(image, MetaTensor):
            given["slice_mm"] = image.affine.reshape(-1, 4, 4)[:, :3, 2].norm(dim=1).tolist()
        return image, plain(batchdata[self.label_key]), (), given


class PaintInferer(Inferer):
    """Sample inside the region of a volume, slice by slice or in blocks, without seams.

    At every step the network's answer is averaged over overlapping windows, with Gaussian weights, so a region larger
    than a window is one sample and not a mosaic. Only windows that touch the region are evaluated. A model of axial
    slices gets noise that is correlated along z, so that neighbouring slices resemble each other.

    Args:
        labels: Label values by tissue name.
        patch_size: Window in voxels along each axis, the size the network was trained at; (W, H, 1) for slices.
        sampler: Sampler by name: dpm_solver_flow, heun or euler for a flow, few_step for a few-step model, dpm_solver,
            ddim or ancestral for a DDPM.
        num_steps: Evaluations of the network per window, for each of which guidance adds some.
        overlap: Share of a window that it has in common with its neighbour, at least 0 and below 1.
        guidance: Scale s of v = v(nothing known) + s (v(c) - v(nothing known)); 1 is none. The scan stays known.
        attribute_guidance: Scale s of v = v(c without attributes) + s (v(c) - v(c without attributes)).
        tissue_guidance: Scale s_k by tissue name, of v = v(c without k) + s_k (v(c) - v(c without k)).
        slice_correlation_mm: Distance along z over which the correlation of the noise falls to 1/e; 0 for none.
        samples: Number of paintings of each map, with different noise.
        sw_batch_size: Windows per call of the network.
        slices_per_pass: Slices in work at a time, which bounds memory.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        labels: Mapping[str, int],
        patch_size: Sequence[int] = (64, 64, 1),
        sampler: str = "dpm_solver_flow",
        num_steps: int = 8,
        overlap: float = 0.25,
        guidance: float = 1.0,
        attribute_guidance: float = 1.0,
        tissue_guidance: Mapping[str, float] | None = None,
        slice_correlation_mm: float = 0.0,
        samples: int = 1,
        sw_batch_size: int = 16,
        slices_per_pass: int = 16,
    ) -> None:
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap must be at least 0 and below 1, not {overlap}")
        if sampler not in SAMPLERS:
            raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, not {sampler}")
        if slice_correlation_mm < 0 or samples < 1:
            raise ValueError(
                f"slice_correlation_mm={slice_correlation_mm} must be at least 0 and samples={samples} at least 1"
            )
        unknown = set(tissue_guidance or {}) - set(labels)
        if unknown:
            raise ValueError(f"tissue_guidance names {sorted(unknown)}, but labels name only {', '.join(labels)}")
        self.labels, self.patch_size, self.overlap = labels, tuple(patch_size), overlap
        self.sampler, self.num_steps, self.samples = sampler, num_steps, samples
        self.guidance, self.attribute_guidance = guidance, attribute_guidance
        self.tissue_guidance = {labels[name]: scale for name, scale in (tissue_guidance or {}).items()}
        self.slice_correlation_mm = slice_correlation_mm
        self.sw_batch_size, self.slices_per_pass = sw_batch_size, slices_per_pass

    @torch.no_grad()
    def __call__(self, inputs, network, target, region, seeds, attributes=None, density=None, slice_mm=None):
        """Return the painted volumes.

        Args:
            inputs: CT scaled to [-1, 1], shape (B, 1, W, H, D).
            network: The :class:`TissueDenoiser`, possibly wrapped for several processes.
            target: Tissue maps, shape (B, 1, W, H, D).
            region: Region M, shape (B, 1, W, H, D).
            seeds: Seed of each volume; its noise depends on no other.
            attributes: Encoded attributes and what is known of the scan, shape (B, size + 4); all unknown if None.
            density: Mean wanted per tissue in [-1, 1], NaN where any will do, shape (B, tissues).
            slice_mm: Distance between the slices of each volume in mm; 1 if None.

        Returns:
            Shape (B, samples, W, H, D), with the metadata of ``inputs``; outside the region equal to them.

        Raises:
            ValueError: If the sampler does not belong to the network's objective, a region is too small to paint, or
                the network was trained at other voxel sizes.
        """
        denoiser = getattr(network, "module", network)
        if denoiser.objective not in SAMPLERS[self.sampler]:
            raise ValueError(
                f"sampler {self.sampler} needs a network of objective {' or '.join(SAMPLERS[self.sampler])}, "
                f"but this one's is {denoiser.objective}"
            )
        painted = torch.cat([inputs] * self.samples, dim=1)
        for n, volumes in enumerate(plain(painted)):
            own = own_region, own_target = region[n, 0] > 0, target[n, 0].long()
            cell = denoiser.stride**denoiser.spatial_dims
            if own_region.sum() < cell:
                raise ValueError(
                    f"the region to paint has {int(own_region.sum())} voxels of the network's size, fewer than the "
                    f"{cell} of one cell of its coarsest level; paint more, or use a finer spacing_mm"
                )
            told = Told(
                density=None if density is None else density[n : n + 1],
                attributes=None if attributes is None else attributes[n : n + 1],
            )
            if told.attributes is not None:
                check_voxel_mm(told.attributes[0], denoiser.voxel_mm)
            gap = 1.0 if slice_mm is None else float(slice_mm[n])
            for sample in range(self.samples):
                generator = torch.Generator().manual_seed((seeds[n] + sample) % 2**32)
                self.paint_volume(volumes[sample], *own, denoiser, told, gap, generator)
        return painted

    def paint_volume(self, volume, region, target, denoiser, told: "Told", slice_mm: float, generator) -> None:
        """Paint one volume, shape (W, H, D), in place."""
        flat = denoiser.spatial_dims == 2
        window = self.patch_size[:2] if flat else self.patch_size
        known = region.cpu()  # once, or each question about it would halt a GPU
        box = self.region_box(known.any(dim=2) if flat else known, window, denoiser.downsampling)
        if flat:
            indices = known.any(dim=0).any(dim=0).nonzero().flatten()
            chunks = [box + (part,) for part in indices.split(self.slices_per_pass)]
            noises = self.slice_noise(indices.tolist(), slice_mm, generator)
        else:
            chunks, noises = [box], None
        for part in chunks:
            # (w, h, n) to (n, 1, w, h), or (w, h, d) to (1, 1, w, h, d)
            x_0, m, tissues = (
                v[part].permute(2, 0, 1).unsqueeze(1) if flat else v[part][None, None] for v in (volume, region, target)
            )
            size = x_0.shape[2:]
            pad = self.padding(size, window, denoiser.downsampling)
            x_0, m, tissues = (
                torch.nn.functional.pad(v.float(), pad, value=fill) for v, fill in ((x_0, AIR), (m, 0), (tissues, 0))
            )
            shape = (denoiser.data_channels, *[length // denoiser.downsampling for length in x_0.shape[2:]])
            noise = noises(len(x_0), shape) if flat else torch.randn((1, *shape), generator=generator)
            result = self.paint_stack(x_0, m, tissues, noise.to(x_0.device), denoiser, told, window, generator)
            result = result[(slice(None), slice(None), *map(slice, size))]
            volume[part] = result.squeeze(1).permute(1, 2, 0) if flat else result[0, 0]

    def padding(self, size: Sequence[int], window: Sequence[int], multiple: int) -> list[int]:
        """Return what to append along each axis, as torch's pad takes it: a window at least, and whole cells."""
        wanted = [max(length + (-length) % multiple, least) for length, least in zip(size, window)]
        return [amount for least, length in zip(reversed(wanted), reversed(size)) for amount in (0, least - length)]

    def window_counts(self, region: torch.Tensor, denoiser) -> torch.Tensor:
        """Return by how many windows each voxel is painted, shape (W, H, D) like ``region``: where seams could lie."""
        counts = torch.zeros(region.shape, dtype=torch.long)
        flat, cell = denoiser.spatial_dims == 2, denoiser.downsampling
        window = self.patch_size[:2] if flat else self.patch_size
        box = self.region_box(region.any(dim=2) if flat else region, window, cell)
        for part in [(*box, z) for z in range(region.shape[2])] if flat else [box]:
            inside = torch.nn.functional.pad(region[part].float(), self.padding(region[part].shape, window, cell))
            cells = denoiser.pool(inside[None, None])[0, 0] > 0
            for corner in window_corners(cells, [size // cell for size in window], self.overlap):
                place = tuple(slice(start * cell, start * cell + size) for start, size in zip(corner, window))
                counts[part][place] += 1  # what lies in the padding falls away
        return counts

    def slice_noise(self, indices: list[int], slice_mm: float, generator: torch.Generator):
        """Return a function that gives the noise of the next slices: standard normal, correlated along z.

        Between slices z mm apart the correlation is exp(-z / slice_correlation_mm).
        """
        state: dict = {"next": 0, "last": None}

        def draw(count: int, shape: tuple) -> torch.Tensor:
            stack = []
            for _ in range(count):
                noise, position = torch.randn(shape, generator=generator), state["next"]
                if state["last"] is not None and self.slice_correlation_mm > 0:
                    distance = (indices[position] - indices[position - 1]) * slice_mm
                    shared = math.exp(-distance / self.slice_correlation_mm)
                    noise = shared * state["last"] + math.sqrt(1 - shared**2) * noise
                state["last"], state["next"] = noise, position + 1
                stack.append(noise)
            return torch.stack(stack)

        return draw

    def paint_stack(self, x_0, region, tissues, noise, denoiser, told: "Told", window, generator) -> torch.Tensor:
        """Paint images of one size, each of shape (n, 1, w, h[, d]), and return them in the same shape."""
        latent_window = [length // denoiser.downsampling for length in window]
        if denoiser.autoencoder is None:
            surroundings = denoiser.encode(x_0)
        else:
            blank = torch.where(region > 0, BLANK, x_0)
            surroundings = self.in_windows(denoiser.encode, blank, window)
        field = RegionField(self, denoiser, surroundings, region, tissues, told, latent_window)
        sampled = torch.where(field.region > 0, self.sample(field, noise, generator), surroundings)
        if denoiser.autoencoder is None:
            sampled = denoiser.decode(sampled)
        else:
            sampled = self.in_windows(denoiser.decode, sampled, latent_window)
        return torch.where(region > 0, sampled, x_0)

    def in_windows(self, function, image: torch.Tensor, window) -> torch.Tensor:
        """Apply the encoder or the decoder in overlapping windows, which bounds memory."""
        return sliding_window_inference(image, window, self.sw_batch_size, function, self.overlap, mode="gaussian")

    def sample(self, field: "RegionField", noise: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Run the sampler from the noise."""
        if self.sampler in ("euler", "heun", "dpm_solver_flow", "few_step"):
            return getattr(samplers, self.sampler)(field, noise, self.num_steps)
        alpha_bar = samplers.alpha_bars()

        def predicted(x: torch.Tensor, step: int) -> torch.Tensor:
            return field(x, (step + 1) / len(alpha_bar))

        if self.sampler == "dpm_solver":
            return samplers.dpm_solver(predicted, noise, alpha_bar, self.num_steps)
        eta = float(self.sampler == "ancestral")
        return samplers.ddim(predicted, noise, alpha_bar, self.num_steps, eta=eta, generator=generator)

    def region_box(self, region: torch.Tensor, window, multiple: int) -> tuple[slice, ...]:
        """Return the part of an image that holds the region with real CT around it, at least a window if it fits."""
        box = []
        for axis, (length, size) in enumerate(zip(region.shape, window)):
            rows = region.any(dim=tuple(a for a in range(region.ndim) if a != axis)).nonzero().flatten()
            low, high = int(rows.min()) - size // 4, int(rows.max()) + 1 + size // 4
            short = max(0, size - (high - low))
            low, high = low - short // 2, high + short - short // 2
            low, high = low - max(0, high - length), high + max(0, -low)
            low = max(0, low)
            box.append(slice(low - low % multiple, min(length, high)))
        return tuple(box)


@dataclasses.dataclass(frozen=True)
class Told:
    """What one volume is told beside its map.

    Attributes:
        density: Mean density wanted per tissue in [-1, 1], shape (1, tissues), or None.
        attributes: Encoded attributes and what is known of the scan, shape (1, size + 4), or None.
    """

    density: torch.Tensor | None
    attributes: torch.Tensor | None


class RegionField:
    """The network's answer over whole images: averaged over windows, guided, and zero outside the region.

    Args:
        inferer: Inferer that holds the settings.
        denoiser: The network.
        surroundings: What the network sees outside the region, shape (n, data, ...).
        region: Region M on the grid of the images, shape (n, 1, ...).
        tissues: Label values, the same shape.
        told: Conditions beside the map.
        window: Edges of a window on the network's grid.
    """

    def __init__(self, inferer: PaintInferer, denoiser, surroundings, region, tissues, told: Told, window) -> None:
        self.batch, self.denoiser, self.surroundings = inferer.sw_batch_size, denoiser, surroundings
        self.region, self.told = denoiser.pool(region), told
        self.weight = compute_importance_map(tuple(window), mode="gaussian", sigma_scale=0.25, device=region.device)
        inside = (self.region > 0).cpu()
        self.windows = [
            (n, slice(None), *[slice(start, start + size) for start, size in zip(corner, window)])
            for n in range(len(region))
            for corner in window_corners(inside[n, 0], window, inferer.overlap)
        ]
        self.total = torch.zeros_like(self.region)
        for place in self.windows:
            self.total[place] += self.weight
        self.total.clamp_(min=1e-6)  # voxels that no window covers lie outside the region
        values, present = tissue_values(inferer.labels), set(tissues[region > 0].unique().long().tolist())
        self.known = self.channels(region, tissues, inferer.labels, hidden=())
        self.guides = []  # scale, channels, attributes
        unguided = told.attributes
        if unguided is not None:  # the scan is the CT's own and not to be exaggerated
            unguided = torch.cat([torch.zeros_like(unguided[:, :-ENTRIES]), unguided[:, -ENTRIES:]], dim=1)
        if inferer.guidance != 1:
            nothing = self.channels(region, tissues, inferer.labels, hidden=values)
            self.guides.append((inferer.guidance, nothing, unguided))
        if inferer.attribute_guidance != 1 and unguided is not None and not torch.equal(unguided, told.attributes):
            self.guides.append((inferer.attribute_guidance, self.known, unguided))
        for value, scale in inferer.tissue_guidance.items():
            if scale != 1 and value in present:
                without = self.channels(region, tissues, inferer.labels, hidden=(value,))
                self.guides.append((scale, without, told.attributes))

    def channels(self, region, tissues, labels, hidden) -> torch.Tensor:
        """Return what is known, with some tissues hidden, on the network's grid."""
        where = torch.as_tensor(list(hidden), device=tissues.device)
        shown = torch.where(torch.isin(tissues, where), UNKNOWN, tissues)
        density = self.told.density
        if density is None:
            density = torch.full((1, len(tissue_values(labels))), torch.nan)
        asked = torch.where((region > 0) & (shown >= 0), shown, 0)
        told = density_channels(asked, density.expand(len(tissues), -1), labels)
        return self.denoiser.pool(torch.cat([region, condition_channels(shown, labels), told], dim=1))

    def __call__(self, x: torch.Tensor, t: float, interval: float | None = None) -> torch.Tensor:
        """Return the guided answer at x and t, shape (n, data, ...)."""
        x = torch.where(self.region > 0, x, self.surroundings)
        answer = guided = self.average(x, self.known, self.told.attributes, t, interval)
        for scale, known, attributes in self.guides:
            guided = guided + (scale - 1) * (answer - self.average(x, known, attributes, t, interval))
        return guided

    def average(self, x, known, attributes, t: float, interval: float | None) -> torch.Tensor:
        """Return the answer averaged over the windows, zero outside the region."""
        summed = torch.zeros_like(x)
        stacked = torch.cat([x, known], dim=1)
        for start in range(0, len(self.windows), self.batch):
            places = self.windows[start : start + self.batch]
            crops = torch.stack([stacked[place] for place in places])
            times = torch.full((len(places),), t, device=x.device)
            vectors = None if attributes is None else attributes.expand(len(places), -1)
            lengths = None if interval is None else torch.full_like(times, interval)
            for place, part in zip(places, self.denoiser(crops, times, vectors, lengths) * self.weight):
                summed[place] += part
        return summed / self.total * (self.region > 0)


def window_corners(region: torch.Tensor, window: Sequence[int], overlap: float) -> Iterator[tuple[int, ...]]:
    """Yield the first voxel of each window that touches the region, shape (W, H[, D]); together they cover it."""
    voxels = region.nonzero()
    if not len(voxels):
        return
    starts = []
    for axis, (length, size) in enumerate(zip(region.shape, window)):
        stride = max(1, round(size * (1 - overlap)))
        low, high = int(voxels[:, axis].min()), int(voxels[:, axis].max()) + 1
        windows = max(0, -(-(high - low - size) // stride)) + 1
        first = (low + high - size - (windows - 1) * stride) // 2  # as much real CT on either side
        starts.append(sorted({min(max(first + k * stride, 0), length - size) for k in range(windows)}))
    for corner in itertools.product(*starts):
        if region[tuple(slice(start, start + size) for start, size in zip(corner, window))].any():
            yield corner

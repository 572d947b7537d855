"""The denoiser: MONAI's diffusion U-Net behind the one-tensor interface that the Model Zoo checks."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from monai.networks.nets import DiffusionModelUNet
from torch import nn

from . import prior, scan
from .attributes import Attributes
from .autoencoder import TissueAutoencoder, channels_last
from .prior import COMPONENTS
from .prior_weights import PatientWeights
from .tissue_channels import DENSITY_GAIN, tissue_values

OBJECTIVES = ("flow", "few_step", "ddpm")
BLOCK = 8  # voxels along an edge
# Of the kind of model in a state dict; always as many, or MONAI would pass over that of other weights.
KIND_BYTES = 4096


@torch.compiler.assume_constant_result
def bfloat16_is_fast(device: torch.device) -> bool:
    """Return whether a device computes bfloat16 natively; elsewhere it is emulated and slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return (
        device.type == "cpu" and torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


class ConditionEmbedding(nn.Module):
    """Embed the attributes of a patient and the length of a step; both start without any influence.

    Args:
        num_attributes: Entries of the attribute vector, what is known of the scan among them.
        size: Size of the embedding, which is added to that of the time.
    """

    def __init__(self, num_attributes: int, size: int) -> None:
        super().__init__()
        self.attributes, self.interval = (
            nn.Sequential(nn.Linear(entries, size), nn.SiLU(), nn.Linear(size, size)) for entries in (num_attributes, 2)
        )
        for branch in (self.attributes, self.interval):
            nn.init.zeros_(branch[-1].weight)
            nn.init.zeros_(branch[-1].bias)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """Return the embedding, shape (B, size), of attributes and interval side by side, shape (B, attributes + 1)."""
        attributes, interval = given[:, :-1], given[:, -1:]
        return self.attributes(attributes) + self.interval(torch.cat([interval, interval.sqrt()], dim=1))


class TissueDenoiser(nn.Module):
    """Velocity (or noise) at every voxel, from the noisy patch and what is known about it.

    With a tissue prior the answer is that of independent voxels with the HU of the tissue that is told, see
    :mod:`scripts.prior`, plus what the U-Net adds; so an untrained network paints each tissue with its histogram, and
    the U-Net learns texture. What is known of the patient, and of the scan, changes the weights of the
    histogram's components, see :mod:`scripts.prior_weights`. It is the preconditioning of Karras et al. (NeurIPS 2022)
    for a flow, voxel by voxel. Where no tissue is told, the prior is a mixture of the tissues, weighted by their shares
    in such a patient's lung and by what the U-Net sees: it gives the log odds of each tissue too, which are learned
    from the tissue maps.

    With an autoencoder the patch is a latent one: the network then works on its channels and its coarser grid, and the
    weights hold the autoencoder's too.

    Args:
        labels: Label values by tissue name; background is 0.
        spatial_dims: Dimensions of the data: 2 for axial patches, 3 for blocks.
        attributes: Ranges as in :class:`Attributes`; empty for none.
        objective: What the output is: ``flow`` the velocity, ``few_step`` the mean velocity over an interval, ``ddpm``
            the noise.
        channels: Width of each level of the U-Net.
        num_res_blocks: Residual blocks per level.
        attention_levels: Levels with self-attention; none if None.
        num_head_channels: Channels of an attention head; the middle block always has attention.
        norm_num_groups: Groups of the group normalisation.
        autoencoder: Autoencoder that makes it a latent model; None for pixels.
        data_scale: Factor on CT in [-1, 1] before noise of deviation 1 is added. Tissue textures deviate by .05 to .25
            there: unscaled, most of the noise drowns them, and a sampler of few equal steps loses half of their
            contrast. A latent has its own scale.
        tissue_prior: Whether there is a prior as above, for a flow; a DDPM has none.
        amp: Whether to compute in bfloat16 where the processor has it.
        border_blur: Deviation in in-plane voxels by which the prior softens the borders between told tissues, see
            :func:`scripts.prior.soften`; 0 for none. A latent has none. None for that of the weights that are loaded.

    Attributes:
        voxel_mm: Smallest and largest voxel size in the plane of the training CTs, shape (2,), zero until trained.
        tissue_presence: Shares f_k of the training patches, shape (tissues,), zero until trained.
        tissue_mean: Means of the components of each tissue in the training patches as :meth:`encode` gives them, shape
            (data, tissues, components).
        tissue_deviation: Deviations of the components likewise.

    Raises:
        ValueError: If the objective is not known, there are more tissues than components in the prior, or weights of
            another kind of model are loaded.
    """

    def __init__(
        self,
        labels: Mapping[str, int],
        spatial_dims: int = 2,
        attributes: Mapping[str, Sequence] | None = None,
        objective: str = "flow",
        channels: Sequence[int] = (16, 32, 64, 128),
        num_res_blocks: int = 1,
        attention_levels: Sequence[bool] | None = None,
        num_head_channels: int = 32,
        norm_num_groups: int = 8,
        autoencoder: TissueAutoencoder | None = None,
        data_scale: float = 4.0,
        tissue_prior: bool = True,
        amp: bool = True,
        border_blur: float | None = None,
    ) -> None:
        super().__init__()
        if border_blur is not None and border_blur < 0:
            raise ValueError(f"border_blur must be at least 0 voxels, not {border_blur}")
        self.takes_border_blur = border_blur is None
        self.set_border_blur(border_blur or 0.0)
        if objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, not {objective}")
        self.labels, self.spatial_dims, self.objective, self.amp = dict(labels), spatial_dims, objective, amp
        self.attributes = Attributes(attributes or {})
        self.autoencoder = autoencoder.requires_grad_(False).eval() if autoencoder else None
        self.data_scale = data_scale
        self.data_channels = autoencoder.latent_channels if autoencoder else 1
        self.downsampling = autoencoder.downsampling if autoencoder else 1
        self.tissue_prior = tissue_prior and objective != "ddpm"
        tissues = len(tissue_values(self.labels))
        if self.tissue_prior and tissues > COMPONENTS:
            raise ValueError(f"a tissue prior holds {COMPONENTS} tissues at most, but labels name {tissues}")
        self.unet = DiffusionModelUNet(
            spatial_dims=spatial_dims,
            in_channels=self.data_channels * (4 if self.tissue_prior else 1) + known_channels(self.labels),
            out_channels=self.data_channels + (tissues if self.tissue_prior else 0),
            channels=tuple(channels),
            num_res_blocks=num_res_blocks,
            attention_levels=tuple(attention_levels or [False] * len(channels)),
            num_head_channels=num_head_channels,
            norm_num_groups=norm_num_groups,
            num_class_embeds=1,
        )
        # MONAI adds this embedding to the time's; it knows a class number only, we need a vector
        self.unet.class_embedding = ConditionEmbedding(self.attribute_entries, 4 * channels[0])
        if self.tissue_prior:
            self.patient_logits = PatientWeights(self.attribute_entries, self.data_channels, tissues)
        self.register_buffer("voxel_mm", torch.zeros(2))
        self.register_buffer("tissue_presence", torch.zeros(tissues))
        self.register_buffer("tissue_mean", torch.zeros(self.data_channels, tissues, COMPONENTS))
        self.register_buffer("tissue_deviation", torch.ones(self.data_channels, tissues, COMPONENTS))

    def set_border_blur(self, voxels: float) -> None:
        """Set ``border_blur``, and its kernel on the network's device; it is no part of the weights."""
        self.border_blur = voxels
        kernel = prior.gaussian(voxels) if voxels else torch.ones(1)
        self.register_buffer("border_kernel", kernel.to(next(self.buffers(), kernel)), persistent=False)

    @property
    def input_channels(self) -> int:
        """Channels of ``image``: x_t and what is known."""
        return self.data_channels + known_channels(self.labels)

    @property
    def attribute_entries(self) -> int:
        """Entries of ``attributes``: what is known of the patient, and of the scan."""
        return self.attributes.size + scan.ENTRIES

    @property
    def stride(self) -> int:
        """Voxels of the CT along one edge of a cell of the coarsest level."""
        return self.downsampling * 2 ** (len(self.unet.block_out_channels) - 1)

    def train(self, mode: bool = True) -> "TissueDenoiser":
        """Switch to training; the autoencoder stays as it is."""
        super().train(mode)
        if self.autoencoder:
            self.autoencoder.eval()
        return self

    def forward(
        self,
        image: torch.Tensor,
        timesteps: torch.Tensor | None = None,
        attributes: torch.Tensor | None = None,
        interval: torch.Tensor | None = None,
        return_tissues: bool = False,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Predict the velocity dx/dt, its mean over an interval, or the noise.

        Args:
            image: Noisy x_t and what is known stacked (see :func:`known_channels`), shape (B, data + known, H, W[, D]),
                the edges multiples of the U-Net's stride.
            timesteps: Times t in [0, 1], shape (B,); 1 (pure noise) if None.
            attributes: Encoded attributes and what is known of the scan, shape (B, size + 4); all unknown if None.
            interval: Length of the step in [0, 1], shape (B,); 0, the velocity at t itself, if None.
            return_tissues: Whether to return the tissues as well; needs a tissue prior.

        Returns:
            float32, shape (B, data, H, W[, D]); with ``return_tissues`` also the logarithm of the probability of each
            tissue where none is told, shape (B, data, tissues, H, W[, D]).
        """
        samples = image.shape[0]
        if timesteps is None:
            timesteps = torch.ones(samples, device=image.device)
        if attributes is None:
            attributes = torch.zeros(samples, self.attribute_entries, device=image.device)
        if interval is None:
            interval = torch.zeros(samples, device=image.device)
        given = torch.cat([attributes.to(image.device), interval.view(-1, 1)], dim=1)
        if self.tissue_prior:
            x_t, known = image.split([self.data_channels, image.shape[1] - self.data_channels], dim=1)
            times, steps = (value.view(-1, *[1] * (image.ndim - 1)) for value in (timesteps, interval))
            components = self.components(known, attributes.to(image.device))
            mean, deviation = prior.moments(*components)
            spread = ((1 - times) ** 2 * deviation**2 + times**2).sqrt()  # of x_t
            rest = deviation / spread  # of what the prior leaves to be explained
            surprise = (x_t - (1 - times) * mean) / spread * (known[:, :1] > 0)
            image = torch.cat([image, surprise, *coarse_means(surprise, known)], dim=1)
        enabled = self.amp and bfloat16_is_fast(image.device)
        with torch.autocast(image.device.type, torch.bfloat16, enabled=enabled):
            # the sinusoidal embedding expects steps up to 1000
            prediction = self.unet(channels_last(image), timesteps * 1000, class_labels=given).float()
        if not self.tissue_prior:
            return prediction
        prediction, log_odds = prediction.split([self.data_channels, len(tissue_values(self.labels))], dim=1)
        components = self.weigh_tissues(components, log_odds * known[:, -3:-2])
        if self.objective == "few_step":
            start = prior.mean_velocity(x_t, times, steps, *components)
        else:
            start = prior.velocity(x_t, times, *components)
        answer = start + rest * prediction
        return (answer, self.tissues(x_t, times, components)) if return_tissues else answer

    def components(self, known: torch.Tensor, attributes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return means, deviations and logits of the components at each voxel, on the scale of :meth:`encode`.

        Args:
            known: Region, tissues, UNKNOWN, density and density known, shape (B, known, H, W[, D]).
            attributes: Encoded attributes and what is known of the scan, as in :meth:`forward`.

        Returns:
            Shape (B, data, components, H, W[, D]) each.
        """
        hard = known[:, 1:-2]
        hard = hard / hard.sum(dim=1, keepdim=True).clamp(min=1e-3)  # cells of a latent may hold background too
        shares = prior.soften(hard, self.border_kernel) if self.autoencoder is None and self.border_blur else hard
        logits, share_logits = self.patient_logits(attributes)
        any_told = known[:, 1:-3].flatten(1).amax(dim=1, keepdim=True) > 0
        share_logits = torch.where(any_told, share_logits[:, 0], share_logits[:, 1])
        of_tissues = (self.tissue_mean.expand_as(logits), self.tissue_deviation.expand_as(logits), logits)
        of_unknown = prior.merge(self.tissue_mean, self.tissue_deviation, logits, share_logits)
        every = [torch.cat([told, unknown.unsqueeze(2)], dim=2) for told, unknown in zip(of_tissues, of_unknown)]
        means, deviations, logits = (torch.einsum("bk...,bckm->bcm...", shares, values) for values in every)
        if self.autoencoder is None:
            density, told = known[:, None, -2:-1], known[:, None, -1:]
            own = [torch.einsum("bk...,bckm->bcm...", hard, values) for values in every] if shares is not hard else None
            mean = prior.moments(*(own or (means, deviations, logits)))[0].unsqueeze(2)
            shift = (density / DENSITY_GAIN * self.data_scale - mean) * (told > 0)
            if own:
                shift = prior.blur(shift.flatten(1, 2), self.border_kernel).unflatten(1, shift.shape[1:3])
            means = means + shift
        return means, torch.where(deviations > 0, deviations, 1.0), logits

    def weigh_tissues(self, components: tuple[torch.Tensor, ...], log_odds: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return components, those of each tissue in UNKNOWN raised by its log odds, shape (B, tissues, ...)."""
        each = prior.components_per_tissue(log_odds.shape[1])
        raised = log_odds.repeat_interleave(each, dim=1).unsqueeze(1)
        means, deviations, logits = components
        used, spare = logits.split([raised.shape[2], COMPONENTS - raised.shape[2]], dim=2)
        return means, deviations, torch.cat([used + raised, spare], dim=2)

    def tissues(self, x_t: torch.Tensor, times: torch.Tensor, components: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return the logarithm of the probability of each tissue of UNKNOWN, shape (B, data, tissues, H, W[, D])."""
        count = len(tissue_values(self.labels))
        log_weights = prior.log_weights(x_t, times, *components)[:, :, : count * prior.components_per_tissue(count)]
        return log_weights.unflatten(2, (count, -1)).logsumexp(dim=3).log_softmax(dim=2)

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Return the image in [-1, 1] as the network works on it: scaled, or its latent, shape (B, data, ...)."""
        return self.autoencoder.encode(image) if self.autoencoder else image * self.data_scale

    def decode(self, sample: torch.Tensor) -> torch.Tensor:
        """Return the image, shape (B, 1, ...), of what :meth:`encode` made."""
        return self.autoencoder.decode(sample) if self.autoencoder else sample / self.data_scale

    def pool(self, maps: torch.Tensor) -> torch.Tensor:
        """Return region or condition channels on the grid of the latent: the share of each cell that they cover."""
        if self.downsampling == 1:
            return maps
        pooling = torch.nn.functional.avg_pool2d if maps.ndim == 4 else torch.nn.functional.avg_pool3d
        return pooling(maps, self.downsampling)

    def kind(self) -> dict:
        """Return what weights must agree on with the configuration."""
        latent, pixel = f"latent, downsampling {self.downsampling}", f"pixel, scale {self.data_scale:g}"
        return {
            "label scheme": self.labels,
            "dimension": self.spatial_dims,
            "space": latent if self.autoencoder else pixel,
            "attributes": self.attributes.ranges,
            "scan": ["sharpness", "voxel size"],
            "objective": self.objective,
            "tissue prior": self.tissue_prior,
            "border blur": self.border_blur,
        }

    def get_extra_state(self) -> torch.Tensor:
        """Return the kind of model, stored with the weights as JSON in bytes, since consumers expect tensors only."""
        return torch.tensor(list(json.dumps(self.kind()).encode().ljust(KIND_BYTES)), dtype=torch.uint8)

    def set_extra_state(self, state: torch.Tensor) -> None:
        """Do nothing: :meth:`load_state_dict` has compared the kinds."""

    def load_state_dict(self, state_dict: Mapping, strict: bool = True, assign: bool = False):
        """Load weights, after comparing what they were trained for; take their border blur over if none was given.

        A few-step model also accepts the weights of a flow, from which its training starts.
        """
        state = state_dict.get("_extra_state")
        if not isinstance(state, torch.Tensor):
            raise ValueError("these weights are not the synthesizer's, or of a version before 0.2.0; train them anew")
        stored = stored_kind(state)
        blur = stored.pop("border blur", 0.0)  # weights before it had none
        if self.takes_border_blur:
            self.set_border_blur(blur)
        stored["border blur"] = self.border_blur
        for name, wanted in stored_kind(self.get_extra_state()).items():
            found = stored.get(name)
            starts = name == "objective" and (found, wanted) == ("flow", "few_step")
            if found != wanted and not starts:
                raise ValueError(f"the weights were trained for {name} {found}, but the configuration has {wanted}")
        return super().load_state_dict(state_dict, strict=strict, assign=assign)


def stored_kind(state: torch.Tensor) -> dict:
    """Return the kind of model in a state dict, where it is JSON in bytes."""
    return json.loads(bytes(state.tolist()))


def trained_attributes(checkpoint: str, otherwise: Mapping[str, Sequence]) -> Mapping[str, Sequence]:
    """Return the attributes, and their ranges, that weights were trained with.

    Args:
        checkpoint: File of the weights.
        otherwise: What is returned where there is no such file, or it says nothing about them.
    """
    if not Path(checkpoint).is_file():
        return otherwise
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    state = state.get("_extra_state") if isinstance(state, Mapping) else None
    return stored_kind(state).get("attributes", otherwise) if isinstance(state, torch.Tensor) else otherwise


def coarse_means(surprise: torch.Tensor, known: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return means of what the prior does not expect: over each tissue's voxels of the patch, and over blocks.

    Under noise the level of a tissue shows only in means over many voxels, which convolutions learn slowly.

    Args:
        surprise: Deviations from the prior in units of its deviation, 0 outside the region, shape (B, C, H, W[, D]).
        known: Region, tissues, UNKNOWN, density and density known, shape (B, known, H, W[, D]).

    Returns:
        For each voxel the mean over its tissue and over its block inside the region, enlarged as the mean of so many is
        small, shape (B, C, H, W[, D]) each.
    """
    functional, flat = torch.nn.functional, surprise.ndim == 4
    region, shares = known[:, :1], known[:, 1:-2]
    inside = (shares * region).flatten(2)
    mean = surprise.flatten(2) @ inside.transpose(1, 2) / inside.sum(dim=2).unsqueeze(1).clamp(min=1)
    over_tissue = (mean @ inside).view(surprise.shape)
    pool = functional.avg_pool2d if flat else functional.avg_pool3d
    block = [min(BLOCK, edge) for edge in surprise.shape[2:]]
    over_block = pool(surprise, block, ceil_mode=True) / pool(region, block, ceil_mode=True).clamp(min=1 / BLOCK)
    over_block = functional.interpolate(over_block, surprise.shape[2:], mode="bilinear" if flat else "trilinear")
    return BLOCK * over_tissue, BLOCK / 2 * over_block * region


def known_channels(labels: Mapping[str, int]) -> int:
    """Return how many channels say what is known: region, one per tissue, UNKNOWN, density, density known."""
    return len(tissue_values(labels)) + 4

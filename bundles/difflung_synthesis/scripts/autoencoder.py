"""The autoencoder of the latent space: MONAI's AutoencoderKL, with the scale of its latent in the checkpoint."""

from collections.abc import Sequence

import torch
from monai.engines import PrepareBatch
from monai.inferers import Inferer, sliding_window_inference
from monai.networks.nets import AutoencoderKL
from torch import nn

from .tissue_channels import plain


def channels_last(image: torch.Tensor) -> torch.Tensor:
    """Return an image, shape (B, C, H, W[, D]), in the memory layout in which convolutions are fastest."""
    return image.to(memory_format=torch.channels_last if image.ndim == 4 else torch.channels_last_3d)


class TissueAutoencoder(nn.Module):
    """Compress patches of CT to a latent of unit deviation and back.

    Args:
        spatial_dims: Dimensions of the data: 2 for axial patches, 3 for blocks.
        channels: Width of each level; each level but the first halves the edges.
        latent_channels: Channels of the latent.
        num_res_blocks: Residual blocks per level.
        norm_num_groups: Groups of the group normalisation.
        weights: File with the weights of a trained one (``autoencoder.pt``).
        momentum: Momentum of the running statistics of the latent.

    Attributes:
        latent_mean: Mean of the latent per channel, measured in training, shape (latent_channels,).
        latent_deviation: Deviation of the latent likewise; zero until trained.
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        channels: Sequence[int] = (32, 64),
        latent_channels: int = 4,
        num_res_blocks: int = 1,
        norm_num_groups: int = 8,
        weights: str | None = None,
        momentum: float = 0.02,
    ) -> None:
        super().__init__()
        self.latent_channels, self.downsampling = latent_channels, 2 ** (len(channels) - 1)
        self.momentum = momentum
        self.autoencoder = AutoencoderKL(
            spatial_dims=spatial_dims,
            in_channels=1,
            out_channels=1,
            channels=tuple(channels),
            num_res_blocks=(num_res_blocks,) * len(channels),
            attention_levels=(False,) * len(channels),
            latent_channels=latent_channels,
            norm_num_groups=norm_num_groups,
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
        )
        self.register_buffer("latent_mean", torch.zeros(latent_channels))
        self.register_buffer("latent_deviation", torch.zeros(latent_channels))
        if weights:
            self.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the reconstruction of images, shape (B, 1, H, W[, D]), and mean and deviation of their latents."""
        reconstruction, mean, deviation = self.autoencoder(channels_last(image))
        if self.training:
            self._track(mean.detach().float())
        return reconstruction.float(), mean.float(), deviation.float()

    @torch.no_grad()
    def _track(self, mean: torch.Tensor) -> None:
        """Update the running statistics of the latent."""
        values = mean.transpose(0, 1).flatten(1)
        momentum = self.momentum if self.latent_deviation.any() else 1.0
        self.latent_mean.lerp_(values.mean(dim=1), momentum)
        self.latent_deviation.lerp_(values.std(dim=1), momentum)

    def _per_channel(self, values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return values.view(1, -1, *[1] * (like.ndim - 2))

    @torch.no_grad()
    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Return the latent of images, mean 0 and deviation 1 over the training patches.

        Raises:
            RuntimeError: If the autoencoder has not been trained.
        """
        if not self.latent_deviation.all():
            raise RuntimeError("the autoencoder has no trained weights; give them with --autoencoder_weights FILE")
        mean, _ = self.autoencoder.encode(channels_last(image))
        mean = mean.float()
        return (mean - self._per_channel(self.latent_mean, mean)) / self._per_channel(self.latent_deviation, mean)

    @torch.no_grad()
    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Return the image, shape (B, 1, H, W[, D]), of a latent."""
        scaled = latent * self._per_channel(self.latent_deviation, latent) + self._per_channel(self.latent_mean, latent)
        return self.autoencoder.decode(channels_last(scaled)).float()


class AutoencoderPrepareBatch(PrepareBatch):
    """Give patches as input and as target; patches of one slice become two-dimensional."""

    def __call__(self, batchdata, device=None, non_blocking: bool = False, **kwargs):
        """Return (image, image), shape (B, 1, H, W[, D])."""
        image = plain(batchdata["image"])
        image = (image.squeeze(-1) if image.shape[-1] == 1 else image).to(device, non_blocking=non_blocking)
        return image, image


class AutoencoderLoss(nn.Module):
    """Absolute error, and the Kullback-Leibler divergence that keeps the latent near a normal distribution.

    Args:
        kl_weight: Weight of the divergence per latent value.
    """

    def __init__(self, kl_weight: float = 1e-6) -> None:
        super().__init__()
        self.kl_weight = kl_weight

    def forward(self, output: tuple[torch.Tensor, torch.Tensor, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
        """Return the loss of reconstruction, mean and deviation, as :class:`TissueAutoencoder` gives them."""
        reconstruction, mean, deviation = output
        divergence = 0.5 * (mean**2 + deviation**2 - 2 * deviation.clamp(min=1e-8).log() - 1).mean()
        return (reconstruction - image).abs().mean() + self.kl_weight * divergence


class ReconstructInferer(Inferer):
    """Encode and decode a volume and paste the region of the result: what the latent space alone loses.

    Args:
        patch_size: Window in voxels along each axis; (W, H, 1) for slices.
        overlap: Share of a window that it has in common with its neighbour.
        sw_batch_size: Windows per call of the network.
        samples: Without effect, since a reconstruction is always the same; the evaluation sets it.
    """

    def __init__(
        self, patch_size: Sequence[int], overlap: float = 0.25, sw_batch_size: int = 16, samples: int = 1
    ) -> None:
        self.patch_size, self.overlap, self.sw_batch_size = tuple(patch_size), overlap, sw_batch_size

    @torch.no_grad()
    def __call__(self, inputs, network, region, **given):
        """Return the volumes, shape (B, 1, W, H, D), reconstructed inside the region, with their metadata."""
        autoencoder = getattr(network, "module", network)

        def reconstruct(image: torch.Tensor) -> torch.Tensor:
            return autoencoder.decode(autoencoder.encode(image))

        result = inputs.clone()
        for volume, inside in zip(plain(result), region):
            x = volume[None].float()
            if self.patch_size[2] == 1:
                x = x[0].permute(3, 0, 1, 2)
            window = self.patch_size[: x.ndim - 2]
            x = sliding_window_inference(x, window, self.sw_batch_size, reconstruct, self.overlap, mode="gaussian")
            x = x.permute(1, 2, 3, 0) if self.patch_size[2] == 1 else x[0]
            volume.copy_(torch.where(inside > 0, x, volume))
        return result

"""The denoiser: MONAI's diffusion U-Net behind the one-tensor interface that the Model Zoo checks."""

import torch
from monai.networks.nets import DiffusionModelUNet
from torch import nn


def bfloat16_is_fast(device: torch.device) -> bool:
    """Return whether a device computes bfloat16 natively; elsewhere it is emulated and slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return (
        device.type == "cpu" and torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


class TissueDenoiser(nn.Module):
    """Velocity of the rectified flow at every voxel, from the noisy patch and what is known about it.

    Args:
        num_tissues: tissues of the label scheme, background not counted.
        spatial_dims: 2 for axial patches.
        channels: width of each level of the U-Net.
        num_res_blocks: residual blocks per level.
        attention_levels: levels with self-attention.
        num_head_channels: channels of an attention head; the middle block always has attention.
        norm_num_groups: groups of the group normalisation.
        amp: compute in bfloat16 where the processor has it.

    Attributes:
        tissue_presence: f_k of the training patches, shape (num_tissues,), zero until trained.
    """

    def __init__(
        self,
        num_tissues: int = 5,
        spatial_dims: int = 2,
        channels: tuple[int, ...] = (32, 64, 128),
        num_res_blocks: int = 1,
        attention_levels: tuple[bool, ...] = (False, False, False),
        num_head_channels: int = 32,
        norm_num_groups: int = 8,
        amp: bool = True,
    ) -> None:
        super().__init__()
        self.unet = DiffusionModelUNet(
            spatial_dims=spatial_dims,
            in_channels=self.input_channels(num_tissues),
            out_channels=1,
            channels=channels,
            num_res_blocks=num_res_blocks,
            attention_levels=attention_levels,
            num_head_channels=num_head_channels,
            norm_num_groups=norm_num_groups,
        )
        self.amp = amp
        self.register_buffer("tissue_presence", torch.zeros(num_tissues))

    @staticmethod
    def input_channels(num_tissues: int) -> int:
        """Return the channels of ``image``: noisy patch, region, one per tissue, UNKNOWN."""
        return num_tissues + 3

    def forward(self, image: torch.Tensor, timesteps: torch.Tensor | None = None) -> torch.Tensor:
        """Predict the velocity dx/dt.

        Args:
            image: x_t, region and condition stacked, shape (B, 3 + tissues, H, W), H and W multiples of the stride.
            timesteps: t in [0, 1], shape (B,); 1 (pure noise) if None.

        Returns:
            Velocity, float32, shape (B, 1, H, W).
        """
        if timesteps is None:
            timesteps = torch.ones(image.shape[0], device=image.device)
        image = image.to(memory_format=torch.channels_last) if image.ndim == 4 else image
        enabled = self.amp and bfloat16_is_fast(image.device)
        with torch.autocast(image.device.type, torch.bfloat16, enabled=enabled):
            velocity = self.unet(image, timesteps * 1000)  # the sinusoidal embedding expects steps up to 1000
        return velocity.float()

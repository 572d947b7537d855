"""The synthesizer for one CT in memory: its weights, what they know, and painting only the slices that change."""

import sys
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from nibabel.affines import from_matvec

from tools.bundles import BUNDLES, load_script
from tools.io.files import InputError, read_json
from tools.io.volume import slices_with
from tools.painting.painter import Painter
from tools.tissues import tissue_labels, words
from tools.workflows.origin import Weights, find_weights, read_state, trained_settings
from tools.workflows.synthesizer import SYNTHESIZER, painted_region

SLICES_AROUND = 2  # of the region, which the network sees too
NEVER_TOLD = 1.0  # density_unknown of weights that were never told a density


class OneCtPainter:
    """The synthesizer's bundle with some weights.

    Args:
        weights: The file named by the user; the bundle's own if None.
        steps: Number of network evaluations per window.
        device: Device of the network; the bundle's own choice if None.
        density: Mean HU wanted of all that is painted, or None.

    Attributes:
        weights: The weights and their card.
        labels: Tissue name to value.

    Raises:
        InputError: if there are no weights, their card is missing or wrong, they are of another label scheme, or they
            know no density although one is wanted.
    """

    def __init__(self, weights: Path | None, steps: int, device: str | None, density: float | None) -> None:
        root = BUNDLES / SYNTHESIZER
        self.weights: Weights = find_weights(SYNTHESIZER, weights, "--weights")
        kind = read_kind(self.weights.path)
        if kind["label scheme"] != tissue_labels():
            raise InputError(
                f"{self.weights.path} is of the label scheme {kind['label scheme']}, but the bundles' is "
                f"{tissue_labels()}; train anew with it"
            )
        settings = trained_settings(self.weights, read_json(root / "configs/inference.json"))
        settings |= {"attributes": kind["attributes"], "objective": kind["objective"], "num_steps": steps}
        settings["tissue_prior"] = kind.get("tissue prior", settings["tissue_prior"])
        samplers = load_script(SYNTHESIZER, "painting").SAMPLERS
        if kind["objective"] not in samplers[settings["sampler"]]:
            settings["sampler"] = next(name for name, known in samplers.items() if kind["objective"] in known)
        self.labels, self.density = settings["labels"], density
        self._check_density(density, settings["hu_window"])
        self.painter = Painter(root, self.weights.path, device, settings)

    def _check_density(self, density: float | None, hu_window: list[float]) -> None:
        """Raise InputError if a density is wanted that the weights cannot heed."""
        if density is None:
            return
        low, high = hu_window
        if not low <= density <= high:
            raise InputError(f"--density {density:g} is out of range; it is the mean HU of a tissue, {low} to {high}")
        overrides = self.weights.card.get("overrides")
        if isinstance(overrides, dict) and overrides.get("density_unknown") == NEVER_TOLD:
            raise InputError(
                f"--density {density:g} is asked for, but {self.weights.path} was never told one in training "
                "(density_unknown 1 on its card); leave it out, or use other weights"
            )

    def density_range(self, tissue: str) -> tuple[float, float] | None:
        """Return the least and greatest HU of a tissue in the training patches, or None where weights do not say.

        They are the means of the lowest and the highest of the equally large slices into which training cut its HU.
        """
        network, (low, high) = self.painter.network, self.painter.hu_window
        if network.autoencoder is not None or not network.tissue_mean.any():
            return None
        place = sorted(value for value in self.labels.values() if value).index(self.labels[tissue])
        means = network.tissue_mean[0, place] / network.data_scale
        return tuple(float((mean + 1) / 2 * (high - low) + low) for mean in (means.min(), means.max()))

    @torch.inference_mode()
    def paint(self, hu: np.ndarray, own: np.ndarray, target: np.ndarray, affine: np.ndarray, seed: int) -> np.ndarray:
        """Return a CT painted where its target map differs from its own.

        Args:
            hu: CT in HU, float32, shape (W, H, slices).
            own: Its tissue map, the same shape.
            target: The map wanted, the same shape.
            affine: From voxels to RAS in mm.
            seed: Seed of the noise.

        Raises:
            InputError: if the region is too small for the network, or the CT's voxels are of a size it does not know.
        """
        region = target != own
        densities = {}
        if self.density is not None:
            names = {value: name for name, value in self.labels.items()}
            densities = {names[int(value)]: self.density for value in np.unique(target[region])}
        for tissue in densities:
            self._warn_of_density(tissue)
        box = slices_with(region, affine, SLICES_AROUND)
        wide = painted_region(own, target, affine, self.painter.margin)
        moved = affine @ from_matvec(np.eye(3), [part.start for part in box])
        volumes = [
            MetaTensor(torch.from_numpy(np.ascontiguousarray(array[box], np.float32))[None], affine=moved)
            for array in (hu, own, target)
        ]
        try:
            answer = self.painter.paint(*volumes, seed, {}, densities)
        except ValueError as error:  # of the bundle, as where the CT's voxels are of a size that it does not know
            raise InputError(f"{error}; resample the CT, or name other --weights") from error
        if answer is None:
            raise InputError(
                f"the region to paint has {np.count_nonzero(region)} voxels, too few for the network, which needs "
                f"{self.painter.smallest_region} of its own size; ask for more"
            )
        painted = hu.copy()
        painted[box] = np.where(wide[box], answer[0].numpy(), hu[box])
        return painted

    def _warn_of_density(self, tissue: str) -> None:
        known = self.density_range(tissue)
        if known and not known[0] <= self.density <= known[1]:
            print(
                f"paint: warning: --density {self.density:g} lies outside the {words(tissue)} that the weights were "
                f"trained on, {known[0]:.0f} to {known[1]:.0f} HU; the texture is a guess there",
                file=sys.stderr,
            )


def read_kind(path: Path) -> dict:
    """Return what weights of the synthesizer say of themselves: label scheme, attributes, objective and more.

    Raises:
        InputError: if they cannot be read, or are not the synthesizer's.
    """
    stored_kind = load_script(SYNTHESIZER, "network").stored_kind
    state = read_state(path)
    if not isinstance(state.get("_extra_state"), torch.Tensor):
        raise InputError(f"{path} holds no weights of {SYNTHESIZER}; are they the segmenter's?")
    return stored_kind(state["_extra_state"])

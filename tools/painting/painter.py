"""The synthesizer's inference inside this process: its own components, fed from memory instead of from files."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate

from tools.data.datalist import within
from tools.io.files import InputError, read_json
from tools.workflows.in_process import InProcess, metadata_tracked
from tools.workflows.synthesizer import card_settings


def read_settings(bundle_root: Path, checkpoint: Path, overrides: Mapping) -> dict:
    """Return ``configs/inference.json`` with what the weights' card says of their training, and with overrides.

    A ``card.json`` beside the weights, as ``augment`` writes it, is heeded; overrides are such as ``{"num_steps": 4}``.

    Raises:
        InputError: if the bundle or the weights are not there, or an override names no id.
    """
    config = read_json(Path(bundle_root) / "configs/inference.json")
    trained = {key: value for key, value in card_settings(checkpoint, []).items() if key in config}
    unknown = sorted(set(overrides) - set(config))
    if unknown:
        raise InputError(f"{bundle_root}/configs/inference.json has no id {unknown[0]!r} to override")
    return config | trained | dict(overrides)


class Painter(InProcess):
    """The synthesizer as ``inference.json`` builds it, without its files: what it paints is what the bundle paints.

    Settings come from ``read_settings``; InputError if the weights were trained for something else than they say.
    """

    def __init__(self, bundle_root: Path, checkpoint: Path, device: str | None, settings: Mapping) -> None:
        super().__init__(bundle_root, checkpoint, device, settings)
        self.cases = self.script("cases")
        self.labels, self.hu_window = settings["labels"], settings["hu_window"]
        self.margin = settings["region_margin"]
        self.prepare_batch = self.parser.get_parsed_content("prepare_batch")

    @property
    def smallest_region(self) -> int:
        """Voxels of the network's size that a region needs: one cell of its coarsest level."""
        return self.network.stride**self.network.spatial_dims

    def paint(
        self,
        image: MetaTensor,
        label: MetaTensor,
        target: MetaTensor,
        seed: int,
        patient: Mapping,
        density: Mapping[str, float] | None = None,
    ) -> torch.Tensor | None:
        """Paint a CT (HU, float32, shape (1, W, H, D)) where a map differs from its own, all of the same shape.

        Args:
            image: The CT.
            label: Its tissue map.
            target: The map wanted.
            seed: Seed for the noise; the bundle's own run draws the same for a case with this number in the column
                ``seed`` of ``conditions.csv``.
            patient: Whatever is known; what the network knows of it, it is told.
            density: Mean HU wanted, by tissue; any will do for a tissue that is left out.

        Returns:
            The painted CT; None if the region is smaller than one cell of the network's coarsest level.
        """
        attributes = self.network.attributes
        known = attributes.encode(within(patient, attributes.ranges))
        item = {"image": image, "label": label, "target": target, "attributes": np.float32(known)}
        if density:
            wanted = {f"density_{tissue}": str(hu) for tissue, hu in density.items()}
            item["density"] = self.cases.encode_density(wanted, "the CT", self.labels, self.hu_window)
        with metadata_tracked():
            item = self.preprocessing(item | {"seed": self.cases.case_seed(str(seed), 0)})
            if item["region"].sum() < self.smallest_region:
                return None
            batch = list_data_collate([item])
            inputs, _, _, given = self.prepare_batch(batch, self.device)
            batch["pred"] = self.inferer(inputs, self.network, **given).cpu()
            return self.postprocessing(decollate_batch(batch)[0])["pred"].as_tensor()


@functools.cache
def load_painter(bundle_root: Path, checkpoint: Path, device: str, settings: str) -> Painter:
    """Return the painter of this process for these settings (as JSON, from ``read_settings``), loaded once."""
    return Painter(bundle_root, checkpoint, device, json.loads(settings))

"""The synthesizer's inference inside this process: its own components, fed from memory instead of from files."""

import contextlib
import functools
import importlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor, decollate_batch, get_track_meta, list_data_collate, set_track_meta
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, SaveImaged

from tools.bundles import import_scripts, rename_targets
from tools.data.datalist import within
from tools.io.files import InputError, read_json
from tools.workflows.synthesizer import card_settings

FILES = (LoadImaged, EnsureChannelFirstd, SaveImaged)  # what only a run on files needs


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


class Painter:
    """The synthesizer as ``inference.json`` builds it, without its files: what it paints is what the bundle paints.

    Settings come from ``read_settings``; InputError if the weights were trained for something else than they say.
    """

    def __init__(self, bundle_root: Path, checkpoint: Path, device: str, settings: Mapping) -> None:
        package = import_scripts(bundle_root)
        self.case_seed = importlib.import_module(f"{package}.cases").case_seed
        self.device = torch.device(device)
        parser = ConfigParser()
        parser.read_config(rename_targets(dict(settings), package))
        parser["bundle_root"], parser["device"] = str(bundle_root), self.device
        with torch.random.fork_rng(devices=[]):  # first weights are drawn; the training's own draws stay the same
            self.network = parser.get_parsed_content("network").eval().requires_grad_(False)
        try:
            self.network.load_state_dict(torch.load(checkpoint, map_location=self.device, weights_only=True))
        except (ValueError, RuntimeError) as error:
            raise InputError(f"{checkpoint} does not fit {bundle_root}/configs/inference.json: {error}") from None
        self.inferer = parser.get_parsed_content("inferer")
        self.prepare_batch = parser.get_parsed_content("prepare_batch")
        self.preprocessing, self.postprocessing = (
            Compose([part for part in parser.get_parsed_content(name).transforms if not isinstance(part, FILES)])
            for name in ("preprocessing", "postprocessing")
        )

    def paint(
        self, image: MetaTensor, label: MetaTensor, target: MetaTensor, seed: int, patient: Mapping
    ) -> torch.Tensor | None:
        """Paint a CT (HU, float32, shape (1, W, H, D)) where a map differs from its own, all of the same shape.

        Args:
            image: The CT.
            label: Its tissue map.
            target: The map wanted.
            seed: Seed for the noise; the bundle's own run draws the same for a case with this number in the column
                ``seed`` of ``conditions.csv``.
            patient: Whatever is known; what the network knows of it, it is told.

        Returns:
            The painted CT; None if the region is smaller than one cell of the network's coarsest level.
        """
        attributes = self.network.attributes
        known = attributes.encode(within(patient, attributes.ranges))
        item = {"image": image, "label": label, "target": target, "attributes": np.float32(known)}
        with metadata_tracked():
            item = self.preprocessing(item | {"seed": self.case_seed(str(seed), 0)})
            if item["region"].sum() < self.network.stride**self.network.spatial_dims:
                return None
            batch = list_data_collate([item])
            inputs, _, _, given = self.prepare_batch(batch, self.device)
            batch["pred"] = self.inferer(inputs, self.network, **given).cpu()
            return self.postprocessing(decollate_batch(batch)[0])["pred"].as_tensor()


@contextlib.contextmanager
def metadata_tracked() -> Iterator[None]:
    """Have MONAI track metadata inside the block, which the way back to a CT's own voxels needs."""
    before = get_track_meta()
    set_track_meta(True)
    try:
        yield
    finally:
        set_track_meta(before)


@functools.cache
def load_painter(bundle_root: Path, checkpoint: Path, device: str, settings: str) -> Painter:
    """Return the painter of this process for these settings (as JSON, from ``read_settings``), loaded once."""
    return Painter(bundle_root, checkpoint, device, json.loads(settings))

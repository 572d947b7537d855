"""A bundle's inference inside this process: the components of its config, fed from memory instead of from files."""

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from monai.data import get_track_meta, set_track_meta

from tools.bundles import import_scripts, rename_targets
from tools.io.files import InputError

# what only a run on files needs
FILES = ("LoadImaged", "EnsureChannelFirstd", "scripts.loading.CheckVolumesd", "$@saver.set_options")


def without_files(config: Mapping) -> dict:
    """Return a config whose pre- and postprocessing neither read nor write files."""
    kept = {
        name: config[name]
        | {"transforms": [part for part in config[name]["transforms"] if part["_target_"] not in FILES]}
        for name in ("preprocessing", "postprocessing")
    }
    return dict(config) | kept


class InProcess:
    """A bundle as its ``inference.json`` builds it, without its files: what it answers is what the bundle answers.

    Args:
        bundle_root: Folder of the bundle.
        checkpoint: Weights, a state dict.
        device: Device of the network; the config's own choice if None.
        settings: Content of ``inference.json``, changed as wanted.

    Attributes:
        network: The network with its weights, for inference.
        preprocessing: What stands between a file and the inferer, without reading.
        postprocessing: What stands between the inferer and a file, without writing.

    Raises:
        InputError: if the weights do not fit the settings.
    """

    def __init__(self, bundle_root: Path, checkpoint: Path, device: str | None, settings: Mapping) -> None:
        self.package = import_scripts(bundle_root)
        self.parser = ConfigParser()
        self.parser.read_config(rename_targets(without_files(settings), self.package))
        self.parser["bundle_root"] = str(bundle_root)
        if device is not None:
            self.parser["device"] = torch.device(device)
        self.device = torch.device(self.parser.get_parsed_content("device"))
        with torch.random.fork_rng(devices=[]):  # first weights are drawn; the caller's own draws stay the same
            self.network = self.parser.get_parsed_content("network").eval().requires_grad_(False)
        try:
            self.network.load_state_dict(torch.load(checkpoint, map_location=self.device, weights_only=True))
        except (ValueError, RuntimeError) as error:
            raise InputError(f"{checkpoint} does not fit {bundle_root}/configs/inference.json: {error}") from None
        self.inferer = self.parser.get_parsed_content("inferer")
        self.preprocessing, self.postprocessing = (
            self.parser.get_parsed_content(name) for name in ("preprocessing", "postprocessing")
        )

    def script(self, name: str):
        """Return a module of the bundle's ``scripts``."""
        return importlib.import_module(f"{self.package}.{name}")


@contextlib.contextmanager
def metadata_tracked() -> Iterator[None]:
    """Have MONAI track metadata inside the block, which the way back to a CT's own voxels needs."""
    before = get_track_meta()
    set_track_meta(True)
    try:
        yield
    finally:
        set_track_meta(before)

"""``RandSyntheticTissued``: a MONAI transform that draws a lesion into a CT's tissue map and paints it, on the fly.

It stands in ``tools`` and not in the synthesizer's bundle, since ``tools`` draws maps, and a bundle uses itself only.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_tensor
from torch.utils.data import get_worker_info

from tools.bundles import BUNDLES
from tools.io.files import InputError
from tools.io.volume import canonical, canonical_spacing, case_name, load_labels, original
from tools.maps.bank import FAILURES, LesionPlacer
from tools.maps.check import list_maps
from tools.maps.lesions import Lesion, find_lesions
from tools.maps.placement import Receiver
from tools.painting.painter import load_painter, read_settings
from tools.workflows.synthesizer import painted_region, smallest_region
from tools.workflows.trusted import check_trusted

HEALTHY_HU_AT_MOST = -300  # mean of healthy lung, which lies near -850; scaled images and pictures lie above
WHOLE = 1e-3  # by which a label may differ from a whole number
PAINTED, NO_ROOM, NOT_ASKED = "painted", "no room", "not asked"


class RandSyntheticTissued(RandomizableTransform, MapTransform):
    """Paint new tissue into healthy lung with the synthesizer, and enter it into the tissue map.

    With probability ``prob`` a tissue is drawn, then lesions of it: moved and deformed ones, and some grown by a model
    of their statistics, as ``python -m tools maps`` draws them. The synthesizer paints them into the CT. Outside the
    painted region, which is wider than the lesions by the ``region_margin`` in-plane voxels, the CT stays as it is,
    bit for bit; so does the map outside the lesions. HU in, HU out: its place is before any scaling of intensities, and
    before the tissue map is looked at (``RandCropByLabelClassesd``).

    No case painted here passes the quality gate of ``augment``, and no file of it is kept. The synthesizer must not
    have seen the patients on whom the trained model is tested (``card.json`` beside its weights names its own).

    The sample gets ``synthetic``, whether it holds synthetic tissue, and ``painted``: ``outcome`` (``painted``,
    ``no room``, or ``not asked`` where ``prob`` said no), ``tissue``, ``lesions``, ``voxels`` and ``seed``, with which
    :meth:`paint` does the same again. A painted CT has ``synthetic`` in its metadata too. Nothing is entered into
    ``applied_operations``: painting cannot be undone, and Invertd would stop at it.

    The network is loaded when the first sample is painted, once per process; so workers should be persistent.

    Args:
        keys: The CT in HU and its tissue map, in this order, both of shape (1, W, H, D); D is 1 for a slice.
        bundle_root: Folder of the synthesizer's bundle.
        lesions: Folder of tissue maps (a bank made by ``maps``, or maps of training patients) whose lesions are drawn.
        checkpoint: Weights of the synthesizer; ``models/model.pt`` of the bundle if None.
        prob: How often a sample is painted.
        tissues: Tissue name to weight with which it is drawn; each tissue of the lesions equally often if None.
        max_lesions: Largest number of lesions, each number equally likely; more where they are too small to be painted.
        procedural: Share of the lesions that the model grows; the others are moved.
        spacing_mm: Voxel size, for tensors without metadata, which must lie in RAS orientation; metadata is heeded
            where there is any.
        device: Device of the network; ``cuda`` paints in the main process only.
        overrides: Config ids of the synthesizer's ``inference.json`` and their values, such as ``{"num_steps": 4}``.
        trust: Whether to run configs and scripts of ``bundle_root`` that differ from the packaged bundle's.

    Attributes:
        outcomes: How often each outcome happened in this process.

    Raises:
        InputError: if an argument is out of range, bundle, weights or maps are not there, or the bundle's programs are
            not the packaged ones and not trusted.

    Example, in the config of any MONAI training::

        {"_target_": "tools.painting.rand_synthetic_tissue.RandSyntheticTissued", "keys": ["image", "label"],
         "bundle_root": "bundles/difflung_synthesis", "lesions": "bank", "prob": 0.3}
    """

    backend = [TransformBackends.TORCH, TransformBackends.NUMPY]

    def __init__(
        self,
        keys: KeysCollection,
        bundle_root: str,
        lesions: str,
        checkpoint: str | None = None,
        prob: float = 0.3,
        tissues: Mapping[str, float] | None = None,
        max_lesions: int = 2,
        procedural: float = 0.25,
        spacing_mm: Sequence[float] | None = None,
        device: str = "cpu",
        overrides: Mapping | None = None,
        trust: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys)
        if len(self.keys) != 2:
            raise InputError(f"keys must be the CT and its tissue map, two names, not {self.keys}")
        for name, share in (("prob", prob), ("procedural", procedural)):
            if not 0 <= share <= 1:
                raise InputError(f"{name} must be from 0 to 1, not {share}")
        if max_lesions < 1:
            raise InputError(f"max_lesions must be at least 1, not {max_lesions}")
        if torch.device(device).type == "cuda" and not torch.cuda.is_available():
            raise InputError(f"device {device} is not available here; paint on the cpu")
        RandomizableTransform.__init__(self, prob)
        self.bundle_root = Path(bundle_root).resolve()
        check_trusted(self.bundle_root, trust)
        # what is like the packaged bundle is run from there: compiled files beside the other's scripts may differ
        own = BUNDLES / self.bundle_root.name
        self._programs = self.bundle_root if trust or not own.is_dir() else own
        self.checkpoint = Path(checkpoint).resolve() if checkpoint else self.bundle_root / "models/model.pt"
        self.max_lesions, self.spacing_mm, self.device = max_lesions, spacing_mm, device
        settings = read_settings(self.bundle_root, self.checkpoint, overrides or {})
        self.labels, self.least, self._settings = settings["labels"], smallest_region(settings), json.dumps(settings)
        bank = read_lesions(lesions, self.labels)
        self.placer, self.tissues = LesionPlacer(bank, {}, self.labels, procedural), list(bank)
        unknown = sorted(set(tissues or {}) - set(bank))
        if unknown:
            raise InputError(f"tissues names {unknown[0]}, but {lesions} has lesions of {', '.join(bank)} only")
        weights = np.array([1.0 if tissues is None else tissues.get(name, 0.0) for name in bank])
        if weights.min() < 0 or weights.sum() == 0:
            raise InputError(f"tissues must hold weights of at least 0, one of them above, not {tissues}")
        self.shares = weights / weights.sum()
        self.outcomes: Counter = Counter()

    def randomize(self, data: object = None) -> None:
        """Draw whether the sample is painted, and the seed of all that is drawn for it."""
        super().randomize(data)
        self._seed = int(self.R.randint(2**32, dtype=np.uint32))

    def __call__(self, data: Mapping) -> dict:
        """Return the sample, painted or not.

        Raises:
            InputError: if a sample to paint is not as ``keys`` says, is not in HU, or its map holds an unknown label.
        """
        self.randomize()
        if self._do_transform:
            return self.paint(data, self._seed)
        return self._note(dict(data), NOT_ASKED, self._seed)

    def paint(self, data: Mapping, seed: int) -> dict:
        """Return the sample with the tissue that a seed draws, whatever ``prob`` says."""
        sample = dict(data)
        image, label = (sample[key] for key in self.key_iterator(sample))
        affine = self._affine(image, label)
        hu, tissues = (convert_to_tensor(given, track_meta=False) for given in (image, label))
        if tissues.is_floating_point() and (tissues - tissues.round()).abs().max() <= WHOLE:
            tissues = tissues.round()  # 2.9999998 is what resampling leaves of 3
        self._check(hu, tissues)
        own = tissues[0].cpu().numpy().astype(np.int16)
        target, tissue, lesions = self.draw(own, affine, np.random.default_rng(seed))
        wanted, painted = torch.from_numpy(target)[None], None
        if lesions:
            if torch.device(self.device).type == "cuda" and get_worker_info() is not None:
                raise InputError(f"device {self.device} paints in the main process only; set num_workers 0, or the cpu")
            painter = load_painter(self._programs, self.checkpoint, self.device, self._settings)
            volumes = (MetaTensor(tensor.cpu().float(), affine=affine) for tensor in (hu, tissues, wanted))
            painted = painter.paint(*volumes, seed, sample)
        if painted is None:
            return self._note(sample, NO_ROOM, seed, tissue)
        region = wanted != tissues.cpu()
        wide = torch.from_numpy(painted_region(own, target, affine, painter.margin))[None]
        parts = zip(self.keys, (image, label), (hu, tissues), (painted, wanted), (wide, region))
        for key, given, old, new, where in parts:
            changed = torch.where(where.to(old.device), new.to(old), old)
            sample[key] = convert_to_dst_type(changed, given)[0]
        if isinstance(image, MetaTensor):
            sample[self.keys[0]].meta["synthetic"] = True
        return self._note(sample, PAINTED, seed, tissue, lesions, int(region.sum()))

    def draw(self, label: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, str, int]:
        """Return a map of shape (W, H, D) with new lesions, their tissue, and how many found a place."""
        tissue = str(rng.choice(self.tissues, p=self.shares))
        spacing = canonical_spacing(nib.Nifti1Image(label, affine))
        receiver = Receiver(canonical(label, affine), None, spacing, self.labels["healthy"])
        wanted, placed, voxels, failures = rng.integers(1, self.max_lesions + 1), 0, 0, 0
        while (placed < wanted or voxels < self.least) and failures < FAILURES:
            found = self.placer.place(receiver, tissue, rng)
            placed, voxels, failures = placed + (found > 0), voxels + found, failures + (found == 0)
        return np.ascontiguousarray(original(receiver.target, affine)), tissue, placed

    def _note(self, sample: dict, outcome: str, seed: int, tissue: str = "", lesions: int = 0, voxels: int = 0) -> dict:
        """Return the sample with what was done to it; the same keys each time, so that samples can be batched."""
        self.outcomes[outcome] += 1
        sample["synthetic"] = bool(sample.get("synthetic", False)) or outcome == PAINTED
        sample["painted"] = {
            "outcome": outcome, "tissue": tissue, "lesions": lesions, "voxels": voxels, "seed": seed
        }  # fmt: skip
        return sample

    def _affine(self, image: torch.Tensor, label: torch.Tensor) -> np.ndarray:
        """Return the affine of a CT and its map, once they are known to lie in the same voxels."""
        (image_key, label_key), shape = self.keys, tuple(image.shape)
        if image.ndim != 4 or len(image) != 1:
            raise InputError(f"{image_key} has shape {shape}; expected (1, W, H, D), with D = 1 for a slice")
        if label.shape != image.shape:
            raise InputError(f"{label_key} has shape {tuple(label.shape)}, but {image_key} has {shape}")
        affines = [tensor.affine.cpu().numpy() for tensor in (image, label) if isinstance(tensor, MetaTensor)]
        if not affines and self.spacing_mm is None:
            raise InputError(f"{image_key} carries no metadata, so its voxel size is unknown; give spacing_mm")
        if len(affines) == 2 and not np.allclose(*affines, rtol=0, atol=0.01):
            raise InputError(f"{label_key} has another affine than {image_key}; resample it to the CT's voxels")
        return affines[0] if affines else np.diag([*self.spacing_mm, 1.0])

    def _check(self, hu: torch.Tensor, tissues: torch.Tensor) -> None:
        """Raise InputError if a map holds a label without a name, or a CT is not in HU."""
        image_key, label_key = self.keys
        unnamed = [value for value in tissues.unique().tolist() if value not in self.labels.values()]
        if unnamed:
            raise InputError(f"{label_key} holds label {unnamed[0]:.9g}, but labels name only {self.labels}")
        healthy = tissues == self.labels["healthy"]
        mean = float(hu[healthy].float().mean()) if healthy.any() else HEALTHY_HU_AT_MOST
        if not mean <= HEALTHY_HU_AT_MOST:
            raise InputError(
                f"{image_key} has a mean of {mean:g} in healthy lung, which cannot be HU (about -850); "
                "RandSyntheticTissued stands before the scaling of intensities"
            )


def read_lesions(folder: Path, labels: Mapping[str, int]) -> dict[str, list[Lesion]]:
    """Return the lesions in a folder of tissue maps (or of the command ``maps``), per tissue that has any.

    Raises:
        InputError: if there is no map, one cannot be read, or they hold no lesion.
    """
    tissues = {name: value for name, value in labels.items() if name not in ("background", "healthy")}
    found: dict[str, list[Lesion]] = {}
    for path in list_maps(folder):
        label, file = load_labels(path, labels)
        turned = canonical(label, file.affine)
        for lesion in find_lesions(case_name(path), turned, None, canonical_spacing(file), tissues):
            found.setdefault(lesion.tissue, []).append(lesion)
    if not found:
        raise InputError(f"{folder} holds maps without any lesion; name a bank made by maps, or maps with lesions")
    return dict(sorted(found.items()))

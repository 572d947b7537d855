"""Weights for whoever just wants an answer: where they lie, and what their card says they are and are not."""

from dataclasses import dataclass
from pathlib import Path

from tools.bundles import BUNDLES
from tools.io.files import InputError, check_settings, first_line, read_json, sha256
from tools.tissues import tissue_labels

CARD = "card.json"
SHIPPED = "shipped"
EXAMPLE = '{"trained_on": "40 labelled patients of our hospital"}'
NOT = "research use only: not a medical device, not for diagnosis"


@dataclass(frozen=True)
class Weights:
    """Weights of a bundle and their card.

    Attributes:
        path: The file, a state dict.
        bundle: Folder name below ``bundles/``.
        version: Version of the bundle.
        card: Content of the card.json beside the file.
        digest: SHA-256 of the file.
    """

    path: Path
    bundle: str
    version: str
    card: dict
    digest: str

    @property
    def trained_on(self) -> str:
        """What the weights were trained on, in a phrase."""
        return trained_on(self.card)

    def sentences(self) -> list[str]:
        """Return what the weights are and are not."""
        told = [f"{self.bundle} {self.version}, weights {self.path.name} (SHA-256 {self.digest[:12]})."]
        told.append(f"Trained on: {self.trained_on}.")
        if self.card.get("steps"):
            told.append(f"Trained for {self.card['steps']} steps.")
        human = any(self.card.get(key) for key in ("cases", "patients")) and not self.card.get("trained_on")
        if human:
            told.append("Whether those cases were real or drawn, and who labelled them, the card does not say.")
        told.append(f"{NOT[0].upper()}{NOT[1:]}. Nothing is known of how well they do on your scanner and patients.")
        return told


def trained_on(card: dict) -> str:
    """Return what a card says of the training cases, in a phrase; empty if it says nothing.

    Example:
        >>> trained_on({"cases": [{"patient": "a"}, {"patient": "a"}]})
        '2 cases of 1 patient'
        >>> trained_on({"trained_on": "drawn patients."})
        'drawn patients'
    """
    if card.get("trained_on"):
        return str(card["trained_on"]).rstrip(". ")
    cases = card.get("cases") if isinstance(card.get("cases"), list) else []
    patients = {str(row["patient"]) for row in cases} | set(map(str, card.get("patients") or []))
    if not patients:
        return ""
    people = f"{len(patients)} patient{'s' * (len(patients) > 1)}"
    return f"{len(cases)} case{'s' * (len(cases) > 1)} of {people}" if cases else people


def named_weights(bundle: str, weights: Path | str | None) -> Path | None:
    """Return the file of weights that a flag names: those that come with a bundle for the word shipped."""
    return (
        BUNDLES / bundle / "models/model.pt" if str(weights) == SHIPPED else None if weights is None else Path(weights)
    )


def find_weights(bundle: str, weights: Path | None, flag: str) -> Weights:
    """Return the weights named, or those that come with a bundle, once their card says what they are.

    Args:
        bundle: Folder name below ``bundles/``.
        weights: The file named by the user; the bundle's ``models/model.pt`` if None.
        flag: The flag by which a user names others, for messages.

    Raises:
        InputError: if there is no such file or no card beside it, or the card says nothing of the training, is of
            another label scheme or describes another file.
    """
    path = Path(weights) if weights is not None else BUNDLES / bundle / "models/model.pt"
    page = f"bundles/{bundle}/docs/README.md"
    if not path.is_file():
        if weights is not None:
            raise InputError(f"{flag} {path} does not exist")
        raise InputError(f"{path} does not exist; train {bundle} as {page} says, or name weights by {flag}")
    card_file = path.with_name(CARD)
    if not card_file.is_file():
        raise InputError(
            f"{path} has no {CARD} beside it, so nobody knows what it was trained on; write one, such as {EXAMPLE}"
        )
    card, digest = read_json(card_file), sha256(path)
    if not isinstance(card, dict) or not trained_on(card):
        raise InputError(f"{card_file} does not say what {path.name} was trained on; add {EXAMPLE[1:-1]}")
    labels, theirs = tissue_labels(), card.get("labels")
    if theirs is not None and theirs != labels:
        raise InputError(f"{path} is of the label scheme {theirs}, but the bundles' is {labels}; train anew with it")
    known = card.get("model_sha256") or card.get("sha256")
    if known and known != digest:
        raise InputError(
            f"{card_file} describes other weights: its SHA-256 begins {known[:12]}, the file's {digest[:12]}"
        )
    version = read_json(BUNDLES / bundle / "configs/metadata.json")["version"]
    return Weights(path, bundle, version, card, digest)


def read_state(path: Path) -> dict:
    """Return the state dict that a file of weights holds, on the CPU.

    Raises:
        InputError: if the file cannot be read as one.
    """
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch each raise their own, some without a word
        raise InputError(f"{path} cannot be read as weights: {first_line(error)}") from None
    if not isinstance(state, dict):
        raise InputError(f"{path} cannot be read as weights: it holds a {type(state).__name__}, not a state dict")
    return state


def trained_settings(weights: Weights, config: dict) -> dict:
    """Return a config's ids as the weights' card has them: the overrides of their training, and their voxel size.

    Raises:
        InputError: if the card holds an expression instead of a value.
    """
    overrides = weights.card.get("overrides")
    check_settings([overrides, weights.card.get("spacing_mm")], weights.path.with_name(CARD))
    known = dict(overrides) if isinstance(overrides, dict) else {}
    if "spacing_mm" in weights.card:
        known["spacing_mm"] = weights.card["spacing_mm"]
    return config | {key: value for key, value in known.items() if key in config}

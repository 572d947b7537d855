"""The card that augment writes beside its weights: who was trained on, and with which settings."""

from pathlib import Path

from tools.io.files import InputError, read_json
from tools.workflows.synthesizer import existing_weights


def card_settings(checkpoint: Path, held_out: list[dict]) -> dict:
    """Return the config ids and values that weights were trained with, or nothing where they have no card.

    Args:
        checkpoint: weights of the synthesizer.
        held_out: items of the datalist that it must not know.

    Raises:
        InputError: if there are no such weights, or the card names a held-out patient.
    """
    checkpoint = Path(checkpoint)
    if not checkpoint.is_file():
        raise InputError(f"checkpoint {checkpoint} does not exist")
    if not checkpoint.with_name("card.json").is_file():
        return {}
    card = read_json(existing_weights(checkpoint, held_out).with_name("card.json"))
    return card.get("overrides", {})


def only_known(items: list[dict], attributes: dict[str, list]) -> list[dict]:
    """Return the items without the attributes that a synthesizer does not know, or not at that value.

    Args:
        items: of the datalist.
        attributes: name to [lowest, highest] or to words, as ``attributes`` in the synthesizer's config.

    Example:
        >>> only_known([{"age": 60, "severity": 0.7, "history": "none"}], {"age": [40, 80], "severity": [0, 0.5]})
        [{'age': 60}]
    """

    def known(name: str, value: object) -> bool:
        allowed = attributes.get(name)
        if not allowed or value is None:
            return False
        return value in allowed if isinstance(allowed[0], str) else allowed[0] <= float(value) <= allowed[1]

    patient = ("severity", "age", "history")
    return [{key: value for key, value in item.items() if key not in patient or known(key, value)} for item in items]

"""What weights were trained with, as the card beside them says it, so that nobody has to type it in again."""

import hashlib
import json
from pathlib import Path
from typing import Any


def trained_with(checkpoint: str, name: str, otherwise: Any) -> Any:
    """Return the value of a config id that weights were trained with.

    Args:
        checkpoint: File of the weights; ``card.json`` lies beside it.
        name: The id: ``spacing_mm``, or one of the card's ``overrides``.
        otherwise: What is returned where there is no card, or it describes other weights or says nothing of the id.

    Example:
        >>> trained_with("no/such/model.pt", "spacing_mm", [1.0, 1.0, -1])
        [1.0, 1.0, -1]
    """
    path, card_file = Path(checkpoint), Path(checkpoint).with_name("card.json")
    if not path.is_file() or not card_file.is_file():
        return otherwise
    card = json.loads(card_file.read_text(encoding="utf-8"))
    if card.get("model_sha256") != hashlib.sha256(path.read_bytes()).hexdigest():
        return otherwise  # trained anew by the user, beside an older card
    return card.get("overrides", {}).get(name, card.get(name, otherwise))

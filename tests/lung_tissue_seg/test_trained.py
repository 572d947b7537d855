"""Inference works at the voxel size and with the network that the card beside the weights names."""

import hashlib
import json

import pytest


@pytest.fixture
def trained_with(scripts_of_this_bundle):
    from scripts.trained import trained_with

    return trained_with


CARD = {"spacing_mm": [2.0, 2.0, -1], "overrides": {"network_channels": [8, 16]}}


@pytest.fixture
def weights(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    (tmp_path / "card.json").write_text(json.dumps(CARD | {"model_sha256": digest}), encoding="utf-8")
    return tmp_path / "model.pt"


def test_card_says_what_the_weights_need(weights, trained_with):
    assert trained_with(str(weights), "spacing_mm", None) == [2.0, 2.0, -1]
    assert trained_with(str(weights), "network_channels", None) == [8, 16]
    assert trained_with(str(weights), "hu_window", [0, 1]) == [0, 1]


def test_card_of_other_weights_says_nothing(weights, trained_with):
    weights.write_bytes(b"trained anew")
    assert trained_with(str(weights), "spacing_mm", "default") == "default"


def test_weights_without_a_card_get_the_defaults(weights, trained_with):
    weights.with_name("card.json").unlink()
    assert trained_with(str(weights), "spacing_mm", "default") == "default"

"""Weights that may be used by who only wants an answer: they are there, and their card says what they are."""

import pytest
import torch

from tests.tools.fakes.chest import segmenter_weights
from tools.bundles import BUNDLES
from tools.io.files import InputError, read_json, sha256, write_json
from tools.workflows import origin
from tools.workflows.origin import find_weights, read_state, trained_settings


def refusal(weights, flag="--weights"):
    with pytest.raises(InputError) as caught:
        find_weights("lung_tissue_seg", weights, flag)
    return str(caught.value)


def test_missing_weights_are_named_with_a_remedy(tmp_path, monkeypatch):
    assert refusal(tmp_path / "x.pt", "--segmenter") == f"--segmenter {tmp_path}/x.pt does not exist"
    monkeypatch.setattr(origin, "BUNDLES", tmp_path)
    assert refusal(None) == (
        f"{tmp_path}/lung_tissue_seg/models/model.pt does not exist; train lung_tissue_seg as "
        "bundles/lung_tissue_seg/docs/README.md says, or name weights by --weights"
    )
    assert (BUNDLES / "lung_tissue_seg/docs/README.md").is_file()


def test_a_card_is_needed_and_must_say_what_was_trained_on(tmp_path):
    weights = segmenter_weights(tmp_path)
    card = tmp_path / "card.json"
    for content, told in (
        ({"steps": 3}, 'card.json does not say what model.pt was trained on; add "trained_on": "40 labelled'),
        (
            {"trained_on": "x", "labels": {"background": 0}},
            "is of the label scheme {'background': 0}, but the bundles'",
        ),
        ({"trained_on": "x", "model_sha256": "00"}, "describes other weights: its SHA-256 begins 00, the file's "),
    ):
        write_json(card, content)
        assert told in refusal(weights)
    card.unlink()
    assert "model.pt has no card.json beside it, so nobody knows what it was trained on; write one" in refusal(weights)
    write_json(card, {"trained_on": "x", "sha256": sha256(weights)})
    assert find_weights("lung_tissue_seg", weights, "--weights").trained_on == "x"


def test_sentences_say_what_weights_are_and_are_not(tmp_path):
    weights = segmenter_weights(tmp_path, trained_on=None, cases=[{"patient": "a"}], patients=["a", "b"])
    told = " ".join(find_weights("lung_tissue_seg", weights, "--weights").sentences())
    assert "Trained on: 1 case of 2 patients." in told and "the card does not say" in told
    assert "not a medical device, not for diagnosis" in told


def test_what_the_card_says_of_the_training_goes_into_the_settings(tmp_path):
    weights = segmenter_weights(tmp_path, overrides={"window_size": [96, 96], "batch_size": 8}, spacing_mm=[2, 2, -1])
    config = read_json(BUNDLES / "lung_tissue_seg/configs/inference.json")
    settings = trained_settings(find_weights("lung_tissue_seg", weights, "--weights"), config)
    assert settings["window_size"] == [96, 96] and settings["spacing_mm"] == [2, 2, -1]
    assert "batch_size" not in settings


def test_weights_that_cannot_be_read_are_refused_even_where_torch_says_nothing(tmp_path):
    path = tmp_path / "model.pt"
    path.touch()
    with pytest.raises(InputError, match="model.pt cannot be read as weights: ."):
        read_state(path)
    torch.save([1, 2], path)
    with pytest.raises(InputError, match="it holds a list, not a state dict"):
        read_state(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="cannot be read as weights: ."):
        read_state(path)
    torch.save({"a": torch.ones(2)}, path)
    assert list(read_state(path)) == ["a"]


@pytest.mark.parametrize("value", ["$__import__('os').system('id')", ["@checkpoint"], {"a": {"_target_": "os.system"}}])
def test_a_card_that_could_run_code_is_refused(tmp_path, value):
    """MONAI's config evaluates such text; cards travel with weights."""
    segmenter_weights(tmp_path, overrides={"network_channels": value})
    weights = find_weights("lung_tissue_seg", tmp_path / "model.pt", "--weights")
    with pytest.raises(InputError, match="card.json holds .*, which could run code"):
        trained_settings(weights, {"network_channels": [4]})


def test_weights_that_hold_code_are_not_run(tmp_path):
    class Code:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").write_text, ("ran",))

    torch.save({"weight": Code()}, tmp_path / "model.pt")
    with pytest.raises(InputError, match="cannot be read as weights"):
        read_state(tmp_path / "model.pt")
    assert not (tmp_path / "ran").exists()

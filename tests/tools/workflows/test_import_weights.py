"""Importing monai-generative's weights: what comes out computes the same, and what does not fit is refused."""

import pytest
import torch
from generative.networks.nets import DiffusionModelUNet
from scripts.network import TissueDenoiser

from tools.io.files import InputError
from tools.tissues import tissue_labels
from tools.workflows.import_weights import import_weights

SETTINGS = {"num_head_channels": 8, "norm_num_groups": 4}
ATTRIBUTES = {"severity": [0, 1], "age": [0, 120], "history": ["none", "smoker", "exposure", "post-infection"]}


def untrained() -> dict:
    """Return the weights of a network as its constructor makes it, whose last convolution is zero."""
    shape = {"num_channels": (8, 16), "num_res_blocks": 1, "attention_levels": (False, False)}
    return DiffusionModelUNet(2, 2, 1, **shape, **SETTINGS).state_dict()


def network(**changes) -> DiffusionModelUNet:
    """Return a small network with random weights everywhere, also where the constructor puts zeros."""
    arguments = {
        "spatial_dims": 2,
        "in_channels": 2,
        "out_channels": 1,
        "num_channels": (8, 16),
        "num_res_blocks": (1, 2),
        "attention_levels": (False, True),
    }
    torch.manual_seed(0)
    unet = DiffusionModelUNet(**arguments | SETTINGS | changes).eval()
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return unet


def denoiser(objective: str = "ddpm", **changes) -> TissueDenoiser:
    """Return the bundle's network of that shape."""
    shape = {"channels": (8, 16), "num_res_blocks": (1, 2), "attention_levels": (False, True)} | SETTINGS | changes
    same = {"attributes": ATTRIBUTES, "objective": objective, "amp": False, "tissue_prior": False, "data_scale": 1.0}
    return TissueDenoiser(tissue_labels(), **same, **shape).eval()


def imported(folder, checkpoint, objective: str = "ddpm") -> dict:
    torch.save(checkpoint, folder / "old.pt")
    import_weights(folder / "old.pt", folder / "new" / "model.pt", objective=objective, **SETTINGS)
    return torch.load(folder / "new" / "model.pt", weights_only=True)


def agree(unet, wrapped, dims: int = 2) -> bool:
    noisy, steps = torch.randn(2, 1, *[16] * dims), torch.tensor([3.0, 500.0])
    with torch.no_grad():
        first = noisy.new_zeros(2, unet.conv_in.conv.in_channels, *noisy.shape[2:])
        image = noisy.new_zeros(2, wrapped.unet.conv_in.conv.in_channels, *noisy.shape[2:])
        first[:, :1], image[:, :1] = noisy, noisy
        expected = unet(first, steps)
        assert expected.std() > 0.01
        return torch.allclose(wrapped(image, steps / 1000), expected, atol=1e-4 * float(expected.std()))


@pytest.mark.parametrize("objective", ["ddpm", "flow"])
def test_imported_network_computes_what_the_old_one_did(tmp_path, objective, capsys):
    unet, wrapped = network(), denoiser(objective)
    weights = imported(tmp_path, unet.state_dict(), objective)
    wrapped.load_state_dict(weights)
    assert agree(unet, wrapped)
    assert weights["unet.conv_in.conv.weight"][:, 1:].abs().max() == 0
    told = capsys.readouterr().out
    assert f"--objective {objective} --network_channels '[8, 16]'" in told
    assert "--network_def::num_res_blocks '[1, 2]' --network_def::attention_levels '[False, True]'" in told


@pytest.mark.parametrize("in_channels", [1, 12])
def test_number_of_input_channels_does_not_matter(tmp_path, in_channels):
    unet, wrapped = network(in_channels=in_channels), denoiser()
    wrapped.load_state_dict(imported(tmp_path, unet.state_dict()))
    assert agree(unet, wrapped)


def test_three_dimensions(tmp_path):
    unet, wrapped = network(spatial_dims=3), denoiser(spatial_dims=3)
    wrapped.load_state_dict(imported(tmp_path, unet.state_dict()))
    assert agree(unet, wrapped, dims=3)


@pytest.mark.parametrize("nested", ["model", "state_dict", "unet_state_dict"])
def test_nested_weights_with_a_prefix_are_found(tmp_path, nested):
    old = network().state_dict()
    plain = imported(tmp_path, old)
    (tmp_path / "new/model.pt").unlink()
    found = imported(tmp_path, {nested: {f"module.{name}": value for name, value in old.items()}, "epoch": 3})
    assert all(torch.equal(found[name], plain[name]) for name in plain if name.startswith("unet.down"))


def test_safetensors_are_read(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    unet, wrapped = network(), denoiser()
    save_file(unet.state_dict(), tmp_path / "old.safetensors")
    import_weights(tmp_path / "old.safetensors", tmp_path / "model.pt", **SETTINGS)
    wrapped.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert agree(unet, wrapped)


def without(name: str) -> dict:
    return {key: value for key, value in network().state_dict().items() if key != name}


@pytest.mark.parametrize(
    ("checkpoint", "told"),
    [
        (lambda: network(), r"old.pt holds pickled objects, which could run code when loaded; save the network's"),
        (lambda: {"weight": torch.zeros(3)}, "holds no DiffusionModelUNet: there is no conv_in.conv.weight in it"),
        (lambda: [1, 2], "holds no DiffusionModelUNet"),
        (lambda: without("middle_block.attention.to_q.bias"), "old.pt lacks middle_block.attention.to_q.bias"),
        (lambda: without("out.2.conv.weight"), "lacks blocks of a DiffusionModelUNet"),
        (lambda: network().state_dict() | {"extra": torch.zeros(1)}, "holds extra, which a U-Net of its kind has not"),
        (
            lambda: network().state_dict() | {"up_blocks.0.attentions.0.to_q.weight": torch.zeros(8, 8)},
            r"has up_blocks.0.attentions.0.to_q.weight of shape \(8, 8\), not \(16, 16\)",
        ),
        (lambda: network().state_dict() | {"conv_in.conv.bias": 3}, "holds 'conv_in.conv.bias', which is not a tensor"),
        (lambda: network(num_class_embeds=3).state_dict(), r"is a U-Net with classes \(class_embedding.weight\)"),
        (lambda: network(resblock_updown=True).state_dict(), "is a U-Net with resampling in residual blocks"),
        (
            lambda: network(with_conditioning=True, cross_attention_dim=8).state_dict(),
            "is a U-Net with cross-attention",
        ),
        (lambda: network(out_channels=2).state_dict(), "predicts 2 channels, but the bundle's network predicts 1"),
        (lambda: denoiser().unet.state_dict(), "classes"),
        (untrained, "old.pt predicts only zeros, as an untrained network does, or numbers that are not finite"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(tmp_path, checkpoint, told):
    with pytest.raises(InputError, match=told):
        imported(tmp_path, checkpoint())
    assert [path.name for path in tmp_path.iterdir()] == ["old.pt"]


def test_an_attention_level_that_is_not_whole_is_refused(tmp_path):
    weights = {name: value for name, value in network().state_dict().items() if "up_blocks.0.attentions" not in name}
    with pytest.raises(InputError, match=r"old.pt lacks up_blocks.0.attentions.0.norm.weight \(and 29 more\)"):
        imported(tmp_path, weights)


def test_other_files_are_refused(tmp_path):
    for name, told in (
        ("no.pt", "no.pt does not exist"),
        ("text.pt", "text.pt is not a PyTorch checkpoint"),
        ("text.safetensors", "text.safetensors is not a safetensors file"),
    ):
        if name != "no.pt":
            (tmp_path / name).write_text("weights")
        if name.endswith("safetensors"):
            pytest.importorskip("safetensors")
        with pytest.raises(InputError, match=told):
            import_weights(tmp_path / name, tmp_path / "model.pt", **SETTINGS)
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"norm_num_groups": 5}, "norm_num_groups must divide the channels 8, 16, but 5 does not"),
        ({"num_head_channels": 0}, "num_head_channels must divide the channels 16, 16, but 0 does not"),
        ({"objective": "few_step"}, "objective must be ddpm or flow, not 'few_step'"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, changes, told):
    torch.save(network().state_dict(), tmp_path / "old.pt")
    with pytest.raises(InputError, match=told):
        import_weights(tmp_path / "old.pt", tmp_path / "model.pt", **SETTINGS | changes)
    assert not (tmp_path / "model.pt").exists()


def test_existing_output_is_kept(tmp_path):
    torch.save(network().state_dict(), tmp_path / "old.pt")
    (tmp_path / "model.pt").write_text("mine")
    with pytest.raises(InputError, match="model.pt exists; remove it or name another file"):
        import_weights(tmp_path / "old.pt", tmp_path / "model.pt", **SETTINGS)
    assert (tmp_path / "model.pt").read_text() == "mine"


def test_nothing_is_written_if_the_outputs_differ(tmp_path, monkeypatch):
    """Without the identity in place of ``proj_attn``, which the old network never applied, they do."""
    monkeypatch.setattr("tools.workflows.import_weights.torch.eye", lambda size: torch.randn(size, size))
    with pytest.raises(InputError, match="outputs that differ by .* of their norm after the conversion"):
        imported(tmp_path, network().state_dict())
    assert not list((tmp_path / "new").glob("*"))

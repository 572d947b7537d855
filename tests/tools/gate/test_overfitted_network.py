"""A network overfitted to three patches paints copies and is caught; the same one trained on many patches passes."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from scripts.network import TissueDenoiser
from scripts.objectives import FlowObjective, RegionMSELoss
from scripts.painting import PaintInferer
from scripts.tissue_channels import condition_channels, density_channels

from tools.data.datalist import Case
from tools.gate.copies import tile_corners
from tools.gate.gate import Gate
from tools.phantom.phantom import phantom
from tools.tissues import tissue_labels

LABELS = tissue_labels()
GLASS = LABELS["ground_glass"]
EDGE = 32  # of a patch, voxels
STEPS = 450
PLANTED = 3  # patches that are memorised


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Five drawn patients, and the tissue map and HU of each."""
    folder = tmp_path_factory.mktemp("memoriser") / "phantom"
    phantom(folder, patients=5, seed=3, size=(144, 144, 6))
    images = sorted((folder / "images").iterdir())
    patients = [Case(path, folder / "labels" / path.name, path.name[:10], 1) for path in images]
    return patients, [case.volumes()[:2] for case in patients]


@pytest.fixture(scope="module")
def places(cohort):
    """Patches (case, box) of ground glass, one a slice; first one of each patient, the coarsest textures first."""
    found = []
    for number, (label, hu) in enumerate(cohort[1]):
        for z in range(label.shape[2]):
            where, smooth = label[..., z] == GLASS, ndimage.gaussian_filter(hu[..., z], 1)
            boxes = []
            for corner in tile_corners(where, 16):
                first = np.clip(corner + 8 - EDGE // 2, 0, np.array(where.shape) - EDGE)
                boxes.append((slice(first[0], first[0] + EDGE), slice(first[1], first[1] + EDGE), z))
            textures = [smooth[box[:2]][where[box[:2]]].std() for box in boxes]
            if boxes:
                found.append((max(textures), number, boxes[int(np.argmax(textures))]))
    found.sort(key=lambda place: -place[0])
    best = {number: place for place in reversed(found) for number in [place[1]]}
    found.sort(key=lambda place: place is not best[place[1]])
    return [(number, box) for _, number, box in found]


def scaled(hu):
    """Return HU as intensities; a narrow window, so that few steps of training are enough."""
    return (np.clip(hu, -1000, 1000) + 700) / 300


def batch(cases, chosen):
    """Return images, regions and tissue maps of patches, each of shape (B, 1, EDGE, EDGE)."""
    images = np.stack([scaled(cases[number][1][box]) for number, box in chosen])[:, None]
    maps = np.stack([cases[number][0][box] for number, box in chosen])[:, None]
    return [torch.from_numpy(array.astype(np.float32)) for array in (images, maps == GLASS, maps)]


def train(cases, places):
    """Train a small network on the given patches."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    network = TissueDenoiser(LABELS, channels=(16, 32), num_head_channels=32, tissue_prior=False, amp=False).train()
    optimizer = torch.optim.Adam(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=STEPS)
    for _ in range(STEPS):
        chosen = [places[index] for index in rng.choice(len(places), 3, replace=False)]
        images, regions, maps = batch(cases, chosen)
        told = density_channels(maps * regions, torch.full((len(maps), len(LABELS) - 1), torch.nan), LABELS)
        condition = torch.cat([condition_channels(maps, LABELS), told], dim=1)
        t = torch.rand(len(maps)).sqrt()  # more often near pure noise, where it is decided what is painted
        loss = RegionMSELoss()(FlowObjective()(images, network, t, regions, condition), regions)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def paint(cases, network, place, seed):
    """Return the CT with the ground glass of one patch painted anew, its map and the region."""
    number, box = place
    label, hu = cases[number]
    region = np.zeros(label.shape, bool)
    region[box] = label[box] == GLASS
    image, inside, tissues = (part[..., None] for part in batch(cases, [place]))
    patch = PaintInferer(LABELS, (EDGE, EDGE, 1), sampler="euler", num_steps=4)(image, network, tissues, inside, [seed])
    painted = hu.copy()
    painted[box] = np.where(region[box], patch[0, 0, ..., 0].numpy() * 300 - 700, hu[box])
    return painted, label, region


def judged(cohort, network, places):
    """Return what the gate says of each patch painted by the network."""
    patients, cases = cohort
    gate = Gate(patients, {"ground_glass": GLASS})
    verdicts = []
    for seed, place in enumerate(places):
        measured = gate.measure(f"painted{seed}", patients[place[0]].name, *paint(cases, network, place, seed))
        verdicts += gate.judge(measured).values()
    return verdicts


@pytest.mark.slow
def test_a_network_that_memorised_three_patches_is_caught_and_what_it_copied_is_named(cohort, places):
    planted = places[:PLANTED]
    for verdict, (number, box) in zip(judged(cohort, train(cohort[1], planted), planted), planted, strict=True):
        assert not verdict["accepted"]
        assert any(reason.startswith(f"a copy of phantom00{number} slice {box[2]} ") for reason in verdict["reasons"])


@pytest.mark.slow
def test_the_same_network_trained_on_many_patches_passes(cohort, places):
    planted, others = places[:PLANTED], places[PLANTED:]
    assert len(others) >= 2 * PLANTED
    for verdict in judged(cohort, train(cohort[1], others), planted):
        assert verdict["accepted"], verdict["reasons"]

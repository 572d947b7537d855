"""What both bundles would ask of a GPU, counted on one that is not there."""

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Events

from tests.fake_gpu import GPU, FakeGpu
from tests.lung_tissue_seg.bundle import write_cohort
from tools.workflows.run import read_bundle

pytestmark = pytest.mark.slow

SYNTHESIZER, SEGMENTER = "difflung_synthesis", "lung_tissue_seg"
STEPS = 3
SMALL = {
    SYNTHESIZER: {
        **{"patch_size": [32, 32, 1], "network_channels": [16, 16], "network_def#num_head_channels": 16},
        **{"batch_size": 2, "patches_per_case": 2, "measured_patches": 64, "num_steps": 2, "fold": 1},
    },
    SEGMENTER: {"patch_size": 32, "window_size": [32, 32], "network_channels": [4, 4, 4], "batch_size": 4},
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu") / "cohort"
    write_cohort(folder)
    return folder


def parser_of(bundle, names, folder, cohort, **more):
    """Return a bundle's config for a GPU, with a small network."""
    parser = read_bundle(bundle, *names)
    settings = SMALL[bundle] | {"dataset_dir": str(cohort), "model_dir": str(folder), "output_dir": str(folder / "out")}
    if names[0] == "train.json":
        settings |= {"max_epochs": 1, "epoch_length": STEPS, "val_interval": 2, "num_workers": 0}
    for key, value in (settings | {"progress_bar": False, "device": GPU} | more).items():
        if key.split("#")[0] in parser.get():
            parser[key] = value
    return parser


def a_step(parser, gpu):
    """Train, and return what the last step asked for: from its batch, which is made on the CPU, to the next."""
    trainer = parser.get_parsed_content("train::trainer")
    trainer.add_event_handler(Events.GET_BATCH_COMPLETED, gpu.reset)
    found = []

    def keep():
        found.append((dict(gpu.kernels), dict(gpu.waits), dict(gpu.mixed)))

    trainer.add_event_handler(Events.ITERATION_COMPLETED, keep)
    trainer.run()
    assert len(found) == STEPS
    return found[-1]


@pytest.mark.parametrize(
    ("bundle", "overlay", "more"),
    [(SYNTHESIZER, [], {}), (SYNTHESIZER, ["few_step.yaml"], {}), (SYNTHESIZER, ["ddpm.yaml"], {}), (SEGMENTER, [], {}),
     (SEGMENTER, ["whole_slices.yaml"], {}),
     (SEGMENTER, ["whole_slices.yaml"], {"norm_apart": True, "extra_ratio": 1.0, "patches_per_case": 2})],
)  # fmt: skip
def test_a_training_step_never_waits_for_a_gpu_and_mixes_no_devices(bundle, overlay, more, tmp_path, cohort):
    gpu = FakeGpu()
    with gpu.working():
        parser = parser_of(bundle, ["train.json", *overlay], tmp_path, cohort, **more)
        if "few_step.yaml" in overlay:
            torch.save(parser.get_parsed_content("network").state_dict(), tmp_path / "start.pt")
            parser["start"] = str(tmp_path / "start.pt")
            parser["attributes"] = parser_of(bundle, ["train.json"], tmp_path, cohort)["attributes"]
            parser.parse(reset=True)
        kernels, waits, mixed = a_step(parser, gpu)
    assert mixed == {} and waits == {}
    assert kernels["convolution"] > 5 and kernels["_fused_adamw_"] == 1
    assert kernels["_foreach_mul_"] < 5, "the average of the weights is one kernel, not one for each tensor"
    print(f"{bundle} {overlay}: {sum(kernels.values())} kernels a step")
    weights = len(list(parser.get_parsed_content("network").parameters()))
    assert kernels.get("add_", 0) < weights, "gradients are written, not added to zeros"


def weights_of(bundle, folder, cohort, gpu):
    """Save the weights of a small network that has not been trained, as the workflows look for them."""
    network = parser_of(bundle, ["train.json"], folder, cohort).get_parsed_content("network_def")
    torch.save(network.state_dict(), folder / "model.pt")
    return folder / "model.pt"


def watched(owner, name, gpu, found, monkeypatch):
    """Note what each call of a method asks of the GPU."""
    method = getattr(owner, name)

    def noting(*args, **kwargs):
        before = gpu.waits.copy(), gpu.kernels.copy()
        answer = method(*args, **kwargs)
        found.append((gpu.waits - before[0], gpu.kernels - before[1]))
        return answer

    monkeypatch.setattr(owner, name, noting)


def painting_folder(folder, cohort):
    """Return a folder as painting takes it: a CT, its map, and a map with a square of ground glass in its lung."""
    for kind in ("images", "labels", "targets"):
        (folder / kind).mkdir(parents=True)
    for kind in ("images", "labels"):
        (folder / kind / "case0.nii.gz").write_bytes((cohort / kind / "case0.nii.gz").read_bytes())
    label = nib.load(cohort / "labels/case0.nii.gz")
    target = np.asarray(label.dataobj).copy()
    target[4:34, 4:30][target[4:34, 4:30] > 0] = 2
    nib.save(nib.Nifti1Image(target, label.affine), folder / "targets/case0.nii.gz")
    return folder


@pytest.mark.parametrize("guided", [False, True])
def test_painting_waits_for_a_gpu_before_and_after_the_sampler_never_in_it(guided, tmp_path, cohort, monkeypatch):
    gpu, found = FakeGpu(), []
    with gpu.working():
        weights = weights_of(SYNTHESIZER, tmp_path, cohort, gpu)
        guidance = {"guidance": 1.5, "tissue_guidance": {"ground_glass": 1.2}} if guided else {}
        data = painting_folder(tmp_path / "data", cohort)
        parser = parser_of(SYNTHESIZER, ["inference.json"], tmp_path, data, checkpoint=str(weights), **guidance)
        watched(parser.get_parsed_content("inferer"), "sample", gpu, found, monkeypatch)
        parser.get_parsed_content("evaluator").run()
        parser.get_parsed_content("evaluator").report()
    assert list((tmp_path / "out").glob("*.nii.gz")) and not gpu.mixed
    assert found and all(not waits for waits, _ in found)
    assert all(kernels["convolution"] for _, kernels in found)


def test_segmenting_never_waits_for_a_gpu_between_two_windows(tmp_path, cohort, monkeypatch):
    gpu, found = FakeGpu(), []
    with gpu.working():
        weights = weights_of(SEGMENTER, tmp_path, cohort, gpu)
        parser = parser_of(SEGMENTER, ["inference.json"], tmp_path, cohort / "images", checkpoint=str(weights))
        parser["displayable_configs"]["find_lung"] = False  # these CTs hold no air
        watched(parser.get_parsed_content("inferer"), "_probabilities", gpu, found, monkeypatch)
        parser.get_parsed_content("evaluator").run()
        parser.get_parsed_content("evaluator").report()
    assert list((tmp_path / "out").glob("*.nii.gz")) and not gpu.mixed
    assert found and all(not waits for waits, _ in found)


@pytest.mark.parametrize("bundle", [SYNTHESIZER, SEGMENTER])
def test_an_evaluation_mixes_no_devices(bundle, tmp_path, cohort):
    gpu = FakeGpu()
    with gpu.working():
        weights_of(bundle, tmp_path, cohort, gpu)
        more = {"samples": 1} if bundle == SYNTHESIZER else {"find_lung": False}
        parser = parser_of(bundle, ["train.json", "evaluate.json"], tmp_path, cohort, **more)
        parser.get_parsed_content("validate::evaluator").run()
    assert not gpu.mixed and gpu.kernels["convolution"]
    assert list((tmp_path / "out").glob("*.csv"))


@pytest.mark.parametrize(("bundle", "overlay", "edges"), [
    (SYNTHESIZER, [], (32, 32)), (SYNTHESIZER, ["few_step.yaml"], (32, 32)),
    (SYNTHESIZER, ["volume.yaml"], (16, 16, 8)), (SEGMENTER, [], (32, 32)),
])  # fmt: skip
def test_a_network_compiles_in_one_piece(bundle, overlay, edges, tmp_path, cohort):
    """A break in its graph costs what ``compile`` gains; the question for bfloat16 and MONAI's blur were some."""
    more = {"device": "cpu", "attributes": {}} if bundle == SYNTHESIZER else {"device": "cpu"}
    more |= {"patch_size": [16, 16, 8]} if "volume.yaml" in overlay else {}
    network = parser_of(bundle, ["train.json", *overlay], tmp_path, cohort, **more).get_parsed_content("network_def")
    image = torch.rand(2, getattr(network, "input_channels", 1), *edges)
    given = (image, torch.rand(2)) if bundle == SYNTHESIZER else (image,)
    torch._dynamo.reset()
    found = torch._dynamo.explain(network)(*given)
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons

"""A whole training of either bundle ends with the same weights for any number of the loader's workers."""

import pytest
import torch

from tools.attack.jobs import SMALL_SEGMENTER, SMALL_SYNTHESIZER, draw_cohort
from tools.workflows.run import read_bundle

SETTINGS = {"lung_tissue_seg": SMALL_SEGMENTER, "difflung_synthesis": SMALL_SYNTHESIZER}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return draw_cohort(tmp_path_factory.mktemp("cohort")).parent


@pytest.mark.slow
@pytest.mark.parametrize("bundle", SETTINGS)
def test_the_weights_do_not_depend_on_the_number_of_workers(bundle, cohort, tmp_path):
    """Validation comes in between, as its loader too may change what is random."""
    weights = []
    for workers in (0, 1):
        parser = read_bundle(bundle, "train.json")
        places = {"dataset_dir": str(cohort), "model_dir": str(tmp_path / str(workers)), "output_dir": str(tmp_path)}
        steps = {"max_epochs": 2, "epoch_length": 2, "val_interval": 1, "progress_bar": False, "num_workers": workers}
        for key, value in (SETTINGS[bundle] | places | steps).items():
            parser[key] = value
        parser.get_parsed_content("initialize")
        parser.get_parsed_content("train::trainer").run()
        weights.append(torch.load(tmp_path / str(workers) / "model.pt", weights_only=True))
    assert weights[0].keys() == weights[1].keys()
    assert [name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])] == []

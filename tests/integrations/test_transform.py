"""The segmenter trained with tissue painted on the fly, by the overlay that docs/serving.md shows, word for word."""

import re

from tests.integrations.consumers import ROOT, run_workflow
from tools.bundles import BUNDLES
from tools.maps.maps import maps


def overlay_of_the_docs() -> str:
    section = (ROOT / "docs/serving.md").read_text().partition("### Painting on the fly: RandSyntheticTissued\n")[2]
    return re.search(r"```yaml\n(.*?)```", section, re.DOTALL).group(1)


def test_the_segmenter_trains_on_tissue_painted_on_the_fly(cohort, synthesizer, tmp_path):
    maps(cohort / "datalist.json", fold=0, output=tmp_path / "bank", max_cases=3)
    overlay = tmp_path / "paint.yaml"
    overlay.write_text(overlay_of_the_docs())
    done = run_workflow(
        BUNDLES / "lung_tissue_seg", ["train.json", str(overlay)], dataset_dir=cohort, synthesizer_root=synthesizer,
        lesions=tmp_path / "bank", model_dir=tmp_path / "models", output_dir=tmp_path / "eval",
        max_epochs=2, epoch_length=10, val_interval=2,
    )  # fmt: skip
    counts = dict(re.findall(r"'([a-z ]+)': (\d+)", re.search(r"Counter\((.*)\)", done.stdout).group(1)))
    assert int(counts["painted"]) >= 2
    assert sum(map(int, counts.values())) == 40  # 20 steps of 2 cases
    assert (tmp_path / "models/model.pt").is_file()

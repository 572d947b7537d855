"""Painting in parts: on one, two and three workers the same, and an interrupted one goes on with the rest."""

import dask
import pytest

from tests.tools.fakes.augmented import manifest
from tools.attack.jobs import content
from tools.io.files import RunError
from tools.painting.augment import augment
from tools.workflows import cluster, synthesizer

pytestmark = pytest.mark.slow


def test_two_workers_paint_what_one_paints(datalist, stand_in, tmp_path):
    given = {"datalist": datalist, "fold": 0, "mixture": "joint", "max_cases": 5}
    augment(output=tmp_path / "a/out", **given)
    with dask.config.set({"distributed.worker.preload": ["stand_in_painter"]}):
        augment(output=tmp_path / "b/out", **given, workers=2)
    one, other = (content(tmp_path / name / "out") for name in "ab")
    assert one == other and len(manifest(tmp_path / "b/out")) == 5
    assert len([run for run in stand_in if run[0] == "told"]) == 1  # here; the workers did the others
    assert sorted(path.name for path in (tmp_path / "b/out").glob("paint*.log")) == []  # the stand-in writes none


def test_what_was_painted_stays_painted(datalist, stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "PART", 2)
    honest, painted = synthesizer.run_bundle, []

    def fails_once(bundle, configs, overrides, log, variables=None):
        if configs[0] == "inference.json":
            painted.append(log.name)
            if len(painted) == 2:
                raise RunError("out of memory")
        honest(bundle, configs, overrides, log, variables)

    monkeypatch.setattr(synthesizer, "run_bundle", fails_once)
    given = {"datalist": datalist, "fold": 0, "mixture": "joint", "max_cases": 5}
    with pytest.raises(RunError, match="1 of 3 parts could not be painted: out of memory"):
        augment(output=tmp_path / "out", **given)
    assert painted == ["paint.log", "paint1.log", "paint2.log"] and len(list(tmp_path.glob("out/painted/*/0/*"))) == 3
    augment(output=tmp_path / "out", **given)
    assert len(painted) == 4 and not (tmp_path / "out/painted").exists() and not (tmp_path / "out/work").exists()
    augment(output=tmp_path / "whole", **given)
    rows, whole = (manifest(tmp_path / name) for name in ("out", "whole"))
    assert [row["voxels_sha256"] for row in rows] == [row["voxels_sha256"] for row in whole] and len(rows) == 5

"""The synthesizer's metadata: the schema of the zoo, and what its network takes and gives."""

from pathlib import Path

import pytest
from monai.bundle import verify_metadata, verify_net_in_out

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "bundles/difflung_synthesis"
SCHEMA = ROOT.parent / "shared/meta_schema_20240725.json"


def test_metadata_follows_the_schema(tmp_path):
    if not SCHEMA.is_file():
        pytest.skip("the schema lies in shared/, which is not here")
    (tmp_path / "schema.json").write_text(SCHEMA.read_text())
    verify_metadata(meta_file=str(BUNDLE / "configs/metadata.json"), filepath=str(tmp_path / "schema.json"))


def test_network_takes_and_gives_what_the_metadata_says(monkeypatch):
    monkeypatch.chdir(BUNDLE)
    verify_net_in_out(
        "network_def", config_file=str(BUNDLE / "configs/inference.json"), device="cpu",
        meta_file=str(BUNDLE / "configs/metadata.json"),
    )  # fmt: skip

"""Publishing: what would be sent where, and uploads to stand-ins of the services (never to the real ones)."""

import hashlib
import urllib.request
from pathlib import Path

import pytest

from tests.tools.fakes.services import COMMIT, Hub, running
from tools.bundles import BUNDLES
from tools.io.files import InputError, RunError, read_json
from tools.serving.publish import check_repository, credentials, model_info, to_hugging_face, upload_plan

CONTENT = b"zip of the bundle"


@pytest.fixture
def archive(tmp_path) -> Path:
    path = tmp_path / "lung_tissue_seg_v0.2.0.zip"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def root(tmp_path) -> Path:
    """A bundle of three files."""
    licence = "Apache License\nVersion 2.0"
    for name, text in (("docs/README.md", "# Model overview\n"), ("models/model.pt", "weights"), ("LICENSE", licence)):
        path = tmp_path / "lung_tissue_seg" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "lung_tissue_seg"


def test_entry_of_the_zip_is_what_monai_reads(archive):
    source = "https://github.com/owner/name/releases/download/lung_tissue_seg_v0.2.0/lung_tissue_seg_v0.2.0.zip"
    entry = {"checksum": hashlib.sha1(CONTENT).hexdigest(), "source": source}
    assert model_info(archive, "owner/name") == {"lung_tissue_seg_v0.2.0": entry}


def test_plan_names_what_goes_where_and_how_it_comes_back(archive, root):
    plan = upload_plan(archive, root, "owner/name")
    assert plan["github"]["files"] == ["lung_tissue_seg_v0.2.0.zip"]
    assert plan["github"]["command"].startswith(f"gh release create lung_tissue_seg_v0.2.0 {archive} --repo owner/name")
    assert plan["huggingface"]["files"] == ["README.md", "LICENSE", "docs/README.md", "models/model.pt"]
    assert "repo='owner/name/lung_tissue_seg_v0.2.0'" in plan["github"]["then"]


@pytest.mark.parametrize("name", ["name", "a/b/c", "owner/", "owner/na me", "../name"])
def test_a_repository_is_an_owner_and_a_name(name):
    with pytest.raises(InputError, match=f"repository is owner/name, not '{name}'"):
        check_repository(name)
    check_repository("some-owner/some.name_1")


def test_publishing_needs_a_place_a_repository_and_credentials(monkeypatch):
    def given(place, repository):
        return credentials(place, "lung_tissue_seg", Path("out"), repository)

    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert given(None, None) is None
    with pytest.raises(InputError, match="publish is huggingface, not 'gitlab'"):
        given("gitlab", "owner/name")
    with pytest.raises(InputError, match="publish huggingface needs --repository"):
        given("huggingface", None)
    with pytest.raises(InputError, match="needs credentials in the environment variable HF_TOKEN"):
        given("huggingface", "owner/name")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert given("huggingface", "owner/name") == "secret"


def test_a_release_on_github_is_left_to_its_own_program():
    version = read_json(BUNDLES / "lung_tissue_seg/configs/metadata.json")["version"]
    stem = f"lung_tissue_seg_v{version}"
    with pytest.raises(
        InputError,
        match=f"run package without --publish, then gh release create {stem} out/{stem}.zip --repo owner/name --notes",
    ):
        credentials("github", "lung_tissue_seg", Path("out"), "owner/name")


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for Hugging Face to which its library goes."""
    constants = pytest.importorskip("huggingface_hub.constants")
    with running(Hub()) as service:
        monkeypatch.setattr(constants, "ENDPOINT", service.address)
        yield service


def test_hugging_face_gets_the_files_a_card_and_the_tags(root, hub, capfd):
    hub.tags = ["0.1.0", "latest_version"]
    assert to_hugging_face(root, "0.2.0", "owner/name", "secret").endswith(COMMIT)
    uploads = [path for _, path in hub.requests if "/commit/" in path]
    with pytest.raises(InputError, match="owner/name has version 0.2.0; a changed bundle needs a new version"):
        to_hugging_face(root, "0.2.0", "owner/name", "secret")
    assert len(uploads) == len([path for _, path in hub.requests if "/commit/" in path]) == 1
    assert hub.tags == ["0.1.0", "0.2.0", "latest_version"]
    assert set(hub.files) == {"README.md", "LICENSE", "docs/README.md", "models/model.pt"}
    assert hub.files["models/model.pt"] == b"weights"
    card = hub.files["README.md"].decode()
    assert card.startswith("---\ntags:\n- monai\n- medical\nlibrary_name: monai\nlicense: apache-2.0\n---\n")
    assert "# Model overview" in card
    assert hub.tokens - {None} == {"Bearer secret"}, "what the library asks besides needs no token"
    assert "secret" not in "".join(capfd.readouterr())
    assert not (root / "README.md").exists(), "a bundle's folder has no page of that name"


def test_a_service_that_fails_is_named(root, hub):
    hub.fails = True
    with pytest.raises(RunError, match="upload to owner/name failed: .*404"):
        to_hugging_face(root, "0.2.0", "owner/name", "secret")
    hub.shutdown()
    hub.server_close()
    with pytest.raises(RunError, match="upload to owner/name failed: .*refused"):
        to_hugging_face(root, "0.2.0", "owner/name", "secret")
    assert not hub.files and not hub.tags


def test_the_stand_in_gives_out_what_it_holds():
    with running(Hub()) as hub:
        hub.files["a"] = b"content"
        with urllib.request.urlopen(f"{hub.address}/owner/name/resolve/{COMMIT}/a") as answer:
            assert answer.read() == b"content"

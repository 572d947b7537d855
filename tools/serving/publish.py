"""Where a released bundle lies: the entry of model_info.json, the command for GitHub, the upload to Hugging Face."""

import contextlib
import os
import re
from pathlib import Path

from tools.bundles import BUNDLES
from tools.io.files import InputError, RunError, read_json
from tools.serving.archive import sha1

TOKEN = "HF_TOKEN"  # the variable with the credentials
UNNAMED = "OWNER/NAME"  # stands for the repository that the user has not named
MODEL_INFO = "models/model_info.json"  # where MONAI looks for it in a repository
NAME = r"[\w.-]*[A-Za-z0-9][\w.-]*"  # of an owner or a repository


def model_info(archive: Path, repository: str) -> dict[str, dict[str, str]]:
    """Return the entry of model_info.json by which MONAI finds a bundle in its release, named as the zip."""
    source = f"https://github.com/{repository}/releases/download/{archive.stem}/{archive.name}"
    return {archive.stem: {"checksum": sha1(archive), "source": source}}


def upload_plan(archive: Path, root: Path, repository: str) -> dict:
    """Return what would be uploaded where: the zip for a GitHub release, the unpacked files to Hugging Face."""
    name, version = archive.stem.rsplit("_v", 1)
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    github = {"release": archive.stem, "files": [archive.name], "command": gh_command(Path(archive.name), repository)}
    github["entry of model_info.json goes into"] = MODEL_INFO
    github["then"] = (
        f"monai.bundle.download({name!r}, {version!r}, source='github', repo='{repository}/{archive.stem}')"
    )
    hub = {"tags": [version, "latest_version"], "files": ["README.md", *files]}
    hub["then"] = f"monai.bundle.download({name!r}, {version!r}, source='huggingface_hub', repo={repository!r})"
    return {"repository": repository, "github": github, "huggingface": hub}


def gh_command(archive: Path, repository: str) -> str:
    """Return the command by which GitHub's own program makes the release of a zip.

    Example:
        >>> gh_command(Path("out/a_v0.1.0.zip"), "owner/name")
        "gh release create a_v0.1.0 out/a_v0.1.0.zip --repo owner/name --notes 'Research use only.'"
    """
    return f"gh release create {archive.stem} {archive} --repo {repository} --notes 'Research use only.'"


def credentials(place: str | None, bundle: str, output: Path, repository: str | None) -> str | None:
    """Return the token for Hugging Face, or None where nothing is published; InputError unless all is there."""
    if place is None:
        return None
    if place == "github":
        version = read_json(BUNDLES / bundle / "configs/metadata.json")["version"]
        command = gh_command(Path(output) / f"{bundle}_v{version}.zip", repository or UNNAMED)
        raise InputError(f"GitHub's own program makes releases: run package without --publish, then {command}")
    if place != "huggingface":
        raise InputError(f"publish is huggingface, not {place!r}")
    if repository is None:
        raise InputError("publish huggingface needs --repository owner/name")
    if not os.environ.get(TOKEN):
        raise InputError(f"publish huggingface needs credentials in the environment variable {TOKEN}")
    return os.environ[TOKEN]


def check_repository(repository: str) -> None:
    """Raise InputError if a repository is not given as owner/name."""
    if not re.fullmatch(f"{NAME}/{NAME}", repository, re.ASCII):
        raise InputError(f"repository is owner/name, not {repository!r}")


def to_hugging_face(root: Path, version: str, repository: str, token: str) -> str:
    """Upload an unpacked bundle, tag it with its version, as MONAI downloads it, and return the commit's address.

    InputError if the repository has the version, or huggingface_hub is not installed; RunError if a request fails.
    """
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import RevisionNotFoundError
    except ImportError:
        raise InputError("publishing on Hugging Face needs its package; pip install huggingface_hub") from None
    from monai.bundle import push_to_hf_hub  # takes seconds

    hub = HfApi(token=token)
    try:
        hub.create_repo(repository, exist_ok=True)
        if version in [tag.name for tag in hub.list_repo_refs(repository).tags]:
            raise InputError(f"{repository} has version {version}; a changed bundle needs a new version")
        message = {"commit_message": f"Version {version}"}
        commit = push_to_hf_hub(repository, root.name, str(root.parent), token, None, version, **message)
        with contextlib.suppress(RevisionNotFoundError):  # the first version
            hub.delete_tag(repository, tag="latest_version")  # MONAI's function would leave it where it is
        hub.create_tag(repository, tag="latest_version", revision=version)
    except InputError:
        raise
    except Exception as error:  # of the library, or of what it sends with
        raise RunError(f"upload to {repository} failed: {str(error).strip().partition(chr(10))[0]}") from None
    finally:
        (root / "README.md").unlink(missing_ok=True)  # the card that MONAI's function makes there
    return commit.commit_url

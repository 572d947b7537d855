"""MONAI Label's own server with the unmodified bundle, on a folder of CTs or on a DICOMweb server."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copytree
from typing import NamedTuple
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import nibabel as nib
import pytest

from tests.integrations.consumers import free_port, python_of, run, serving

MODEL = "lung_tissue_seg"


class Server(NamedTuple):
    """A running server: its address, its copy of the bundle, its images and what it has printed."""

    url: str
    bundle: Path
    studies: Path | str
    log: Path

    def ask(self, path: str, body: bytes | None = None, kind: str = "application/json", **query: str) -> bytes:
        """Return what the server answers; a body makes it a POST."""
        request = Request(f"{self.url}{path}?{urlencode(query)}", data=body, headers={"Content-Type": kind})
        with urlopen(request, timeout=300) as reply:
            return reply.read()

    def infer(self, case: str, folder: Path, **settings: object) -> nib.Nifti1Image:
        """Return the labels of one image as the REST interface sends them."""
        body = urlencode({"params": json.dumps({"device": "cpu"} | settings)}).encode()
        kind = "application/x-www-form-urlencoded"
        file = folder / f"{case}.nii.gz"
        file.write_bytes(self.ask(f"/infer/{MODEL}", body, kind, image=case, output="image"))
        return nib.load(file)

    def find(self, text: str) -> None:
        """Check that the server has printed a text; it prints why it failed after it has answered."""
        for _ in range(30):
            if text in self.log.read_text():
                return
            time.sleep(1)
        pytest.fail(f"the server did not print {text!r}")


@contextmanager
def label_server(bundle: Path, studies: Path | str, folder: Path, **variables: str) -> Iterator[Server]:
    """Start the server as the documentation says, and end it with all that it started.

    Args:
        bundle: The trained segmenter.
        studies: Folder of CTs, or a DICOMweb address.
        folder: Where its app and its log go.
        variables: Environment variables beside those of this process.
    """
    python = python_of("label")
    run(python, "-m", "monailabel.main", "apps", "--download", "--name", "monaibundle", "--output", folder)
    app, log, port = folder / "monaibundle", folder / "server.log", free_port()
    copytree(bundle, app / "model" / MODEL)
    command = [python, "-m", "monailabel.main", "start_server", "--app", app, "--studies", studies]
    command += ["--conf", "models", MODEL, "--conf", "zoo_source", "local", "--conf", "sam2", "false"]
    command += ["--host", "127.0.0.1", "--port", port]
    server = Server(f"http://127.0.0.1:{port}", app / "model" / MODEL, studies, log)
    with serving(command, log, f"{server.url}/info/", cwd=folder, **variables):
        yield server

"""Start the Triton Inference Server that nvidia-pytriton brings, on the CPU, with a model repository.

    .venv-triton/bin/python tests/integrations/triton_server.py REPOSITORY [GRPC_PORT]

The server is NVIDIA's, only its backends ``onnxruntime`` and ``pytorch`` are those of triton_backend.py.
"""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytriton

HERE, PACKAGE = Path(__file__).parent, Path(pytriton.__file__).parent
SERVER = PACKAGE / "tritonserver"


def backends(folder: Path) -> None:
    """Fill the folder in which the server looks for backends."""
    shutil.copytree(SERVER / "backends/python", folder / "python")
    version = "{}.{}".format(*sys.version_info)
    shutil.copy(SERVER / "python_backend_stubs" / version / "triton_python_backend_stub", folder / "python")
    for name in ("onnxruntime", "pytorch"):
        (folder / name).mkdir()
        shutil.copy(HERE / "triton_backend.py", folder / name / "model.py")


def main(repository: str, grpc_port: str = "8001") -> int:
    """Serve until the process is ended; returns the server's exit status."""
    libraries = [str(PACKAGE.parent / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR")]
    # the backend runs in an interpreter of its own, which takes its packages from the first Python on the path
    own = {"LD_LIBRARY_PATH": ":".join(libraries), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with tempfile.TemporaryDirectory() as folder:
        backends(Path(folder))
        options = [f"--model-repository={repository}", f"--backend-directory={folder}", f"--grpc-port={grpc_port}"]
        options += ["--grpc-address=127.0.0.1", "--allow-http=false", "--allow-metrics=false"]
        process = subprocess.Popen([SERVER / "bin/tritonserver", *options], env=os.environ | own)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: process.terminate())
        return process.wait()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

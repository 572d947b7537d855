"""The manifest for Dask's operator on Kubernetes, against the operator's own schema and that of Kubernetes' pods."""

import pytest

from tests.integrations.consumers import ROOT, python_of, run

pytestmark = pytest.mark.cluster
# The operator refers to schemas of its own, and to those of pods and services, which kubernetes-validate has.
VALIDATE = """
import sys
from pathlib import Path

import dask_kubernetes, jsonschema, kubernetes_validate, referencing, yaml
from referencing.jsonschema import DRAFT7

own = Path(dask_kubernetes.__file__).parent / "operator/customresources"
pods = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema/v1.37.0-local-strict"

def found(uri):
    name = uri.rpartition("/")[2]
    return DRAFT7.create_resource(yaml.safe_load((pods / name).read_text()))

def resolved(node):
    if isinstance(node, list):
        return [resolved(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        if name in templates:
            return resolved(templates[name])
        return {"$ref": "https://pods/" + name.rpartition(".")[2].lower() + "-v1.json"}
    return {key: resolved(entry) for key, entry in node.items()}

templates = yaml.safe_load((own / "templates.yaml").read_text())["definitions"]
definition = yaml.safe_load((own / "daskcluster.yaml").read_text())["spec"]
schema = resolved(definition["versions"][0]["schema"]["openAPIV3Schema"])
manifest = yaml.safe_load(Path(sys.argv[1]).read_text())
assert manifest["apiVersion"] == definition["group"] + "/" + definition["versions"][0]["name"]
assert manifest["kind"] == definition["names"]["kind"]
schema["$id"] = "https://pods/daskcluster.json"
registry = referencing.Registry(retrieve=found)
errors = [error.message for error in jsonschema.Draft7Validator(schema, registry=registry).iter_errors(manifest)]
sys.exit("; ".join(errors) or None)
"""


def test_the_operator_takes_the_manifest_and_the_check_notices_a_mistake(tmp_path):
    manifest = ROOT / "docs/cluster/kubernetes.yaml"
    run(python_of("cluster"), "-c", VALIDATE, manifest)
    for right, wrong in (("replicas: 4", "replicas: four"), ("mountPath: /data", "mount: /data")):
        assert right in manifest.read_text()
        (tmp_path / "wrong.yaml").write_text(manifest.read_text().replace(right, wrong))
        done = run(python_of("cluster"), "-c", VALIDATE, tmp_path / "wrong.yaml", check=False)
        assert done.returncode == 1 and ("'four' is not of type" in done.stderr or "'mountPath' is" in done.stderr)

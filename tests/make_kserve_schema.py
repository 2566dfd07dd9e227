# SPDX-License-Identifier: Apache-2.0
"""Make the JSON schema that InferenceServices are held against, from the Python models of KServe's own package.

    python tests/make_kserve_schema.py

downloads the wheel below without its dependencies (FastAPI, pandas and more), reads the types that KServe's generator
wrote into the classes, and writes SCHEMA: what an InferenceService with a `predictor.model` may consist of, and nothing
else. Types of Kubernetes itself are references into the definitions that kubernetes-validate brings.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

WHEEL = "kserve==0.21.0"
SCHEMA = Path(__file__).parent / "runtime" / "triton" / "kserve_schema.json"
ROOT = "V1beta1InferenceService"

_KUBERNETES = "https://kubernetes.io/api/_definitions.json#/$defs/"
_NAMED = {
    "V1ObjectMeta": "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta",
    "ResourceQuantity": "io.k8s.apimachinery.pkg.api.resource.Quantity",
    "V1beta1MetricQuantity": "io.k8s.apimachinery.pkg.api.resource.Quantity",
    "K8sIoApiAppsV1DeploymentStrategy": "io.k8s.api.apps.v1.DeploymentStrategy",
    "K8sIoApiAutoscalingV2HorizontalPodAutoscalerBehavior": (
        "io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerBehavior"
    ),
}
_PLAIN = {"str": "string", "int": "integer", "bool": "boolean", "float": "number", "object": "object"}
_LEFT_OUT = {
    "V1beta1InferenceService": {"status"},
    "V1beta1InferenceServiceSpec": {"canary", "explainer", "tracing", "transformer"},
    # The older way to name a framework, and servers of several nodes.
    "V1beta1PredictorSpec": {
        *("huggingface", "lightgbm", "onnx", "paddle", "pmml", "pytorch", "sklearn", "tensorflow", "triton", "xgboost"),
        *("batcher", "logger", "workerSpec"),
    },
    "V1beta1ModelSpec": {"confidential", "storage"},
}


def schema(models: dict[str, ast.ClassDef]) -> dict[str, Any]:
    """A JSON schema (2020-12) of ROOT that refuses unknown fields, from the classes of kserve.models by name."""
    definitions: dict[str, Any] = {}
    wanted = [ROOT]
    while wanted:
        name = wanted.pop()
        if name not in definitions:
            definitions[name] = _definition(models[name], wanted)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$comment": f"Made by make_kserve_schema.py from {WHEEL} (Copyright The KServe Authors, Apache-2.0).",
        "$ref": f"#/$defs/{ROOT}",
        "$defs": dict(sorted(definitions.items())),
    }


def _definition(model: ast.ClassDef, wanted: list[str]) -> dict[str, Any]:
    types, names = _constant(model, "openapi_types"), _constant(model, "attribute_map")
    left_out = _LEFT_OUT.get(model.name, set())
    kept = {names[field]: kind for field, kind in types.items() if names[field] not in left_out}
    # A setter that refuses None is how the generator writes that a field is required.
    refused = re.findall(r"Invalid value for `(\w+)`, must not be `None`", ast.unparse(model))
    return {
        "type": "object",
        "additionalProperties": False,
        "required": sorted({names[field] for field in refused} & set(kept)),
        "properties": {name: _type(kind, wanted) for name, kind in sorted(kept.items())},
    }


def _type(kind: str, wanted: list[str]) -> dict[str, Any]:
    """The schema of one of the generator's types; adds a class of KServe's to those wanted."""
    if kind in _PLAIN:
        return {"type": _PLAIN[kind]}
    if match := re.fullmatch(r"list\[(.+)\]", kind):
        return {"type": "array", "items": _type(match[1], wanted)}
    if match := re.fullmatch(r"dict\(str, (.+)\)", kind):
        return {"type": "object", "additionalProperties": _type(match[1], wanted)}
    if kind in _NAMED:
        return {"$ref": _KUBERNETES + _NAMED[kind]}
    if kind.startswith("V1beta1"):
        wanted.append(kind)
        return {"$ref": f"#/$defs/{kind}"}
    return {"$ref": f"{_KUBERNETES}io.k8s.api.core.v1.{kind.removeprefix('V1')}"}


def _constant(model: ast.ClassDef, name: str) -> dict[str, str]:
    for statement in model.body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == name:
            return dict(ast.literal_eval(statement.value))
    raise LookupError(f"{model.name} has no {name}")


def _models() -> dict[str, ast.ClassDef]:
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*command, "--only-binary=:all:", "--dest", scratch, WHEEL], check=True)
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            paths = [name for name in wheel.namelist() if re.fullmatch(r"kserve/models/v1beta1_\w+\.py", name)]
            trees = [ast.parse(wheel.read(path)) for path in paths]
    return {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}


if __name__ == "__main__":
    SCHEMA.write_text(json.dumps(schema(_models()), indent=2) + "\n", encoding="utf-8")

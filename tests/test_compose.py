# SPDX-License-Identifier: Apache-2.0
"""compose.yaml: that its services fit each other, the Dockerfile and the command line."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from dockerfile import parse, substitute
from programs import program

from metaformer_export.cli import command
from metaformer_export.cli_classify import classify_command

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
STAGES = parse((ROOT / "Dockerfile").read_text(encoding="utf-8")).stages


def filled(value: Any, **variables: str) -> Any:
    """A part of the file with its variables replaced; those that are not given have their defaults."""
    return json.loads(substitute(json.dumps(value), variables))


def test_the_specification_allows_it() -> None:
    checked = [program("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(ROOT / "compose.yaml")]
    found = subprocess.run(checked, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_services_are_built_from_stages() -> None:
    targets = {name: each["build"]["target"] for name, each in SERVICES.items() if "build" in each}
    assert targets == {"export": "export", "serve": "serve"}
    assert set(targets.values()) <= set(STAGES)
    assert SERVICES["classify"]["image"] == SERVICES["export"]["image"] == "metaformer-export:latest"
    assert SERVICES["serve"]["image"] != SERVICES["export"]["image"]


def test_services_wait_for_what_they_need() -> None:
    assert {name: each.get("depends_on", {}) for name, each in SERVICES.items()} == {
        "export": {},
        "serve": {"export": {"condition": "service_completed_successfully"}},
        "classify": {"serve": {"condition": "service_healthy"}},
    }
    assert STAGES["serve"].all("HEALTHCHECK")
    assert SERVICES["export"]["restart"] == "no"


def test_services_get_a_gpu_and_little_else() -> None:
    deployed = {name: each["deploy"] for name, each in SERVICES.items() if "deploy" in each}
    gpus = {name: each["resources"]["reservations"]["devices"] for name, each in deployed.items()}
    assert gpus == {name: [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}] for name in ("export", "serve")}
    assert all(port.startswith("127.0.0.1:") for port in SERVICES["serve"]["ports"])
    for each in SERVICES.values():
        assert (each["cap_drop"], each["read_only"]) == (["ALL"], True)
        assert each["security_opt"] == ["no-new-privileges:true"]


def test_volumes_are_declared_or_folders_that_are_here() -> None:
    mounted = {volume.split(":")[0] for each in SERVICES.values() for volume in filled(each["volumes"])}
    assert {each for each in mounted if "/" not in each} == set(COMPOSE["volumes"])
    folders = [each for each in mounted if "/" in each]
    assert folders
    assert all((ROOT / each).is_dir() for each in folders)


@pytest.mark.parametrize("model", ["", "caformer_s18"])
def test_the_tool_takes_the_commands_and_each_finds_what_the_one_before_made(model: str) -> None:
    services = filled(SERVICES, MODEL=model, OPTIONS="--batch 1:4:16")
    name = model or "hornet_t"
    with command.make_context("metaformer-export", shlex.split(services["export"]["command"])) as asked:
        assert (asked.params["model"], asked.params["fp16"], asked.params["batch"]) == (name, True, "1:4:16")
        folder = asked.params["output"]
    assert services["serve"]["command"] == ["tritonserver", f"--model-repository={folder}/triton"]
    assert {"exports:/exports", "exports:/exports:ro"} <= {
        volume for each in ("export", "serve") for volume in services[each]["volumes"]
    }
    words = [*services["classify"]["entrypoint"], *services["classify"]["command"]]
    assert words[:2] == ["metaformer-export", "classify"]
    with classify_command.make_context("classify", words[2:]) as asked:
        assert (asked.params["url"], asked.params["model"]) == ("serve:8001", f"{name}_ensemble")
        pictures = ROOT / services["classify"]["volumes"][0].split(":")[0]
        assert all((pictures / each).is_file() for each in asked.params["images"])

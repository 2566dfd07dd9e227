# SPDX-License-Identifier: Apache-2.0
"""config.pbtxt: Triton's own schema of a model's configuration, as text and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import InputError, MissingDependencyError

try:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as schema
except ImportError as error:  # pragma: no cover - exercised in a clean environment
    raise MissingDependencyError('tritonclient is not installed; pip install "tritonclient[grpc]".') from error

CONFIG = "config.pbtxt"
ModelConfig = Any  # the bindings are made at run time and have no types


def to_text(config: ModelConfig) -> str:
    """The configuration as it is written to a file."""
    return str(text_format.MessageToString(config))


def from_text(text: str) -> ModelConfig:
    """A configuration; InputError says in which line it is none."""
    try:
        return text_format.Parse(text, schema.ModelConfig())
    except text_format.ParseError as error:
        raise InputError(f"line {error}.") from error


def read(path: Path) -> ModelConfig:
    """The configuration in a file; InputError if there is none, or it does not follow the schema."""
    try:
        return from_text(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from error
    except InputError as error:
        raise InputError(f"{path} does not follow Triton's schema: {error}") from error


def data_type(name: str) -> int:
    """Triton's number of a type, for instance of "FP32"."""
    return int(schema.DataType.Value(f"TYPE_{name}"))


def data_type_name(number: int) -> str:
    """For instance "FP32"."""
    return str(schema.DataType.Name(number)).removeprefix("TYPE_")

# SPDX-License-Identifier: Apache-2.0
"""The exception tree. Every error that a user can cause says what, why and what to do, in one line."""


class MetaformerExportError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line ends with."""

    exit_code = 2


class InputError(MetaformerExportError):
    """An option, a name or a file that the user gave cannot be used."""


class UnknownModelError(InputError):
    """No family has a variant of that name."""


class ImageSizeError(InputError):
    """The family cannot run at that image size."""


class CheckpointError(InputError):
    """A checkpoint is missing, unreadable, unsafe, or of another architecture."""


class ImageError(InputError):
    """An image file or folder cannot be read."""


class CalibrationError(InputError):
    """Ranges of tensors are missing, damaged, or of another model."""


class OutputError(InputError):
    """The output folder cannot be written, or is not ours to replace."""


class EngineError(MetaformerExportError):
    """TensorRT did not build, load or run an engine."""

    exit_code = 1


class ServerError(MetaformerExportError):
    """A Triton Inference Server cannot be reached, does not start, or has no such model."""

    exit_code = 1


class MissingDependencyError(MetaformerExportError):
    """A package, a device or a runtime that the request needs is not there."""

    exit_code = 3


class LoweringError(MetaformerExportError):
    """A pass could not keep what it guarantees: a defect of this package."""

    exit_code = 70  # EX_SOFTWARE: neither the user's input nor a failed proof


class ParityError(MetaformerExportError):
    """The exported model's outputs cannot even be compared with eager PyTorch's."""

    exit_code = 1

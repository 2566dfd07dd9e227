# syntax=docker/dockerfile:1.7
# SPDX-License-Identifier: Apache-2.0
#
# test    proves parity on a CPU while it is built:   docker build --target test .
# serve   a server for the repositories of exports:   docker build --target serve -t metaformer-export-serve:latest .
# export  the tool, on a GPU:                         docker build -t metaformer-export:latest .

ARG PYTHON=3.11.15-slim-bookworm
# One month for both of NVIDIA's containers: an engine loads in the TensorRT that built it, and theirs are the same.
ARG RELEASE=26.09

FROM python:${PYTHON} AS test
ARG PYTHON
# PyTorch without CUDA; PyPI has the one with it.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
LABEL org.opencontainers.image.title="metaformer-export, tests" \
      org.opencontainers.image.description="Parity of the models and their exports, proved on a CPU" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/python:${PYTHON}"
ENV PATH=/opt/venv/bin:${PATH}
RUN python3 -m venv /opt/venv && install --directory --mode=1777 /home/metaformer
WORKDIR /opt/metaformer-export
# The large package first: it changes with its version alone.
COPY constraints.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip install --extra-index-url "${TORCH_INDEX}" --constraint constraints.txt torch
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip install --extra-index-url "${TORCH_INDEX}" --constraint constraints.txt ".[cpu,test]" \
    && rm -rf build metaformer_export.egg-info
# User 1000 has no name in the image; what asks for one takes USER. The tests are not its to write beside.
ENV HOME=/home/metaformer \
    USER=metaformer \
    PYTEST_ADDOPTS="-p no:cacheprovider"
USER 1000:1000
RUN sh tests/parity.sh
CMD ["sh", "tests/parity.sh"]

FROM nvcr.io/nvidia/tritonserver:${RELEASE}-py3 AS serve
ARG RELEASE
# Triton's Python backend misreads the arrays of NumPy 2.
ARG NUMPY=1.26.4
LABEL org.opencontainers.image.title="metaformer-export, server" \
      org.opencontainers.image.description="Triton Inference Server with what the models of an export import" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="nvcr.io/nvidia/tritonserver:${RELEASE}-py3"
# Models in Python run in the system's, which pip leaves alone unless told otherwise; the base may constrain pip itself.
ENV PIP_BREAK_SYSTEM_PACKAGES=1 \
    PIP_CONSTRAINT=""
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,source=constraints.txt,target=/tmp/constraints.txt \
    sed "s/^numpy==.*/numpy==${NUMPY}/" /tmp/constraints.txt > /tmp/server.txt \
    && python3 -m pip install --constraint /tmp/server.txt numpy pillow onnxruntime-gpu \
    && rm /tmp/server.txt \
    && install --directory --owner=1000 --group=1000 /models
USER 1000:1000
EXPOSE 8000 8001 8002
# Engines are loaded and models warmed up before the server is ready.
HEALTHCHECK --interval=5s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]
CMD ["tritonserver", "--model-repository=/models"]

FROM nvcr.io/nvidia/tensorrt:${RELEASE}-py3 AS export
ARG RELEASE
LABEL org.opencontainers.image.title="metaformer-export" \
      org.opencontainers.image.description="Export MetaFormer-family vision models to ONNX and TensorRT, proved against eager PyTorch and timed" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="nvcr.io/nvidia/tensorrt:${RELEASE}-py3"
ENV PATH=/opt/venv/bin:${PATH} \
    PIP_CONSTRAINT=""
RUN python3 -m venv --system-site-packages --without-pip /opt/venv \
    && install --directory --mode=1777 /home/metaformer /exports
WORKDIR /opt/metaformer-export
COPY constraints.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip install --constraint constraints.txt torch onnxruntime-gpu
COPY . .
# TensorRT is the base's, so that it is the server's as well: the extra tensorrt but for TensorRT itself.
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip install --constraint constraints.txt \
        ".[gpu,openvino,triton-client,test]" polygraphy onnx-graphsurgeon triton \
    && rm -rf build metaformer_export.egg-info \
    && python -c "import importlib.util; assert importlib.util.find_spec('tensorrt'), 'the base has no TensorRT for Python'"
ENV HOME=/home/metaformer \
    USER=metaformer \
    PYTEST_ADDOPTS="-p no:cacheprovider"
USER 1000:1000
WORKDIR /exports
ENTRYPOINT ["/opt/metaformer-export/docker/entrypoint.sh"]
CMD ["--help"]

# The image that a SageMaker training job of Roofscale runs in: pins, then code, so that a change of code ships kilobytes.
#   docker build -t roofscale .                                                                        (CPU)
#   docker build -t roofscale:gpu --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .     (GPU)
# BASE is any image with Python 3.11 or 3.12 and venv; AWS's own PyTorch images will do, see deploy/README.md.
ARG BASE=python:3.11.7-slim-bookworm

# Splits the pins: a layer is built again when what is copied into it changes, and torch changes least and is largest.
FROM ${BASE} AS pins
COPY requirements.txt /pins/all.txt
RUN grep -E '^torch(vision)?==' /pins/all.txt > /pins/torch.txt

FROM ${BASE}
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# What the base has in the pinned version is not installed again: of AWS's images torch, with the CUDA libraries.
RUN python3 -m venv --system-site-packages /opt/venv
COPY --from=pins /pins/torch.txt /opt/roofscale/
RUN pip install --extra-index-url "${TORCH_INDEX}" -r /opt/roofscale/torch.txt
COPY requirements.txt /opt/roofscale/
RUN pip install -r /opt/roofscale/requirements.txt
COPY src /opt/roofscale/src
# Not anew in each container, while a job is waited for.
RUN python -m compileall -q /opt/roofscale/src
ENV PYTHONPATH=/opt/roofscale/src NO_ALBUMENTATIONS_UPDATE=1
# Exec form: Python is process 1, and a stop reaches the training. The request names it too, for images without it.
ENTRYPOINT ["python", "-m", "roofscale.training_job"]

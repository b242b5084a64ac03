#!/bin/bash
# Builds the project's Dockerfile on the simulator's base image. Usage: image.sh TAG (with the simulator's env.sh sourced)
#
# Where the simulator runs there may be no way to PyTorch's own index: torch is then taken from a folder of wheels, as pip
# on this machine would take it (PIP_FIND_LINKS). The base gets that folder and the machine's certificates, the Dockerfile
# knows of neither.
set -euo pipefail
tag=$1 top=$(cd "$(dirname "$0")/../.." && pwd) base=$(mktemp -d)
trap 'rm -rf "$base"' EXIT
mkdir "$base/wheels"
cp /etc/ssl/certs/ca-certificates.crt "$base"
[ -z "${PIP_FIND_LINKS:-}" ] || cp "$PIP_FIND_LINKS"/torch-*.whl "$base/wheels" 2>/dev/null || true
cat >"$base/Dockerfile" <<'D'
FROM python-base
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY wheels /opt/wheels
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt PIP_FIND_LINKS=/opt/wheels PIP_DEFAULT_TIMEOUT=180
D
docker build --quiet --network=host -t roofscale-test-base "$base"
docker build --quiet --network=host -t "$tag" --build-arg BASE=roofscale-test-base --build-arg TORCH_INDEX=file:///opt/wheels "$top"

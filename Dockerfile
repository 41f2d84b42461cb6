# The image that launch.kubernetes starts: Python, the dependencies at their tested versions, and this project in /app.
#
#   docker build -t registry.example/unet:1 .                                  with NVIDIA's libraries, 8 GB
#   docker build -t registry.example/unet:1 --build-arg EXTRAS=core .          for CPUs, 2 GB
#   docker build -t registry.example/unet:1 --build-arg BASE=registry.example/python:3.12 .
#
# The base image needs Python 3.11 to 3.13 with pip and venv, no more; the driver comes from the node.
ARG BASE=python:3.11-slim

FROM ${BASE} AS dependencies
ARG EXTRAS=cuda
WORKDIR /app
COPY pyproject.toml setup.py constraints.txt README.md ./
RUN python3 -m venv /opt/venv \
    && mkdir configs data_prep launch unet && touch configs/__init__.py data_prep/__init__.py launch/__init__.py unet/__init__.py \
    && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt ".[${EXTRAS}]" \
    && /opt/venv/bin/pip uninstall --yes unet-cityscapes \
    && find /opt/venv -name '__pycache__' -prune -exec rm -rf {} +

FROM ${BASE}
COPY --from=dependencies /opt/venv /opt/venv
WORKDIR /app
COPY configs configs
COPY data_prep data_prep
COPY launch launch
COPY unet unet
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# By number, so that Kubernetes can see that it is not root.
USER 10001:10001
CMD ["python", "-m", "unet.main", "--help"]

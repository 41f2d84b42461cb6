# The image that launch.kubernetes starts: Python with this project installed, and its configs in /app/configs.
#
#   docker build -t registry.example/unet:1 .                                  with NVIDIA's libraries, 8 GB
#   docker build -t registry.example/unet:1 --build-arg EXTRAS=core .          for CPUs, 3 GB
#   docker build -t registry.example/unet:1 --build-arg BASE=registry.example/python:3.12 .
#
# The base image is Debian's kind, with Python 3.11 to 3.13, its headers, pip and venv; the driver comes from the node.
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /build
# The dependencies first, with empty packages in place of ours, so that a change of the code does not install them again.
ARG EXTRAS=cuda
COPY pyproject.toml setup.py constraints.txt README.md ./
RUN python3 -m venv /opt/venv \
    && mkdir configs data_prep launch unet && touch configs/__init__.py data_prep/__init__.py launch/__init__.py unet/__init__.py \
    && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt ".[${EXTRAS}]" \
    && rm -r build ./*.egg-info
COPY configs configs
COPY data_prep data_prep
COPY launch launch
COPY unet unet
# Without a compiler the installation succeeds too, and the image would read PNG files several times as slowly.
RUN /opt/venv/bin/pip wheel --no-cache-dir --disable-pip-version-check --no-deps --wheel-dir=/wheels . \
    && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --force-reinstall /wheels/*.whl \
    && cd / && /opt/venv/bin/python -c "from data_prep import png; assert png.is_compiled(), 'data_prep/_png.c was not compiled'" \
    && find /opt/venv -name '__pycache__' -prune -exec rm -rf {} +

FROM ${BASE}
COPY --from=build /opt/venv /opt/venv
# Only what --config names by its path: data_prep in the working directory would hide the one with the compiled part.
WORKDIR /app
COPY configs/*.py configs/
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# By number, so that Kubernetes can see that it is not root.
USER 10001:10001
CMD ["python", "-m", "unet.main", "--help"]

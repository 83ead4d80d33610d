# clipjax on NVIDIA GPUs. CUDA, cuDNN and NCCL come with the wheels of jax[cuda12]; the host has the driver (525 or
# newer) and the NVIDIA container toolkit.
#
#     docker build -f deploy/docker/cuda.Dockerfile -t clipjax:cuda .
#     docker run --init --rm --gpus=all --shm-size=16g clipjax:cuda train --config=experiments/siglip_b16.py \
#       --workdir=gs://BUCKET/runs/siglip
FROM python:3.12.12-slim-bookworm AS dependencies
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PATH=/venv/bin:$PATH
RUN python -m venv /venv
WORKDIR /src
# The large layer. It changes only with these files; pyproject.toml says which versions it may have.
COPY pyproject.toml setup.py README.md LICENSE ./
# hadolint ignore=DL3013
RUN mkdir clipjax data_pipelines && touch clipjax/__init__.py data_pipelines/__init__.py && pip install ".[gpu,gcs,s3]"

FROM dependencies AS package
COPY clipjax clipjax
COPY data_pipelines data_pipelines
RUN pip wheel --no-deps --wheel-dir /wheels .

FROM python:3.12.12-slim-bookworm
# NCCL loads these where hosts are connected by InfiniBand or RoCE; without them it falls back to TCP.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends ibverbs-providers libibverbs1 librdmacm1 \
    && rm -rf /var/lib/apt/lists/*
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /clipjax
COPY --from=dependencies /venv /venv
RUN --mount=type=bind,from=package,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-deps --force-reinstall /wheels/*.whl
COPY --chmod=755 deploy/docker/preemptible /usr/local/bin/preemptible
COPY experiments experiments
RUN useradd --create-home --uid 1000 clipjax && chown clipjax /clipjax
USER 1000
ENTRYPOINT ["clipjax"]

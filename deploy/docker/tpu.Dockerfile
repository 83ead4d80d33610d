# clipjax on Cloud TPU: GKE (JobSet, XPK) and Docker on TPU VMs. libtpu comes with the wheels of jax[tpu].
#
#     docker build -f deploy/docker/tpu.Dockerfile -t clipjax:tpu .
#     docker run --init --rm --privileged --network=host --shm-size=16g clipjax:tpu train \
#       --config=experiments/siglip_b16.py --workdir=gs://BUCKET/runs/siglip
FROM python:3.12.12-slim-bookworm AS dependencies
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PATH=/venv/bin:$PATH
RUN python -m venv /venv
WORKDIR /src
# The large layer. It changes only with these files; pyproject.toml says which versions it may have.
COPY pyproject.toml setup.py README.md LICENSE ./
# hadolint ignore=DL3013
RUN mkdir clipjax data_pipelines && touch clipjax/__init__.py data_pipelines/__init__.py && pip install ".[tpu,gcs,s3]"

FROM dependencies AS package
COPY clipjax clipjax
COPY data_pipelines data_pipelines
RUN pip wheel --no-deps --wheel-dir /wheels .

FROM python:3.12.12-slim-bookworm
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /clipjax
COPY --from=dependencies /venv /venv
RUN --mount=type=bind,from=package,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-deps --force-reinstall /wheels/*.whl
COPY --chmod=755 deploy/docker/preemptible /usr/local/bin/preemptible
COPY experiments experiments
# As root: the TPU's device files (/dev/vfio, /dev/accel*) belong to it.
ENTRYPOINT ["clipjax"]

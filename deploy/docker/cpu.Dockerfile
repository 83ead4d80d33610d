# clipjax on CPUs: to prepare data, check experiments, evaluate, and make reports.
#
#     docker build -f deploy/docker/cpu.Dockerfile -t clipjax:cpu .
#     docker run --init --rm clipjax:cpu config --config=experiments/siglip_b16.py
FROM python:3.12.12-slim-bookworm AS dependencies
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PATH=/venv/bin:$PATH
RUN python -m venv /venv
WORKDIR /src
# The large layer. It changes only with these files; pyproject.toml says which versions it may have.
COPY pyproject.toml setup.py README.md LICENSE ./
# hadolint ignore=DL3013
RUN mkdir clipjax data_pipelines && touch clipjax/__init__.py data_pipelines/__init__.py && pip install ".[gcs,s3]"

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
RUN useradd --create-home --uid 1000 clipjax && chown clipjax /clipjax
USER 1000
ENTRYPOINT ["clipjax"]

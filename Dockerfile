# The three images: `make images`, or `docker build --target operator|trainer|evaluator .`
#
#   base ─┬─ tools           uv, and a compiler where TORCH=cpu needs one; left behind
#         ├─ code            the packages of this repository, compiled to bytecode; left behind
#         └─ runtime ─┬─ operator                       no torch
#                     └─ torch ─┬─ trainer              + W&B's client; shares the heavy layer with
#                               └─ evaluator            + lm-eval
#
# The code comes last, so that a change of it rebuilds and pushes a layer of some hundred kB. Nothing in an image needs to
# write: with a read-only root file system give it an emptyDir at /tmp, where HOME is.

# Any image with Python 3.11. Give a digest to pin it: BASE=python:3.11-slim@sha256:…
ARG BASE=python:3.11-slim
# gpu: torch as the registry has it, with CUDA. cpu: 4 GB less, for clusters without a GPU (see hack/images/without_cuda.py).
ARG TORCH=gpu


FROM ${BASE} AS tools-gpu
COPY hack/uv hack/apt-fetch /tools/hack/
COPY requirements/uv.txt /tools/requirements/
RUN TRANSFER_CACHE=/tools UV= /tools/hack/uv --version && ln -s /tools/tools/bin/uv /tools/uv

FROM tools-gpu AS tools-cpu
RUN apt-get -qq update && apt-get -qq install --yes --no-install-recommends gcc libc6-dev >/dev/null

FROM tools-${TORCH} AS tools


FROM ${BASE} AS code
WORKDIR /code
COPY pyproject.toml ./
COPY api pod operator trainer evaluator ./
# What `importlib.metadata` reads the version from; bytecode that stays valid whatever times a registry gives the files.
RUN python3 -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
      print(f'Metadata-Version: 2.1\nName: {p[\"name\"]}\nVersion: {p[\"version\"]}')" >METADATA \
 && mkdir transfer_operator-0.dist-info && mv METADATA transfer_operator-0.dist-info/ && rm pyproject.toml \
 && python3 -m compileall -q --invalidation-mode unchecked-hash .


FROM ${BASE} AS runtime
# A name for the user, since some libraries ask for it. No installer stays, and nothing that gives rights.
RUN echo 'transfer:x:65532:65532:transfer:/tmp:/usr/sbin/nologin' >>/etc/passwd \
 && echo 'transfer:x:65532:' >>/etc/group \
 && rm -rf /usr/local/bin/pip* /usr/local/bin/idle* /usr/local/lib/python3*/ensurepip /usr/local/lib/python3*/idlelib \
      /usr/local/lib/python3*/site-packages/pip* /usr/local/lib/python3*/site-packages/setuptools* \
      /usr/local/lib/python3*/site-packages/wheel* /var/lib/apt/lists/* /var/cache/apt/* \
 && find / -xdev -type f -perm /6000 -exec chmod a-s {} +
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin PYTHONPATH=/opt/transfer PYTHONUNBUFFERED=1 \
    HOME=/tmp TMPDIR=/tmp USER=transfer
WORKDIR /tmp


FROM runtime AS operator
COPY requirements/operator.txt /opt/requirements/
ARG UV_CACHE_DIR=/var/cache/uv
RUN --mount=type=bind,from=tools,source=/tools,target=/tools \
    --mount=type=cache,target=/var/cache/uv \
    export UV_CACHE_DIR=$UV_CACHE_DIR UV_LINK_MODE=copy UV_SYSTEM_CERTS=1 VIRTUAL_ENV=/opt/venv \
 && /tools/uv venv --quiet --python "$(PATH=/usr/local/bin:/usr/bin command -v python3)" /opt/venv \
 && /tools/uv pip install --quiet --no-deps --require-hashes --compile-bytecode -r /opt/requirements/operator.txt
COPY --from=code /code/transfer_operator-0.dist-info /opt/transfer/transfer_operator-0.dist-info
COPY --from=code /code/transfer_api /opt/transfer/transfer_api
COPY --from=code /code/transfer_operator /opt/transfer/transfer_operator
ARG VERSION=0.1.0 REVISION=
LABEL org.opencontainers.image.title="transfer-operator" \
      org.opencontainers.image.description="Runs language-transfer experiments on Kubernetes" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" org.opencontainers.image.revision="${REVISION}"
USER 65532:65532
ENTRYPOINT ["python", "-m", "transfer_operator"]


FROM runtime AS torch
# Of bitsandbytes' libraries only those for torch's own CUDA and for none stay: 8 MB of 124.
# Copied, not mounted: builders notice a change of what they copy, and some do not notice one of what they mount.
COPY requirements/trainer.txt /opt/requirements/
COPY hack/images/without_cuda.py /opt/
ARG TORCH=gpu
ARG UV_CACHE_DIR=/var/cache/uv
RUN --mount=type=bind,from=tools,source=/,target=/toolchain \
    --mount=type=cache,target=/var/cache/uv \
    export UV_CACHE_DIR=$UV_CACHE_DIR UV_LINK_MODE=copy UV_SYSTEM_CERTS=1 VIRTUAL_ENV=/opt/venv \
 && /toolchain/tools/tools/bin/uv venv --quiet --python "$(PATH=/usr/local/bin:/usr/bin command -v python3)" /opt/venv \
 && /toolchain/tools/tools/bin/uv pip install --quiet --no-deps --require-hashes --compile-bytecode -r /opt/requirements/trainer.txt \
 && find /opt/venv -name 'libbitsandbytes_*' ! -name '*_cpu.so' ! -name '*_cuda13*.so' -delete \
 && if [ "$TORCH" = cpu ]; then python /opt/without_cuda.py /opt/venv/lib/python3*/site-packages --toolchain /toolchain; fi \
 && rm /opt/without_cuda.py


FROM torch AS trainer
COPY requirements/tracking.txt /opt/requirements/
ARG UV_CACHE_DIR=/var/cache/uv
RUN --mount=type=bind,from=tools,source=/tools,target=/tools \
    --mount=type=cache,target=/var/cache/uv \
    export UV_CACHE_DIR=$UV_CACHE_DIR UV_LINK_MODE=copy UV_SYSTEM_CERTS=1 VIRTUAL_ENV=/opt/venv \
 && /tools/uv pip install --quiet --no-deps --require-hashes --compile-bytecode -r /opt/requirements/tracking.txt
COPY --from=code /code/transfer_operator-0.dist-info /opt/transfer/transfer_operator-0.dist-info
COPY --from=code /code/transfer_api /opt/transfer/transfer_api
COPY --from=code /code/transfer_pod /opt/transfer/transfer_pod
COPY --from=code /code/transfer_trainer /opt/transfer/transfer_trainer
ARG VERSION=0.1.0 REVISION=
LABEL org.opencontainers.image.title="transfer-trainer" \
      org.opencontainers.image.description="Vocabulary, dataset and elastic training pods of transfer-operator" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" org.opencontainers.image.revision="${REVISION}"
USER 65532:65532
ENTRYPOINT ["python", "-m", "transfer_trainer"]


FROM torch AS evaluator
COPY requirements/evaluator.txt /opt/requirements/
ARG UV_CACHE_DIR=/var/cache/uv
RUN --mount=type=bind,from=tools,source=/tools,target=/tools \
    --mount=type=cache,target=/var/cache/uv \
    export UV_CACHE_DIR=$UV_CACHE_DIR UV_LINK_MODE=copy UV_SYSTEM_CERTS=1 VIRTUAL_ENV=/opt/venv \
 && /tools/uv pip install --quiet --no-deps --require-hashes --compile-bytecode -r /opt/requirements/evaluator.txt
COPY --from=code /code/transfer_operator-0.dist-info /opt/transfer/transfer_operator-0.dist-info
COPY --from=code /code/transfer_api /opt/transfer/transfer_api
COPY --from=code /code/transfer_pod /opt/transfer/transfer_pod
COPY --from=code /code/transfer_evaluator /opt/transfer/transfer_evaluator
ARG VERSION=0.1.0 REVISION=
LABEL org.opencontainers.image.title="transfer-evaluator" \
      org.opencontainers.image.description="Evaluation pods of transfer-operator" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" org.opencontainers.image.revision="${REVISION}"
USER 65532:65532
ENTRYPOINT ["python", "-m", "transfer_evaluator"]

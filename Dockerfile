# An image that runs opensora-launch on NVIDIA GPUs.
#
#     docker build -t opensora-launch .
#     docker run --rm --gpus all --ipc=host -v "$PWD/ckpts:/app/ckpts" -v "$PWD/runs:/app/runs" \
#         opensora-launch generate --prompt "a red circle moving right"
#
# The torch wheel brings its own CUDA libraries; the base adds what the driver's container toolkit looks for. flash-attn
# is built from source and needs the compiler: --build-arg FLAVOUR=devel --build-arg EXTRAS=flash.
ARG CUDA=13.0.1
ARG FLAVOUR=base
FROM nvidia/cuda:${CUDA}-${FLAVOUR}-ubuntu24.04

# torch compiles small kernels at run time, for which it needs a C compiler.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates gcc libc6-dev python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY configs configs
COPY opensora_launch opensora_launch
ARG EXTRAS=""
# flash-attn imports torch while it is built, so torch comes first and the build isolation is off for the extras.
RUN python3 -m venv /opt/venv \
    && pip install -c constraints.txt . \
    && if [ -n "$EXTRAS" ]; then \
        pip install setuptools wheel ninja packaging hatchling \
        && pip install -c constraints.txt --no-build-isolation ".[$EXTRAS]"; fi

WORKDIR /app
ENTRYPOINT ["opensora-launch"]
CMD ["--help"]

# An image that runs opensora-launch on NVIDIA GPUs. docs/container.md explains every argument; compose.yaml sets them.
#
#     docker build -t opensora-launch --build-arg UID="$(id -u)" --build-arg GID="$(id -g)" .
#     mkdir -p ckpts runs
#     docker run --rm --gpus all --shm-size 8g -v "$PWD/ckpts:/app/ckpts" -v "$PWD/runs:/app/runs" \
#         opensora-launch generate --prompt "a red circle moving right"
#
# The image sets no NCCL and no allocator variable: the `env` group of the config does, and `doctor` explains why.

# torch's wheels bring their own CUDA libraries, so CUDA and PIP_EXTRA_INDEX_URL go together:
#
#     CUDA     PIP_EXTRA_INDEX_URL                        driver    GPUs
#     13.0.1   (none: PyPI's torch is built for 13.0)     >= 580    Turing to Blackwell
#     12.6.3   https://download.pytorch.org/whl/cu126     >= 525    Volta (V100) to Hopper
#
# flash-attn is compiled and needs the toolkit: FLAVOUR=devel, and a CUDA of the same major version as torch's.
ARG CUDA=13.0.1
ARG FLAVOUR=base
FROM nvidia/cuda:${CUDA}-${FLAVOUR}-ubuntu24.04
SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# APT_MIRROR replaces the address of Ubuntu's packages. Example: http://mirror.example/ubuntu
ARG APT_MIRROR=""
ARG APT_RETRIES=5
# gcc and Python's headers stay in the image: torch compiles small kernels at run time. No versions are pinned: Ubuntu
# keeps only the newest version of a package, so pins soon fail.
# hadolint ignore=DL3008
RUN printf 'Acquire::Retries "%s";\nAcquire::http::Timeout "60";\n' "$APT_RETRIES" >/etc/apt/apt.conf.d/80-retries \
    && if [ -n "$APT_MIRROR" ]; then \
        sed -Ei "s#https?://[a-z.]+\.ubuntu\.com/ubuntu(-ports)?/?#${APT_MIRROR%/}/#" \
            /etc/apt/sources.list.d/ubuntu.sources; fi \
    && apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates gcc libc6-dev python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# pip reads these from the environment of the build. They show in the image's history, so put no passwords into them.
ARG PIP_INDEX_URL=""
ARG PIP_EXTRA_INDEX_URL=""
ARG PIP_RETRIES=5
ARG PIP_TIMEOUT=60

WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY configs configs
COPY opensora_launch opensora_launch
RUN python3 -m venv /opt/venv && pip install -c constraints.txt .

# EXTRAS: flash, xformers; only flash compiles. TORCH_CUDA_ARCH_LIST names the GPUs to compile for: 8.0 A100, 8.6 RTX 30,
# 8.9 RTX 40 and L40, 9.0 H100, 10.0 B200, 12.0 RTX 50. flash-attn reads a variable of its own with one number for each
# generation, which the sed makes. Each of MAX_JOBS compilers takes several GB of memory: lower it if the build is killed.
ARG EXTRAS=""
ARG TORCH_CUDA_ARCH_LIST="8.0;9.0"
ARG MAX_JOBS=4
RUN if [ -n "$EXTRAS" ]; then \
        FLASH_ATTN_CUDA_ARCHS="$(printf '%s' "$TORCH_CUDA_ARCH_LIST" \
            | sed -E 's/\.[0-9]+[a-z]*(\+PTX)?/0/g; s/ +/;/g')" \
        && export FLASH_ATTN_CUDA_ARCHS TORCH_CUDA_ARCH_LIST MAX_JOBS \
        && pip install -c constraints.txt setuptools wheel ninja packaging hatchling \
        && pip install -c constraints.txt --no-build-isolation ".[$EXTRAS]"; fi

# This user owns the files that a run writes to mounted folders. Any other --user works as well, because every user may
# write to the home folder.
ARG UID=1000
ARG GID=1000
RUN groupadd --non-unique --gid "$GID" opensora \
    && useradd --non-unique --uid "$UID" --gid "$GID" --no-log-init --home-dir /cache --create-home opensora \
    && mkdir -p /app/ckpts /app/runs \
    && chown "$UID:$GID" /app /app/ckpts /app/runs \
    && chmod 1777 /cache
ENV HOME=/cache USER=opensora
USER ${UID}:${GID}
WORKDIR /app

# The container is unhealthy when it has lost its GPUs, which a reload of systemd on the host can cause. A rank that
# hangs needs no check here: the launcher stops the run after launcher.timeout_s and exits with 1.
HEALTHCHECK --interval=60s --timeout=20s --retries=3 \
    CMD ["/bin/sh", "-c", "[ ! -e /dev/nvidiactl ] || nvidia-smi -L"]
ENTRYPOINT ["opensora-launch"]
CMD ["--help"]

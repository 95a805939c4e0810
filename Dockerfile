# An image for NVIDIA GPUs (driver 580 or newer):
#   docker build -t megaunigame .
#   docker run --rm --gpus all --ipc=host --ulimit memlock=-1 -v "$PWD/work:/workspace" megaunigame recipes
# --ipc=host: loader workers and NCCL share memory. Nothing of this project is compiled; the devel image is for who adds flash_attn.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04

RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-dev python3-venv git ninja-build openssh-client pdsh \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/venv/bin:$PATH \
    DS_BUILD_OPS=0
WORKDIR /srv/megaunigame
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY megaunigame megaunigame
COPY data_prep data_prep
COPY ds_configs ds_configs
COPY launch launch
RUN python3 -m venv /venv \
    && pip install --no-cache-dir -c constraints.txt '.[remote,parquet,trackers]'
WORKDIR /workspace
ENTRYPOINT ["megaunigame"]
CMD ["--help"]

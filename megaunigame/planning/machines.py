"""Accelerators a plan can be made for: published peaks, and the fractions of them that the plan assumes."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from megaunigame.errors import ConfigError
from megaunigame.parallel.peaks import PEAKS, Peak
from megaunigame.registry import unknown

GB = 10**9
GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One accelerator of a node. Peaks are from the data sheets; nothing here was measured."""

    name: str
    memory: float
    """Bytes that a process can use."""
    peak: Peak
    node_bandwidth: float
    """Bytes per second in and out of one GPU, to the others of its node."""
    network_bandwidth: float
    """Bytes per second of a node's network for each of its GPUs."""


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100-80g", 79 * GIB, PEAKS["NVIDIA A100"], 300 * GB, 25 * GB),
        Gpu("h100-80g", 79 * GIB, PEAKS["NVIDIA H100"], 450 * GB, 50 * GB),
        Gpu("h200-141g", 139 * GIB, PEAKS["NVIDIA H200"], 450 * GB, 50 * GB),
        Gpu("b200-180g", 178 * GIB, PEAKS["NVIDIA B200"], 900 * GB, 50 * GB),
        Gpu("mi300x", 191 * GIB, PEAKS["AMD Instinct MI300X"], 448 * GB, 50 * GB),
    )
}
ACHIEVED_FLOPS = 0.55
"""Fraction of the peak that matrix products of training reach, including elementwise kernels between them."""
ACHIEVED_BANDWIDTH = 0.75
"""Fraction of a link that large collectives reach."""
OVERHEAD = 3 * GIB
"""Bytes of one GPU for CUDA, its libraries, NCCL and fragmentation."""


@dataclass(frozen=True)
class Cluster:
    """Equal nodes of equal GPUs, one rank each."""

    gpu: Gpu
    nodes: int
    gpus_per_node: int

    @property
    def ranks(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def collective_bandwidth(self) -> float:
        """Bytes per second at which one rank receives in an all-gather over all ranks."""
        links = [self.gpu.node_bandwidth]
        if self.nodes > 1:
            links.append(self.gpu.network_bandwidth * self.gpus_per_node)
        return ACHIEVED_BANDWIDTH * min(links)


def cluster(gpu: str, nodes: int, gpus_per_node: int) -> Cluster:
    """Raises ConfigError for an unknown GPU and for numbers below 1."""
    if gpu not in GPUS:
        raise ConfigError(unknown("GPU", gpu, sorted(GPUS)))
    for option, count in (("--nodes", nodes), ("--gpus-per-node", gpus_per_node)):
        if count < 1:
            raise ConfigError(f"{option} must be at least 1; got {count}.")
    return Cluster(GPUS[gpu], nodes, gpus_per_node)


def add_cluster_options(parser: argparse.ArgumentParser) -> None:
    """`--nodes`, `--gpus-per-node` and `--gpu`."""
    parser.add_argument("--nodes", type=int, default=1, help="default %(default)s")
    parser.add_argument("--gpus-per-node", type=int, default=8, help="default %(default)s")
    parser.add_argument("--gpu", default="h100-80g", help=f"{', '.join(GPUS)} (default %(default)s)")

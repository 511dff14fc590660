"""One network on many devices: activation checkpointing, compile, shard."""

from neuropbr_dist.parallel.build import NetworkSetup, build_network, change_network
from neuropbr_dist.parallel.network import Adam, Network, StepResult

__all__ = ["Adam", "Network", "NetworkSetup", "StepResult", "build_network", "change_network"]

"""Many processes as one: meshes, ZeRO through FSDP2, ring and Ulysses attention."""

from vidgen.runtime.parallel.mesh import World, choose_device, start
from vidgen.runtime.parallel.ring import ring_attention
from vidgen.runtime.parallel.ulysses import ulysses_attention
from vidgen.runtime.parallel.zero import clip_grad_norm, shard

__all__ = [
    "ring_attention",
    "ulysses_attention",
    "start",
    "choose_device",
    "World",
    "shard",
    "clip_grad_norm",
]

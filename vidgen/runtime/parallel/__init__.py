"""Parallelism over ranks: meshes, ZeRO through FSDP2, ring and Ulysses attention."""

from vidgen.runtime.parallel.context import ContextGroup, split_tokens
from vidgen.runtime.parallel.mesh import World, choose_device, start
from vidgen.runtime.parallel.ring import ring_attention
from vidgen.runtime.parallel.ulysses import (
    ring_of_ulysses_attention,
    shares,
    ulysses_attention,
)
from vidgen.runtime.parallel.zero import clip_grad_norm, fill, shard, synchronise_gradients

__all__ = [
    "ring_attention",
    "ulysses_attention",
    "ring_of_ulysses_attention",
    "ContextGroup",
    "split_tokens",
    "shares",
    "start",
    "choose_device",
    "World",
    "shard",
    "fill",
    "synchronise_gradients",
    "clip_grad_norm",
]

"""Clips from a manifest to batches on the device."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

    from vidgen.data.cache.codec import ClipCodec
    from vidgen.data.config import BucketConfig, DataConfig
    from vidgen.data.loader import Loader
    from vidgen.models.geometry import Geometry

__all__ = ["BucketConfig", "DataConfig", "open_loader"]


def __getattr__(name: str) -> Any:
    # When asked for: worker processes import this package for its decoder, and no more.
    if name in ("BucketConfig", "DataConfig"):
        from vidgen.data import config

        return getattr(config, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def open_loader(
    cfg: "DataConfig",
    *,
    seed: int,
    rank: int,
    world: int,
    device: "torch.device | str",
    accumulate: int = 1,
    geometry: "Geometry | None" = None,
    codec: "ClipCodec | None" = None,
    group: "dist.ProcessGroup | None" = None,
) -> "Loader":
    """Open the manifest, check it against the buckets, and start at epoch 0.

    `rank` and `world` count data-parallel ranks only: the ranks of one context-parallel group open
    the same one and name each other as `group`. `accumulate` batches of each rank make one step.
    `geometry` is of the autoencoder and the model's patches (default: 4 x 8 x 8, causal, patches of
    2). `codec` opens `cfg.latents`.
    """
    from vidgen.data.index.buckets import BucketTable
    from vidgen.data.index.manifest import Manifest
    from vidgen.data.loader import Loader
    from vidgen.models.geometry import DEFAULT

    manifest = Manifest.open(cfg.manifest, check=cfg.check_files)
    table = BucketTable(cfg, geometry or DEFAULT)
    return Loader(
        cfg,
        manifest,
        table,
        seed=seed,
        rank=rank,
        world=world,
        device=device,
        accumulate=accumulate,
        codec=codec,
        group=group,
    )

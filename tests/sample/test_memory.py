"""Sampling within so much memory: what is done for it, and that it changes no bit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vidgen.config import to_dict
from vidgen.errors import UserError
from vidgen.models.hunyuan_vae.config import HunyuanVAEConfig
from vidgen.models.mmdit import PRESETS
from vidgen.models.text.builtin import BuiltinText
from vidgen.runtime import checkpoint
from vidgen.sample import Pipeline, make_requests
from vidgen.sample.memory import MemoryNeeds, MemoryPlan, parse_memory, plan_memory, tiled

GB = 10**9
VAE = HunyuanVAEConfig(path="hunyuan_vae.safetensors")


def test_sizes() -> None:
    assert parse_memory("24GB") == 24 * GB
    assert parse_memory("22.5 GiB") == int(22.5 * 2**30)
    assert parse_memory("500MB") == GB // 2
    for text in ("24", "24gb", "0GB", "-1GB", "much"):
        with pytest.raises(UserError, match=r"expected e\.g\. 24GB"):
            parse_memory(text)


def planned(limit: int, grid: tuple[int, int, int], video: tuple[int, int, int]) -> MemoryPlan:
    return plan_memory(
        limit,
        PRESETS["opensora_v2"],
        VAE,
        MemoryNeeds(
            video=video,
            tokens=grid,
            text_length=512,
            around_bytes=int(0.7 * GB),
            table_bytes=int(0.4 * GB),
        ),
        torch.bfloat16,
    )


def test_the_published_model_on_cards_of_today() -> None:
    """Blocks without modulation take 17 GB in bf16."""
    small, large = ((33, 12, 21), (129, 192, 336)), ((33, 36, 64), (129, 576, 1024))
    assert planned(24 * GB, *small).block_bytes > 17.5 * GB
    assert 2 * GB < planned(24 * GB, *large).block_bytes < 17 * GB
    assert planned(24 * GB, *small).autoencoder == VAE
    assert planned(10 * GB, *small).autoencoder == replace(VAE, temporal_tiling=True)
    assert planned(5 * GB, *small).autoencoder.tile_frames < 64  # type: ignore[union-attr]


def test_what_is_done_is_said() -> None:
    plan = planned(24 * GB, (33, 12, 21), (129, 192, 336))
    assert plan.describe(57, 0).startswith("within 24 GB: text encoders leave after encoding")
    assert "all 57 blocks stay on the device" in plan.describe(57, 0)
    tight = planned(10 * GB, (33, 12, 21), (129, 192, 336))
    assert "9 of 57 blocks are streamed, the VAE decodes 64 frames at a time" in tight.describe(
        57, 9
    )


def test_too_little_is_refused_with_what_it_takes() -> None:
    with pytest.raises(UserError, match=r"decoding 129 frames of 768x768 takes about \d\.\d GB"):
        tiled(VAE, (129, 768, 768), 1 * GB, torch.bfloat16)


@pytest.fixture
def pipeline(make_pipeline: Callable[..., Pipeline]) -> Pipeline:
    return make_pipeline(model={"depth": 2, "depth_single_blocks": 3})


@pytest.fixture
def run_folder(tmp_path: Path, pipeline: Pipeline) -> Path:
    recipe = {**to_dict(pipeline.recipe), "seed": 1}
    state = dict(pipeline.model.state_dict())
    root = tmp_path / "checkpoints"
    checkpoint.save(root, 7, {"model": state}, {"recipe": recipe}, background=False).wait()
    return tmp_path


def limited(folder: Path, pipeline: Pipeline, room: Callable[[list[int]], int]) -> Pipeline:
    """A pipeline with `room` for the blocks of one request of the default shape."""
    wide = Pipeline.from_checkpoint(folder, "cpu", memory=10 * GB)
    (request,) = make_requests(wide, ["x"])
    wide.generate([request])
    assert wide.stream is not None
    assert "all 5 blocks stay" in wide.memory_report
    sizes = wide.stream.sizes
    taken = 10 * GB - _block_bytes(wide, request)
    wide.close()
    return Pipeline.from_checkpoint(folder, "cpu", memory=taken + room(sizes))


def _block_bytes(pipeline: Pipeline, request: Any) -> int:
    kept: list[int] = []
    stream = pipeline.stream
    assert stream is not None
    keep = stream.keep

    def noting(device_bytes: int) -> int:
        kept.append(device_bytes)
        return keep(device_bytes)

    stream.keep = noting  # type: ignore[method-assign]
    pipeline.generate([request])
    return kept[0]


def test_within_little_memory_the_bits_are_the_same(
    pipeline: Pipeline, run_folder: Path, files: dict[str, str]
) -> None:
    small = limited(run_folder, pipeline, lambda sizes: 2 * max(sizes))
    (text,) = make_requests(small, ["a red circle"])
    requests = [text, replace(text, condition="i2v_head", ref=(files["left"],), seed=4)]
    expected = pipeline.generate(requests)
    for video, wanted in zip(small.generate(requests), expected, strict=True):
        assert (video == wanted).all()
    assert "5 of 5 blocks are streamed" in small.memory_report
    assert small.stream is not None
    assert small.stream.device_bytes == 0  # decoding has the device to itself
    assert small.weights_hash == pipeline.weights_hash
    small.close()


def test_a_shape_that_cannot_fit_is_refused(pipeline: Pipeline, run_folder: Path) -> None:
    small = limited(run_folder, pipeline, lambda sizes: max(sizes))
    with pytest.raises(UserError, match="the model's blocks need at least") as raised:
        small.generate(make_requests(small, ["a"]))
    assert "\n" not in str(raised.value)
    small.close()


def test_the_text_encoder_leaves_after_encoding(
    pipeline: Pipeline, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    encode = BuiltinText.encode

    def counted(self: BuiltinText, captions: list[str]) -> Any:
        read.extend(captions)
        return encode(self, captions)

    monkeypatch.setattr(BuiltinText, "encode", counted)
    small = Pipeline.from_checkpoint(run_folder, "cpu", memory=10 * GB)
    assert small._text._built is None
    assert small._model._built is None
    requests = make_requests(small, ["a", "b"], samples=2)
    features = small.features([small.check(request) for request in requests])
    assert small._text._built is None
    assert sorted(read) == sorted(features)
    assert len(read) == 3  # each caption once: two prompts and the empty one
    small.close()

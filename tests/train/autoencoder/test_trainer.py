"""A small Video DC-AE on the synthetic clips: it learns, resumes bit for bit, and says no."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vidgen.cli import eval as evaluation
from vidgen.cli.main import main
from vidgen.data.synthetic.shapes import HELD_OUT, write_dataset
from vidgen.errors import UserError
from vidgen.models.video_dcae import VideoDCAE
from vidgen.recipe.autoencoder import AutoencoderRecipe, read_any
from vidgen.recipe.reader import read_recipe
from vidgen.recipe.schema import Recipe
from vidgen.runtime import checkpoint
from vidgen.train.autoencoder.trainer import AutoencoderTrainer
from vidgen.train.report.metrics import read_metrics
from vidgen.train.supervise.recovery import SkipList

ROOT = Path(__file__).parents[3]
SMALL = {
    "latent_channels": 64, "widths": [8, 16, 32, 64, 64, 64], "head_dim": 16,
    "encoder_depths": [1] * 6, "decoder_depths": [1] * 6,
}  # fmt: skip


def recipe(manifest: Path, run_dir: Path, **changes: Any) -> AutoencoderRecipe:
    given: dict[str, Any] = {
        "kind": "autoencoder",
        "name": "small",
        "run_dir": str(run_dir),
        "autoencoder": SMALL,
        "data": {
            "manifest": str(manifest),
            "buckets": {"32px_ar1:1": {"8": {"batch": 4}}},
            "workers": 0,
            "cache_bytes": 100_000_000,
        },
        "loss": {"lpips": 0, "adversarial": 0.05, "discriminator_width": 8, "image_fraction": 0.2},
        "optim": {"lr": 2e-3, "eps": 1e-8, "warmup": 5},
        "train": {"steps": 40, "log_every": 10, "device": "cpu", "dtype": "float32"},
        "checkpoint": {"every": 1000},
    }
    for part, values in changes.items():
        given[part] = {**given.get(part, {}), **values} if isinstance(values, dict) else values
    return read_recipe(given, [], AutoencoderRecipe)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("clips"), clips=((9, 1),), side=32, seed=1)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("held-out")
    write_dataset(folder, scenes=HELD_OUT[:6], clips=((9, 1),), side=32, seed=2)
    return folder


def evaluated(run: Path, videos: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    command = ["eval", "reconstruction", "--ae", str(run), "--videos", str(videos)]
    assert main([*command, "--frames", "8", "--size", "32", "--device", "cpu", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_few_steps_improve_the_reconstruction_of_clips_never_seen(
    manifest: Path, held_out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At least 4 dB in 40 steps, from an output that is nearly grey."""
    trainer = AutoencoderTrainer(recipe(manifest, tmp_path / "run"))
    trainer._save().wait()
    before = evaluated(tmp_path / "run", held_out, capsys)
    trainer.run()
    capsys.readouterr()
    after = evaluated(tmp_path / "run", held_out, capsys)
    assert after["PSNR"] > before["PSNR"] + 4
    assert after["SSIM"] > before["SSIM"]
    assert after["videos"] == 6
    assert (after["T x H x W"], after["channels"], after["D_info"]) == ("4x32x32", 64, 192.0)
    assert after["LPIPS"] is None


def gradients(
    manifest: Path, run: Path, clip: float, **loss: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """What both optimizers are given at the first step with a discriminator."""
    trainer = AutoencoderTrainer(
        recipe(manifest, run, loss={"adversarial_from": 0, **loss}, optim={"clip": clip})
    )
    found: dict[str, torch.Tensor] = {}

    def watch(name: str, module: torch.nn.Module) -> Any:
        def hook(*_: Any) -> None:
            grads = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
            found[name] = torch.cat(grads)

        return hook

    trainer.optimizer.register_step_pre_hook(watch("model", trainer.model))
    trainer.discriminator_optimizer.register_step_pre_hook(
        watch("discriminator", trainer.discriminator)
    )
    trainer.train_step()
    trainer.close()
    return found["model"], found["discriminator"]


def test_gradients_of_both_networks_are_clipped(manifest: Path, tmp_path: Path) -> None:
    free = gradients(manifest, tmp_path / "free", 1e6)
    assert min(g.norm() for g in free) > 1e-3
    for clipped, before in zip(gradients(manifest, tmp_path / "clipped", 1e-4), free, strict=True):
        assert clipped.norm().item() == pytest.approx(1e-4, rel=0.02)
        torch.testing.assert_close(clipped / clipped.norm(), before / before.norm())


def test_the_adversarial_weight_is_what_the_recipe_says(manifest: Path, tmp_path: Path) -> None:
    """Without the adaptive weight the loss is linear in it: gradients at 0, 0.05 and 0.1 say so."""
    # A weight of 0 would leave the discriminator out.
    none, one, two = (
        gradients(manifest, tmp_path / f"{weight}", 1e6, adversarial=weight, adaptive=False)[0]
        for weight in (1e-9, 0.05, 0.1)
    )
    assert (one - none).norm() > 1e-6 * none.norm()
    torch.testing.assert_close(two - none, 2 * (one - none), rtol=1e-2, atol=1e-6)
    adaptive = gradients(manifest, tmp_path / "adaptive", 1e6, adversarial=0.05, adaptive=True)[0]
    # The same direction, by another factor.
    assert torch.cosine_similarity(adaptive - none, one - none, dim=0) > 0.99
    assert (adaptive - one).norm() > 0.5 * (one - none).norm()


@pytest.mark.parametrize("adversarial_from", [2, 1000])
def test_a_resumed_run_has_the_same_bits(
    manifest: Path, tmp_path: Path, adversarial_from: int
) -> None:
    changes: dict[str, Any] = {
        "loss": {"adversarial_from": adversarial_from},
        "train": {"steps": 4, "ema_decay": 0.9},
    }
    AutoencoderTrainer(recipe(manifest, tmp_path / "whole", **changes)).run()
    AutoencoderTrainer(recipe(manifest, tmp_path / "parts", **changes)).run(stop_after=2)
    AutoencoderTrainer(recipe(manifest, tmp_path / "parts", **changes)).run()
    whole, parts = (checkpoint.latest(tmp_path / n / "checkpoints") for n in ("whole", "parts"))
    assert whole is not None
    assert parts is not None
    for group in ("model", "optim", "discriminator", "discriminator_optim", "ema"):
        expected, found = (checkpoint.read_tensors(step, group) for step in (whole, parts))
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected), group
    moved = checkpoint.read_tensors(whole, "discriminator_optim")
    assert (max(t.abs().max() for t in moved.values()) > 0) == (adversarial_from == 2)


def test_a_run_is_validated_profiled_and_measured_like_any_other(
    manifest: Path, held_out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes: dict[str, Any] = {"train": {"steps": 4, "log_every": 1}}
    held = {"every": 2, "manifest": str(held_out / "manifest.parquet"), "batches": 1, "videos": 2}
    run = tmp_path / "run"
    AutoencoderTrainer(recipe(manifest, run, validate=held, **changes)).run(profile=(2, 3))
    shown = capsys.readouterr().out
    AutoencoderTrainer(recipe(manifest, tmp_path / "plain", **changes)).run()

    records = read_metrics(run)
    for record in records:
        assert {"loss", "l1", "psnr", "grad_norm", "ms", "data_ms", "memory_gb"} <= record.keys()
        assert record["mfu"] == record["hfu"] > 0
        assert record["phases"].keys() >= {"data", "encode", "forward", "losses", "backward"}
        # 4 clips of 8 frames of 32 x 32 pixels are 2 latents each, frames of them one.
        seconds = record["ms"] / 1000
        assert round(record["tokens_per_s"] * seconds) in (4, 8)
    assert "MFU" in next(line for line in shown.splitlines() if line.startswith("step 1/4"))
    found = [json.loads(line) for line in (run / "validation.jsonl").read_text().splitlines()]
    assert [each["step"] for each in found] == [0, 2, 4]
    assert found[2]["psnr"]["8x32x32"] > found[0]["psnr"]["8x32x32"]
    assert "validation at step 4: PSNR" in shown
    for step in (0, 2, 4):
        assert len(list((run / "validation" / f"step-{step:09d}").glob("*.mp4"))) == 2
    page = (run / "report.html").read_text()
    assert "step 0" in page
    assert "Validation PSNR" in page or "validation PSNR" in page
    assert (run / "profiles" / "trace-rank0.json.gz").exists()
    losses = [[r["loss"] for r in read_metrics(tmp_path / name)] for name in ("run", "plain")]
    assert losses[0] == losses[1]


def test_a_loss_that_is_not_finite_ends_the_run_with_its_rows(
    manifest: Path, tmp_path: Path
) -> None:
    trainer = AutoencoderTrainer(recipe(manifest, tmp_path / "run", recovery={"skip": True}))
    with torch.no_grad():
        trainer.model.decoder.project_out.bias.fill_(float("nan"))
    with pytest.raises(UserError, match=r"step 1: loss nan.*manifest row\(s\).*will be skipped"):
        trainer.run()
    assert SkipList(tmp_path / "run").positions == {(0, 0)}


def test_validation_without_clips_is_refused(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"validate.every is 2 and validate.manifest is not set"):
        AutoencoderTrainer(recipe(manifest, tmp_path / "run", validate={"every": 2}))


def two_ranks(rank: int, world: int, folder: Path, manifest: str) -> list[float]:
    """What the parameters add up to, from a rendezvous made by the environment."""
    import os

    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    trainer = AutoencoderTrainer(
        recipe(Path(manifest), folder / "run", train={"steps": 2}, loss={"adversarial_from": 1})
    )
    trainer.run()
    return [float(p.double().sum()) for p in trainer.named.values()]


def test_ranks_stay_alike(ranks: Any, manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(probe.getsockname()[1]))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    one, other = ranks(two_ranks, 2, str(manifest))
    assert one == other


def test_the_published_recipe_is_an_autoencoder_s() -> None:
    found = read_any(ROOT / "recipes" / "dcae.yaml", [])
    assert isinstance(found, AutoencoderRecipe)
    with torch.device("meta"):
        model = VideoDCAE(found.autoencoder)
    assert sum(p.numel() for p in model.parameters()) == 459_462_147
    loss = found.loss
    assert (loss.lpips, loss.adversarial, loss.adaptive) == (0.5, 0.05, False)
    assert (found.optim.clip, found.train.ema_decay, loss.image_fraction) == (1.0, 0.99, 0.2)
    assert isinstance(read_any(ROOT / "recipes" / "stage1.yaml", []), Recipe)


def test_lpips_without_weights_is_refused_before_anything_is_made(
    manifest: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"loss.lpips_weights is not set.*loss.lpips=0"):
        AutoencoderTrainer(recipe(manifest, tmp_path / "run", loss={"lpips": 0.5}))
    assert not (tmp_path / "run").exists()


def test_another_autoencoder_does_not_resume(manifest: Path, tmp_path: Path) -> None:
    AutoencoderTrainer(recipe(manifest, tmp_path / "run", train={"steps": 1})).run()
    changed = recipe(manifest, tmp_path / "run", autoencoder={"latent_channels": 32})
    with pytest.raises(UserError, match=r"autoencoder\.latent_channels: 64 -> 32"):
        AutoencoderTrainer(changed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"videos": "nowhere"}, "is not a folder"),
        ({"ae": "nowhere"}, "is no recipe"),
        ({"frames": "5"}, "5 frames: this autoencoder takes 1 or a multiple of 4"),
        ({"size": "40"}, "height 40 is not a multiple of 32"),
    ],
)
def test_what_eval_refuses(
    changes: dict[str, str], message: str, held_out: Path, tmp_path: Path
) -> None:
    save = tmp_path / "ae.safetensors"
    from vidgen.models.video_dcae import save_weights

    with torch.device("cpu"):
        small = read_recipe({"kind": "autoencoder", "name": "s", "run_dir": "r",
                             "autoencoder": SMALL, "data": {"manifest": "m", "buckets": {}}},
                            [], AutoencoderRecipe).autoencoder  # fmt: skip
        save_weights(VideoDCAE(small), save)
    text = (
        f"kind: autoencoder\nname: s\nrun_dir: r\ndata: {{manifest: m, buckets: {{}}}}\n"
        f"autoencoder: {{path: {save}, latent_channels: 64, widths: [8, 16, 32, 64, 64, 64], "
        "head_dim: 16, encoder_depths: [1, 1, 1, 1, 1, 1], decoder_depths: [1, 1, 1, 1, 1, 1]}\n"
    )
    (tmp_path / "ae.yaml").write_text(text)
    given = {"ae": str(tmp_path / "ae.yaml"), "videos": str(held_out), "frames": "8", "size": "32"}
    words = [word for k, v in {**given, **changes}.items() for word in (f"--{k}", v)]
    with pytest.raises(UserError, match=message):
        evaluation.run(_parsed(words))


def _parsed(words: list[str]) -> Any:
    from vidgen.cli.main import parse

    return parse("eval", ["reconstruction", *words, "--device", "cpu"])[0]

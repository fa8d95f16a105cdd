"""What `make gpu-check` runs, in the order of worth.

Each stage is a program of its own that keeps its rows as it measures them. `small` is the same
program at sizes for a CPU, for `make gpu-check DRY=1`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

Words = tuple[str, ...]

TOTAL_S = 540  # from a bare machine to the verdict, unless VIDGEN_GPU_CHECK_SECONDS says otherwise
SETUP_S = 110  # of these: the libraries and the CUDA build
VERDICT_S = 15  # the tables and the archive

# Compute capability: which GPUs, and whether tools/compile_cuda.sh compiles every CUDA file for it
# (without warnings and register spills). A build on a GPU machine takes that machine's own.
ARCHITECTURES = {
    "80": ("A100", True),
    "86": ("A10, RTX 3090", False),
    "89": ("L4, L40S, RTX 4090", False),
    "90a": ("H100, H200", True),
    "100a": ("B200", True),
    "120": ("RTX 5090", False),
}


@dataclass(frozen=True)
class Stage:
    name: str  # what ONLY= takes, and the stem of its log
    what: str
    seconds: int  # its limit
    commands: tuple[Words, ...]  # arguments of python; several run at the same time
    small: tuple[Words, ...]
    result: str | None = None  # the stem of the file of its rows, passed as --out
    needs: Words = ()  # modules beyond torch, triton and numpy
    environment: tuple[tuple[str, str], ...] = ()
    rest: bool = False  # runs in the time that the stages before it leave


PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=", "-m", "gpu")
PYTEST += ("--strict-markers", "--import-mode=importlib", "--tb=short")
OPS, ATTENTION = "tests/runtime/ops", "tests/runtime/attention"
OTHERS = (
    "tests/runtime/memory/test_lane.py",
    "tests/runtime/memory/test_arena.py",
    "tests/runtime/test_dlpack.py",
    "tests/runtime/observe/test_timer.py",
    "tests/runtime/checkpoint/test_save.py",
    "tests/data/test_prefetch.py",
)
LOADER = "tests/data/test_loader_gpu.py"
RECIPES = ("pydantic", "yaml", "tqdm")
CLIPS = (*RECIPES, "av", "pyarrow")
TINY = ("model=tiny", "--bucket", "256px x 5", "--batch", "1")
ON_CPU = ("--device", "cpu", "--dtype", "float32", "--repeats", "1")
LONGEST = ("--bucket", "256px x 129")


def bench(suite: str, *words: str) -> tuple[Words, ...]:
    return (("-m", "vidgen", "bench", suite, *words),)


def suite(name: str, *words: str) -> tuple[Words, ...]:
    return ((f"benchmarks/{name}.py", *words),)


STAGES = (
    Stage(
        name="smoke",
        what="an op, attention, a block, a lane copy, a checkpoint",
        seconds=30,
        commands=(("tools/gpu_check/smoke.py", "--device", "cuda"),),
        small=(("tools/gpu_check/smoke.py", "--device", "cpu"),),
        result="smoke",
    ),
    Stage(
        name="tests",
        what="the tests that need a GPU",
        seconds=75,
        commands=(
            (*PYTEST, OPS, "-k", "compiled"),
            (*PYTEST, OPS, "-k", "triton"),
            (*PYTEST, OPS, "-k", "not compiled and not triton"),
            (*PYTEST, ATTENTION, "-k", "native or cudnn"),
            (*PYTEST, ATTENTION, "-k", "not native and not cudnn"),
            (*PYTEST, *OTHERS),
        ),
        # Collected only: the CPU's own tests are CI's.
        small=(("-m", "pytest", "-q", "--collect-only", "-n0", OPS, ATTENTION, *OTHERS),),
        needs=("pytest", "hypothesis"),
    ),
    Stage(
        name="mfu",
        what="forward and backward of stage 1, compiled ops",
        seconds=55,
        commands=bench("mfu", "recipes/stage1.yaml", *LONGEST, "--repeats", "2"),
        small=bench("mfu", "recipes/stage1.yaml", *TINY, *ON_CPU),
        result="mfu_stage1",
        needs=RECIPES,
        environment=(("VIDGEN_OPS", "compiled"),),
    ),
    Stage(
        name="mfu-triton",
        what="the same with Triton's ops",
        seconds=40,
        commands=bench("mfu", "recipes/stage1.yaml", *LONGEST, "--repeats", "2"),
        small=bench("mfu", "recipes/stage1.yaml", *TINY, *ON_CPU),
        result="mfu_stage1_triton",
        needs=RECIPES,
        environment=(("VIDGEN_OPS", "triton"),),
    ),
    Stage(
        name="step",
        what="what takes the time of a block",
        seconds=20,
        commands=bench("step", "recipes/stage1.yaml", *LONGEST),
        small=bench("step", "recipes/stage1.yaml", *TINY, *ON_CPU),
        result="step_stage1",
        needs=RECIPES,
    ),
    Stage(
        name="attention",
        what="attention at 8,960 and 76,544 tokens",
        seconds=45,
        commands=suite("attention/bench_attention", "--lengths", "8960", "76544"),
        small=suite("attention/bench_attention", "--lengths", "128"),
        result="attention",
    ),
    Stage(
        name="ops",
        what="the ops beside a copy and eager torch",
        seconds=40,
        commands=bench(
            *("ops", "--tokens", "8960", "76544", "--peer", "eager", "--repeats", "5"),
        ),
        small=bench(
            *("ops", "--tokens", "64", "--width", "128", "--heads", "2", "--peer", "eager"),
            *ON_CPU,
        ),
        result="ops",
    ),
    Stage(
        name="stage3",
        what="one rank's part of stage 3",
        seconds=60,
        commands=bench(
            # What the bucket needs: to page-lock the default of 32 GB takes longer.
            *("mfu", "recipes/stage3.yaml", "offload.host_gb=15"),
            *("--bucket", "768px x 129", "--repeats", "1"),
        ),
        small=bench(
            *("mfu", "recipes/stage3.yaml", "model=tiny", "parallel.context=2"),
            "offload.host_gb=0.1",
            *("--bucket", "256px x 5", "--batch", "1", *ON_CPU),
        ),
        result="mfu_stage3",
        needs=RECIPES,
    ),
    Stage(
        name="lane",
        what="copies through lanes",
        seconds=15,
        commands=suite("bench_lane", "--rounds", "5"),
        small=suite("bench_lane", "--short"),
        result="lane",
    ),
    Stage(
        name="offload",
        what="activation offload, 6 blocks",
        seconds=35,
        commands=suite("bench_offload", "--short"),
        small=suite("bench_offload", "--short"),
        result="offload",
        needs=RECIPES,
    ),
    Stage(
        name="optim",
        what="an optimizer step",
        seconds=15,
        commands=suite("bench_optim", "--rounds", "5"),
        small=suite("bench_optim", "--millions", "0.1", "--rounds", "1"),
        result="optim",
        rest=True,
    ),
    Stage(
        name="buckets",
        what="stage 1 at images and short clips",
        seconds=60,
        commands=bench(
            *("mfu", "recipes/stage1.yaml", "--bucket", "256px x 1", "--bucket", "256px x 33"),
            *("--repeats", "2"),
        ),
        small=bench("mfu", "recipes/stage1.yaml", *TINY, *ON_CPU),
        result="mfu_stage1_short",
        needs=RECIPES,
        rest=True,
    ),
    Stage(
        name="ring",
        what="a ring of simulated ranks beside one kernel",
        seconds=25,
        commands=suite("parallel/bench_ring", "--tokens", "76544", "--parts", "4", "--rounds", "2"),
        small=suite(
            *("parallel/bench_ring", "--tokens", "256", "--parts", "2", "--heads", "1"),
            *("--rounds", "1"),
        ),
        result="parallel_ring",
        rest=True,
    ),
    Stage(
        name="sampling",
        what="one pass of sampling, and within 24 GB",
        seconds=45,
        commands=suite("bench_sampling", "--shapes", "256px", "--rounds", "2"),
        small=suite("bench_sampling", "--model", "tiny", "--rounds", "1"),
        result="sampling",
        needs=CLIPS,
        rest=True,
    ),
    Stage(
        name="dcae",
        what="encoding and decoding with the Video DC-AE",
        seconds=60,
        commands=suite("bench_dcae", "--short"),
        small=suite("bench_dcae", "--short", "--rounds", "1", "--budget", "0", "--no-compile"),
        result="dcae",
        needs=RECIPES,
        rest=True,
    ),
    Stage(
        name="speedup",
        what="the generator with the Video DC-AE's latents",
        seconds=60,
        commands=bench(
            *("dcae", "recipes/stage3.yaml", "--bucket", "768px x 129", "--batch", "1"),
            *("--repeats", "1"),
        ),
        small=bench("dcae", "recipes/stage1.yaml", *TINY, *ON_CPU),
        result="speedup_dcae",
        needs=RECIPES,
        rest=True,
    ),
    Stage(
        name="load",
        what="loading 7.6 GB of weights",
        seconds=30,
        commands=suite("bench_load", "--depth", "6", "--single", "12", "--rounds", "1"),
        small=suite("bench_load", "--short"),
        result="load",
        needs=(*RECIPES, "safetensors"),
        rest=True,
    ),
    Stage(
        name="checkpoint",
        what="checkpoints of 4 GB",
        seconds=30,
        commands=suite("bench_checkpoint", "--gb", "4", "--rounds", "2"),
        small=suite(
            *("bench_checkpoint", "--gb", "0.01", "--rounds", "1", "--steps", "2", "--no-peers"),
        ),
        result="checkpoint",
        rest=True,
    ),
    Stage(
        name="loader",
        what="loading clips",
        seconds=60,
        commands=suite("bench_loader", "--frames", "33", "--peers", "vidgen", "DataLoader"),
        small=suite("bench_loader", "--frames", "5", "--peers", "vidgen"),
        result="loader",
        needs=CLIPS,
        rest=True,
    ),
    Stage(
        name="loader-tests",
        what="the loader's test on a GPU",
        seconds=30,
        commands=((*PYTEST, LOADER),),
        small=(
            ("-m", "pytest", "-q", "--collect-only", "-n0", LOADER, "tests/data/test_prefetch.py"),
        ),
        needs=("pytest", "hypothesis", *CLIPS),
        rest=True,
    ),
    Stage(
        name="encode",
        what="filling the latent cache",
        seconds=25,
        commands=suite("bench_encode", "--clips", "16"),
        small=suite("bench_encode", "--clips", "4"),
        result="encode",
        needs=CLIPS,
        rest=True,
    ),
    Stage(
        name="doctor",
        what="what this machine is",
        seconds=20,
        commands=(("-m", "vidgen", "doctor"),),
        small=(("-m", "vidgen", "doctor"),),
        rest=True,
    ),
)


def named(words: Iterable[str]) -> tuple[Stage, ...]:
    """The stages of these names, in their own order."""
    wanted = set(words)
    if unknown := wanted - {stage.name for stage in STAGES}:
        known = ", ".join(stage.name for stage in STAGES)
        raise SystemExit(f"gpu-check: {', '.join(sorted(unknown))} is no stage; there are: {known}")
    return tuple(stage for stage in STAGES if stage.name in wanted)

"""What every test shares: one CPU thread, a known seed, and one line that says what was not run.

And `ranks`, for tests that need several processes.
"""

import contextlib
import functools
import inspect
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before torch is imported: tests run side by side, one thread each, and what torch compiles is
# theirs alone. In the common cache a killed run leaves half files that fail every later one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="vidgen-compiled-")

import pytest
from hypothesis import settings

LONG = (
    "tests/cpp/test_native_kernels.py",
    "tests/cuda_emulator/",
    "tests/train/supervise/test_recovery.py",
    "tests/cpp/test_native_memory.py",
    "tests/models/mmdit/test_golden.py",
    "tests/runtime/ops/test_triton.py",
    "tests/train/test_trainer_ranks.py",
    "tests/sample/test_parallel.py",
)
NOT_RUN = pytest.StashKey[dict[str, int]]()  # tests of each reason
# What starts several processes or compiles much.
SLOW_FIXTURES = {"ranks", "start", "start_ranks", "emulator_path"}
SEED = int(os.environ.get("VIDGEN_TEST_SEED", "0"))

# A busy machine is no failure, and the same commit gives the same verdict: no deadline, no luck.
settings.register_profile("vidgen", deadline=None, derandomize=True, database=None)
settings.register_profile("soak", deadline=None, max_examples=300, database=None)  # make soak
settings.load_profile("vidgen")


def pytest_report_header() -> str:
    return f"vidgen: tests seeded with VIDGEN_TEST_SEED={SEED}"


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["TORCHINDUCTOR_CACHE_DIR"], ignore_errors=True)


class ToldAtOnce:
    """A failure is told when it happens: a run that is cut short never gets to its summary."""

    def __init__(self, terminal: Any) -> None:
        self.terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.terminal.line(f"\n=== {report.nodeid} failed in its {report.when}:")
            self.terminal.line(report.longreprtext[-4000:])


@pytest.hookimpl(trylast=True)  # after the terminal reporter is there
def pytest_configure(config: pytest.Config) -> None:
    config.stash[NOT_RUN] = {}
    if terminal := config.pluginmanager.get_plugin("terminalreporter"):
        config.pluginmanager.register(ToldAtOnce(terminal))


def pytest_itemcollected(item: pytest.Item) -> None:
    if not SLOW_FIXTURES.isdisjoint(getattr(item, "fixturenames", ())):
        item.add_marker("slow")


def cannot_run(item: pytest.Item) -> str | None:
    """Why this machine or process has no use for a test; its body is never reached."""
    parameters = (
        item.callspec.params
        if isinstance(item, pytest.Function) and hasattr(item, "callspec")
        else {}
    )
    device = parameters.get("device")
    if item.get_closest_marker("gpu") is not None and not has_gpu():
        return "need a GPU (make gpu-check)"
    if parameters.get("laws") == "triton" and device is not None:
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        if interpreted != (device == "cpu"):
            return "are of Triton on the CPU (test_triton.py runs them in its interpreter)"
    return None


@functools.cache
def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.hookimpl(trylast=True)  # counts what -k and -m leave
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept, dropped = [], []
    for item in items:
        reason = cannot_run(item)
        (kept if reason is None else dropped).append(item)
        if reason is not None:
            counts = config.stash[NOT_RUN]
            counts[reason] = counts.get(reason, 0) + 1
    if dropped:
        config.hook.pytest_deselected(items=dropped)
    # Whole files go to one worker each: those that take longest begin first.
    items[:] = sorted(
        kept, key=lambda item: next((i for i, f in enumerate(LONG) if f in item.nodeid), len(LONG))
    )


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(
        session.config, "workeroutput"
    ):  # a worker of xdist: it collects, and reports nothing
        session.config.workeroutput["not_run"] = session.config.stash[NOT_RUN]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    if found := getattr(node, "workeroutput", {}).get("not_run"):
        node.config.stash[NOT_RUN] = found  # every worker collects the same tests


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """One line for all that was not run."""
    counts = dict(config.stash[NOT_RUN])
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2].removeprefix("Skipped: ") if report.longrepr else "skipped"
        counts[reason] = counts.get(reason, 0) + 1
    if counts:
        ordered = sorted(counts.items(), key=lambda pair: -pair[1])
        told = "; ".join(f"{count} {reason}" for reason, count in ordered)
        terminalreporter.write_line(f"not run: {told}")


@pytest.fixture(autouse=True)
def _seeded(request: pytest.FixtureRequest) -> None:
    """Every test starts from random states of its own, whatever ran before it."""
    seed = SEED ^ zlib.crc32(request.node.nodeid.encode())
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)


@pytest.fixture(scope="session")
def dinov2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DINOv2 of two small layers with random weights: patches of 4 pixels, 16 features."""
    transformers = pytest.importorskip("transformers", reason="the text extra is not installed")
    import torch

    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=12, patch_size=4
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.Dinov2Model(config)
        for parameter in model.parameters():  # as it starts, layers hardly count
            torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("dinov2")
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def ranks(tmp_path: Path) -> Callable[..., list[Any]]:
    """`ranks(function, world, *arguments)`: what each rank returned; None if it was killed.

    `function(rank, world, folder, *arguments)` stands at the top of the test file; arguments and
    results are what JSON takes; `folder` is new and common to the ranks.
    """
    count = 0

    def run(
        function: Callable[..., Any], world: int, *arguments: Any, timeout: float = 240
    ) -> list[Any]:
        nonlocal count
        folder = tmp_path / f"ranks-{count}"
        folder.mkdir()
        count += 1
        file = inspect.getsourcefile(function)
        assert file is not None
        package = str(Path(__file__).parents[1])
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "PYTHONPATH": os.pathsep.join([package, os.environ.get("PYTHONPATH", "")]),
        }
        command = [
            *(sys.executable, str(Path(__file__).with_name("ranks.py"))),
            *(file, function.__name__, str(world), str(folder), str(timeout)),
            json.dumps(arguments),
        ]
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(timeout=2 * timeout)  # it ends itself, after importing
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # whatever is left of it
        if process.returncode:
            pytest.fail(f"{function.__name__} failed:\n{said}", pytrace=False)
        results = [folder / f"result-{rank}.json" for rank in range(world)]
        return [json.loads(r.read_text()) if r.exists() else None for r in results]

    return run


# 8 images, 8 clips of 9 frames and 8 of 17, 32 x 32: with these buckets an epoch is 8 steps.
TINY_RECIPE = """\
name: tiny
run_dir: runs/tiny
model:
  in_channels: 96
  hidden_size: 32
  num_heads: 2
  depth: 1
  depth_single_blocks: 1
  axes_dim: [4, 6, 6]
  vec_in_dim: 16
  context_in_dim: 16
  cond_embed: false
autoencoder: {{kind: block_dct}}
text: {{length: 8, token_width: 16, pooled_width: 16}}
data:
  manifest: {manifest}
  buckets:
    32px_ar1:1: {{1: {{batch: 4}}, 9: {{batch: 4}}, 17: {{batch: 2}}}}
conditions: {{suffix: false, drop_tokens: 0.2, drop_pooled: 0.2}}
optim: {{lr: 5e-3, warmup: 2, eps: 1e-8}}
checkpoint: {{every: 3}}
train: {{steps: 6, device: cpu, dtype: float32, ema_decay: 0.9}}
"""


@pytest.fixture(scope="session")
def shapes_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from vidgen.data.synthetic.shapes import TRAINED, write_dataset

    folder = tmp_path_factory.mktemp("shapes")
    clips = ((1, 1), (9, 1), (17, 1))
    return write_dataset(folder, scenes=TRAINED[:8], clips=clips, side=32, seed=1)


@pytest.fixture(scope="session")
def recipe_file(shapes_manifest: Path) -> Path:
    path = shapes_manifest.with_name("tiny.yaml")
    path.write_text(TINY_RECIPE.format(manifest=shapes_manifest))
    return path


@pytest.fixture
def tiny(recipe_file: Path, tmp_path: Path) -> Callable[..., Any]:
    """`tiny("optim.lr=1e-4", run="a")`: the tiny recipe, run in tmp_path/a."""

    from vidgen.recipe.reader import read_recipe
    from vidgen.recipe.schema import Recipe

    def make(*overrides: str, run: str = "run") -> Recipe:
        return read_recipe(recipe_file, [f"run_dir={tmp_path / run}", *overrides], Recipe)

    return make

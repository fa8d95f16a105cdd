"""Which backend runs: a name or a reason, the order on a CPU, what was measured on a GPU."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from vidgen.errors import UserError
from vidgen.runtime.attention import attention, backends, choice, measured, soundness
from vidgen.runtime.attention.backends import Backend, Needs
from vidgen.runtime.attention.choice import choose
from vidgen.runtime.attention.table import TABLE
from vidgen.runtime.attention.torch_backends import MATH

SHAPE = (1, 8960, 8960, 24)


def needs(dtype: torch.dtype = torch.float32, *, dim: int = 32, **more: object) -> Needs:
    said = {"device": "cpu", "gradient": False, "lse": False, "mask": frozenset(), **more}
    return Needs(dtype=dtype, head_dim=dim, **said)  # type: ignore[arg-type]


def test_a_cpu_takes_the_first_that_can_serve() -> None:
    assert choose(needs(gradient=True)).name == "native"
    assert choose(needs(mask=frozenset({"block"}), lse=True, gradient=True)).name == "native"
    assert choose(needs(torch.float64, gradient=True)).name == "sdpa_flash_cpu"
    assert choose(needs(torch.float64, mask=frozenset({"length"}))).name == "math"
    assert choose(needs(dim=512)).name == "sdpa_flash_cpu"
    assert choose(needs(device="meta")).name == "math"


@pytest.mark.parametrize(
    ("backend", "asked", "reason"),
    [
        ("flash9", {}, "'flash9' does not exist; there are: auto, .*math"),
        ("sdpa_flash", {}, "'sdpa_flash' cannot serve this call: it runs on cuda, not cpu"),
        ("sdpa_flash_cpu", {"dtype": torch.int8}, "does not take int8"),
        ("auto", {"dtype": torch.int8}, "no attention backend can serve.*math does not take int8"),
        ("math", {"dim": 2048}, "head dim 2048: needs a multiple of 1 up to 1024"),
        ("native", {"dim": 264}, "head dim 264: needs a multiple of 1 up to 256"),
        ("native", {"dtype": torch.float64}, "does not take float64"),
        ("sdpa_flash_cpu", {"mask": frozenset({"block", "length"})}, "block and length mask"),
        (
            "sage",
            {"device": "cuda", "dtype": torch.bfloat16, "dim": 64, "gradient": True},
            "has no backward",
        ),
        ("cudnn", {"device": "cuda", "dtype": torch.bfloat16, "dim": 256}, "up to 128"),
        (
            "cudnn",
            {"device": "cuda", "dtype": torch.bfloat16, "dim": 128, "gradient": True, "lse": True},
            "through the log-sum-exp up to 120",
        ),
    ],
)
def test_refusals_name_the_reason(backend: str, asked: dict[str, object], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        choose(needs(**asked), backend)  # type: ignore[arg-type]


@pytest.mark.parametrize("package", ["flash4", "flash3", "flash2", "sage"])
def test_a_package_that_is_absent_says_how_to_get_it(package: str) -> None:
    asked = needs(torch.bfloat16, device="cuda", dim=128)
    found = next(b for b in TABLE if b.name == package)
    reason = found.refusal(asked)
    if reason is None:
        pytest.skip("is there, on a GPU that runs it")
    with pytest.raises(UserError, match=r"pip install|GPU"):
        choose(asked, package)


def test_a_named_backend_is_refused_without_keys_too() -> None:
    q, k = torch.randn(1, 3, 2, 8), torch.randn(1, 0, 2, 8)
    with pytest.raises(UserError, match="runs on cuda"):
        attention(q, k, k, backend="sdpa_flash")


def test_the_environment_names_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDGEN_ATTENTION", "math")
    assert choose(needs()).name == "math"
    assert choose(needs(), "native").name == "native"  # an argument says more than the environment
    monkeypatch.setenv("VIDGEN_ATTENTION", "sdpa_flash")
    with pytest.raises(UserError, match="runs on cuda"):
        choose(needs())


def test_the_table_says_what_runs_and_why_not() -> None:
    rows = {row["name"]: row for row in backends(needs(gradient=True))}
    assert rows.keys() == {b.name for b in TABLE}
    assert rows["sdpa_flash"] == {
        "name": "sdpa_flash",
        "available": False,
        "reason": "runs on cuda, not cpu",
        "chosen": False,
    }
    assert [name for name, row in rows.items() if row["chosen"]] == ["native"]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, float]]:
    """A GPU as far as the choice can tell: backends able and sound, times as told."""
    monkeypatch.setattr(measured, "machine", lambda: "a GPU, versions")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(soundness, "_found", {})
    monkeypatch.setattr(choice, "fault", lambda backend, needs: "")

    def told(times: dict[str, float]) -> dict[str, float]:
        counted: dict[str, float] = {}

        def time(backend: Backend, needs: Needs, shape: object) -> float:
            counted[backend.name] = counted.get(backend.name, 0) + 1
            return times[backend.name]

        here = tuple(replace(b, missing=lambda: "") for b in TABLE if b.name in times)
        monkeypatch.setattr(choice, "TABLE", (*here, MATH))
        monkeypatch.setattr(measured, "milliseconds", time)
        return counted

    return told


GPU = needs(torch.bfloat16, device="cuda", dim=128, gradient=True)


def test_a_gpu_measures_once_and_remembers(gpu: Callable[..., dict[str, float]]) -> None:
    counted = gpu({"flash3": 3.0, "cudnn": 1.0, "sdpa_flash": 2.0})
    assert choose(GPU, shape=SHAPE).name == "cudnn"
    assert counted == {"flash3": 1, "cudnn": 1, "sdpa_flash": 1}
    choice.reset()
    measured._here.cache_clear()  # as another process
    assert choose(GPU, shape=(1, 9000, 9001, 20)).name == "cudnn"  # of the same kind
    assert counted["cudnn"] == 1
    assert choose(GPU, shape=(1, 100, 9000, 20)).name == "cudnn"
    assert counted["cudnn"] == 2
    assert choose(GPU).name == "cudnn"  # of unknown lengths, as while torch.compile traces
    assert choose(replace(GPU, lse=True)).name == "flash3"  # of which nothing is remembered
    assert measured.path().is_file()
    assert list(measured.path().parent.iterdir()) == [measured.path()]


def test_only_a_backend_that_is_about_to_run_is_checked(
    gpu: Callable[..., dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[str] = []
    faults: dict[str, str] = {}

    def fault(backend: Backend, needs: Needs) -> str:
        checked.append(backend.name)
        return faults.get(backend.name, "")

    monkeypatch.setattr(choice, "fault", fault)
    gpu({"cudnn": 1.0, "sdpa_flash": 2.0, "flex": 9.0})
    assert choose(GPU).name == "cudnn"  # unknown lengths: the table's order
    assert checked == ["cudnn"]
    checked.clear()
    assert choose(GPU, shape=SHAPE).name == "cudnn"
    assert checked == ["cudnn", "sdpa_flash", "cudnn"]  # those that are timed, then the fastest
    choice.reset()
    checked.clear()
    assert choose(GPU, shape=SHAPE).name == "cudnn"  # remembered
    assert checked == ["cudnn"]

    choice.reset()
    checked.clear()
    faults.update(cudnn="off", sdpa_flash="off")
    assert choose(GPU, shape=SHAPE).name == "flex"
    assert checked == ["cudnn", "sdpa_flash", "flex"]


def test_what_is_remembered_may_be_damaged_or_gone(gpu: Callable[..., dict[str, float]]) -> None:
    gpu({"flash3": 3.0, "cudnn": 1.0})
    measured.path().parent.mkdir(parents=True)
    measured.path().write_text('{"a GPU, versions": {"bfloat')
    assert choose(GPU, shape=SHAPE).name == "cudnn"
    choice.reset()
    measured._here.cache_clear()
    # What was fastest may no longer be able to serve.
    gpu({"flash3": 3.0, "sdpa_flash": 2.0})
    assert choose(GPU, shape=SHAPE).name == "flash3"


def test_without_memory_to_measure_the_order_decides(
    gpu: Callable[..., dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu({"flash3": 3.0, "cudnn": 1.0})

    def out_of_memory(*given: object) -> float:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(measured, "milliseconds", out_of_memory)
    assert choose(GPU, shape=SHAPE).name == "flash3"
    assert not measured.path().exists()


def test_a_distributed_run_measures_nothing(
    gpu: Callable[..., dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = gpu({"flash3": 3.0, "cudnn": 1.0})
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert choose(GPU, shape=SHAPE).name == "flash3"
    assert not counted

    def from_rank_0(told: list[object], **options: object) -> None:
        told[0] = {measured.case(GPU, SHAPE): {"fastest": "cudnn", "scores": 1}}

    monkeypatch.setattr(torch.distributed, "get_rank", lambda group: 1)
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", from_rank_0)
    choice.agree()
    assert choose(GPU, shape=SHAPE).name == "cudnn"
    assert not counted


def test_an_inexact_backend_is_never_automatic(gpu: Callable[..., dict[str, float]]) -> None:
    gpu({"sage": 0.1, "sdpa_flash": 9.0})
    sampling = replace(GPU, gradient=False)
    assert choose(sampling, shape=SHAPE).name == "sdpa_flash"
    assert choose(sampling, "sage").name == "sage"

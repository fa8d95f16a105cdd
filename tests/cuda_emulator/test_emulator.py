"""The emulator detects the errors it is meant for, and follows the documented GPU instructions."""

import ctypes

import pytest
import torch

THREADS = 64


class Faulty:
    def __init__(self, emulator):
        self.emulator = emulator
        self.given = emulator.memory.copy(torch.arange(float(THREADS)))
        self.out = emulator.memory.empty((THREADS,), torch.float32)
        self._start = emulator.library.vidgen_start_faulty
        self._start.restype = ctypes.c_char_p
        self._start.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p]

    def start(self, name, given=None):
        given = self.given if given is None else given
        message = self._start(name.encode(), given.data_ptr(), self.out.data_ptr())
        return message.decode()

    def results(self, name):
        """Of several schedules, without those that are the same."""
        found = set()
        for seed in range(20):
            self.emulator.seed(seed)
            assert self.start(name) == ""
            found.add(tuple(torch.nan_to_num(self.out, -1.0).tolist()))
        return found


@pytest.fixture
def faulty(emulator):
    return Faulty(emulator)


def test_a_missing_barrier_shows_in_the_results(faulty):
    assert faulty.results("reverse") == {tuple(float(i) for i in reversed(range(THREADS)))}
    assert len(faulty.results("reverse without a barrier")) > 1


def test_a_copy_nobody_waited_for_shows_in_the_results(faulty):
    assert faulty.results("copy") == {tuple(float(i) for i in range(THREADS))}
    assert len(faulty.results("copy without a wait")) > 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("barrier for some", "40 at __syncthreads; 24 have left"),
        ("barrier after leaving", "63 at __syncthreads; 1 have left"),
        ("shuffle for some", "while others of its warp are at"),
        ("past shared memory", "touched memory it does not own"),
        ("misaligned", "a misaligned address"),
        ("much shared memory", "invalid argument"),
        ("many threads", "a block of 2048 threads"),
    ],
)
def test_a_fault_stops_the_launch_and_is_named(faulty, name, message):
    assert message in faulty.start(name)
    assert faulty.start("reverse") == ""  # and the next launch is none the worse


def test_leaving_a_tensor_faults(emulator, faulty):
    for at_the_end, name in ((True, "past the end"), (False, "before the beginning")):
        given = emulator.memory.empty((THREADS,), torch.float32, at_the_end=at_the_end)
        assert "touched memory it does not own" in faulty.start(name, given)


def test_a_write_between_rows_is_noticed(emulator):
    rows = emulator.memory.empty((2, 8), torch.float32, gap=4)
    emulator.memory.check()
    rows.as_strided((9,), (1,))[8] = 0.0
    with pytest.raises(AssertionError, match="between or behind"):
        emulator.memory.check()


def test_shared_memory_begins_as_nan(faulty):
    assert faulty.start("never written") == ""
    assert faulty.out.isnan().all()


def test_rows_in_one_bank_are_counted(emulator, faulty):
    emulator.counts()
    assert faulty.start("one bank") == ""
    # Two warps, four matrices each, seven rows of eight behind another.
    assert emulator.counts()["bank_conflicts"] == 2 * 4 * 7


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_halves_are_rounded_as_torch_rounds(emulator, half):
    """Through a merge whose other side is empty: floats of every size, and every half."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(half)
    bits = torch.randint(-(2**31), 2**31 - 1, (2**16,)).to(torch.int32)
    near = every.float() * (1 + torch.finfo(half).eps / 2)  # ties, among others
    for floats in (bits.view(torch.float32), near, torch.randn(2**16) * 1e-6):
        length = len(floats) // 256
        memory, shape, sums = emulator.memory, (1, length, 1, 256), (1, 1, length)
        zeros, halves = torch.zeros(shape), every.view(shape)
        nothing, some = torch.full(sums, -torch.inf), torch.zeros(sums)
        grads = [memory.copy(t) for t in (floats.view(shape), some)]
        given = [memory.copy(t) for t in (zeros, nothing, halves, some)]
        out, lse = memory.empty(shape, torch.float32), memory.empty(sums, torch.float32)
        found = [memory.empty(t.shape, t.dtype) for t in given]
        emulator.launch("merge_forward", *given, out, lse)
        emulator.launch("merge_backward", *grads, *given, *found)
        same = (out.flatten() == every.float()) | every.isnan()
        assert same.all()
        assert torch.equal(out.isnan().flatten(), every.isnan())
        torch.testing.assert_close(
            found[2].flatten(), floats.to(half), rtol=0, atol=0, equal_nan=True
        )

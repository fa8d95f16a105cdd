"""Resumable work: shared over ranks, found again by key, damaged results redone."""

import json
import logging
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from vidgen.errors import UserError
from vidgen.runtime import work
from vidgen.runtime.content_key import content_key
from vidgen.runtime.work import Counts, Failed, FailureLimit, JsonResults, Outcome, Progress

SETTINGS = {"scorer": {"name": "length", "version": 1}}
LIMIT = FailureLimit(1, "words.limit", "words", lambda word: f"word {word}")
WORDS = ["one", "three", "seven", "eleven", "twelve", "thirteen", "twenty"]


def key(word: str) -> str:
    return content_key({"word": word})


def score(
    folder: Path,
    words: Sequence[str] = WORDS,
    compute: Callable[[str], Any] = len,
    settings: dict[str, Any] = SETTINGS,
    **options: Any,
) -> Counts:
    results = JsonResults(folder, settings)
    return work.run(words, work.by_key(results, key, compute), failures=LIMIT, **options)


def read(folder: Path) -> dict[str, Any]:
    results = JsonResults(folder, SETTINGS)
    return {word: results.get(key(word)) for word in WORDS}


def test_results_are_kept_and_found_again(tmp_path: Path) -> None:
    assert score(tmp_path) == Counts(total=7, computed=7)
    assert read(tmp_path) == {word: len(word) for word in WORDS}

    def again(word: str) -> int:
        raise AssertionError("is not computed again")

    assert score(tmp_path, compute=again) == Counts(total=7, cached=7)
    assert score(tmp_path, [*WORDS, "two"]) == Counts(total=8, cached=7, computed=1)


def test_false_results_are_results(tmp_path: Path) -> None:
    score(tmp_path, compute=lambda word: 0)
    assert score(tmp_path, compute=lambda word: 0) == Counts(total=7, cached=7)


@pytest.mark.parametrize("world", [1, 2, 3, 9])
def test_ranks_share_the_items_once(tmp_path: Path, world: int) -> None:
    done: list[str] = []
    counts = [score(tmp_path, compute=done.append, rank=rank, world=world) for rank in range(world)]
    assert sorted(done) == sorted(WORDS)
    assert max(c.total for c in counts) - min(c.total for c in counts) <= 1


def test_another_number_of_ranks_finds_the_results(tmp_path: Path) -> None:
    score(tmp_path, rank=1, world=3)  # of 2 words; the others have not run
    assert score(tmp_path) == Counts(total=7, cached=2, computed=5)


def killed(rank: int, world: int, folder: Path, out: str) -> None:
    def compute(word: str) -> int:
        if word == WORDS[3]:
            os.kill(os.getpid(), signal.SIGKILL)
        return len(word)

    score(Path(out), compute=compute)


def test_a_killed_run_continues(ranks: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert ranks(killed, 1, str(out)) == [None]
    assert score(out) == Counts(total=7, cached=3, computed=4)


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff" * 40, b'{"value": 3}', b"[]"])
def test_damaged_results_are_computed_again(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    score(tmp_path)
    JsonResults(tmp_path, SETTINGS).path(key("one")).write_bytes(damage)
    with caplog.at_level(logging.WARNING):
        assert score(tmp_path) == Counts(total=7, cached=6, computed=1)
    assert "is damaged and counts as missing" in caplog.text
    assert read(tmp_path)["one"] == 3


def test_a_changed_value_is_found_by_its_checksum(tmp_path: Path) -> None:
    score(tmp_path)
    path = JsonResults(tmp_path, SETTINGS).path(key("one"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"value": 4}))
    assert read(tmp_path)["one"] is None


def test_other_settings_are_refused(tmp_path: Path) -> None:
    score(tmp_path)
    with pytest.raises(UserError, match=r"was made with scorer\.version=1, this run has 2"):
        score(tmp_path, settings={"scorer": {"name": "length", "version": 2}})


def test_failures_are_skipped_up_to_the_limit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def compute(word: str) -> int:
        if word.startswith("t"):
            raise ValueError("begins with t")
        return len(word)

    with caplog.at_level(logging.WARNING):
        assert score(tmp_path, WORDS[:4], compute) == Counts(total=4, computed=3, failed=1)
    assert "word three is skipped: begins with t" in caplog.text
    message = r"2 words failed, more than words\.limit=1; the last is word twelve: begins with t"
    with pytest.raises(UserError, match=message):
        score(tmp_path, compute=compute)


def test_an_early_end_closes_what_the_process_holds(tmp_path: Path) -> None:
    closed: list[str] = []

    def process(share: Sequence[int]) -> work.Outcomes:
        try:
            for _ in share:
                yield Failed("all of them")
        finally:
            closed.append("workers")

    with pytest.raises(UserError):
        work.run(range(5), process, failures=LIMIT)
    assert closed == ["workers"]


def test_progress_tells_the_rate_and_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 30))
    monkeypatch.setattr(work.time, "monotonic", lambda: float(next(clock)))
    seen: list[Progress] = []

    def process(share: Sequence[int]) -> work.Outcomes:
        for _ in share:
            yield Outcome.COMPUTED

    counts = work.run(range(5), process, failures=LIMIT, progress=seen.append)
    assert [p.counts.done for p in seen] == [1, 2, 3, 4, 5]
    assert [p.remaining_s for p in seen] == pytest.approx([120, 90, 60, 30, 0])
    assert str(seen[1]) == "cached 0 / computed 2, 0.0333/s, 0:01:30 remaining"
    assert str(counts) == "cached 0 / computed 5"
    assert str(Counts(3, cached=1, computed=1, failed=1)) == "cached 1 / computed 1 / failed 1"

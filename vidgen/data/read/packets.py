"""Which packets of a file give the wanted frames, found without decoding any."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

_FAR = 64
"""Where a file has no table of its frames: decoding fewer than these costs less than reading the
times of all."""
_REORDERED = 17
"""Packets to look past the last frame wanted: no codec shows a frame more than 16 later."""
_NO_TABLE = ("matroska", "mpegts")
_GRID_LEAST = 4  # frames from which a rate can be told
_GRID_NEAR, _GRID_GAP = 0.5, 1.75  # periods: rounded times are near the grid, a lost frame is not
_GRID_MOST = 0.8  # of the gaps that are one period where the rate is constant
_START_S = 2.0  # MPEG-TS begins at 1.4 s


class BadClip(Exception):
    """A file that cannot give the frames asked of it; the message is the reason, in one line."""


@dataclass(frozen=True)
class Pick:
    packets: list[Any]  # in the order of the file, from a key frame to the last one needed
    place_of_time: dict[int, int]  # of each wanted frame


def pick(container: Any, stream: Any, indices: list[int]) -> Pick | None:
    """The packets of the frames at `indices` (ascending places in display order).

    None where packets do not tell frames apart, and frames must be counted as they are decoded.
    """
    if stream.codec_context.name == "vp8":
        return None  # some of its packets show nothing
    start = _go_near(container, stream, indices[0])
    if start is None:
        if indices[0] >= _FAR:
            return _pick_by_times(container, stream, indices)
        start = 0
    packets, times = [], []
    for packet in _packets(container, stream):
        packets.append(packet)
        if not packet.is_discard:
            times.append(packet.pts)
        if len(times) > indices[-1] - start + _REORDERED:
            break
    if None in times or len(set(times)) < len(times):
        return None
    if start == 0:
        check_grid(container, stream, sorted(times)[: indices[-1] + 1])
    if start and min(times) < times[0]:
        # Frames shown before the key frame follow it: its place is not the packet's.
        return _pick_by_times(container, stream, indices)
    return _picked(packets, sorted(times), start, indices)


def check_grid(container: Any, stream: Any, times: list[int]) -> None:
    """Refuse a file that has lost frames: those after the gap would take their places.

    Matroska and MPEG-TS have no table of frames, so a lost cluster only shows in the times. `times`
    ascend from the first frame. Where few frames are on the grid of the declared rate, the rate
    varies, and a gap says nothing.
    """
    rate, unit = stream.average_rate, stream.time_base
    name = container.format.name.split(",")[0]
    if name not in _NO_TABLE or not rate or not unit or len(times) < _GRID_LEAST:
        return
    period = 1 / (rate * unit)  # in units of time
    if period < 1:
        return
    gaps = [(after - before) / float(period) for before, after in pairwise(times)]
    lost = [place for place, gap in enumerate(gaps) if gap > _GRID_GAP]
    on_grid = sum(abs(gap - 1) < _GRID_NEAR for gap in gaps)
    if lost and on_grid >= _GRID_MOST * len(gaps):
        before = times[lost[0]] - times[0]
        raise BadClip(
            f"has lost {round(gaps[lost[0]]) - 1} frame(s) after frame {lost[0]}, "
            f"{float(before * unit):.3f} s from its start: the times of its frames have a gap"
        )
    if len(container.streams) == 1 and on_grid >= _GRID_MOST * len(gaps):
        begin = float(times[0] * unit)
        if begin * float(rate) > _GRID_LEAST and begin > _START_S:
            raise BadClip(f"has lost the frames before {begin:.3f} s, where its first one is")


def decode(stream: Any, picked: Pick) -> Iterator[tuple[int, Any]]:
    """The frames with their places among the wanted, not always in order."""
    context = stream.codec_context
    # H.264 marks the frames no other one refers to: not decoding them changes nothing else.
    may_skip = context.name == "h264"
    for packet in picked.packets:
        wanted = packet.pts in picked.place_of_time
        if packet.is_corrupt:
            raise BadClip("is cut short or damaged")
        if may_skip:
            context.skip_frame = "DEFAULT" if wanted else "NONREF"
        yield from _wanted(context.decode(packet), picked)
    yield from _wanted(context.decode(None), picked)


def _wanted(frames: list[Any], picked: Pick) -> Iterator[tuple[int, Any]]:
    for frame in frames:
        place = picked.place_of_time.get(frame.pts)
        if place is not None:
            yield place, frame


def _go_near(container: Any, stream: Any, index: int) -> int | None:
    """Go to a key frame at or before frame `index` by the file's own table of frames; the key
    frame's place, or None, and at the start, where there is no such table."""
    table = stream.index_entries
    if not stream.frames or len(table) != stream.frames or index >= len(table):
        return None
    if any(entry.is_discard for entry in table[: index + 1]):
        return None
    container.seek(table[index].timestamp, stream=stream, backward=True)
    landed = next(_packets(container, stream), None)
    if landed is not None and landed.is_keyframe and landed.dts is not None:
        place = int(table.search_timestamp(landed.dts))
        if 0 <= place <= index and table[place].pos == landed.pos:
            _go_to(container, stream, table[index].timestamp)
            return place
    _go_to(container, stream, None)
    return None


def _pick_by_times(container: Any, stream: Any, indices: list[int]) -> Pick | None:
    """By the times of all packets: a frame rate does not find frames where it varies."""
    _go_to(container, stream, None)
    shown = [(p.pts, p.is_keyframe) for p in _packets(container, stream) if not p.is_discard]
    if any(time is None for time, _ in shown) or len(dict(shown)) < len(shown):
        return None
    times = sorted(time for time, _ in shown)
    _check_length(len(times), indices)
    check_grid(container, stream, times[: indices[-1] + 1])
    first = times[indices[0]]
    keys = [time for time, is_key in shown if is_key and time <= first]
    _go_to(container, stream, max(keys, default=times[0]))
    packets: list[Any] = []
    missing = {times[i] for i in indices}
    for packet in _packets(container, stream):
        if not packets and (packet.pts is None or packet.pts > first):
            return None  # the container's index is wrong
        packets.append(packet)
        missing.discard(packet.pts)
        if not missing:
            break
    return _picked(packets, times, 0, indices)


def _picked(packets: list[Any], times: list[int], start: int, indices: list[int]) -> Pick:
    _check_length(start + len(times), indices)
    places = {times[index - start]: place for place, index in enumerate(indices)}
    last = max(n for n, packet in enumerate(packets) if packet.pts in places)
    return Pick(packets[: last + 1], places)


def _check_length(frames: int, indices: list[int]) -> None:
    if frames <= indices[-1]:
        wanted = next(index for index in indices if index >= frames)
        raise BadClip(f"ends after {frames} frames; frame {wanted} was wanted")


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    return (packet for packet in container.demux(stream) if packet.size)


def _go_to(container: Any, stream: Any, time: int | None) -> None:
    """To the key frame at or before a time; to the start."""
    container.seek(0 if time is None else time, stream=stream, backward=True)

"""Throughput of the Open-Sora 2.0 report's system on 8 H200: Tables 5 and 6.

The figures are for whole training steps, including encoders, optimizer and communication.
"""

REPORT_GPUS = 8

# (resolution, largest frame count): (batch of a data-parallel rank, clips per second on 8 GPUs)
TABLE_5 = {
    ("256px", 1): (45, 47.6),
    ("256px", 33): (12, 12.7),
    ("256px", 65): (6, 6.3),
    ("256px", 97): (4, 4.2),
    ("256px", 129): (3, 3.2),
    ("768px", 1): (13, 13.8),
    ("1024px", 1): (7, 7.4),
}
TABLE_6 = {  # four GPUs per sample
    ("768px", 1): (38, 1.60),
    ("768px", 33): (6, 0.25),
    ("768px", 65): (4, 0.17),
    ("768px", 97): (3, 0.13),
    ("768px", 129): (2, 0.08),
}


def report_rate(resolution: str, frames: int, context: int) -> float | None:
    """Clips per second and GPU of the report's system; None for a bucket not listed."""
    found = (TABLE_5 if context == 1 else TABLE_6).get((resolution, frames))
    return None if found is None else found[1] / REPORT_GPUS

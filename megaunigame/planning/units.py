"""Numbers of a plan as a reader takes them in."""

from __future__ import annotations

GIB, MIB = 2**30, 2**20
TERA, GIGA = 1e12, 1e9


def gib(size: float) -> str:
    """12.34 GiB, or MiB below a tenth of one, or bytes below a tenth of a MiB."""
    if size >= GIB / 10:
        return f"{size / GIB:.2f} GiB"
    return f"{size / MIB:.2f} MiB" if size >= MIB / 10 else f"{size:.0f} B"


def tera(operations: float) -> str:
    """12.3 TFLOP, or GFLOP below a tenth of one."""
    if operations >= TERA / 10:
        return f"{operations / TERA:,.4g} TFLOP"
    return f"{operations / GIGA:,.4g} GFLOP"


def seconds(value: float) -> str:
    """Three digits."""
    return f"{value:.3g} s" if value < 1000 else f"{value:,.0f} s"


def seconds_between(shortest: float, longest: float) -> str:
    """51.1 s, or 51.1 to 60.2 s where they differ in print."""
    least, most = seconds(shortest), seconds(longest)
    return most if least == most else f"{least.removesuffix(' s')} to {most}"

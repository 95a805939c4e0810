"""Numbers of a plan with units."""

from __future__ import annotations

GIB, MIB, KIB = 2**30, 2**20, 2**10
TERA, GIGA = 1e12, 1e9


def gib(size: float) -> str:
    """12.34 GiB; MiB or KiB below a tenth of the larger unit; 0."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB")):
        if size >= unit / 10:
            return f"{size / unit:.2f} {name}"
    return f"{size / KIB:.2f} KiB" if size else "0"


def tera(operations: float) -> str:
    """12.3 TFLOP; GFLOP below a tenth of one; 0."""
    if operations >= TERA / 10:
        return f"{_digits(operations / TERA, 4)} TFLOP"
    return f"{_digits(operations / GIGA, 4)} GFLOP" if operations else "0"


def seconds(value: float) -> str:
    """1.23 s; ms below a tenth of one; 0."""
    if value >= 0.1:
        return f"{_digits(value, 3)} s"
    return f"{_digits(value * 1000, 3)} ms" if value else "0"


def between(least: str, most: str) -> str:
    """51.1 to 60.2 s, or 51.1 s if both are equal."""
    if least == most:
        return most
    number, _, unit = least.partition(" ")
    return f"{number} to {most}" if most.endswith(f" {unit}") else f"{least} to {most}"


def _digits(value: float, count: int) -> str:
    """At least `count` digits, never an exponent."""
    return f"{value:,.0f}" if value >= 10 ** (count - 1) else f"{value:.{count}g}"

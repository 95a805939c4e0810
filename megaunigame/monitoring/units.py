"""Numbers as a person reads them: 1.2 M, 3 min 20 s, 4.5 GiB."""

from __future__ import annotations

MINUTE, HOUR, DAY = 60, 3600, 86_400


def clock_time(seconds: float) -> str:
    """Seconds as h:mm:ss; days come first when there are any."""
    whole = round(seconds)
    days, whole = divmod(whole, DAY)
    text = f"{whole // HOUR}:{whole % HOUR // MINUTE:02d}:{whole % MINUTE:02d}"
    return f"{days}d {text}" if days else text


def duration(seconds: float) -> str:
    """Seconds in the two largest units: `0.4 s`, `3 min 20 s`, `2 h 5 min`, `1 d 3 h`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, name, smaller, small_name in ((DAY, "d", HOUR, "h"), (HOUR, "h", MINUTE, "min"), (MINUTE, "min", 1, "s")):
        if whole >= unit:
            rest = whole % unit // smaller
            return f"{whole // unit} {name}" + (f" {rest} {small_name}" if rest else "")
    return f"{whole} s"


def count(number: float) -> str:
    """A count: whole with separators below a million, then `1.2 M`, `3.4 B`, `5.6 T`."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.1f} {letter}"
    return f"{number:,.0f}"


def memory(size: float) -> str:
    """Bytes in GiB or MiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"


def significant(value: float) -> str:
    """Three digits for small numbers, separators for large ones."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"

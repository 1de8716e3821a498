"""Numbers as people read them. What is not known is a dash."""

from __future__ import annotations

NOTHING = "–"


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share as a bare percentage: 0.8612 is `86.1`."""
    return NOTHING if share is None else f"{100 * share:.{digits}f}"


def percent_std(share: float, std: float | None) -> str:
    """Return a share with its deviation over seeds, where there is one: `86.1 ±0.4`."""
    return percent(share) + ("" if std is None else f" ±{percent(std)}")


def interval(low: float, high: float) -> str:
    """Return an interval of shares: `84.2–88.0`."""
    return f"{percent(low)}–{percent(high)}"


def points(difference: float | None) -> str:
    """Return a difference of shares in percentage points with its sign: `+2.1`, `−0.4`, `0.0`."""
    if difference is None:
        return NOTHING
    text = f"{100 * difference:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def significant(value: float | None) -> str:
    """Return about three significant digits: 0.305, 12.3, 412, 1,234."""
    if value is None:
        return NOTHING
    if value == 0 or abs(value) >= 99.95:
        return f"{value:,.0f}"
    for digits, limit in ((1, 9.995), (2, 0.9995)):
        if abs(value) >= limit:
            return f"{value:.{digits}f}"
    return f"{value:.3f}"


def count(value: float | None) -> str:
    """Return a whole number with thousands separated, or a low rate with its decimals."""
    if value is None:
        return NOTHING
    return significant(value) if abs(value) < 100 else f"{value:,.0f}"


def times(ratio: float | None) -> str:
    """Return a ratio: `412×`."""
    return NOTHING if ratio is None else f"{significant(ratio)}×"


def latency(microseconds: float | None) -> str:
    """Return a duration: `312 µs`, `14.2 ms`."""
    if microseconds is None:
        return NOTHING
    if microseconds < 1000:
        return f"{microseconds:.0f} µs"
    return f"{significant(microseconds / 1000)} ms"


def size(found: int | None) -> str:
    """Return bytes in decimal units: `4.31 MB`."""
    return _scaled(found, (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)), " B")


def parameters(found: int | None) -> str:
    """Return how many parameters: `22.7 M`."""
    return _scaled(found, (("G", 1e9), ("M", 1e6), ("k", 1e3)), "")


def _scaled(value: int | None, units: tuple[tuple[str, float], ...], rest: str) -> str:
    if value is None:
        return NOTHING
    for unit, scale in units:
        if value >= scale:
            return f"{significant(value / scale)} {unit}"
    return f"{value:,}{rest}"

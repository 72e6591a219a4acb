"""Numbers as a reader wants them. Spaces inside are no-break ones, so that no number parts from its unit."""

from __future__ import annotations

import math
from decimal import Decimal

from onecycle.params import Scalar

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def percent(share: float, digits: int = 1) -> str:
    """0.9312 → "93.1 %"."""
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def points(difference: float, digits: int = 1) -> str:
    """0.051 → "5.1 points": a difference of two percentages is none itself."""
    return f"{100 * difference:.{digits}f}\N{NO-BREAK SPACE}points".replace("-", "−")


def count(number: float) -> str:
    """6573130 → "6,573,130"."""
    return f"{round(number):,}"


def rate(value: float) -> str:
    """Three digits: 0.00123 → "0.00123", 0.000012 → "1.2 × 10⁻⁵", 0.00001 → "10⁻⁵"."""
    if value == 0 or not math.isfinite(value) or 1e-4 <= abs(value) < 1e5:
        return f"{value:.3g}"
    mantissa, _, power = f"{value:.2e}".partition("e")
    scale = f"10{str(int(power)).translate(_SUPERSCRIPT)}"
    number = float(mantissa)
    return scale if number == 1 else f"{number:g}\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}{scale}"


def plain(value: Scalar) -> str:
    """A parameter as params.yaml spells it: null, true, 5, 0.00000001 (1e-08 is a string to many YAML readers)."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{Decimal(repr(value)).normalize():f}" if isinstance(value, float) else str(value)


def listed(names: list[str]) -> str:
    """["S0", "S1", "S3"] → "S0, S1 and S3"."""
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)

"""What is reported: a figure, the target it must meet, and the table of all of them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Target:
    """A bound on a figure: the most, or the least, it may be."""

    limit: float
    at_least: bool = False

    def is_met_by(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured number.

    Attributes:
        scenario: the claim it belongs to.
        name: what was measured, in words.
        value: the number; None if it could not be measured here.
        unit: "" for a ratio or a count.
        target: None for a figure that only informs.
        note: spread, sample or reason, in a few words.
        failed: the measurement itself went wrong, which is worse than a missed target.
        wall: it was taken by the wall clock, which other work on the machine delays.
        busy: and there was other work.
    """

    scenario: str
    name: str
    value: float | None
    unit: str = ""
    target: Target | None = None
    note: str = ""
    failed: bool = False
    wall: bool = False
    busy: bool = False

    @property
    def verdict(self) -> str:
        """Return met, MISSED, FAILED, busy, not measured, or nothing for one without a target.

        Busy: it was taken by a clock that was not to be trusted.
        """
        if self.failed:
            return "FAILED"
        if self.target is None:
            return ""
        if self.value is None:
            return "not measured"
        if self.wall and self.busy:
            return "busy"
        return "met" if self.target.is_met_by(self.value) else "MISSED"

    def as_dict(self) -> dict[str, Any]:
        """Return the figure as JSON values."""
        return {
            "scenario": self.scenario,
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "target": str(self.target) if self.target else None,
            "verdict": self.verdict or "information",
            "note": self.note,
        }


def ratio(
    name: str,
    scenario: str,
    ours: Sequence[float | None],
    theirs: Sequence[float | None],
    target: Target | None,
    *,
    wall: bool = False,
) -> Figure:
    """Return the median of per-round ratios: the rounds of a pair ran side by side.

    A round that could not be measured (None) makes the figure "not measured".
    """
    rounds = [a / b for a, b in zip(ours, theirs, strict=True) if a and b]
    if not rounds or len(rounds) < len(ours):
        note = "nothing here tells it of a process"
        return Figure(scenario=scenario, name=name, value=None, target=target, note=note)
    # Before Python 3.13 one is too few.
    of = rounds if len(rounds) > 1 else rounds * 2
    low, centre, high = statistics.quantiles(of, method="inclusive")
    note = f"{len(rounds)} rounds, half of them {low:.3f} to {high:.3f}"
    return Figure(scenario=scenario, name=name, value=centre, target=target, note=note, wall=wall)


def middle(
    name: str,
    scenario: str,
    values: Iterable[float | None],
    unit: str,
    *,
    target: Target | None = None,
    wall: bool = False,
) -> Figure:
    """Return the median of *values*; without *target* it only informs."""
    known = [value for value in values if value is not None]
    value = statistics.median(known) if known else None
    return Figure(scenario=scenario, name=name, value=value, unit=unit, target=target, wall=wall)


def table(figures: Sequence[Figure]) -> str:
    """Return the figures as plain text, grouped by scenario.

    Those that only inform, and could not be measured, are named below it.
    """
    unknown = [figure.name for figure in figures if not figure.verdict and figure.value is None]
    figures = [figure for figure in figures if figure.name not in unknown]
    rows = [("", "figure", "target", "verdict", "note")]
    rows += [(f.name, _number(f), str(f.target or ""), f.verdict, f.note) for f in figures]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [_line(rows[0], widths)]
    scenario = ""
    for figure, row in zip(figures, rows[1:], strict=True):
        if figure.scenario != scenario:
            scenario = figure.scenario
            lines += ["", scenario]
        lines.append(_line(row, widths))
    if unknown:
        lines += ["", "not measured, since nothing here tells it of a process:"]
        lines += [f"  {name}" for name in unknown]
    return "\n".join(lines)


def _number(figure: Figure) -> str:
    if figure.value is None:
        return "-"
    digits = 0 if figure.value.is_integer() else 1 if figure.value >= 100 else 3
    return f"{figure.value:.{digits}f} {figure.unit}".rstrip()


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    name, value, target, verdict, note = row
    cells = [f"  {name:{widths[0]}}", f"{value:>{widths[1]}}", f"{target:{widths[2]}}"]
    return "  ".join([*cells, f"{verdict:{widths[3]}}", note]).rstrip()

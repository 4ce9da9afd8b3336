"""A figure, and the table and the JSON object that show figures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure.

    :param value: what is compared with the target; a ratio to a floor or a rival measured in the same run.
    :param target: None where none is set: the figure is reported only.
    :param at_least: True where more is better.
    :param absolutes: what the ratio was made of, with units in the names.
    """

    name: str
    value: float
    target: float | None
    unit: str = "x"
    at_least: bool = False
    absolutes: dict[str, float] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        """Whether the target is met."""
        if self.target is None:
            return True
        return self.value >= self.target if self.at_least else self.value <= self.target


def ratio(
    name: str,
    rounds: Sequence[tuple[float, float]],
    *,
    target: float | None,
    against: str,
    unit: str,
    at_least: bool = False,
    **beside: float,
) -> Figure:
    """Return the figure that the median round gives.

    :param rounds: of each round ours and the floor's or rival's value, measured one right after the other. The ratio is
        taken in each round and then the median of them, so that what disturbs the machine for a while disturbs both.
    :param against: what the floor or the rival is called.
    :param unit: of the absolutes.
    :param beside: further absolutes.
    """
    return Figure(
        name=name,
        value=median(ours / other for ours, other in rounds),
        target=target,
        at_least=at_least,
        absolutes={
            f"ours, {unit}": median(ours for ours, _ in rounds),
            f"{against}, {unit}": median(other for _, other in rounds),
            "lowest ratio": min(ours / other for ours, other in rounds),
            "highest ratio": max(ours / other for ours, other in rounds),
            "rounds": len(rounds),
            **beside,
        },
    )


def as_json(bench: str, figures: Iterable[Figure]) -> str:
    """Return the one JSON object that ``--json`` prints."""
    return json.dumps({"bench": bench, "figures": [_as_dict(figure) for figure in figures]})


def as_table(figures: Sequence[Figure]) -> str:
    """Return the table that people read: a line a figure, its absolutes below it."""
    width = max(len(figure.name) for figure in figures)
    lines = [f"{'figure':<{width}}  {'value':>7}     target"]
    for figure in figures:
        lines.append(f"{figure.name:<{width}}  {figure.value:7.2f}{figure.unit}  {_verdict(figure)}")
        beside = "; ".join(f"{name}: {value:.4g}" for name, value in figure.absolutes.items())
        lines.append(f"    {beside}")
    return "\n".join(lines)


def _verdict(figure: Figure) -> str:
    if figure.target is None:
        return "no target"
    sign, verdict = ">=" if figure.at_least else "<=", "met" if figure.met else "NOT MET"
    return f"{sign} {figure.target:.3g}{figure.unit}  {verdict}"


def _as_dict(figure: Figure) -> dict[str, object]:
    shown = asdict(figure)
    del shown["at_least"]
    return {**shown, "met": figure.met}

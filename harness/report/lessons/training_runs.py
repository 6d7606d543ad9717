"""The runs of a record file: each run's curves, samples and settings, and the runs by lesson and arm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from harness.core.record_files import Row
from harness.report.formatting import plain, short_name
from harness.report.json_values import as_float, as_list, as_mapping, mappings

Points = list[tuple[float, float]]  # (step, value)


@dataclass(frozen=True)
class Sample:
    """A text that the model wrote after `step` steps, when the loss of training was `loss`."""

    step: int
    loss: float
    text: str


@dataclass(frozen=True)
class TrainingRun:
    """One run of the trainer, as its row has it; what a row lacks is empty or None."""

    lesson: str
    arm: str
    seed: int
    settings: Row
    row: Row
    curve: tuple[tuple[float | None, ...], ...]  # (step, loss, lr, norm)
    validation: Points
    samples: tuple[Sample, ...]
    clipping: tuple[tuple[float | None, ...], ...]  # (step, norm, norm after clipping, cosine)
    lost_updates: Points
    speed: Points
    # (step, for each layer the share of each expert, the balance loss)
    expert_shares: tuple[tuple[float, list[list[float]], float | None], ...] = ()

    @classmethod
    def of(cls, row: Row) -> TrainingRun:
        """Read a row; values of another type than expected are left out."""
        samples = [
            Sample(int(step), loss, str(sample.get("text", "")))
            for sample in mappings(row.get("samples"))
            if (step := as_float(sample.get("step"))) is not None and (loss := as_float(sample.get("loss"))) is not None
        ]
        return cls(
            lesson=plain(row.get("lesson"), longest=40),
            arm=short_name(row.get("arm")),
            seed=int(as_float(row.get("seed")) or 0),
            settings=as_mapping(row.get("settings")),
            row=row,
            curve=_tuples(row.get("curve"), 4),
            validation=_points(row.get("validation")),
            samples=tuple(sorted(samples, key=lambda sample: sample.step)),
            clipping=_tuples(row.get("clipping"), 4),
            lost_updates=_points(row.get("lost_updates")),
            speed=_points(row.get("speed")),
            expert_shares=tuple(_expert_shares(row.get("expert_shares"))),
        )

    @property
    def preset(self) -> str:
        """The preset of the trainer that it is a run of, empty for a run of its own settings."""
        return short_name(self.settings.get("preset") or "")

    @property
    def losses(self) -> Points:
        """The loss of training over steps."""
        return [(step, loss) for step, loss, *_ in self.curve if step is not None and loss is not None]

    @property
    def rates(self) -> Points:
        """The learning rate over steps."""
        return [(point[0], point[2]) for point in self.curve if point[0] is not None and point[2] is not None]

    @property
    def exploded_at(self) -> int | None:
        """The step at which the loss exploded, None if it did not."""
        step = as_float(self.row.get("exploded_at"))
        return None if step is None else int(step)

    def number(self, key: str) -> float | None:
        """Return a finite number of the row, such as `last_loss`; None if there is none."""
        return as_float(self.row.get(key))


@dataclass(frozen=True)
class LessonRuns:
    """The runs of a record file, with its header and footer. `footer` is None if the command died before its end."""

    header: Row = field(default_factory=dict)
    runs: tuple[TrainingRun, ...] = ()
    footer: Row | None = None

    @classmethod
    def of(cls, rows: Sequence[Row]) -> LessonRuns:
        """Sort the rows of a record file by kind."""
        return cls(
            header=next((row for row in rows if row.get("kind") == "header"), {}),
            runs=tuple(with_presets([TrainingRun.of(row) for row in rows if row.get("kind") == "run"])),
            footer=next((row for row in rows if row.get("kind") == "footer"), None),
        )

    @property
    def lessons(self) -> dict[str, Row]:
        """What the header says of each lesson, by name, in the order of lessons.toml."""
        return {plain(row.get("name"), longest=40): row for row in mappings(self.header.get("lessons"))}

    @property
    def missing(self) -> dict[str, str]:
        """The names of the runs that were not done, or not to their end, each with its preset or an empty string."""
        found = {plain(run.row.get("name")) for run in self.runs}
        every = {
            plain(name): plain(lesson.get("preset") or "", longest=40)
            for lesson in self.lessons.values()
            for name in as_list(lesson.get("runs"))
        }
        return {name: preset for name, preset in every.items() if name not in found}

    def arms(self, lesson: str) -> dict[str, list[TrainingRun]]:
        """Return the runs of a lesson by arm, in the order of the records."""
        found: dict[str, list[TrainingRun]] = {}
        for run in self.runs:
            if run.lesson == lesson:
                found.setdefault(run.arm, []).append(run)
        return found


def with_presets(runs: Sequence[TrainingRun]) -> Iterator[TrainingRun]:
    """Yield the runs; where a lesson has those of several presets, an arm is named with its own: no mean mixes two."""
    presets: dict[str, set[str]] = {}
    for run in runs:
        presets.setdefault(run.lesson, set()).add(run.preset)
    for run in runs:
        several = run.preset and len(presets[run.lesson]) > 1
        yield replace(run, arm=plain(f"{run.preset} {run.arm}", longest=40)) if several else run


def smooth(points: Points, width: int = 0) -> Points:
    """Return the centred moving average over `width` points (0: one in forty).

    It narrows towards the start, where a curve is steep, and not towards the end, where it only scatters.
    """
    half = (width or len(points) // 40) // 2
    values = [value for _, value in points]
    return [(step, fmean(values[i - min(half, i) : i + min(half, i) + 1])) for i, (step, _) in enumerate(points)]


def band(lines: Sequence[Points]) -> list[tuple[float, float, float, float]]:
    """Return (step, lowest, mean, highest) at each step that every one of `lines` has."""
    tables = [dict(line) for line in lines]
    shared = [step for step in tables[0] if all(step in table for table in tables)] if tables else []
    found = []
    for step in shared:
        values = [table[step] for table in tables]
        found.append((step, min(values), fmean(values), max(values)))
    return found


def _expert_shares(value: object) -> Iterator[tuple[float, list[list[float]], float | None]]:
    """Yield the steps whose shares are numbers, as many of each layer as of the first step."""
    shape: list[int] = []
    for point in as_list(value):
        step, layers, balance = (*as_list(point), None, None, None)[:3]
        shares = [[as_float(share) for share in as_list(layer)] for layer in as_list(layers)]
        shape = shape or [len(layer) for layer in shares]
        number = as_float(step)
        whole = [[share for share in layer if share is not None] for layer in shares]
        if number is not None and shape and all(shape) and [len(layer) for layer in whole] == shape:
            yield number, whole, as_float(balance)


def _points(value: object) -> Points:
    return [(step, y) for step, y in _tuples(value, 2) if step is not None and y is not None]


def _tuples(value: object, length: int) -> tuple[tuple[float | None, ...], ...]:
    found = []
    for point in as_list(value):
        numbers = [as_float(number) for number in as_list(point)][:length]
        if numbers and numbers[0] is not None:
            found.append((*numbers, *[None] * (length - len(numbers))))
    return tuple(found)

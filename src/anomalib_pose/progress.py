# SPDX-License-Identifier: Apache-2.0
"""Progress bars of named stages, and a record of their seconds.

Code that takes long names its stages::

    for view in track(views, "Search held-out cameras"):
        ...
    with stage("Fit Gaussians", total=steps) as bar:
        bar.advance()

Bars appear only inside ``show_progress``, and seconds are recorded only inside ``record_stages``. Where the output is
no terminal, a bar is one line when its stage ends. Neither bars nor records change results.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeVar

from rich import get_console
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

Element = TypeVar("Element")

_SHORT = 0.5  # seconds below which a finished stage leaves no bar, so that short stages do not fill the screen
_REFRESH = 0.1  # seconds between two drawings of a bar


@dataclass(frozen=True)
class StageTime:
    """Duration of one stage.

    Args:
        title: title of the stage.
        seconds: duration.
        depth: number of stages that contain this stage.
    """

    title: str
    seconds: float
    depth: int = 0


@dataclass
class _Display:
    """Bars of the running stages on one terminal; rich allows one live display at a time."""

    bars: Progress | None = None
    users: int = 0
    nested: bool = False  # inside of another program's bars

    def open(self) -> Progress:
        if self.bars is None:
            self.bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                console=_console(),
            )
            self.nested = bool(getattr(self.bars.console, "_live_stack", None))
            self.bars.start()
        self.users += 1
        return self.bars

    def close(self) -> None:
        self.users -= 1
        if self.bars is not None and not self.users:
            self.bars.live.transient = not self.bars.tasks  # without tasks there would be an empty line
            self.bars.live.stop()  # Progress.stop would add an empty line where the output is no terminal
            if self.bars.tasks and not self.bars.console.is_terminal and not self.nested:
                self.bars.console.line()
            self.bars = None


@dataclass
class StageBar:
    """Bar of one stage; without a display it only counts.

    Args:
        title: title of the stage.
        total: number of steps, or None if it is unknown.
        display: where the bar appears, or None.
    """

    title: str
    total: int | None = None
    display: _Display | None = None
    completed: int = 0
    note: str = ""
    _start: float = field(default_factory=time.perf_counter)
    _drawn: float = 0.0
    _bars: Progress | None = None
    _task: TaskID | None = None

    def advance(self, steps: int = 1) -> None:
        """Add finished steps.

        Args:
            steps: number of steps.
        """
        self.update(self.completed + steps, self.note)

    def update(self, completed: int, note: str = "") -> None:
        """Set the number of finished steps.

        Args:
            completed: number of steps.
            note: text beside the bar.
        """
        self.completed, self.note = completed, note
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=completed, note=self._text)
            if time.perf_counter() - self._drawn > _REFRESH:  # inside of Lightning's bars, nothing else draws this one
                self._drawn = time.perf_counter()
                self._bars.refresh()

    @property
    def _text(self) -> str:
        """Text beside the bar: finished steps, if steps are counted, and the note."""
        count = str(self.completed or "") if self.total is None else f"{self.completed}/{self.total}"
        return f"{count} {self.note}".strip()

    def open(self) -> None:
        """Show the bar, if there is a display."""
        if self.display is not None:
            self._bars = self.display.open()
            self._task = self._bars.add_task(self.title, total=self.total, note=self._text)

    def close(self, *, complete: bool) -> None:
        """Take the bar off the display; the last state of a long stage stays on the screen.

        Args:
            complete: whether the stage came to its end.
        """
        if self._bars is None or self._task is None or self.display is None:
            return
        if time.perf_counter() - self._start < _SHORT:
            self._bars.remove_task(self._task)
        elif complete:
            total = self.completed if self.total is None else self.total
            self.completed = total
            self._bars.update(self._task, total=max(total, 1), completed=max(total, 1), note=self._text)
        self.display.close()
        self._bars = self._task = None


def _console() -> Console:
    """Return rich's console, on which Lightning may show its bars; a new one where rich cannot show both."""
    console = get_console()
    return console if hasattr(console, "_live_stack") else Console()


_display: ContextVar[_Display | None] = ContextVar("display", default=None)
_record: ContextVar[list[StageTime] | None] = ContextVar("record", default=None)
_depth: ContextVar[int] = ContextVar("depth", default=0)


@contextmanager
def show_progress(enabled: bool = True) -> Iterator[None]:
    """Show the bars of all stages inside the block, or hide them.

    Args:
        enabled: show bars.
    """
    token = _display.set((_display.get() or _Display()) if enabled else None)
    try:
        yield
    finally:
        _display.reset(token)


@contextmanager
def record_stages(record: list[StageTime] | None = None) -> Iterator[list[StageTime]]:
    """Record the seconds of all stages inside the block, in the order in which they begin.

    Args:
        record: list that is extended; None for a new list.
    """
    record = [] if record is None else record
    tokens = _record.set(record), _depth.set(0)
    try:
        yield record
    finally:
        _record.reset(tokens[0])
        _depth.reset(tokens[1])


@contextmanager
def stage(title: str, total: int | None = None) -> Iterator[StageBar]:
    """Time a stage, and show its bar if progress is shown.

    Args:
        title: what is done, for example ``"Render the view bank"``.
        total: number of steps, or None if it is unknown.
    """
    record, depth = _record.get(), _depth.get()
    bar, start = StageBar(title, total, _display.get()), time.perf_counter()
    index = len(record) if record is not None else 0
    token = _depth.set(depth + 1)
    if record is not None:
        record.append(StageTime(title, 0.0, depth))
    bar.open()
    complete = False
    try:
        yield bar
        complete = True
    finally:
        bar.close(complete=complete)
        _depth.reset(token)
        if record is not None:
            record[index] = StageTime(title, time.perf_counter() - start, depth)


def track(
    elements: Iterable[Element], title: str, total: int | None = None, *, shown: bool | None = None
) -> Iterator[Element]:
    """Iterate over elements as one stage.

    Args:
        elements: what is iterated over.
        title: title of the stage.
        total: number of elements; None to ask the elements.
        shown: show or hide the bar; None to do as ``show_progress`` says.
    """
    if total is None:
        total = len(elements) if isinstance(elements, Sized) else None
    with nullcontext() if shown is None else show_progress(shown), stage(title, total) as bar:
        for element in elements:
            yield element
            bar.advance()


def stage_table(record: Iterable[StageTime], total: float | None = None) -> Table:
    """Return a table of stages and seconds; repeated stages are added up.

    Args:
        record: recorded stages.
        total: seconds of the whole run; None for no such row.
    """
    table = Table("Stage", box=None)
    table.add_column("Seconds", justify="right")
    rows: dict[tuple[str, int], float] = {}
    for entry in record:
        key = entry.title, entry.depth
        rows[key] = rows.get(key, 0.0) + entry.seconds
    for (title, depth), seconds in rows.items():
        table.add_row(2 * depth * " " + title, f"{seconds:.1f}")
    if total is not None:
        table.add_row("Total", f"{total:.1f}")
    return table


def print_table(table: Table, write: Callable[[str], None]) -> None:
    """Write a table as plain text.

    Args:
        table: table to write.
        write: takes the text, for example ``LightningModule.print``.
    """
    console = Console(width=100, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    write("\n".join(line.rstrip() for line in capture.get().splitlines()))

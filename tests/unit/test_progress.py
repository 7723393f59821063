# SPDX-License-Identifier: Apache-2.0
"""Stages are silent unless shown, and recorded with their seconds."""

import io
import time
from contextlib import nullcontext

import pytest
from rich.console import Console
from rich.progress import Progress

from anomalib_pose import progress
from anomalib_pose.progress import StageTime, print_table, record_stages, show_progress, stage, stage_table, track


@pytest.fixture
def output(monkeypatch) -> io.StringIO:
    """Text of a terminal that is none, as in a log file."""
    text = io.StringIO()
    monkeypatch.setattr(progress, "_console", lambda: Console(file=text, width=100))
    monkeypatch.setattr(progress, "_SHORT", 0.0)
    return text


def test_stages_are_silent_unless_they_are_shown(output):
    for shown in (False, None):
        with show_progress(shown) if shown is not None else stage("outer"):
            assert list(track(range(3), "Count")) == [0, 1, 2]
    assert not output.getvalue()


@pytest.mark.parametrize("total", [3, None])
def test_a_log_file_gets_one_line_a_stage(output, total):
    with show_progress(), stage("Fit", total) as bar:
        for step in range(1000):
            bar.update(step % 4, f"{step} dB")
        bar.update(3, "31 dB")
    (line,) = output.getvalue().strip().splitlines()
    assert "Fit" in line
    assert "3/3 31 dB" in line or total is None
    assert "31 dB" in line


@pytest.mark.parametrize("nested", [False, True])
def test_a_bar_in_a_log_file_ends_its_line(monkeypatch, nested):
    console = Console(file=io.StringIO(), width=100)
    monkeypatch.setattr(progress, "_console", lambda: console)
    monkeypatch.setattr(progress, "_SHORT", 0.0)
    with Progress(console=console) if nested else nullcontext():
        with show_progress(), stage("Fit", 1):
            pass
        assert console.file.getvalue().endswith("\n")
        assert not console.file.getvalue().endswith("\n\n")


def test_nested_stages_share_one_display(output):
    with show_progress(), stage("Export"):
        for _ in track([1, 2], "Render"):
            with stage("Compare"):
                pass
    assert [name for name in ("Export", "Render", "Compare") if name not in output.getvalue()] == []


def test_a_bar_moves_inside_of_bars_that_are_not_ours(monkeypatch):
    """Lightning's bars are drawn by Lightning alone, and rich draws nested bars together with the outer ones."""
    text = io.StringIO()
    console = Console(file=text, width=80, force_terminal=True)
    monkeypatch.setattr(progress, "_console", lambda: console)
    monkeypatch.setattr(progress, "_REFRESH", 0.0)
    with Progress(console=console, auto_refresh=False), show_progress():
        list(track(range(3), "Search cameras"))
    assert all(f"{step}/3" in text.getvalue() for step in (1, 2, 3))


def test_short_stages_leave_no_line(output, monkeypatch):
    monkeypatch.setattr(progress, "_SHORT", 60.0)
    with show_progress(), stage("Fit", 1) as bar:
        bar.advance()
    assert not output.getvalue()


def test_a_failed_stage_ends_its_bar_and_its_record(output):
    with record_stages() as record, show_progress(), pytest.raises(ValueError, match="bad"), stage("Fit", 10) as bar:
        bar.advance()
        msg = "bad"
        raise ValueError(msg)
    assert "1/10" in output.getvalue()
    assert [entry.title for entry in record] == ["Fit"]
    with show_progress(), stage("Again"):
        pass
    assert "Again" in output.getvalue()


def test_seconds_are_recorded_in_order_with_their_depth():
    with stage("before"):
        pass
    with record_stages() as record:
        with stage("outer"):
            list(track([1], "inner"))
            time.sleep(0.02)
        with stage("last"):
            pass
    assert [(entry.title, entry.depth) for entry in record] == [("outer", 0), ("inner", 1), ("last", 0)]
    assert record[0].seconds >= 0.02
    assert record[0].seconds >= record[1].seconds


def test_the_table_adds_up_repeated_stages_and_has_a_total():
    lines: list[str] = []
    record = [StageTime("Fit", 2.0), StageTime("Render", 1.25, 1), StageTime("Render", 1.0, 1)]
    print_table(stage_table(record, 3.0), lines.append)
    rows = [line.rsplit(None, 1) for line in lines[0].splitlines()]
    assert [[name.strip(), value] for name, value in rows] == [
        ["Stage", "Seconds"],
        ["Fit", "2.0"],
        ["Render", "2.2"],
        ["Total", "3.0"],
    ]

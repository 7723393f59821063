# SPDX-License-Identifier: Apache-2.0
"""The command passes its arguments to the writer of painted queries."""

from dataclasses import fields

from anomalib_pose.cli import draw_defects
from anomalib_pose.sample_data.painted import DefectSizes


def test_the_sizes_of_the_command_are_those_of_the_library() -> None:
    assert [field.name for field in fields(DefectSizes)] == list(draw_defects._SIZES)


def test_arguments_reach_the_writer(run_command, monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(
        "anomalib_pose.sample_data.painted_queries.write_painted_queries", lambda **arguments: calls.append(arguments)
    )
    run_command("draw-defects", "in", "out", "--every", 3, "--white", "--stain-area", 0.1, 0.2)
    expected = {"source": "in", "out": "out", "every": 3, "seed": 0, "per_image": 1, "white": True, "overwrite": False}
    assert calls == [{**expected, "sizes": DefectSizes(stain_area=(0.1, 0.2))}]


def test_errors_are_one_line(command_error, tmp_path) -> None:
    assert "no transforms.json" in command_error("draw-defects", tmp_path, tmp_path / "out")
    assert "stain_area should be" in command_error("draw-defects", tmp_path, tmp_path / "out", "--stain-area", 0.3, 0.1)
    assert not (tmp_path / "out").exists()

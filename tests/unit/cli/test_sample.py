# SPDX-License-Identifier: Apache-2.0
"""The command passes its arguments to the writers of the sample data sets."""

import inspect

import pytest

from anomalib_pose import sample_data
from anomalib_pose.cli import sample
from anomalib_pose.sample_data import chairs
from anomalib_pose.sample_data.solids import SOLIDS

WRITERS = {
    "mad": (sample_data.write_mad, "anomalib_pose.sample_data.write_mad"),
    "mip": (sample_data.write_mip, "anomalib_pose.sample_data.write_mip"),
    "clouds": (sample_data.write_clouds, "anomalib_pose.sample_data.write_clouds"),
    "chairs": (chairs.write_chairs, "anomalib_pose.sample_data.chairs.write_chairs"),
}


def test_the_solids_of_the_command_are_those_of_the_library() -> None:
    assert tuple(SOLIDS) == sample._SOLIDS


@pytest.mark.parametrize("layout", WRITERS)
def test_the_defaults_of_the_command_fit_the_writer(run_command, monkeypatch, tmp_path, layout) -> None:
    writer, path = WRITERS[layout]
    calls = []
    monkeypatch.setattr(path, lambda **arguments: calls.append(arguments))
    category = ["--category", "toy"] if layout in {"mad", "mip"} else []
    run_command("sample", layout, tmp_path, *category, "--seed", 7)
    (arguments,) = calls
    inspect.signature(writer).bind(**arguments)
    assert (arguments["out"], arguments["seed"]) == (str(tmp_path), 7)


def test_a_small_data_set_is_written_and_not_replaced(run_command, command_error, tmp_path) -> None:
    sizes = ["--size", 32, "--views", 4, "--test-good", 1, "--test-per-defect", 1]
    run_command("sample", "mad", tmp_path, "--category", "toy", *sizes)
    assert (tmp_path / "toy" / "transforms.json").is_file()
    assert "exists already" in command_error("sample", "mad", tmp_path, "--category", "toy", *sizes)

# SPDX-License-Identifier: Apache-2.0
"""The configurations are listed, printed and copied, from the repository as from an installed package."""

from pathlib import Path

import pytest

from anomalib_pose.cli import configs

ROOT = Path(__file__).resolve().parents[3] / "configs"
NAMES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.yaml"))


def test_the_list_has_the_command_of_each_configuration(run_command, capsys) -> None:
    run_command("configs")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == NAMES
    assert all(f"--config configs/{name}" in line for name, line in zip(NAMES, lines, strict=True))


@pytest.mark.parametrize(
    "name", ["splatpose_mad.yaml", "splatpose_mad", "configs/splatpose_mad.yaml", "paper/piad_mip"]
)
def test_one_configuration_is_printed(run_command, capsys, name) -> None:
    run_command("configs", name)
    path = ROOT / f"{name.removeprefix('configs/').removesuffix('.yaml')}.yaml"
    assert capsys.readouterr().out == path.read_text()


def test_an_unknown_name_lists_the_known_ones(command_error) -> None:
    assert "splatpose_mad.yaml" in command_error("configs", "none")


def test_all_are_copied_and_nothing_is_replaced(run_command, command_error, tmp_path) -> None:
    target = tmp_path / "new" / "configs"
    run_command("configs", "--copy", target)
    assert sorted(path.relative_to(target).as_posix() for path in target.rglob("*.yaml")) == NAMES
    for name in NAMES:
        assert (target / name).read_bytes() == (ROOT / name).read_bytes()
    (target / NAMES[0]).write_text("changed")
    assert "exists already" in command_error("configs", "--copy", target)
    assert (target / NAMES[0]).read_text() == "changed"
    run_command("configs", "--copy", target, "--overwrite")
    assert (target / NAMES[0]).read_bytes() == (ROOT / NAMES[0]).read_bytes()


def test_an_installed_package_has_its_own_folder(monkeypatch, tmp_path) -> None:
    package = tmp_path / "site-packages" / "anomalib_pose"
    package.mkdir(parents=True)
    monkeypatch.setattr(configs, "files", lambda _package: package)
    with pytest.raises(FileNotFoundError, match="install anomalib-pose again"):
        configs.configs_folder()
    (package / "configs").mkdir()
    assert configs.configs_folder() == package / "configs"

"""The README's commands exist, and make explains all of its targets."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from transfer_cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTED = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.M))


def test_help_lists_every_target() -> None:
    said = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    phony = set(re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.M))
    assert {line.split()[0] for line in said.splitlines()} == phony == targets()


@pytest.mark.parametrize("page", DOCUMENTED, ids=lambda path: path.name)
def test_documented_commands_exist(page: Path) -> None:
    text = page.read_text()
    commands = re.findall(r"^(?:\.venv/bin/)?transfer ([a-z]+) ", text, re.M)
    assert set(commands) <= set(COMMANDS)
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.M)) <= targets()
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (page.parent / link).exists(), link


def test_hooks_are_local_and_call_make() -> None:
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"]
    assert {hook["entry"].removeprefix("make ") for hook in repositories[0]["hooks"]} <= targets()


@pytest.mark.parametrize("script", ["hack/uv", "hack/setup", "hack/demo", "hack/lock", ".ci/run"])
def test_scripts_are_executable_and_parse(script: str) -> None:
    path = ROOT / script
    assert path.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_uv_never_takes_itself_for_the_one_on_path(tmp_path: Path) -> None:
    """hack/ at the front of PATH made it start itself for ever."""
    fake = tmp_path / "tools" / "bin" / "uv"
    fake.parent.mkdir(parents=True)
    fake.write_text("#!/bin/sh\necho the one in the cache\n")
    fake.chmod(0o755)
    environment = {"PATH": f"{ROOT / 'hack'}:/usr/bin:/bin", "TRANSFER_CACHE": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run([ROOT / "hack" / "uv"], env=environment, capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == "the one in the cache\n"

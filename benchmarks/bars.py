"""Compares measured figures with `bars.yaml` and prints them as a table with machine and commit."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

BARS = Path(__file__).with_name("bars.yaml")


def report(group: str, figures: Mapping[str, float], notes: Mapping[str, str] | None = None) -> int:
    """Prints the table of one group; returns 1 where a bar is missed or a figure is not a number, else 0."""
    bars: dict[str, dict[str, Any]] = yaml.safe_load(BARS.read_text())[group]
    missed = 0
    print(f"\n{machine()}, commit {commit()}\n")
    print("| what | measured | bar | |")
    print("|---|---|---|---|")
    for name, value in figures.items():
        bar = bars[name]
        good = value <= bar["value"] if bar["better"] == "lower" else value >= bar["value"]
        missed += not good
        sign = "≤" if bar["better"] == "lower" else "≥"
        note = (notes or {}).get(name, "")
        measured, wanted = (f"{number:.3g} {bar['unit']}" for number in (value, bar["value"]))
        print(f"| {name.replace('_', ' ')} | {measured} | {sign} {wanted} | {'' if good else 'MISSED '}{note} |")
    for name in (name for name in bars if name not in figures):
        print(f"| {name.replace('_', ' ')} | not measured by this call | | |")
    return 1 if missed else 0


def machine() -> str:
    """Processor, cores, memory."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    cores = sum(1 for line in lines if line.startswith("processor"))
    total = next((line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal")), "0")
    return f"{model}, {cores} cores, {int(total) // 2**20} GiB"


def commit() -> str:
    """The commit that is measured, with a + where the tree differs from it."""
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    changed = subprocess.run(["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True).stdout.strip()
    return found + ("+" if changed else "")

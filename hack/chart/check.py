"""`make chart`: is the chart sound, with every set of values that people use it with?

For the default values and each file of `charts/transfer-operator/ci/`: helm lint, helm template, kubeconform (strict, without a
network). Then promtool on the alerts: their syntax, and their unit tests in `tests/chart/alerts.yaml`.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from hack.chart import dashboards, schemas

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "transfer-operator"
ALERTS = ROOT / "tests" / "chart" / "alerts.yaml"
NAMESPACE = "transfer-operator"


class CheckError(Exception):
    """Something is wrong with the chart, or a tool is not to be had; says which."""


@functools.cache
def tool(name: str) -> str:
    """Path of a program; built or fetched on first use.

    Raises:
        CheckError: it cannot be had.
    """
    done = subprocess.run([ROOT / "hack" / "cluster" / "tool", name], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        way = "Prometheus" if name == "promtool" else "Go 1.21 or newer, which fetches the version it needs,"
        raise CheckError(f"there is no {name}, and it could not be made (see above): install {way} and try again")
    return done.stdout.strip()


def run(*command: str | Path, text: str = "") -> str:
    """Standard output of a command.

    Raises:
        CheckError: it failed; with all that it said.
    """
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CheckError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def render(*options: str) -> str:
    """The chart's objects as YAML, with options of `helm template`.

    Raises:
        CheckError: Helm refuses the values.
    """
    return run(tool("helm"), "template", "transfer-operator", CHART, "--namespace", NAMESPACE, *options)


def rules(text: str) -> dict[str, Any]:
    """The alerts in a rendered chart, as a Prometheus rule file."""
    found = [document["spec"] for document in yaml.safe_load_all(text) if document and document["kind"] == "PrometheusRule"]
    return {"groups": [group for spec in found for group in spec["groups"]]}


def value_sets() -> list[Path | None]:
    """Files of values to check the chart with; None: its defaults."""
    return [None, *sorted((CHART / "ci").glob("*-values.yaml"))]


def main() -> int:
    """Checks everything; 1 with the first thing that is wrong."""
    try:
        for values in value_sets():
            options = ["--values", str(values)] if values else []
            run(tool("helm"), "lint", "--strict", "--quiet", CHART, *options)
            text = render(*options)
            location = f"{schemas.folder()}/{schemas.TEMPLATE}"
            told = run(tool("kubeconform"), "-strict", "-summary", "-schema-location", location, text=text)
            print(f"chart: {values.stem if values else 'default values'}: {told.splitlines()[-1]}")
        with tempfile.TemporaryDirectory() as name:
            _check_alerts(Path(name))
        stale = [path for path, content in dashboards.generated().items() if not path.is_file() or path.read_text() != content]
        if stale:
            raise CheckError(f"not up to date: {', '.join(path.name for path in stale)}; run `make generate`")
    except (CheckError, subprocess.CalledProcessError) as error:
        print(f"chart: {error}", file=sys.stderr)
        return 1
    return 0


def _check_alerts(folder: Path) -> None:
    text = render("--set", "prometheusRule.enabled=true", "--set", "prometheusRule.alerts.gpuIdle.enabled=true")
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules(text)))
    (folder / "alerts.yaml").write_text(ALERTS.read_text())
    run(tool("promtool"), "check", "rules", folder / "rules.yaml")
    run(tool("promtool"), "test", "rules", folder / "alerts.yaml")
    print(f"chart: {len(rules(text)['groups'][0]['rules'])} alerts pass their tests")


if __name__ == "__main__":
    sys.exit(main())

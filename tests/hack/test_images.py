"""What the Dockerfile puts into each image belongs there and is all that its code needs, as far as can be seen without a build."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements"
IMAGES = ("operator", "trainer", "evaluator")
STAGES = {
    part.split(None, 3)[2].strip(): part
    for part in re.split(r"^FROM ", (ROOT / "Dockerfile").read_text(), flags=re.M)[1:]
    if " AS " in part.splitlines()[0]
}


def pins(name: str) -> dict[str, str]:
    """Versions by package of one requirements file."""
    return dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", (REQUIREMENTS / f"{name}.txt").read_text(), re.M))


def packages(image: str) -> set[str]:
    """This project's packages in an image."""
    return set(re.findall(r"/opt/transfer/(transfer_\w+)$", STAGES[image], re.M))


def imports(package: str) -> set[str]:
    """This project's packages that a package imports."""
    found = set()
    for file in ROOT.glob(f"*/{package}/**/*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            found |= {name.partition(".")[0] for name in names if name.startswith("transfer_")}
    return found


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_holds_every_package_that_its_code_imports(image: str) -> None:
    held = packages(image)
    assert {f"transfer_{image}", "transfer_api"} <= held
    missing = {package: imports(package) - held for package in held}
    assert not any(missing.values()), missing


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_as_a_user_without_rights_and_starts_its_own_module(image: str) -> None:
    assert "\nUSER 65532:65532\n" in STAGES[image]
    assert f'ENTRYPOINT ["python", "-m", "transfer_{image}"]' in STAGES[image]


@pytest.mark.parametrize("image", [*IMAGES, "tracking"])
def test_what_an_image_installs_is_the_version_that_the_tests_run_with(image: str) -> None:
    tested = pins("dev") | pins("torch")
    assert pins(image), "no pins"
    assert {name: version for name, version in pins(image).items() if tested.get(name) != version} == {}


@pytest.mark.parametrize("image", [*IMAGES, "tracking"])
def test_every_pin_has_a_hash_and_no_address(image: str) -> None:
    text = (REQUIREMENTS / f"{image}.txt").read_text()
    assert "://" not in text
    for entry in re.split(r"^(?=[a-z0-9])", text, flags=re.M):
        assert not entry.strip() or "--hash=sha256:" in entry, entry


def test_the_operator_has_no_torch_and_experiment_pods_no_kubernetes() -> None:
    assert not {name for name in pins("operator") if re.match(r"torch|triton|nvidia-|transformers|numpy", name)}
    assert not {"kopf", "kubernetes"} & (pins("trainer").keys() | pins("evaluator").keys())


def test_the_evaluator_adds_to_the_trainers_layer_and_repeats_none_of_it() -> None:
    assert "lm-eval" in pins("evaluator")
    assert not pins("evaluator").keys() & pins("trainer").keys()


def test_the_client_of_a_tracker_adds_to_the_trainers_image_alone() -> None:
    assert "wandb" in pins("tracking")
    assert not pins("tracking").keys() & pins("trainer").keys()
    assert "requirements/tracking.txt" in STAGES["trainer"]


def test_what_the_dockerfile_copies_is_there_and_let_in() -> None:
    patterns = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    let_in = {file for pattern in patterns for file in ROOT.glob(pattern)}
    copied = [
        ROOT / source
        for stage in STAGES.values()
        for line in re.findall(r"^COPY (?!--from)(.+)$", stage, re.M)
        for source in line.split()[:-1]
    ]
    assert copied
    for source in copied:
        assert source.exists(), source
        assert source in let_in or any(source in file.parents for file in let_in), f"{source} is not in .dockerignore"


def test_a_tool_of_an_unknown_name_is_refused_with_the_place_that_lists_them() -> None:
    done = subprocess.run([ROOT / "hack/cluster/tool", "hlem"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "'hlem'" in done.stderr
    assert "hack/cluster/tool" in done.stderr

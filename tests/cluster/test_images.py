"""The three images as pods of a cluster that lets pods do little: restricted pod security, nothing to write to but /tmp."""

from __future__ import annotations

import json
import os

import pytest

from tests.support.experiment import wait_for
from tests.support.kube import Body, kubectl
from tests.support.trial import Trial

LOOK = """
import importlib.util, json, os, shutil, sys
def size(folder):
    seen, total, device = set(), 0, os.stat(folder).st_dev
    for place, folders, files in os.walk(folder):
        folders[:] = [one for one in folders if os.lstat(os.path.join(place, one)).st_dev == device]
        for one in files:
            found = os.lstat(os.path.join(place, one))
            if found.st_ino not in seen:
                seen.add(found.st_ino)
                total += found.st_size
    return total / 1e6
def writable(folder):
    try: open(folder + "/probe", "w").close(); return True
    except OSError: return False
json.dump({
  "user": [os.getuid(), os.getgid()], "home": os.environ["HOME"],
  "writable": [one for one in ("/", "/opt/venv", "/opt/transfer", "/tmp") if writable(one)],
  "installers": [one for one in ("pip", "pip3", "uv", "gcc", "cc", "ld") if shutil.which(one)],
  "imported": [importlib.import_module(one).__name__ for one in sys.argv[1].split(",")],
  "megabytes": size("/"),
  "heavy": [one for one in ("torch", "kopf", "kubernetes") if importlib.util.find_spec(one)],
}, sys.stdout)
"""


@pytest.mark.parametrize(
    ("image", "modules", "heavy"),
    [
        pytest.param("operator", "transfer_operator.process", ["kopf", "kubernetes"], id="operator"),
        pytest.param(
            "trainer", "transfer_trainer.launcher,transfer_trainer.worker,transfer_trainer.rendezvous,peft", ["torch"], id="trainer"
        ),
        pytest.param("evaluator", "transfer_evaluator.stage,lm_eval.tasks,matplotlib.pyplot", ["torch"], id="evaluator"),
    ],
)
def test_an_image_works_without_rights_and_holds_nothing_to_build_with(trial: Trial, image: str, modules: str, heavy: list[str]) -> None:
    container: Body = {
        "name": "look", "image": f"{os.environ['IMAGE_REGISTRY']}/transfer-{image}:{os.environ['IMAGE_TAG']}",
        "command": ["python", "-c", LOOK, modules], "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True},
    }  # fmt: skip
    pod: Body = {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "look", "namespace": trial.name},
        "spec": {
            "restartPolicy": "Never", "containers": [container], "volumes": [{"name": "tmp", "emptyDir": {}}],
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        },
    }  # fmt: skip
    trial.kube.ask("POST", trial.pods_path, pod)
    ended = wait_for(lambda: _phase(trial) in ("Succeeded", "Failed") and _phase(trial), 180, "the pod that looks around ended")
    told = kubectl("logs", "-n", trial.name, "look", check=False)
    assert ended == "Succeeded", told
    found = json.loads(told.splitlines()[-1])
    # As docker counts: the bytes of all files, without what a file system adds to each.
    assert 50 < found.pop("megabytes") < (300 if image == "operator" else 7000), told
    assert found == {
        "user": [65532, 65532], "home": "/tmp", "writable": ["/tmp"], "installers": [], "imported": modules.split(","), "heavy": heavy,
    }  # fmt: skip


def _phase(trial: Trial) -> str:
    return str(trial.kube.ask("GET", f"{trial.pods_path}/look")["status"]["phase"])

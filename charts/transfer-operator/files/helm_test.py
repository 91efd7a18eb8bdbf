"""What `helm test` asks: is the CRD served, does the operator answer, does one replica lead. Standard library only."""

import json
import os
import pathlib
import ssl
import sys
import time
import urllib.error
import urllib.request

ACCOUNT = pathlib.Path("/var/run/secrets/kubernetes.io/serviceaccount")
DEADLINE = time.monotonic() + 90


def api(path):
    """An answer of the API server."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    host = f"[{host}]" if ":" in host else host
    headers = {"Authorization": "Bearer " + (ACCOUNT / "token").read_text()}
    request = urllib.request.Request(f"https://{host}:{port}{path}", headers=headers)
    context = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    with urllib.request.urlopen(request, timeout=10, context=context) as answer:  # noqa: S310
        return json.load(answer)


def crd_is_served():
    """The kind and its two subresources."""
    names = {one["name"] for one in api("/apis/transfer-operator.dev/v1alpha1")["resources"]}
    wanted = {"transferexperiments", "transferexperiments/status", "transferexperiments/scale"}
    if wanted <= names:
        return "served: " + ", ".join(sorted(wanted))
    raise LookupError(f"not served: {sorted(wanted - names)}; set crds.install=true, or apply crds/ first")


def operator_answers():
    """Readiness and its own series, through the Service."""
    address = os.environ["OPERATOR"]
    if not address:
        return "not asked: metrics.service.enabled is false"
    with urllib.request.urlopen(address + "/readyz", timeout=10) as answer:  # noqa: S310
        answer.read()
    with urllib.request.urlopen(address + "/metrics", timeout=10) as answer:  # noqa: S310
        if b"transfer_operator_build_info" not in answer.read():
            raise LookupError(f"{address}/metrics does not show the operator's series")
    return f"{address} answers"


def one_leads():
    """The Lease has a holder."""
    name = os.environ["LEASE"]
    if not name:
        return "not asked: settings.leaderElection is false"
    lease = api(f"/apis/coordination.k8s.io/v1/namespaces/{os.environ['NAMESPACE']}/leases/{name}")
    holder = lease["spec"].get("holderIdentity")
    if holder:
        return f"{holder} leads"
    raise LookupError(f"nobody holds the Lease {name}; look at the operator's log")


for check in (crd_is_served, operator_answers, one_leads):
    while True:
        try:
            print(f"ok   {check.__name__}: {check()}", flush=True)
            break
        except (OSError, LookupError, ValueError) as error:
            if time.monotonic() > DEADLINE:
                sys.exit(f"FAIL {check.__name__}: {error}")
            time.sleep(2)

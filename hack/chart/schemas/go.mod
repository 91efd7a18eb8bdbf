// Where the schemas come from that kubeconform checks the chart against; `hack/chart/schemas.py` reads them out of these modules.
// Nothing is compiled.
module example.org/chart/schemas

go 1.26.0

require (
	github.com/prometheus-operator/prometheus-operator v0.85.0
	k8s.io/kubernetes v1.34.4
)

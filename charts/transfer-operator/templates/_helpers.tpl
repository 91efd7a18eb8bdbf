{{- define "transfer.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "transfer.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains (include "transfer.name" .) .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "transfer.name" .) | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- /* Cluster-wide objects of two releases of one name in two namespaces must not meet. */ -}}
{{- define "transfer.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "transfer.fullname" .) }}
{{- end }}

{{- define "transfer.selectorLabels" -}}
app.kubernetes.io/name: {{ include "transfer.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "transfer.operatorLabels" -}}
{{ include "transfer.selectorLabels" . }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "transfer.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "transfer.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "transfer.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "transfer.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- /* An image's full name. Takes a list of root context and image; what the image lacks is the operator's. */ -}}
{{- define "transfer.image" -}}
{{- $root := index . 0 }}
{{- $image := index . 1 }}
{{- $registry := default $root.Values.image.registry $image.registry }}
{{- $name := $image.repository }}
{{- if $registry }}{{ $name = printf "%s/%s" (trimSuffix "/" $registry) $name }}{{ end }}
{{- if $image.digest }}
{{- printf "%s@%s" $name $image.digest }}
{{- else }}
{{- printf "%s:%s" $name (coalesce $image.tag $root.Values.image.tag $root.Chart.AppVersion) }}
{{- end }}
{{- end }}

{{- /* Pods of experiments, whoever's. The chart's own pods do not have these labels. */ -}}
{{- define "transfer.experimentSelector" -}}
matchLabels:
  app.kubernetes.io/part-of: transfer-operator
  app.kubernetes.io/managed-by: transfer-operator
matchExpressions:
  - {key: transfer-operator.dev/experiment, operator: Exists}
{{- end }}

{{- /* What may scrape, as a peer of a NetworkPolicy. */ -}}
{{- define "transfer.prometheusPeer" -}}
- namespaceSelector: {{ toJson .Values.networkPolicy.prometheus.namespaceSelector }}
  podSelector: {{ toJson .Values.networkPolicy.prometheus.podSelector }}
{{- end }}

{{- /* DNS, wherever it runs. */ -}}
{{- define "transfer.dnsEgress" -}}
- ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
{{- end }}

{{- /* What an experiment's namespace must grant. Each verb's reason is in docs/operator.md; tests compare the two with the code. */ -}}
{{- define "transfer.rules" -}}
- apiGroups: [transfer-operator.dev]
  resources: [transferexperiments]
  verbs: [get, list, watch]
- apiGroups: [transfer-operator.dev]
  resources: [transferexperiments/status]
  verbs: [patch]
- apiGroups: [transfer-operator.dev]
  resources: [transferexperiments/finalizers]
  verbs: [update]
- apiGroups: [""]
  resources: [pods]
  verbs: [create, delete, get, list, watch]
- apiGroups: [""]
  resources: [services]
  verbs: [create, get]
- apiGroups: [""]
  resources: [events]
  verbs: [create]
{{- end }}

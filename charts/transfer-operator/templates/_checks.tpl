{{- /* What the schema cannot refuse, or not with the way out. Each message: the value, why it cannot work, what to do. */ -}}
{{- define "transfer.checks" -}}
{{- include "transfer.checkElection" . }}
{{- include "transfer.checkNames" . }}
{{- include "transfer.checkEnvironment" . }}
{{- include "transfer.checkVolumes" . }}
{{- end }}

{{- define "transfer.checkElection" -}}
{{- if and (gt (int .Values.replicas) 1) (not .Values.settings.leaderElection) }}
{{- fail "replicas: more than one needs settings.leaderElection, or two operators would start every pod twice; set replicas to 1 or settings.leaderElection to true" }}
{{- end }}
{{- with .Values.settings }}
{{- if and .leaderElection (gt (mulf 2 .renewSeconds) (mulf 0.7 .leaseSeconds)) }}
{{- fail (printf "settings.renewSeconds: %v is too long for settings.leaseSeconds: %v, whose leader gives up after 0.7 of it, and two renewals have to fit in; lower it to at most %v or raise settings.leaseSeconds" .renewSeconds .leaseSeconds (mulf 0.35 .leaseSeconds)) }}
{{- end }}
{{- end }}
{{- end }}

{{- /* A Service's name is the narrowest: no dot, and a letter first. With what the chart adds, 50 characters are the most. */ -}}
{{- define "transfer.checkNames" -}}
{{- range $field := list "nameOverride" "fullnameOverride" }}
{{- $name := default "" (index $.Values $field) }}
{{- if and $name (or (gt (len $name) 50) (not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name))) }}
{{- fail (printf "%s: %q cannot be part of the name of a Service; use at most 50 lower-case letters, digits and -, a letter first and no - at the end" $field $name) }}
{{- end }}
{{- end }}
{{- $name := include "transfer.fullname" . }}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) }}
{{- fail (printf "the release's name makes %q, which cannot name a Service: set fullnameOverride to lower-case letters, digits and -, a letter first" $name) }}
{{- end }}
{{- end }}

{{- /* Of two variables of one name server-side apply refuses both, and client-side apply drops one without a word. */ -}}
{{- define "transfer.checkEnvironment" -}}
{{- $seen := dict }}
{{- range .Values.extraEnv }}
{{- if hasPrefix "TRANSFER_OPERATOR_" .name }}
{{- fail (printf "extraEnv: %s is the chart's own; remove it and set the value that docs/operator.md names beside it, such as settings.logLevel for TRANSFER_OPERATOR_LOG_LEVEL" .name) }}
{{- end }}
{{- if hasKey $seen .name }}
{{- fail (printf "extraEnv: %s stands there twice; remove one of the two" .name) }}
{{- end }}
{{- $_ := set $seen .name true }}
{{- end }}
{{- end }}

{{- /* The API server refuses the Deployment, which helm tells only after it has written the rest of the release. */ -}}
{{- define "transfer.checkVolumes" -}}
{{- $volumes := list "tmp" }}
{{- range .Values.extraVolumes }}
{{- if has .name $volumes }}
{{- fail (printf "extraVolumes: %q is there already (\"tmp\" is the chart's own); give each volume a name of its own" .name) }}
{{- end }}
{{- $volumes = append $volumes .name }}
{{- end }}
{{- $paths := list "/tmp" }}
{{- range .Values.extraVolumeMounts }}
{{- if not (has .name $volumes) }}
{{- fail (printf "extraVolumeMounts: no volume is named %q; name one of %s or add it to extraVolumes" .name (join ", " $volumes)) }}
{{- end }}
{{- $path := trimSuffix "/" .mountPath }}
{{- if has $path $paths }}
{{- fail (printf "extraVolumeMounts: something is mounted at %s already (/tmp is the chart's own); choose another mountPath" $path) }}
{{- end }}
{{- $paths = append $paths $path }}
{{- end }}
{{- end }}

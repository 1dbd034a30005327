{{- define "apportion.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What selects pods: it must never change between releases of the chart. */}}
{{- define "apportion.instance" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Arguments: root, component. */}}
{{- define "apportion.selector" -}}
{{ include "apportion.instance" .root }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "apportion.labels" -}}
{{ include "apportion.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | quote }}
{{- end -}}

{{/* Arguments: root, image. */}}
{{- define "apportion.image" -}}
{{- $registry := .root.Values.imageRegistry -}}
{{- if $registry }}{{ $registry }}/{{ end -}}
{{- .image.repository -}}
{{- if .image.digest -}}@{{ .image.digest }}{{- else -}}:{{ default .root.Chart.AppVersion .image.tag }}{{- end -}}
{{- end -}}

{{- define "apportion.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ default (include "apportion.fullname" .) .Values.serviceAccount.name }}
{{- else -}}
{{ default "default" .Values.serviceAccount.name }}
{{- end -}}
{{- end -}}

{{- define "apportion.meshSecret" -}}
{{ default (printf "%s-mesh" (include "apportion.fullname" .)) .Values.meshToken.existingSecret }}
{{- end -}}

{{/* Where the token is that whoever reads metrics shows: the chart's own, else one's own; a mesh token of one's own, where nothing
     else is named. */}}
{{- define "apportion.metricsToken" -}}
{{- $token := .Values.metrics.token -}}
{{- if and .Values.meshToken.existingSecret (not $token.existingSecret) -}}
{ name: {{ .Values.meshToken.existingSecret }}, key: {{ .Values.meshToken.key }} }
{{- else -}}
{ name: {{ default (include "apportion.meshSecret" .) $token.existingSecret }}, key: {{ $token.key }} }
{{- end -}}
{{- end -}}

{{/* The secret with a component's certificate; empty: there is no TLS. Arguments: root, component. */}}
{{- define "apportion.tlsSecret" -}}
{{- if eq .root.Values.tls.mode "existingSecrets" -}}
{{ index .root.Values.tls.existingSecrets .component }}
{{- else if eq .root.Values.tls.mode "certManager" -}}
{{ include "apportion.fullname" .root }}-{{ .component }}-tls
{{- end -}}
{{- end -}}

{{- define "apportion.tlsVolume" -}}
{{- with include "apportion.tlsSecret" . }}
- name: tls
  secret: { secretName: {{ . }}, defaultMode: 0440 }
{{- end }}
{{- end -}}

{{- define "apportion.tlsMount" -}}
{{- if include "apportion.tlsSecret" . }}
- { name: tls, mountPath: /etc/apportion/tls, readOnly: true }
{{- end }}
{{- end -}}

{{/* What is spoken on gRPC ports. Argument: root. */}}
{{- define "apportion.appProtocol" -}}
{{ ternary "kubernetes.io/h2c" "https" (eq .Values.tls.mode "none") }}
{{- end -}}

{{/* Where health is told: Kubernetes' probes speak no TLS. Arguments: root, port (gRPC). */}}
{{- define "apportion.healthPort" -}}
{{ ternary .port 8090 (eq .root.Values.tls.mode "none") }}
{{- end -}}

{{/* Arguments: root, port (gRPC), metrics. */}}
{{- define "apportion.ports" -}}
- { name: grpc, containerPort: {{ .port }} }
- { name: metrics, containerPort: {{ .metrics }} }
{{- if ne .root.Values.tls.mode "none" }}
- { name: health, containerPort: 8090 }
{{- end }}
{{- end -}}

{{/* The collector, and how it is spoken to: without a scheme, services would ask it for a certificate of the mesh. */}}
{{- define "apportion.otlpEndpoint" -}}
{{- if and (eq .Values.tls.mode "none") (eq .Values.telemetry.tls "mesh") -}}
{{- fail "telemetry.tls=mesh needs certificates: set tls.mode" -}}
{{- end -}}
{{- $plain := ternary "" "http://" (eq .Values.tls.mode "none") -}}
{{ get (dict "none" $plain "public" "https://" "mesh" "") .Values.telemetry.tls }}{{ .Values.telemetry.otlpEndpoint }}
{{- end -}}

{{/* What every service is told. Arguments: root, component, values, metrics (port). */}}
{{- define "apportion.env" -}}
{{- $prefix := printf "APPORTION_%s_" (upper .component) -}}
- name: APPORTION_MESH_TOKEN
  valueFrom:
    secretKeyRef: { name: {{ include "apportion.meshSecret" .root }}, key: {{ .root.Values.meshToken.key }} }
- name: APPORTION_METRICS_TOKEN
  valueFrom:
    secretKeyRef: {{ include "apportion.metricsToken" .root }}
- name: APPORTION_LOG_FORMAT
  value: {{ .root.Values.log.format | quote }}
- name: APPORTION_LOG_LEVEL
  value: {{ .root.Values.log.level | quote }}
- name: {{ $prefix }}METRICS_LISTEN
  value: "0.0.0.0:{{ .metrics }}"
{{- if .root.Values.telemetry.otlpEndpoint }}
- name: APPORTION_OTLP_ENDPOINT
  value: {{ include "apportion.otlpEndpoint" .root | quote }}
{{- end }}
{{- if include "apportion.tlsSecret" . }}
- name: APPORTION_TLS_CERTIFICATE
  value: /etc/apportion/tls/tls.crt
- name: APPORTION_TLS_KEY
  value: /etc/apportion/tls/tls.key
- name: APPORTION_TLS_CA
  value: /etc/apportion/tls/ca.crt
- name: {{ $prefix }}HEALTH_LISTEN
  value: "0.0.0.0:8090"
{{- end }}
{{- with .values.drainNoticeSeconds }}
- name: {{ $prefix }}DRAIN_NOTICE_S
  value: {{ . | quote }}
{{- end }}
- name: {{ $prefix }}DRAIN_S
  value: {{ .values.drainSeconds | quote }}
{{- range $name, $value := .values.settings }}
- name: {{ $prefix }}{{ upper $name }}
  {{- /* Whole numbers come as floats out of YAML: never 1.34217728e+08. */}}
  value: {{ if kindIs "float64" $value }}{{ if eq $value (floor $value) }}{{ printf "%.0f" $value | quote }}{{ else }}{{ $value | quote }}{{ end }}{{ else if kindIs "slice" $value }}{{ toJson $value | quote }}{{ else }}{{ $value | quote }}{{ end }}
{{- end }}
{{- with .values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* What all pods have in common. Arguments: root, component, values. */}}
{{- define "apportion.pod" -}}
serviceAccountName: {{ include "apportion.serviceAccount" .root }}
automountServiceAccountToken: false
# Variables that Kubernetes makes from services' names would meet ours.
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .root.Values.podSecurity.runAsUser }}
  runAsGroup: {{ .root.Values.podSecurity.runAsGroup }}
  fsGroup: {{ .root.Values.podSecurity.fsGroup }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: { type: RuntimeDefault }
terminationGracePeriodSeconds: {{ add (int (default 0 .values.drainNoticeSeconds)) (int .values.drainSeconds) 10 }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Arguments: root, component. */}}
{{- define "apportion.spread" -}}
{{- if .root.Values.topologySpread.enabled }}
topologySpreadConstraints:
  {{- $arguments := . }}
  {{- range .root.Values.topologySpread.topologyKeys }}
  - topologyKey: {{ . }}
    maxSkew: {{ $arguments.root.Values.topologySpread.maxSkew }}
    whenUnsatisfiable: {{ $arguments.root.Values.topologySpread.whenUnsatisfiable }}
    labelSelector:
      matchLabels: {{ include "apportion.selector" $arguments | nindent 8 }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "apportion.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end -}}

{{/* Readiness by what the service says of itself; liveness only by whether its process answers, never by a database, a queue
     or another service. Arguments: root, port (gRPC), ready (health service; empty: the whole). */}}
{{- define "apportion.probes" -}}
readinessProbe:
  grpc: { port: {{ include "apportion.healthPort" . }}{{ with .ready }}, service: {{ . }}{{ end }} }
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: 2
livenessProbe:
  grpc: { port: {{ include "apportion.healthPort" . }}, service: grpc.health.v1.Health }
  initialDelaySeconds: 10
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
{{- end -}}

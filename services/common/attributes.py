"""Every name that appears in a trace: attributes, span names, and the values that others count by.

The rpc.* names follow OpenTelemetry's current conventions (a release candidate: they may still move, so nothing outside
this module spells one). Ours begin with slo., tenant., model., batch., lane. or executor.
"""

from __future__ import annotations

# Of the resource: who made the span.
SERVICE_NAME = "service.name"
SERVICE_VERSION = "service.version"
SERVICE_INSTANCE_ID = "service.instance.id"

# Of OpenTelemetry's conventions.
RPC_SYSTEM_NAME = "rpc.system.name"
RPC_METHOD = "rpc.method"
"""Fully qualified: "inference.GRPCInferenceService/ModelInfer"."""
RPC_RESPONSE_STATUS_CODE = "rpc.response.status_code"
"""The code's name: "OK", "DEADLINE_EXCEEDED"."""
ERROR_TYPE = "error.type"
"""A `services.common.errors.Reason`, on spans that failed."""
CLIENT_ADDRESS = "client.address"

# The verdict, on the frontend's server span.
SLO_OBJECTIVE_US = "slo.objective_us"
"""Microseconds from arrival to answer that the request was promised; absent: none."""
SLO_DEADLINE_US = "slo.deadline_us"
"""Microseconds after arrival past which work is dropped; absent: none."""
SLO_VIOLATED = "slo.violated"
"""Bool, on every span that bears a verdict: the objective was missed, or the service refused or failed the request."""
SLO_OUTCOME = "slo.outcome"
"""A short word fit for a metric's label: "ok", "late", or a Reason."""
SLO_KEPT_BECAUSE = "slo.kept_because"
"""Why the trace was kept: KEPT_VIOLATED or KEPT_SAMPLED."""
SLO_ADMISSION = "slo.admission"
"""How the arbiter admitted it: "guaranteed" or "surplus"."""
SLO_STAGE = "slo.stage"
"""On a span that is one stage of a request: one of STAGES."""
SLO_MISSING = "slo.missing"
"""What the trace cannot show, and why: "executor e1 lost"."""

KEPT_VIOLATED = "violated"
KEPT_SAMPLED = "sampled"

# Whose, and of what.
TENANT_NAME = "tenant.name"
TENANT_NEIGHBOUR = "tenant.neighbour"
"""Another tenant as this one may see it: "neighbour A"."""
MODEL_NAME = "model.name"
MODEL_VERSION = "model.version"
MODEL_DIGEST = "model.digest"
REQUEST_ID = "slo.request_id"
"""The `id` that the client gave the request."""

# Where and how it ran.
BATCH_ID = "batch.id"
BATCH_ROWS = "batch.rows"
BATCH_REQUESTS = "batch.requests"
BATCH_SLICES = "batch.slices"
BATCH_PREDICTED_US = "batch.predicted_us"
BATCH_PREEMPTED_US = "batch.preempted_us"
LANE_ID = "lane.id"
LANE_COMPUTE_UNITS = "lane.compute_units"
EXECUTOR_ID = "executor.id"
EXECUTOR_INCARNATION = "executor.incarnation"
EXECUTOR_WORKER = "executor.worker"
EXECUTOR_BACKEND = "executor.backend"
"""cpu, cuda_green, cuda_mps, cuda_mig, cuda_streams or simulated."""
EXECUTOR_REPLICA = "executor.replica"

# Span names. A stage's span bears its name in slo.stage too.
SPAN_BATCH = "batch"
STAGE_ADMIT = "admit"
"""At the frontend: credentials, quotas, choice of a replica."""
STAGE_TRANSPORT = "transport"
"""Between frontend and executor, both ways: what the executor's own stages leave of the call."""
STAGE_DECODE = "decode"
STAGE_QUEUE = "queue"
STAGE_BATCH_WAIT = "batch wait"
STAGE_COMPUTE = "compute"
STAGE_ENCODE = "encode"
STAGE_UNACCOUNTED = "unaccounted"
"""What no other stage explains."""
STAGES = (
    STAGE_ADMIT,
    STAGE_TRANSPORT,
    STAGE_DECODE,
    STAGE_QUEUE,
    STAGE_BATCH_WAIT,
    STAGE_COMPUTE,
    STAGE_ENCODE,
    STAGE_UNACCOUNTED,
)

# Link attributes.
LINK_KIND = "slo.link"
"""LINK_BATCH from a request's compute span to its batch; LINK_MEMBER from a batch to each request in it."""
LINK_BATCH = "batch"
LINK_MEMBER = "member"

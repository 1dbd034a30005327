"""Every name that appears in a trace: attributes, span names, and the values that others count by.

The rpc.* names follow OpenTelemetry's current conventions (a release candidate: they may still move, so nothing outside
this module spells one). Ours begin with slo., tenant., model. or batch.
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
"""On what terms its batch ran: "guaranteed", "surplus" or "gap"."""
SLO_STAGE = "slo.stage"
"""On a span that is one stage of a request: one of STAGES."""
SLO_MISSING = "slo.missing"
"""What the trace cannot show, and why: "executor e1 lost"."""
SLO_ENDED_IN = "slo.ended_in"
"""On the server span of a request that was not answered: the stage in which it was dropped or refused, where that is known."""
SLO_ATTEMPTS = "slo.attempts"
"""Replicas that the request was tried on."""
SLO_COPY_US = "slo.copy_us"
"""On a stage's span: how much of it was copying tensors into or out of the device's memory, or a batch's."""
SLO_NEIGHBOUR_US = "slo.neighbour_us"
"""On a stage's span: how much of it the lane gave to other tenants."""

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
BATCH_EXPECTED_US = "batch.expected_us"
"""What batches like it take on this lane as a rule; absent: nothing was known."""
BATCH_PREEMPTED_US = "batch.preempted_us"
BATCH_PREEMPTIONS = "batch.preemptions"
BATCH_COLD = "batch.cold"
"""Bool: the first batch of its shape since its model was loaded, and no profile told how long it takes."""
LANE_ID = "batch.lane"
LANE_COMPUTE_UNITS = "batch.compute_units"
LANE_PARTITION = "batch.partition"
"""Which part of the device the lane has: "units 0-1"."""
EXECUTOR_ID = "batch.executor"
EXECUTOR_INCARNATION = "batch.executor_incarnation"
EXECUTOR_BACKEND = "batch.backend"
"""cpu, cuda_green, cuda_mps, cuda_mig, cuda_streams or simulated."""
EXECUTOR_REPLICA = "model.replica"

# Span names. A stage's span bears its name in slo.stage too.
SPAN_BATCH = "batch"
STAGE_ADMIT = "admit"
"""At the frontend: credentials, quotas, choice of a replica."""
STAGE_SEND = "send"
"""At the frontend: until the request was written to the stream; a large one waits for its tenant's credit, too."""
STAGE_TRANSPORT = "transport"
"""Between frontend and executor, both ways: from the writing of the request to the reading of its answer, less what the
executor had it; and the chunks of a large request."""
STAGE_DECODE = "decode"
STAGE_QUEUE = "queue"
"""At the executor: until its batch began, but for STAGE_BATCH_WAIT."""
STAGE_BATCH_WAIT = "batch wait"
"""Of the wait: while the lane ran an earlier batch of the same model, which the request came too late to join."""
STAGE_COMPUTE = "compute"
"""From its batch's first slice to its last, preemptions included."""
STAGE_ENCODE = "encode"
"""From the end of its batch until the answer was handed to the stream."""
STAGE_DELIVER = "deliver"
"""At the frontend: from the reading of the answer until it was handed to gRPC."""
STAGE_UNACCOUNTED = "unaccounted"
"""What no other stage explains."""
STAGES = (
    STAGE_ADMIT,
    STAGE_SEND,
    STAGE_TRANSPORT,
    STAGE_DECODE,
    STAGE_QUEUE,
    STAGE_BATCH_WAIT,
    STAGE_COMPUTE,
    STAGE_ENCODE,
    STAGE_DELIVER,
    STAGE_UNACCOUNTED,
)

# Why a request missed its objective: see services.common.blame.
CAUSE_REFUSED = "refused"
"""The service said no, or gave up, before the time had gone anywhere."""
CAUSE_FAILED = "failed"
"""A model, a worker or an executor broke."""
CAUSE_FRONTEND = "frontend"
CAUSE_TRANSPORT = "transport"
CAUSE_DECODE = "decode"
CAUSE_COPY = "copy"
CAUSE_QUEUE = "queue"
CAUSE_BATCH = "batch"
CAUSE_NEIGHBOUR = "neighbour"
CAUSE_COLD_START = "cold start"
CAUSE_COMPUTE = "compute"
CAUSE_ENCODE = "encode"
CAUSE_UNACCOUNTED = "unaccounted"
CAUSES = (
    CAUSE_REFUSED,
    CAUSE_FAILED,
    CAUSE_COLD_START,
    CAUSE_NEIGHBOUR,
    CAUSE_QUEUE,
    CAUSE_BATCH,
    CAUSE_COMPUTE,
    CAUSE_COPY,
    CAUSE_TRANSPORT,
    CAUSE_FRONTEND,
    CAUSE_DECODE,
    CAUSE_ENCODE,
    CAUSE_UNACCOUNTED,
)

# Link attributes.
LINK_KIND = "slo.link"
"""LINK_BATCH from a request's compute span to its batch; LINK_MEMBER from a batch to each request in it; LINK_NEIGHBOUR from a
request's queue span to a batch of another tenant that had the lane meanwhile, whose name only that batch's own trace tells."""
LINK_BATCH = "batch"
LINK_MEMBER = "member"
LINK_NEIGHBOUR = "neighbour"

# Events.
EVENT_GATHERED = "inputs copied"
"""The batch's inputs had been put together."""
EVENT_SCATTERED = "outputs copied"
"""The outputs lay in shared memory."""
EVENT_PLACED = "payload copied"
"""The request's tensors lay in shared memory."""
EVENT_SEGMENT = "segment ended"
EVENT_OTHERS = "lane given away"
"""A stretch of the lane's time that another batch had, which ended then: EVENT_TOOK_US long."""
EVENT_TOOK_US = "slo.took_us"

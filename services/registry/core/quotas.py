"""What a quota may say, and whether what is stored is within it."""

from __future__ import annotations

from services.common.errors import Reason, Refusal
from services.registry.core.records import Quota, Tenant
from services.registry.core.rules import within

MOST_RATE = 10**12
MOST_BURST = 10**6
MOST_CONCURRENT = 10**6
MOST_DEVICE_MS = 10**12
MOST_INTERVAL_S = 366 * 86_400
MOST_MEMORY_BYTES = 1 << 50
MOST_STORED_BYTES = 1 << 60
INTERVAL_S = 3600


def quota(said: Quota) -> Quota:
    """The quota with its defaults filled in; a Refusal that names the field where it cannot be one. Nothing limited: Quota()."""
    limits = (
        ("millirequests_per_s", said.millirequests_per_s, MOST_RATE),
        ("concurrent_requests", said.concurrent_requests, MOST_CONCURRENT),
        ("device_ms", said.device_ms, MOST_DEVICE_MS),
        ("memory_bytes", said.memory_bytes, MOST_MEMORY_BYTES),
        ("stored_bytes", said.stored_bytes, MOST_STORED_BYTES),
    )
    for field, value, most in limits:
        if value is not None:
            within(f"quota.{field}", value, 1, most)
    within("quota.burst", said.burst, 0, MOST_BURST)
    within("quota.device_interval_s", said.device_interval_s, 0, MOST_INTERVAL_S)
    if not said.limits:
        return Quota()
    burst = said.burst or min(MOST_BURST, max(1, (said.millirequests_per_s or 0) // 1000))
    return Quota(
        said.millirequests_per_s,
        burst,
        said.concurrent_requests,
        said.device_ms,
        said.device_interval_s or INTERVAL_S,
        said.memory_bytes,
        said.stored_bytes,
    )


def may_store(tenant: Tenant, stored_bytes: int, more_bytes: int) -> None:
    """Refuses (QUOTA_EXCEEDED) an artefact that would have a tenant store more than it may."""
    limit = tenant.quota.stored_bytes
    if limit is None or stored_bytes + more_bytes <= limit:
        return
    raise Refusal(
        Reason.QUOTA_EXCEEDED,
        f"header.size_bytes: tenant {tenant.name!r} stores {stored_bytes} of at most {limit} bytes; {more_bytes} more do not"
        " fit (quota stored_bytes); remove artefacts, or ask for a larger quota",
        facts={
            "subject": f"tenant:{tenant.name}",
            "quota": "stored_bytes",
            "limit": limit,
            "use": stored_bytes,
            "asked": more_bytes,
        },
    )

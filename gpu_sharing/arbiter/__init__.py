"""Whose slice runs next on a lane. PURE: no clock, no chance, no I/O; time is an argument.

**What is promised.** A tenant whose arrivals ask for at most σ + ρ·t of device time in any t, with ρ ≤ its reservation U (a
fraction of the lane), and whose objective is at least σ / U plus two longest slices of the lane plus the estimates' error, is
neither refused nor late, whatever the others do.

**Why that holds.** Each tenant is a constant-bandwidth server (Abeni and Buttazzo, RTSS 1998), whose deadlines are those of the
total bandwidth server (Spuri and Buttazzo, RTSS 1994): work of estimated cost C that comes at a is due at
d = max(a, d of the work before) + C / U. `grants.py` never grants more than the lane has, so in no interval more is due than
fits into it, and earliest deadline first meets every d, late by at most one slice that had begun (Liu and Layland 1973; the
blocking term: Baker 1991). For arrivals within (σ, ρ), d ≤ a + σ / U; a request is *guaranteed* if d plus one longest slice is
no later than its objective. What is left of the two slices pays for slices that nobody had seen yet.

**Which deadline orders the lane.** The server's d, not the request's objective. Ordering by objectives would also be feasible,
but a request that waits under a late objective keeps the right to time that its server did not use; once it rides in a batch
with an urgent one, that right falls due all at once, at the expense of others. A d is never made earlier while its work
waits. Objectives decide inside a server: all that waits there is paid from one budget whose pieces are used in the order of
their deadlines, and every request has bought a piece that is due before its objective; so whatever is due by some objective has
been bought by then, and earliest objective first meets all of them (the argument is spelt out in `batching.py` for batches).

**What is left over** goes to servers with more work than reservation in proportion to their weights, by virtual time
(start-time fair queueing, Goyal, Vin and Cheng 1996). This is what GRUB does for reservations (Lipari and Baruah, ECRTS 2000),
with weights of their own: a share of the surplus is not paid for with the reservation. Guaranteed work that is more than
`servers.AHEAD` ahead of its reservation's pace takes part here, too, so that a tenant in no hurry cannot keep everybody's
surplus waiting. Surplus is admitted where it is expected to be in time behind what is promised, going by how
much longer than expected surplus has taken lately (`foresight.py`), and revoked at once where guaranteed requests leave it no
time any more. Class `batch`, and what can no longer be in time, run in gaps: nobody else
wants the lane, and they yield at every boundary.

**What breaks a batch** is looked for inside its tenant: the batch's requests run again, each alone and once, on the terms that
they would get if they came now (`again.py`), so that nobody else pays for finding it.

**What an estimate gets wrong** its own tenant pays: an overrun postpones what the tenant has bought later; time that was not
needed is taken back (`budget.py`).
"""

from gpu_sharing.arbiter.core import Arbiter

__all__ = ["Arbiter"]

"""A push of a whole folder from end to end: every version that its policy chooses, then who gets the requests."""

from __future__ import annotations

from typing import Any

from services._proto.apportion.v1 import registry_pb2
from services.cli import remote, show
from services.cli.options import Mesh
from services.cli.push.repository.plan import Plan
from services.cli.push.repository.report import after_inspection, as_json, plain, print_report
from services.cli.push.run import (
    check_promised,
    default_tenant,
    followed,
    objective_of,
    print_profile,
    print_signature,
    say_objective,
    store,
)
from services.cli.push.standing import Serving, unloaded_note
from services.cli.signing import Signs, unsigned

WHOLE_PPM = 1_000_000


async def push(
    mesh: Mesh,
    request: Any,
    plan: Plan,
    signs: Signs = unsigned,
    *,
    timeout_s: float | None,
    json: bool,
    strict: bool = False,
) -> None:
    """Uploads and makes every version and, unless timeout_s is None, waits until all serve.

    strict: as for a single file.
    request: a CreateVersionRequest without version and digest; its config is every version's, but for the format.
    """
    if not json:
        print_report(plan)
    model = await _made(mesh, request, plan, signs, json)
    found: dict[int, Serving] = {}
    if model.unloaded:
        show.err.print(f"[yellow]note:[/] {unloaded_note(request.key)}")
    elif timeout_s is not None:
        for number in plan.artefacts:
            what = f"{request.key.tenant}/{request.key.name} version {number}"
            found[number] = await followed(mesh, request.key, number, timeout_s, what)
            if not json:
                show.out.print(f"[bold]{what}[/] serves on {found[number].executor_id}, lane {found[number].lane}")
    highest = found.get(max(plan.artefacts))
    told = await objective_of(mesh, model, max(plan.artefacts)) if highest is not None else None
    differs = after_inspection(plan, highest.signature) if highest is not None else []
    if json:
        served = {str(number): each.signature for number, each in found.items()}
        show.print_json({"model": model, "signatures": served, **as_json(plan), "differs": differs, "objective": told})
    else:
        _print_standing(highest, differs)
    if highest is not None:
        say_objective(highest.profile, model, told, quiet=json)
    if strict and highest is not None:
        check_promised(f"{request.key.tenant}/{request.key.name}", model, told)


def _print_standing(highest: Serving | None, differs: list[str]) -> None:
    """How the highest version turned out."""
    for each in differs:
        show.out.print(f"note: {plain(each)}")
    if highest is not None:
        print_signature(highest.signature)
        if highest.profile is not None:
            print_profile(highest.profile)


async def _made(mesh: Mesh, request: Any, plan: Plan, signs: Signs, json: bool) -> Any:
    """The model with its versions stored and its traffic set. All are signed before the first is sent."""
    signed = {number: signs(artefact) for number, artefact in plan.artefacts.items()}
    async with remote.registry(mesh) as stub:
        await default_tenant(stub, request.key.tenant)
        model: Any = None
        for number, artefact in plan.artefacts.items():
            one = registry_pb2.CreateVersionRequest()
            one.CopyFrom(request)
            one.version, one.artefact_signature = number, signed[number]
            made = await store(stub, one, artefact, quiet=json)
            model = made.model
        splits = traffic(model, list(plan.artefacts))
        if splits:
            asked = registry_pb2.UpdateModelRequest(key=request.key, traffic=splits)
            model = (await stub.UpdateModel(asked, timeout=remote.CALL_S)).model
    return model


def traffic(model: Any, served: list[int]) -> list[registry_pb2.TrafficSplit]:
    """The split that serves these versions, the highest to those who ask for none; empty where that is so by itself.

    model: as it is with all versions stored.
    """
    highest = max(served)
    by_itself = len(served) == 1 and not model.traffic and max(each.version for each in model.versions) == highest
    if by_itself:
        return []
    return [
        registry_pb2.TrafficSplit(version=number, ppm=WHOLE_PPM if number == highest else 0)
        for number in sorted(served)
    ]

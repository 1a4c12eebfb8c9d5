"""The admin API under /_admin/: faults, settings, payers' decisions, the clock, the evidence."""

from simulator.clock import as_text
from simulator.evidence import PageQuery
from simulator.inputs import InvalidInputError, known_fields, mapping, seconds, text
from simulator.messages import Reply, Request, json_reply
from simulator.scenarios import Status
from simulator.settings import Settings
from simulator.simulation import Simulation

_LIMIT_MAX = 10_000


def refused(error: InvalidInputError) -> Reply:
    """Answer an invalid admin request with the field and the error."""
    return json_reply(error.status, {"error": {"field": error.field, "message": error.message}})


def add_fault(simulation: Simulation, request: Request) -> Reply:
    """Set a fault, or with {"faults": […]} several in their order: POST /_admin/faults.

    Several faults are set together, or none of them if one is invalid.
    """
    document = _document(request)
    if "faults" not in document:
        (fault,) = simulation.faults.add([document])
        return json_reply(201, fault.shown())
    known_fields(document, {"faults"})
    if not isinstance(document["faults"], list):
        raise InvalidInputError("faults", "must be a list")
    wanted = [mapping(f"faults.{at}", one) for at, one in enumerate(document["faults"])]
    added = simulation.faults.add(wanted)
    return json_reply(201, {"data": [fault.shown() for fault in added]})


def list_faults(simulation: Simulation, _request: Request) -> Reply:
    """Show the faults: GET /_admin/faults."""
    return json_reply(200, {"data": [fault.shown() for fault in simulation.faults.all()]})


def clear_faults(simulation: Simulation, request: Request) -> Reply:
    """Remove all faults: DELETE /_admin/faults."""
    simulation.faults.clear()
    return list_faults(simulation, request)


def remove_fault(simulation: Simulation, request: Request, fault_id: str) -> Reply:
    """Remove one fault: DELETE /_admin/faults/{id}."""
    if not fault_id.isdecimal() or not simulation.faults.remove(int(fault_id)):
        raise InvalidInputError("id", "there is no such fault", status=404)
    return list_faults(simulation, request)


def show_settings(simulation: Simulation, _request: Request) -> Reply:
    """Show the settings: GET /_admin/settings."""
    return json_reply(200, simulation.settings.shown())


def change_settings(simulation: Simulation, request: Request) -> Reply:
    """Replace the settings that are given: POST /_admin/settings."""
    simulation.settings = simulation.settings.changed(_document(request))
    return json_reply(200, simulation.settings.shown())


def approve(simulation: Simulation, _request: Request, reference_id: str) -> Reply:
    """Let the payer approve now: POST /_admin/approve/{reference}."""
    return _decided(simulation, reference_id, Status.SUCCESSFUL, None)


def reject(simulation: Simulation, request: Request, reference_id: str) -> Reply:
    """Let the payer reject now: POST /_admin/reject/{reference}; `reason` is optional."""
    document = _document(request)
    known_fields(document, {"reason"})
    reason = text("reason", document.get("reason", "APPROVAL_REJECTED"))
    return _decided(simulation, reference_id, Status.FAILED, reason)


def move_clock(simulation: Simulation, request: Request) -> Reply:
    """Move the clock: POST /_admin/clock. What is due by then is done before the response."""
    document = _document(request)
    known_fields(document, {"advance_s"})
    simulation.store.advance_clock(seconds("advance_s", document.get("advance_s")))
    simulation.settle_due()
    now = simulation.store.clock.now()
    simulation.callbacks.release_due(now)
    return json_reply(200, {"now": as_text(now)})


def expire_tokens(simulation: Simulation, _request: Request) -> Reply:
    """Make every token void: POST /_admin/tokens/expire."""
    return json_reply(200, {"expired": simulation.store.accounts.expire_tokens()})


def reset(simulation: Simulation, request: Request) -> Reply:
    """Clear faults and settings, with {"data": true} the data too: POST /_admin/reset."""
    document = _document(request)
    known_fields(document, {"data"})
    data = document.get("data", False)
    if not isinstance(data, bool):
        raise InvalidInputError("data", "must be true or false")
    simulation.faults.clear()
    simulation.settings = Settings()
    if data:
        simulation.store.ledger.start_generation(simulation.store.clock.now())
    return json_reply(200, {"generation": simulation.store.ledger.generation})


def show_page(simulation: Simulation, request: Request, view: str) -> Reply:
    """Show a page, oldest first: GET /_admin/ledger|payments|requests|callbacks."""
    simulation.settle_due()
    query = PageQuery(
        reference_id=request.argument("reference"),
        external_id=request.argument("external_id"),
        after=_number(request, "cursor", default=0, maximum=None),
        limit=_number(request, "limit", default=100, maximum=_LIMIT_MAX),
    )
    return json_reply(200, simulation.store.evidence.page(view, query))


def summary(simulation: Simulation, _request: Request) -> Reply:
    """Show the counts: GET /_admin/summary."""
    simulation.settle_due()
    return json_reply(200, simulation.store.evidence.summary())


def health(simulation: Simulation, _request: Request) -> Reply:
    """Report that the simulator runs: GET /_admin/health."""
    return json_reply(
        200,
        {
            "status": "ok",
            "now": as_text(simulation.store.clock.now()),
            "generation": simulation.store.ledger.generation,
        },
    )


def _document(request: Request) -> dict[str, object]:
    """Read the body; a missing body is an empty object."""
    return mapping("body", request.document()) if request.body else {}


def _number(request: Request, name: str, *, default: int, maximum: int | None) -> int:
    given = request.argument(name)
    if given is None:
        return default
    if not given.isdecimal() or (maximum is not None and not 1 <= int(given) <= maximum):
        wanted = f"from 1 to {maximum}" if maximum else "as `next_cursor` gave it"
        raise InvalidInputError(name, f"must be a whole number {wanted}")
    return int(given)


def _decided(
    simulation: Simulation, reference_id: str, status: Status, reason: str | None
) -> Reply:
    reference_id = reference_id.lower()
    if simulation.find(reference_id) is None:
        raise InvalidInputError("reference", "no payment has this reference", status=404)
    if not simulation.decide(reference_id, status, reason):
        raise InvalidInputError("reference", "this payment does not wait any more", status=409)
    return json_reply(200, {"reference_id": reference_id, "status": status.value})

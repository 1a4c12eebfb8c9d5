"""From a request to its reply: log, faults, handler. Also usable in-process, as a WSGI app."""

import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

from simulator import admin
from simulator.fault_effects import altered, instead
from simulator.faults import Facts, Phase
from simulator.inputs import InvalidInputError
from simulator.messages import RefusedError, Reply, Request, azure
from simulator.routes import ADMIN, ADMIN_PREFIX, UNKNOWN, Match, Router
from simulator.simulation import Simulation
from simulator.store import Store

_DONE = {"create": {202}, "provisioning": {200, 201}}
_DONE_OTHERWISE = {200}


class Simulator:
    """Answers requests; the server or WSGI brings them."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self._router = Router()

    def answer(self, request: Request) -> Reply:
        """Answer one request, after all that it causes has happened and is kept."""
        match = self._router.find(request.method, request.path)
        if request.path.startswith(ADMIN_PREFIX):
            return self._administer(request, match)
        store = self.simulation.store
        request_id = store.evidence.note_request(
            store.clock.now(),
            method=request.method,
            path=request.path,
            operation=match.route.operation if match else UNKNOWN,
            reference_id=_reference(request, match),
        )
        reply, fault = self._serve(request, match)
        store.evidence.note_answer(request_id, store.clock.now(), reply.status_on_wire, fault)
        return reply

    def close(self) -> None:
        """Stop all threads and close the store."""
        self.simulation.close()

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., object]
    ) -> Iterable[bytes]:
        """WSGI. What a fault does to the wire cannot be shown here, but for its loss."""
        reply = self.answer(_from_wsgi(environ))
        time.sleep(reply.delay_s)
        if reply.status_on_wire is None:
            raise ConnectionResetError
        headers = [("Content-Length", str(len(reply.body))), *reply.headers]
        if reply.content_type:
            headers.append(("Content-Type", reply.content_type))
        start_response(f"{reply.status} {HTTPStatus(reply.status).phrase}", headers)
        return [reply.body]

    def _administer(self, request: Request, match: Match | None) -> Reply:
        try:
            if match is None or match.route.operation != ADMIN:
                raise InvalidInputError("path", "there is no such admin call", status=404)
            return match.route.handler(self.simulation, request, **match.variables)
        except InvalidInputError as error:
            return admin.refused(error)

    def _serve(self, request: Request, match: Match | None) -> tuple[Reply, str]:
        if "//" in request.path:
            return Reply(400), ""  # a malformed URL (1.10)
        if match is None:
            return azure(404, "Resource not found"), ""
        facts = _LazyFacts(self.simulation, request, match)
        before = self.simulation.faults.take(Phase.BEFORE, facts)
        if before is not None:
            reply = instead(before)
            if reply is not None:
                return reply, before.kind
        try:
            reply = match.route.handler(self.simulation, request, **match.variables)
        except RefusedError as refusal:
            reply = refusal.reply
        # Only an exact 202 is an accepted payment: the firewall's 200 is not.
        went_well = reply.status in _DONE.get(match.route.operation, _DONE_OTHERWISE)
        after = self.simulation.faults.take(Phase.AFTER, facts, went_well=went_well)
        struck = "+".join(fault.kind for fault in (before, after) if fault is not None)
        return (altered(after, reply) if after else reply), struck


class _LazyFacts:
    """What faults match on; read from the request only when there are faults."""

    def __init__(self, simulation: Simulation, request: Request, match: Match) -> None:
        self._simulation = simulation
        self._request = request
        self._match = match

    def __call__(self) -> Facts:
        route = self._match.route
        reference = _reference(self._request, self._match)
        msisdn, external_id = self._party_and_external_id(reference)
        return Facts(route.operation, route.product, reference, msisdn, external_id)

    def _party_and_external_id(self, reference: str | None) -> tuple[str | None, str | None]:
        if self._match.route.operation == "create":
            return _from_body(self._request.document())
        payment = self._simulation.store.ledger.find(reference) if reference else None
        return (payment.order.party, payment.order.external_id) if payment else (None, None)


def create_app(store: Store) -> Simulator:
    """Make a simulator over this store, its threads running. Close it when done."""
    simulation = Simulation(store)
    simulation.start()
    return Simulator(simulation)


def _reference(request: Request, match: Match | None) -> str | None:
    in_path = match.variables.get("reference_id") if match else None
    reference_id = in_path or request.header("x-reference-id")
    return reference_id.lower() or None


def _from_body(document: object) -> tuple[str | None, str | None]:
    if not isinstance(document, dict):
        return None, None
    party = document.get("payer") or document.get("payee")
    msisdn = party.get("partyId") if isinstance(party, dict) else None
    external_id = document.get("externalId")
    return (
        None if msisdn is None else str(msisdn),
        None if external_id is None else str(external_id),
    )


def _from_wsgi(environ: dict[str, Any]) -> Request:
    headers = {
        name[5:].replace("_", "-").lower(): value
        for name, value in environ.items()
        if name.startswith("HTTP_")
    }
    length = environ.get("CONTENT_LENGTH") or ""
    if length:
        headers["content-length"] = length
    if environ.get("CONTENT_TYPE"):
        headers["content-type"] = environ["CONTENT_TYPE"]
    return Request(
        method=environ["REQUEST_METHOD"],
        path=environ.get("PATH_INFO", "/"),
        query=environ.get("QUERY_STRING", ""),
        headers=headers,
        body=environ["wsgi.input"].read(int(length)) if length else b"",
    )

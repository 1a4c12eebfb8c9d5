"""From a request to its reply: log, faults, handler. Also usable in-process, as a WSGI app."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import cached_property
from http import HTTPStatus
from typing import Any

from simulator import admin, mtn_access
from simulator.fault_effects import altered, instead
from simulator.faults import Phase
from simulator.inputs import InvalidInputError
from simulator.messages import RefusedError, Reply, Request, azure
from simulator.routes import ADMIN, ADMIN_PREFIX, UNKNOWN, Match, Router
from simulator.simulation import Simulation
from simulator.store import Store

# A submission whose payment exists (409) is a success for faults, like one that creates it.
_DONE = {"create": {202, 409}, "provisioning": {200, 201}}
_DONE_OTHERWISE = {200}
# How many submissions' payers are remembered, for faults that match on one payer.
_PARTIES_MAX = 10_000
# A payer's number and an order's external id; None if unknown.
Party = tuple[str | None, str | None]


class Simulator:
    """Answers the requests of the server or of WSGI."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self._router = Router()
        self._parties = Parties()

    def answer(self, request: Request) -> Reply:
        """Answer one request, after all its effects are done and stored."""
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
        reply, fault = self._serve(request, match, request_id)
        store.evidence.note_answer(request_id, store.clock.now(), reply.status_on_wire, fault)
        return reply

    def close(self) -> None:
        """Stop all threads and close the store."""
        self.simulation.close()

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., object]
    ) -> Iterable[bytes]:
        """WSGI. Of the faults of the connection, it can only show a lost response."""
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

    def _serve(self, request: Request, match: Match | None, request_id: int) -> tuple[Reply, str]:
        if "//" in request.path:
            return Reply(400), ""  # a malformed URL (1.10)
        if match is None:
            return azure(404, "Resource not found"), ""
        facts = _CallFacts(self.simulation, self._parties, request, match, request_id)
        if facts.operation == "create" and facts.reference:
            self._parties.remember(facts.reference, (facts.msisdn, facts.external_id))
        before = self.simulation.faults.take(Phase.BEFORE, facts)
        if before is not None:
            reply = instead(before)
            if reply is not None:
                return reply, before.kind
        try:
            reply = match.route.handler(self.simulation, request, **match.variables)
        except RefusedError as refusal:
            reply = refusal.reply
        # Only an exact 202 or 409 means that the payment exists: the firewall's 200 does not.
        went_well = reply.status in _DONE.get(match.route.operation, _DONE_OTHERWISE)
        after = self.simulation.faults.take(Phase.AFTER, facts, went_well=went_well)
        struck = "+".join(fault.kind for fault in (before, after) if fault is not None)
        return (altered(after, reply) if after else reply), struck


class Parties:
    """The payers of the last submissions, also of those that created no payment."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Party] = OrderedDict()

    def remember(self, reference: str, party: Party) -> None:
        """Keep it, and drop the oldest if there are too many."""
        with self._lock:
            self._known[reference] = party
            if len(self._known) > _PARTIES_MAX:
                self._known.popitem(last=False)

    def find(self, reference: str) -> Party:
        """The payer and the external id of this submission."""
        return self._known.get(reference, (None, None))


class _CallFacts:
    """What faults match on (see faults.Facts), read from the call only when a fault needs it."""

    def __init__(
        self,
        simulation: Simulation,
        parties: Parties,
        request: Request,
        match: Match,
        request_id: int,
    ) -> None:
        self._simulation = simulation
        self._parties = parties
        self._request = request
        self._match = match
        self._request_id = request_id

    @property
    def operation(self) -> str:
        return self._match.route.operation

    @property
    def product(self) -> str | None:
        return self._match.route.product

    @property
    def reference(self) -> str | None:
        return _reference(self._request, self._match)

    @property
    def msisdn(self) -> str | None:
        return self._party[0]

    @property
    def external_id(self) -> str | None:
        return self._party[1]

    @property
    def api_user(self) -> str | None:
        return mtn_access.caller_of(self._simulation, self._request, self.product)

    @cached_property
    def nth(self) -> int:
        reference, evidence = self.reference, self._simulation.store.evidence
        if reference is None:
            return 1
        return evidence.nth_request(self.operation, reference, up_to=self._request_id)

    @cached_property
    def _party(self) -> Party:
        if self.operation == "create":
            return _from_body(self._request.document())
        reference = self.reference
        payment = self._simulation.store.ledger.find(reference) if reference else None
        if payment:
            return payment.order.party, payment.order.external_id
        return self._parties.find(reference or "")


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

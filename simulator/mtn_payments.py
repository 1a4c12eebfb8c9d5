"""Requests to pay and transfers: create, show the state, notify of delivery (1.7 to 1.11)."""

from dataclasses import asdict, dataclass

from simulator import mtn_access, mtn_orders
from simulator.callbacks import Mode
from simulator.faults import Phase
from simulator.ledger import Order, Payment
from simulator.messages import RefusedError, Reply, Request, azure, coded, json_reply
from simulator.scenarios import REQUEST_TO_PAY, SUCCEEDS, TRANSFER, Scenario, Status
from simulator.simulation import Simulation
from simulator.status_bodies import status_body

_NOTIFICATION_MAX = 160


@dataclass(frozen=True, slots=True)
class Till:
    """One creating operation of one product."""

    product: str
    operation: str
    party_field: str
    scenarios: dict[str, Scenario]


TILLS = (
    Till("collection", "requesttopay", "payer", REQUEST_TO_PAY),
    Till("disbursement", "transfer", "payee", TRANSFER),
    Till("remittance", "transfer", "payee", TRANSFER),
)


def create(simulation: Simulation, request: Request, till: Till) -> Reply:
    """Check a POST in the order of 1.17 item 3, then accept with an empty 202."""
    caller = mtn_access.admit(simulation, request, till.product)
    reference_id = mtn_access.new_reference(request)
    if simulation.store.ledger.is_known(reference_id):
        return coded("RESOURCE_ALREADY_EXIST")
    body = mtn_orders.read_body(request, till.party_field)
    callback_url = mtn_orders.callback_url(request)
    mtn_orders.check_callback_host(caller, callback_url)
    mtn_orders.check_currency(caller, body.currency)
    order = Order(
        reference_id=reference_id,
        product=till.product,
        operation=till.operation,
        api_user=caller.account.api_user,
        environment=caller.environment,
        callback_url=callback_url,
        **asdict(body),
    )
    accepted = simulation.accept(
        order,
        till.scenarios.get(order.party, SUCCEEDS),
        hidden_s=_hidden_s(simulation, order),
        own_mode=_own_mode(simulation, order),
    )
    # Of two concurrent calls with one reference, the store accepts one.
    return Reply(202) if accepted else coded("RESOURCE_ALREADY_EXIST")


def show(simulation: Simulation, request: Request, till: Till, reference_id: str) -> Reply:
    """Answer the state: 200 for a failed payment too (1.9)."""
    mtn_access.admit(simulation, request, till.product)
    payment = _visible(simulation, till, mtn_access.reference_in_path(reference_id))
    return json_reply(200, status_body(payment, simulation.settings.reason_form))


def notify_delivery(
    simulation: Simulation, request: Request, till: Till, reference_id: str
) -> Reply:
    """Accept one …/deliverynotification for each SUCCESSFUL payment, then 429 (1.16)."""
    mtn_access.admit(simulation, request, till.product)
    message = _notification(request)
    payment = _visible(simulation, till, mtn_access.reference_in_path(reference_id))
    if payment.status is not Status.SUCCESSFUL:
        return azure(409, "The transaction is not completed.")
    store = simulation.store
    if not store.ledger.notify_delivery(payment.order.reference_id, message, store.clock.now()):
        return azure(429, "Rate limit is exceeded.")
    return Reply(200)


def _visible(simulation: Simulation, till: Till, reference_id: str) -> Payment:
    payment = simulation.find(reference_id)
    if (
        payment is None
        or (payment.order.product, payment.order.operation) != (till.product, till.operation)
        or payment.visible_at > simulation.store.clock.now()
    ):
        raise RefusedError(coded("RESOURCE_NOT_FOUND"))
    return payment


def _notification(request: Request) -> str:
    document = request.document()
    in_body = document.get("notificationMessage") if isinstance(document, dict) else None
    message = in_body or request.header("notificationmessage")
    if not isinstance(message, str) or not 0 < len(message) <= _NOTIFICATION_MAX:
        raise RefusedError(Reply(400))
    return message


@dataclass(frozen=True, slots=True)
class _OrderFacts:
    """What faults match on (see faults.Facts), from an order."""

    simulation: Simulation
    order: Order
    operation: str = "create"

    @property
    def product(self) -> str:
        return self.order.product

    @property
    def reference(self) -> str:
        return self.order.reference_id

    @property
    def msisdn(self) -> str:
        return self.order.party

    @property
    def external_id(self) -> str | None:
        return self.order.external_id

    @property
    def api_user(self) -> str:
        return self.order.api_user

    @property
    def nth(self) -> int:
        evidence = self.simulation.store.evidence
        return evidence.nth_request(self.operation, self.order.reference_id)


def _hidden_s(simulation: Simulation, order: Order) -> float:
    fault = simulation.faults.take(Phase.ACCEPT, _OrderFacts(simulation, order))
    return fault.seconds() if fault else 0.0


def _own_mode(simulation: Simulation, order: Order) -> Mode | None:
    fault = simulation.faults.take(Phase.CALLBACK, _OrderFacts(simulation, order))
    if fault is None:
        return None
    return Mode(fault.text("mode"), int(fault.text("times")), fault.seconds())

"""The JSON of a payment's state, the same in responses to GET and in callbacks (1.9, 1.13)."""

from simulator.ledger import Payment
from simulator.messages import CODED

TRANSFER = "transfer"


def status_body(payment: Payment, reason_form: str) -> dict[str, object]:
    """Write the state as MTN does, without the reference id."""
    order = payment.order
    party = {"partyIdType": order.party_type, "partyId": order.party}
    fields: dict[str, object] = {
        "amount": order.amount,
        "currency": order.currency,
        "financialTransactionId": payment.financial_transaction_id,
        "externalId": order.external_id,
        "payee" if order.operation == TRANSFER else "payer": party,
        "payerMessage": order.payer_message,
        "payeeNote": order.payee_note,
        "status": payment.status.value,
        "reason": _reason(payment.reason, reason_form),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _reason(code: str | None, form: str) -> object:
    if code is None or form == "string":
        return code
    _, message = CODED.get(code, (0, code.replace("_", " ").capitalize() + "."))
    return {"code": code, "message": message}

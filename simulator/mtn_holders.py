"""Balances and account holders (1.7, 1.14)."""

from decimal import Decimal

from simulator import mtn_access
from simulator.messages import Reply, Request, coded, json_reply
from simulator.scenarios import ACCOUNT_HOLDER, BASIC_USER_INFO, ENVIRONMENTS, decimals_of
from simulator.simulation import Simulation

_HOLDER_TYPES = frozenset({"msisdn", "email", "party_code", "alias", "id"})
_INCOMING = "collection"


def balance(
    simulation: Simulation, request: Request, product: str, currency: str | None = None
) -> Reply:
    """Answer the opening balance plus later movements (one wallet for each product)."""
    caller = mtn_access.admit(simulation, request, product)
    currencies = ENVIRONMENTS[caller.environment]
    wanted = currency or currencies[0]
    if wanted not in currencies:
        return coded("INVALID_CURRENCY")
    moved_minor = simulation.store.ledger.balance_minor(caller.account.api_user, product, wanted)
    moved = Decimal(moved_minor).scaleb(-decimals_of(wanted))
    opening = Decimal(simulation.settings.opening_balance)
    available = opening + moved if product == _INCOMING else opening - moved
    return json_reply(200, {"availableBalance": f"{available:f}", "currency": wanted})


def is_active(
    simulation: Simulation, request: Request, product: str, *, holder_type: str, holder: str
) -> Reply:
    """Answer whether a holder is active, with the special holders of 1.14."""
    mtn_access.admit(simulation, request, product)
    if holder_type.lower() not in _HOLDER_TYPES:
        return Reply(400)
    code = ACCOUNT_HOLDER.get(holder, "")
    return coded(code) if code else json_reply(200, {"result": code is not None})


def basic_user_info(
    simulation: Simulation, request: Request, product: str, *, holder_type: str, holder: str
) -> Reply:
    """Answer the holder's name: always the same person (1.9)."""
    mtn_access.admit(simulation, request, product)
    if holder_type.lower() not in _HOLDER_TYPES:
        return Reply(400)
    code = ACCOUNT_HOLDER.get(holder)
    return coded(code) if code else json_reply(200, BASIC_USER_INFO)

"""Sandbox provisioning: API users and their keys (1.4)."""

from simulator import mtn_access
from simulator.accounts import ANY_PRODUCT
from simulator.messages import Reply, Request, coded, json_reply
from simulator.simulation import Simulation


def create_user(simulation: Simulation, request: Request) -> Reply:
    """Create an API user: POST /v1_0/apiuser.

    MTN's portal issues subscription keys; here any key that provisions a user becomes valid,
    for all products.
    """
    key = mtn_access.subscription_key(request)
    api_user = mtn_access.new_reference(request)
    document = request.document()
    host = document.get("providerCallbackHost") if isinstance(document, dict) else None
    # A bare host name: no scheme, no port, no path (1.4).
    if not isinstance(host, str) or not host or set(host) & set("/: "):
        return Reply(400)
    if not simulation.store.accounts.create(api_user, host):
        return coded("RESOURCE_ALREADY_EXIST")
    simulation.store.accounts.allow(key, ANY_PRODUCT)
    return Reply(201)


def show_user(simulation: Simulation, request: Request, api_user: str) -> Reply:
    """Show an API user: GET /v1_0/apiuser/{id}."""
    mtn_access.subscription_key(request)
    account = simulation.store.accounts.find(mtn_access.reference_in_path(api_user))
    if account is None:
        return coded("RESOURCE_NOT_FOUND")
    return json_reply(
        200, {"providerCallbackHost": account.callback_host, "targetEnvironment": "sandbox"}
    )


def create_key(simulation: Simulation, request: Request, api_user: str) -> Reply:
    """Make a new key; the previous one is void: POST /v1_0/apiuser/{id}/apikey."""
    mtn_access.subscription_key(request)
    account = simulation.store.accounts.find(mtn_access.reference_in_path(api_user))
    if account is None:
        return coded("RESOURCE_NOT_FOUND")
    return json_reply(201, {"apiKey": simulation.store.accounts.issue_key(account.api_user)})

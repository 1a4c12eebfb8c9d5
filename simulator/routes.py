"""The table of all routes: which handler answers which call."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from urllib.parse import unquote

from simulator import admin, mtn_access, mtn_holders, mtn_payments, mtn_provisioning
from simulator.accounts import PRODUCTS
from simulator.evidence import VIEWS
from simulator.messages import Reply
from simulator.mtn_payments import TILLS

ADMIN = "admin"
ADMIN_PREFIX = "/_admin/"
UNKNOWN = "unknown"

# Called with the simulation, the request, and the path's variables by name.
Handler = Callable[..., Reply]


@dataclass(frozen=True, slots=True)
class Route:
    """A method and path, the operation as faults name it, and the handler."""

    method: str
    path: str
    operation: str
    handler: Handler
    product: str | None = None


@dataclass(frozen=True, slots=True)
class Match:
    """A route that matches a request, with the path's variables."""

    route: Route
    variables: dict[str, str]


def _mtn_routes() -> list[Route]:
    found = [
        Route("POST", "/v1_0/apiuser", "provisioning", mtn_provisioning.create_user),
        Route("GET", "/v1_0/apiuser/{api_user}", "provisioning", mtn_provisioning.show_user),
        Route(
            "POST", "/v1_0/apiuser/{api_user}/apikey", "provisioning", mtn_provisioning.create_key
        ),
    ]
    for till in TILLS:
        path = f"/{till.product}/v1_0/{till.operation}"
        one = path + "/{reference_id}"
        create = partial(mtn_payments.create, till=till)
        show = partial(mtn_payments.show, till=till)
        notify = partial(mtn_payments.notify_delivery, till=till)
        found += [
            Route("POST", path, "create", create, till.product),
            Route("GET", one, "status", show, till.product),
            Route("POST", one + "/deliverynotification", "notification", notify, till.product),
        ]
    for product in PRODUCTS:
        found += _product_routes(product)
    return found


def _product_routes(product: str) -> list[Route]:
    holder = f"/{product}/v1_0/accountholder/{{holder_type}}/{{holder}}"
    balance = partial(mtn_holders.balance, product=product)
    is_active = partial(mtn_holders.is_active, product=product)
    user_info = partial(mtn_holders.basic_user_info, product=product)
    token = partial(mtn_access.issue_token, product=product)
    return [
        Route("POST", f"/{product}/token", "token", token, product),
        Route("GET", f"/{product}/v1_0/account/balance", "balance", balance, product),
        Route("GET", f"/{product}/v1_0/account/balance/{{currency}}", "balance", balance, product),
        Route("GET", holder + "/active", "holder", is_active, product),
        Route("GET", holder + "/basicuserinfo", "holder", user_info, product),
    ]


def _admin_routes() -> list[Route]:
    table: list[tuple[str, str, Handler]] = [
        ("POST", "faults", admin.add_fault),
        ("GET", "faults", admin.list_faults),
        ("DELETE", "faults", admin.clear_faults),
        ("DELETE", "faults/{fault_id}", admin.remove_fault),
        ("GET", "settings", admin.show_settings),
        ("POST", "settings", admin.change_settings),
        ("POST", "approve/{reference_id}", admin.approve),
        ("POST", "reject/{reference_id}", admin.reject),
        ("POST", "clock", admin.move_clock),
        ("POST", "tokens/expire", admin.expire_tokens),
        ("POST", "reset", admin.reset),
        ("GET", "summary", admin.summary),
        ("GET", "health", admin.health),
        *(("GET", view, partial(admin.show_page, view=view)) for view in VIEWS),
    ]
    return [Route(method, ADMIN_PREFIX + path, ADMIN, handler) for method, path, handler in table]


class Router:
    """Finds routes: by method and number of segments first, so that few are compared."""

    def __init__(self) -> None:
        self._by_shape: dict[tuple[str, int], list[tuple[list[str], Route]]] = {}
        for route in _mtn_routes() + _admin_routes():
            segments = route.path.strip("/").split("/")
            shape = (route.method, len(segments))
            self._by_shape.setdefault(shape, []).append((segments, route))

    def find(self, method: str, path: str) -> Match | None:
        """Find the route; a trailing slash makes no difference (1.17 item 7)."""
        given = path.strip("/").split("/")
        for segments, route in self._by_shape.get((method, len(given)), ()):
            variables = _variables(segments, given)
            if variables is not None:
                return Match(route, variables)
        return None


def _variables(segments: list[str], given: list[str]) -> dict[str, str] | None:
    variables: dict[str, str] = {}
    for segment, value in zip(segments, given, strict=True):
        if segment.startswith("{"):
            variables[segment[1:-1]] = unquote(value)
        elif segment != value:
            return None
    return variables

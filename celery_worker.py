"""The Celery app: celery -A celery_worker worker, and celery -A celery_worker beat."""

import threading

from payments_app import create_app, refuse_unsafe_role
from payments_app.worker.health_server import open_ports
from payments_app.worker.poller import Poller

_stop = threading.Event()
# Not named `app`: celery -A reads that attribute first, but must find `celery`.
flask_app = create_app(stopping=_stop.is_set)
refuse_unsafe_role(flask_app)
celery = flask_app.extensions["celery"]
_poller = Poller(flask_app, _stop)
_poller.connect()
open_ports(flask_app.extensions["maramoja"].settings, _poller)

"""The worker's and beat's app: celery -A celery_worker worker, celery -A celery_worker beat."""

import threading

from payments_app import create_app, refuse_unsafe_role
from payments_app.worker.poller import Poller
from payments_app.worker.port import open_ports

_stop = threading.Event()
# Never named `app`: celery -A takes that attribute first, and it must find `celery`.
flask_app = create_app(stopping=_stop.is_set)
refuse_unsafe_role(flask_app)
celery = flask_app.extensions["celery"]
_poller = Poller(flask_app, _stop)
_poller.connect()
open_ports(flask_app.extensions["maramoja"].settings, _poller)

"""The API's app, for gunicorn (gunicorn wsgi:app) and for the `flask` command."""

from payments_app import create_app

app = create_app()

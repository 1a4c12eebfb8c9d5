"""What the API's tests begin with: a fresh tenant each, and an app whose rail is on a script."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from flask import Flask

from payments_app import create_app
from payments_app.kernel.database import db
from payments_app.settings import Settings
from tests.api.http_caller import Engine, HttpCaller, new_caller
from tests.builders import ScriptedProvider, rails_of


@pytest.fixture
def caller(app: Flask) -> HttpCaller:
    """A tenant of its own, with a test key. The rail is MTN's sandbox, at no address."""
    return new_caller(app)


@pytest.fixture
def provider() -> ScriptedProvider:
    """The rail of `engine`: takes every submission, and says that it was paid."""
    return ScriptedProvider()


@pytest.fixture(scope="module")
def scripted_app(settings: Settings) -> Iterator[Flask]:
    """The application once more, for tests that put their own rails into it."""
    application = create_app(settings)
    yield application
    with application.app_context():
        db.engine.dispose()
    application.extensions["maramoja"].redis.close()


@pytest.fixture
def engine(scripted_app: Flask, provider: ScriptedProvider) -> Engine:
    """An app whose only rail is `provider`, and the way to drive its payments."""
    gateway = rails_of(scripted_app, provider)
    parts = scripted_app.extensions["maramoja"]
    scripted_app.extensions["maramoja"] = replace(parts, gateway=gateway)
    return Engine(scripted_app, gateway)


@pytest.fixture
def scripted_caller(engine: Engine) -> HttpCaller:
    """A tenant of its own at `engine`."""
    return new_caller(engine.app)

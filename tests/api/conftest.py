"""Fixtures of the API's tests: a fresh tenant for each, and an app with a scripted provider."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from flask import Flask

import payments_app
from payments_app import create_app
from payments_app.kernel.database import db
from payments_app.settings import Settings
from tests.api.http_caller import Engine, HttpCaller, new_caller
from tests.builders import ScriptedProvider, rails_of

# A Redis that the machine does not run for a moment is not one that is away.
REDIS_PATIENCE_S = 10.0


@pytest.fixture(scope="module", autouse=True)
def patient_with_redis() -> Iterator[None]:
    """The apps wait longer for Redis: else a slow machine makes a process count by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(payments_app, "REDIS_TIMEOUT_S", REDIS_PATIENCE_S)
        yield


@pytest.fixture
def caller(app: Flask) -> HttpCaller:
    """A tenant of its own, with a test key. Its provider is MTN's sandbox, at a dead address."""
    return new_caller(app)


@pytest.fixture
def provider() -> ScriptedProvider:
    """The provider of `engine`: accepts every submission, and answers each check with paid."""
    return ScriptedProvider()


@pytest.fixture(scope="module")
def scripted_app(settings: Settings) -> Iterator[Flask]:
    """The application once more, for tests that replace its gateway."""
    application = create_app(settings)
    yield application
    with application.app_context():
        db.engine.dispose()
    application.extensions["maramoja"].redis.close()


@pytest.fixture
def engine(scripted_app: Flask, provider: ScriptedProvider) -> Engine:
    """An app whose only provider is `provider`, and the means to process its payments."""
    gateway = rails_of(scripted_app, provider)
    parts = scripted_app.extensions["maramoja"]
    scripted_app.extensions["maramoja"] = replace(parts, gateway=gateway)
    return Engine(scripted_app, gateway)


@pytest.fixture
def scripted_caller(engine: Engine) -> HttpCaller:
    """A tenant of its own on the app of `engine`."""
    return new_caller(engine.app)

"""/docs in a real browser, as a new user uses it: authorize, try it out, execute."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from selenium.common.exceptions import (
    ElementClickInterceptedException,
    NoSuchElementException,
    StaleElementReferenceException,
)
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.expected_conditions import element_to_be_clickable
from selenium.webdriver.support.wait import WebDriverWait

from tests.api.http_caller import (
    PAYMENTS,
    Engine,
    HttpCaller,
    MakeApp,
    count_payments,
    new_caller,
    served,
)

PATIENCE_S = 30
AUTHORIZE = ".auth-wrapper .authorize"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """Debian's Chromium, headless."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no Chromium here: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("chromium")
    for word in (
        *("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,2400"),
        # Chromium must request nothing but the page.
        *("--disable-background-networking", "--no-first-run", f"--user-data-dir={profile}"),
    ):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = Chrome(options=options, service=Service(driver))
    yield chrome
    chrome.quit()


class Reader:
    """A user of the page."""

    def __init__(self, browser: Chrome, address: str) -> None:
        self.browser = browser
        self.browser.get(f"{address}/docs")
        # The page redraws its parts at any time.
        passing = (
            ElementClickInterceptedException,
            NoSuchElementException,
            StaleElementReferenceException,
        )
        self.wait = WebDriverWait(browser, PATIENCE_S, ignored_exceptions=passing)

    def click(self, selector: str, *, within: str = "") -> None:
        ready = element_to_be_clickable((By.CSS_SELECTOR, f"{within} {selector}".strip()))

        def is_clicked(browser: Chrome) -> bool:
            button = ready(browser)
            if not button:
                return False
            browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
            button.click()
            return True

        self.wait.until(is_clicked)

    def authorize(self, key: str) -> None:
        self.click(AUTHORIZE)
        field = self.found("#auth-bearer-value, .auth-container input")
        field.send_keys(key)
        self.click(".auth-btn-wrapper .authorize", within=".auth-container")
        self.click(".auth-btn-wrapper .btn-done")

    def open(self, operation: str) -> str:
        """Unfold the operation and click "Try it out". Returns the selector of its block."""
        block = f"[id$='-{operation}']"
        self.click(".opblock-summary-control", within=block)
        self.click(".try-out__btn", within=block)
        return block

    def execute(self, block: str) -> int:
        """Click "Execute"; the status that the page shows."""
        before = self._requests()
        self.click(".execute", within=block)
        self.wait.until(lambda _: self._requests() > before)
        # Until the page has drawn the response, it shows the one before.
        loading = f"{block} .loading-container"
        self.wait.until(lambda browser: not browser.find_elements(By.CSS_SELECTOR, loading))
        place = f"{block} .live-responses-table tbody .response-col_status"
        shown: str = self.wait.until(
            lambda browser: browser.find_element(By.CSS_SELECTOR, place).text
        )
        return int(shown.split(maxsplit=1)[0])

    def key_of(self, block: str) -> str:
        """The value of the Idempotency-Key field, once it has one."""
        place = f"{block} tr[data-param-name='Idempotency-Key'] input"
        found: str = self.wait.until(
            lambda browser: browser.find_element(By.CSS_SELECTOR, place).get_attribute("value")
        )
        return found

    def empty_key(self, block: str) -> None:
        field = self.found("tr[data-param-name='Idempotency-Key'] input", within=block)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(Keys.DELETE)
        place = f"{block} tr[data-param-name='Idempotency-Key'] input"
        self.wait.until(
            lambda browser: not browser.find_element(By.CSS_SELECTOR, place).get_attribute("value")
        )

    def sent_key(self, block: str) -> str:
        """The key of the last request, as the page shows it."""
        command = self.found(".curl-command", within=block).text
        return str(command.split("Idempotency-Key:")[1].split("'")[0].strip())

    def _requests(self) -> int:
        counted: int = self.browser.execute_script(
            "return performance.getEntriesByType('resource')"
            ".filter(entry => entry.name.includes('/api/')).length"
        )
        return counted

    def found(self, selector: str, *, within: str = "") -> WebElement:
        place = f"{within} {selector}".strip()
        element: WebElement = self.wait.until(
            lambda browser: browser.find_element(By.CSS_SELECTOR, place)
        )
        return element

    def complaints(self) -> list[dict[str, Any]]:
        """Severe messages of the browser: a policy violation, a script that failed."""
        log: list[dict[str, Any]] = self.browser.get_log("browser")
        return [entry for entry in log if entry["level"] == "SEVERE"]


@pytest.mark.slow
@pytest.mark.timeout(8 * PATIENCE_S)
def test_a_payment_is_taken_as_the_page_stands_as_often_as_one_clicks(
    browser: Chrome, engine: Engine, scripted_caller: HttpCaller
) -> None:
    with served(engine.app) as address:
        reader = Reader(browser, address)
        reader.authorize(scripted_caller.key.key)

        taking = reader.open("create_payment")
        shown, answered, sent = [], [], []
        for _ in range(2):
            shown.append(reader.key_of(taking))
            answered.append(reader.execute(taking))
            sent.append(reader.sent_key(taking))
        assert answered == [201, 201]
        assert count_payments(scripted_caller) == 2
        assert sent == shown
        assert (
            len(
                {
                    *shown,
                    reader.key_of(taking),
                    reader.key_of(reader.open("create_webhook_endpoint")),
                }
            )
            == 4
        )
        assert {UUID(key).version for key in shown} == {4}
        assert "X-Tenant-Id" not in reader.found(".curl-command", within=taking).text

        assert reader.execute(reader.open("list_payments")) == 200
        listed = reader.found("[id$='-list_payments'] .live-responses-table").text
        assert scripted_caller.get(PAYMENTS).get_json()["data"][0]["id"] in listed
        assert reader.complaints() == []


@pytest.mark.slow
@pytest.mark.timeout(8 * PATIENCE_S)
def test_a_key_that_was_not_spent_stays_and_an_emptied_field_is_filled(
    browser: Chrome, engine: Engine, scripted_caller: HttpCaller
) -> None:
    with served(engine.app) as address:
        reader = Reader(browser, address)
        taking = reader.open("create_payment")
        key = reader.key_of(taking)

        assert reader.execute(taking) == 401
        assert reader.key_of(taking) == key

        reader.authorize(scripted_caller.key.key)
        reader.empty_key(taking)
        assert reader.execute(taking) == 201
        assert UUID(reader.sent_key(taking)).version == 4
        # To the browser the 401 is an error. There is no other.
        assert ["401" in one["message"] for one in reader.complaints()] == [True]


@pytest.mark.slow
@pytest.mark.timeout(8 * PATIENCE_S)
def test_an_endpoint_is_made_as_the_page_stands_where_make_run_serves_it(
    browser: Chrome, make_app: MakeApp
) -> None:
    """`make run` turns this setting on: devstack/up.py."""
    app = make_app(webhook_allow_private_addresses=True)
    with served(app) as address:
        reader = Reader(browser, address)
        reader.authorize(new_caller(app).key.key)

        assert reader.execute(reader.open("create_webhook_endpoint")) == 201


@pytest.mark.slow
@pytest.mark.timeout(4 * PATIENCE_S)
def test_webhooks_are_on_the_page(browser: Chrome, engine: Engine) -> None:
    with served(engine.app) as address:
        reader = Reader(browser, address)

        # The page may draw the text after the section.
        reader.wait.until(lambda _: "payment.successful" in reader.found(".webhooks").text)
        assert reader.complaints() == []

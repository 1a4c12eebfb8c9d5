"""docs/test-numbers.md has every number with a special effect, and describes the effect."""

from __future__ import annotations

import re
from typing import Final

from payments_app.kernel.msisdn import Msisdn
from simulator.scenarios import REQUEST_TO_PAY, Status
from tests.docs.pages import read
from tests.journeys.test_outcomes import FAILURES

ROW: Final = re.compile(
    r"^\| (\d\d) \| `(\d+)` \| `(\d+)` \| `(\d+)` \| ([^|]*) \| (?:`(\w+)`)? ?\| (?:`(\w+)`)? ?\|$",
    re.MULTILINE,
)


def test_each_number_ends_as_the_page_says() -> None:
    told = ROW.findall(read("docs/test-numbers.md"))

    numbers = {number for row in told for number in row[1:4]}
    assert numbers == set(REQUEST_TO_PAY)
    for ending, *same, ends, code, reason in told:
        for number in same:
            scenario = REQUEST_TO_PAY[number]
            assert number.endswith(ending)
            assert (scenario.reason or "") == reason
            assert ends.startswith("FAILED") == (scenario.status is Status.FAILED)
        if code:
            assert FAILURES[ending] == (reason, code)


def test_each_number_is_one_that_its_market_takes() -> None:
    for _, sandbox, uganda, zambia, *_ in ROW.findall(read("docs/test-numbers.md")):
        assert Msisdn.parse(sandbox).country == "SE"
        assert Msisdn.parse(uganda).country == "UG"
        assert Msisdn.parse(zambia).country == "ZM"

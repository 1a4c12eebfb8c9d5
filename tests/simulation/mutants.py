"""The bugs of other gateways, and some that ours could have; each can be switched on alone.

docs/mutants.md lists them with the check that detects each.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Final
from uuid import uuid4, uuid5

from payments_app.kernel import idempotency
from payments_app.kernel.http.bounded_connection import ExchangeDeadline
from payments_app.payments import accept, claims, evidence, outcomes, processor
from payments_app.payments.gateway import PaymentGateway
from payments_app.providers import mtn_answers, submission
from payments_app.providers.mtn_momo import MtnMomo
from payments_app.providers.submission import SubmissionClient
from tests.simulation import borrowed
from tests.simulation.rewriting import Edit, rewritten


@dataclass(frozen=True)
class Mutant:
    """`applied()` switches the bug on for one run; it keeps no state from one run to the next."""

    name: str
    wrong: str
    applied: Callable[[], AbstractContextManager[None]]


def _edited(name: str, wrong: str, *edits: Edit) -> Mutant:
    return Mutant(name, wrong, partial(rewritten, *edits))


# Switches off the check of an adapter's verdict about several requests, or about one whose answer
# was lost, and falsifies the count by which the database would refuse it. Some bugs are harmless
# without this edit.
_NOT_JUDGED: Final = Edit(
    SubmissionClient,
    "judge",
    "if seen.verdict not in ABOUT_ONE_REQUEST or",
    "if True or",
    more=(("requests_left=self.left", "requests_left=min(self.left, 1)"),),
)

# Bugs observed in other gateways: docs/mutants.md says where.
OF_OTHERS: Final = (
    _edited(
        "reference_made_in_the_call",
        "each call makes its own reference, which is in no table before it is sent",
        Edit(
            PaymentGateway,
            "order_for",
            "reference=payment.reference,",
            "reference=uuid4(),",
            {"uuid4": uuid4},
        ),
    ),
    _edited(
        "new_reference_on_retry",
        "a resend carries a new reference",
        Edit(
            PaymentGateway,
            "order_for",
            "reference=payment.reference,",
            "reference=payment.reference if payment.submissions < 2"
            " else uuid5(payment.reference, str(payment.submissions)),",
            {"uuid5": uuid5},
        ),
    ),
    _edited(
        "timeout_is_failed",
        "no answer to a submission means FAILED",
        Edit(
            MtnMomo,
            "submit",
            "Verdict.UNKNOWN if silence.sent else",
            "Verdict.FAILED if silence.sent else",
        ),
        _NOT_JUDGED,
    ),
    _edited(
        "server_error_is_failed",
        "a 5xx means FAILED",
        Edit(
            mtn_answers,
            "_no_news",
            "Verdict.UNKNOWN,",
            "Verdict.FAILED if answer.status >= 500 else Verdict.UNKNOWN,",
        ),
    ),
    _edited(
        "not_found_is_failed",
        "a 404 to a status check means FAILED at once",
        Edit(mtn_answers, "checked", 'Verdict.NOT_FOUND, "', 'Verdict.FAILED, "'),
    ),
    _edited(
        "duplicate_is_failed",
        "409, the reference is known, is taken for a decline",
        Edit(
            mtn_answers,
            "submitted",
            "verdict, reason, meaning = _SUBMITTED[status]",
            "verdict, reason, meaning = _SUBMITTED[status]\n"
            "    verdict = Verdict.FAILED if status == 409 else verdict",
        ),
    ),
    _edited(
        "unknown_word_is_failed",
        "a status that isn't known means FAILED",
        Edit(
            mtn_answers,
            "checked",
            '_text(fields, "status"), Verdict.UNKNOWN)',
            '_text(fields, "status"), Verdict.FAILED)',
        ),
    ),
    _edited(
        "pending_is_failed",
        "everything but SUCCESSFUL means FAILED",
        Edit(
            mtn_answers,
            "checked",
            "amount = replies",
            "verdict = verdict if verdict is Verdict.SUCCESSFUL else Verdict.FAILED\n"
            "    amount = replies",
        ),
    ),
    Mutant(
        "key_without_tenant",
        "an idempotency key is looked up without its tenant",
        borrowed.key_without_tenant,
    ),
    _edited(
        "key_without_body",
        "a key gives its answer to any other request too",
        Edit(idempotency, "fingerprint", "return _DIGESTS[version]", "return bytes(32) or"),
    ),
    _edited(
        "key_chargeable_again",
        "a key whose answer has expired acts anew",
        Edit(
            accept,
            "_insert_once",
            "return insert_payment(payment, metadata, claim, actor=actor, request_id=context.request_id)",
            "row = insert_payment(payment, metadata, claim, actor=actor, request_id='')\n"
            "        if row is None or not row.key.is_past_expiry:\n"
            "            return row\n"
            "        return insert_payment(\n"
            "            payment, metadata, None, actor=actor, request_id=''\n"
            "        )",
        ),
    ),
    Mutant(
        "lock_dropped_on_error",
        "the key is released when the request fails, whatever had happened by then",
        borrowed.lock_dropped_on_error,
    ),
    Mutant(
        "looked_up_then_stored_after",
        "look for the key, act, store the key",
        borrowed.looked_up_then_stored_after,
    ),
    Mutant(
        "nightly_clean_up",
        "PENDING for more than a day becomes FAILED",
        borrowed.nightly_clean_up,
    ),
    Mutant(
        "callback_trusted",
        "the status in a callback becomes the payment's",
        borrowed.callback_trusted,
    ),
)

# Each removes one guard of ours.
OF_OURS: Final = (
    _edited(
        "no_generation_check",
        "a worker that lost its claim still writes",
        Edit(
            outcomes,
            "apply_result",
            "payment.generation != claim.generation or payment.is_final",
            "payment.is_final",
        ),
    ),
    _edited(
        "final_written_again",
        "a late answer is applied to a payment that has ended",
        Edit(
            outcomes,
            "apply_result",
            "payment.generation != claim.generation or payment.is_final",
            "payment.generation != claim.generation and not payment.is_final",
        ),
    ),
    _edited(
        "no_fence_on_the_wire",
        "a call leaves although its lease is over",
        Edit(ExchangeDeadline, "check_lease", "raise LeaseLost(", "return ("),
    ),
    _edited(
        "renewed_by_anyone",
        "a worker that lost its claim can renew the lease",
        Edit(claims, "renewed", ", Payment.generation == claim.generation", ""),
    ),
    _edited(
        "not_written_before",
        "a submission's row is written after its answer",
        Edit(processor, "_take", "open_submission(batch, payment)", "pass"),
        Edit(evidence, "store_exchanges", "if claim.step is Step.SUBMIT:", "if not claim.step:"),
    ),
    _edited(
        "claimed_without_lock",
        "due payments are read without a row lock",
        Edit(claims, "_due_query", ".with_for_update(skip_locked=True, key_share=True)", ""),
    ),
    _edited(
        "claimed_without_lease",
        "a claim ends as soon as it is committed",
        Edit(
            processor,
            "_take",
            "payment.lease_until = payment.next_action_at = now + LEASE",
            "payment.lease_until = payment.next_action_at = now",
        ),
    ),
    _edited(
        "lease_ignored",
        "a due payment is claimed although another worker holds its lease",
        Edit(
            claims,
            "in_queue",
            "coalesce(lease_until, next_action_at)",
            "next_action_at",
        ),
        # Build the query anew, so that it uses the edited function.
        Edit(claims, "_due_query", "@cache", ""),
        Edit(claims, "_waiting_query", "@cache", ""),
    ),
    _edited(
        "lease_for_hours",
        "after a crash no worker claims the payment for hours",
        Edit(
            processor,
            "_take",
            "payment.lease_until = payment.next_action_at = now + LEASE",
            "payment.lease_until = payment.next_action_at = now + 400 * LEASE",
        ),
    ),
    _edited(
        "recorded_without_lock",
        "an answer is written without the row's lock",
        Edit(
            claims,
            "locked_payments",
            ".with_for_update(of=Payment, skip_locked=skip_locked, key_share=True)",
            "",
        ),
    ),
    _edited(
        "resent_without_asking",
        "after an unknown answer it is sent again at once",
        Edit(
            outcomes,
            "_record_submission",
            "_act_again(payment, Step.CHECK, batch.now, backoff.first_check_s(seen.retry_after_s))",
            "_act_again(payment, Step.SUBMIT, batch.now, backoff.first_check_s(seen.retry_after_s))",
        ),
    ),
    _edited(
        "resent_after_a_crash",
        "after its worker's crash a submission is sent again without a status check",
        Edit(processor, "_take", "payment.next_step = Step.CHECK", "pass"),
    ),
    _edited(
        "silence_is_not_sent",
        "no answer is taken for proof that nothing was sent",
        Edit(
            MtnMomo,
            "submit",
            "Verdict.UNKNOWN if silence.sent else",
            "Verdict.NOT_SENT if silence.sent else",
        ),
        _NOT_JUDGED,
    ),
    _edited(
        "resent_refusal_ends",
        "a refusal of the second submission ends it, though the first may have arrived",
        Edit(
            outcomes,
            "_record_submission",
            "case Verdict.REFUSED | Verdict.FAILED if _is_alone(batch, payment):",
            "case Verdict.REFUSED | Verdict.FAILED:",
        ),
    ),
    _edited(
        "second_request_refusal_ends",
        "within one submission a refusal of the second request ends it, though the first was taken",
        _NOT_JUDGED,
    ),
    _edited(
        "throttled_did_not_leave",
        "a submission that was answered 429 is taken for one that did not leave",
        Edit(
            outcomes,
            "_is_alone",
            " and not may_have_left_before(batch, payment)",
            "",
        ),
    ),
    _edited(
        "failure_of_a_resend_believed",
        "an adapter returns FAILED for a request that it sent again, and that ends the payment",
        Edit(
            mtn_answers,
            "submitted",
            'Verdict.REFUSED, "refused", Failure',
            'Verdict.FAILED, "refused", Failure',
        ),
        Edit(
            outcomes,
            "_record_submission",
            "case Verdict.SUCCESSFUL:",
            "case Verdict.SUCCESSFUL | Verdict.FAILED:",
        ),
    ),
    _edited(
        "lease_lost_is_not_sent",
        "the lease ends between two requests of a submission, and that counts as not sent",
        Edit(
            MtnMomo,
            "_send_again",
            "except LeaseLost:\n        return first",
            "except LeaseLost:\n        raise",
        ),
        Edit(submission, "_raised", "if not counted.left:", "if True:"),
    ),
    _edited(
        "adapter_error_is_not_sent",
        "the adapter fails after its second request has left, and that counts as not sent",
        Edit(
            MtnMomo,
            "_send_again",
            "if isinstance(second, NoResponse):",
            "if isinstance(second, NoResponse) and second.sent:\n        raise OSError\n"
            "    if isinstance(second, NoResponse):",
        ),
        Edit(
            processor,
            "_seen",
            'Verdict.UNKNOWN, "adapter_failed"',
            'Verdict.NOT_SENT, "adapter_failed"',
        ),
    ),
    _edited(
        "adapter_sends_again",
        "a partner's adapter sends again by itself when it gets no answer, and nothing judges it",
        Edit(
            MtnMomo,
            "_send",
            "if not isinstance(first, HttpResponse) or first.status != HTTPStatus.UNAUTHORIZED:",
            "if isinstance(first, HttpResponse) and first.status != HTTPStatus.UNAUTHORIZED:",
        ),
        _NOT_JUDGED,
    ),
    _edited(
        "young_not_found_ends",
        "after a refusal any 404 ends it, however young",
        Edit(
            outcomes,
            "_record_not_found",
            "age_s >= capabilities.visible_after_s and (refusal",
            "(refusal",
        ),
    ),
    _edited(
        "amount_not_compared",
        "paid is paid, whatever the amount",
        Edit(
            outcomes,
            "settle",
            "if seen.verdict is Verdict.SUCCESSFUL and",
            "if seen.verdict is Verdict.FAILED and",
        ),
    ),
    _edited(
        "answer_expires_in_flight",
        "an answer expires although its payment has no end yet",
        Edit(accept, "_replayed", " and row.payment_status != Status.PENDING", ""),
    ),
    _edited(
        "change_without_its_line",
        "a payment's status changes without an event",
        Edit(
            outcomes,
            "move",
            "if payment.apply(event, batch.now):",
            "if payment.apply(event, batch.now) and payment.is_final:",
        ),
    ),
    _edited(
        "asked_hours_later",
        "the pause before the next status check is a thousand times too long",
        Edit(outcomes, "_act_again", "seconds=delay_s", "seconds=1000 * delay_s"),
    ),
)

ALL: Final = {mutant.name: mutant for mutant in (*OF_OTHERS, *OF_OURS)}

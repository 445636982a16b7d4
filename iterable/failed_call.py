"""A failed call -> the details that its caller gets, without secrets and whole addresses. Nothing is sent or logged."""

from __future__ import annotations

from typing import Any

from iterable import answers
from iterable.answers import Answer
from iterable.redaction import Redactor


def details_of(name: str, answer: Answer, attempts: int, redactor: Redactor, identity: str | None) -> dict[str, Any]:
    """The `details` that `IterableClient` describes. identity: whom the call was about, for masking."""
    failure = answers.classify(answer, attempts)
    answer = answers.rewrite(answer, redactor.without_secrets)  # Iterable has echoed a request's headers in errors
    code = (answer.body or {}).get("code")
    said = redactor.quote(answers.what_it_says(answer), identity)
    return {
        "error": f"{name} {answers.describe(answer, said, attempts)}",
        "status_code": answer.status_code,
        "code": code if isinstance(code, str) else None,
        "attempts": attempts,
        "failure": failure,
        "disallowed": answers.is_disallowed(answer.body),
        "answer": answer.body,
    }

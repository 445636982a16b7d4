"""Takes secrets, people and control characters out of texts, in time that grows with their length and no faster.

In: any text, also a hostile one of many megabytes. Out: what a log, a console or a message may show.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from urllib.parse import quote

SHORTEST_SECRET = 4  # shorter ones are placeholders; replacing them would garble ordinary words
MAX_QUOTED_CHARS = 500
LONGEST_ADDRESS = 320  # characters: 64 before the @ and 255 after it

# What a key or a token looks like wherever it stands, also one that is not ours or that was cut off.
_CREDENTIAL = re.compile(
    r"(?P<lead>(?i:bearer)\s+|(?i:api[-_]key)[\"']?(?:\s*[:=]\s*|,)[\"']?)[\w.~+/=-]+"
    r"|eyJ(?:[\w-]{17,}|[\w-]{5,16}(?=\.))(?:\.[\w-]*){0,2}"
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

# An address is found by its @, and what stands before that is read backwards: quoted, or up to what can't belong to it.
# That is also the user and the password of a URL. Between two quotes, nothing but JSON's punctuation is no local part.
# The bounds keep a hostile text from filling the memory.
_AT = re.compile(r"(@|%40|\\u0040)")
_LOCAL_PART_BACKWARDS = re.compile(
    r""""(?![\s:,\[\]{}\\]*")(?:"\\|[^"]){0,320}"\\?|(?:[^\s"'<>()\[\],;\\/]+|'(?=\w)|/(?!/)){1,320}"""
)
# In our own advice, and no secret.
_EXAMPLE = "user:password@host"
_EXAMPLE_ALONE = re.compile(re.escape(_EXAMPLE) + r"(?![\w.-])")


class Redactor:
    """Knows the secrets of one program; everything else it recognizes by its form."""

    def __init__(self, secrets: Iterable[str | None] = ()) -> None:
        forms: set[str] = set()
        for secret in secrets:
            if secret and len(secret) >= SHORTEST_SECRET:
                forms |= {secret, repr(secret)[1:-1], *_as_json(secret)}
        # The longest first, so that a secret within another leaves nothing of it.
        self._secrets = sorted(forms, key=len, reverse=True)
        self._longest = max([LONGEST_ADDRESS, *map(len, forms)])

    def without_secrets(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return _CREDENTIAL.sub(lambda match: (match["lead"] or "") + "***", text)

    def line(self, text: str, *, max_chars: int | None = None) -> str:
        """One line that can't pass for several, without secrets and full addresses: for the log and the console.

        max_chars: show only the beginning of a long text.
        """
        shown = self._masked(text) if max_chars is None else self._start(text, max_chars)
        return _CONTROL.sub(lambda match: repr(match[0])[1:-1], shown)

    def person(self, text: str, identity: str | None) -> str:
        """The text without one person's e-mail address or user id, in upper or lower case. The first letter stays.

        `ada@example.com` -> `a***@example.com`, `u-17` -> `u***`.
        """
        if not identity or len(identity) < 2:
            return text
        _, at, domain = identity.rpartition("@")
        masked = f"{identity[0]}***{at}{domain if at else ''}"
        for form in {identity, quote(identity), *_as_json(identity)}:
            if (
                len(form) > LONGEST_ADDRESS
            ):  # none that Iterable takes; in any case, it would cost the square of its length
                text = text.replace(form, masked)
            else:
                text = re.sub(rf"(?<!\w){re.escape(form)}(?!\w)", lambda _: masked, text, flags=re.IGNORECASE)
        return text

    def quote(self, text: str, identity: str | None = None) -> str:
        """The beginning of a foreign text, on one line, to be a part of a message. identity: whom the text is about."""
        shown = self._start(self.person(text.strip(), identity), MAX_QUOTED_CHARS)
        return " ".join("".join(each if each.isprintable() else " " for each in shown).split())

    def _start(self, text: str, max_chars: int) -> str:
        """Cut first, so that a text of any length costs little; what the cut may have left half of is not shown."""
        start = text[: max_chars + self._longest]
        shown = self._masked(start)
        if len(start) < len(text):
            shown = shown[: -self._longest]
        return shown[:max_chars]

    def _masked(self, text: str) -> str:
        return _mask_addresses(self.without_secrets(text))


def _as_json(text: str) -> set[str]:
    return {json.dumps(text, ensure_ascii=is_ascii)[1:-1] for is_ascii in (True, False)}


def _mask_addresses(text: str) -> str:
    return _EXAMPLE.join(map(_mask_all, _EXAMPLE_ALONE.split(text)))


def _mask_all(text: str) -> str:
    """`ada@example.com` -> `a***@example.com`. Reads each character twice at most."""
    parts = _AT.split(text)
    parts[:-1:2] = map(_mask_end, parts[:-1:2])
    return "".join(parts)


def _mask_end(text: str) -> str:
    local_part = _LOCAL_PART_BACKWARDS.match(text[::-1])
    if local_part is None or local_part[0] in ("***", f"***{text[-4:-3]}"):  # masked already
        return text
    start = len(text) - local_part.end()
    return f"{text[: start + 1]}***"

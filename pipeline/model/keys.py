"""The keys by which records are known, in the stage and in the ledger: their sizes, and what can be seen from them.

A user's key is a keyed hash. An event's key begins like its user's, and goes on with a hash of its id, where the query
gives one, or else of its name, time and fields. Which of the two it is stands in the byte between them.
"""

from collections.abc import Sequence

HASH_BYTES = 16  # of a user's key, and of a fingerprint
USER_BYTES = 8  # of the user's key, with which an event's begins
EVENT_BYTES = 12  # the byte that says of what it is made, and the hash
MADE_KEY, GIVEN_KEY = b"\0", b"\1"  # that byte
KEY_BYTES = USER_BYTES + EVENT_BYTES  # of an event
PERSON_BYTES = 10  # a hash of who somebody is, whatever the address
ORIGIN_BYTES = 10  # what made event ids say of a person
FIELD_NAME_BYTES = 4
FIELD_BYTES = 10  # a field's name, and a hash of its value

MADE = b"\1"  # the fingerprint of an event whose key stands for all that it says


def is_given(key: bytes) -> bool:
    """Whether an event's key is made of an id that the query gives."""
    return key[USER_BYTES] == GIVEN_KEY[0]


def split_fields(fields: bytes) -> dict[bytes, bytes]:
    """The hashes of a user's fields: of each name, the name and the value."""
    return {
        fields[start : start + FIELD_NAME_BYTES]: fields[start : start + FIELD_BYTES]
        for start in range(0, len(fields), FIELD_BYTES)
    }


def merged_fields(known: bytes, newer: bytes) -> bytes:
    """What is known of a user's fields when an update with the newer ones is accepted."""
    return b"".join({**split_fields(known), **split_fields(newer)}.values())


def split_names(names: bytes) -> Sequence[bytes]:
    return [names[start : start + FIELD_NAME_BYTES] for start in range(0, len(names), FIELD_NAME_BYTES)]

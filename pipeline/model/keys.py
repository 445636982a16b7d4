"""The sizes of the keys by which records are known, in the stage and in the ledger."""

HASH_BYTES = 16  # of a user's key
USER_BYTES = 8  # an event's key is the beginning of its user's key, and a hash of its id
EVENT_BYTES = 12
KEY_BYTES = USER_BYTES + EVENT_BYTES  # of an event

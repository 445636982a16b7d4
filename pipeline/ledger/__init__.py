"""What one run leaves to the next, in a SQLite file without personal data: what Iterable has accepted, what failed,
cursors, runs; and the lock. May import `model`. Only the thread that opened it uses it."""

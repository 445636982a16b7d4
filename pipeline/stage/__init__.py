"""This run's records, in a temporary SQLite file: what is pending, in which order it is sent, and what became of
each. May import `model`. Only the thread that opened it uses it."""

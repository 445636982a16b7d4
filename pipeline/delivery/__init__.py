"""Pending records to requests, concurrently, and one outcome for each record. May import `ledger`, `stage` and
`model`, and the client. One thread decides and keeps the ledger; workers only send, and meet in the breaker."""

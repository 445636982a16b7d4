"""What only looks and sends no record: --check, --history, --explain, --verify. Loaded when it is asked for, so it
has no face. May import all other packages."""

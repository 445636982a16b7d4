"""Settings: `.env` and the environment, or every problem at once; which columns become which fields. May import
`model`. Used by the main thread only."""

"""What a run says: results JSON, rejected rows, summary, log, console, progress; and what of it is kept how long. May
import `model`. The log takes lines from any thread; progress has a thread of its own."""

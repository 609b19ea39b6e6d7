"""The command line: one file per command, one sink for output, one boundary for errors."""

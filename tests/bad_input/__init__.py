"""Bad input on the command line: one readable message with key or file, what was got and what is allowed, and nothing left behind."""

"""The command line and the trace browser: they parse input, call one core function, and show its result."""

"""The command line and the trace browser: they parse, call one function below, and show what it returns."""

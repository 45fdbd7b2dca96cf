"""The raw formats of the LF-* benchmarks: found, read, loaded, written."""

"""One flat script for each method: ``accelerate launch recipes/<method>.py``, or ``main(argv)`` of the module."""

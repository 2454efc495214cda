"""`python -m longtake`."""

from .pipelines.cli import main

main()

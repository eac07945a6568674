"""`python -m canwait`."""

from .cli import main

main()

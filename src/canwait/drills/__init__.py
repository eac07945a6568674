"""Drills that anyone can run: the promises of the ledger, tried against random histories and real kills."""

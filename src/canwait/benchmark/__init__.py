"""Measure, do not believe: the same rows through small and large models, batch and realtime, under one budget.

rows.py    which rows: a seeded random sample of different requests   plan.py     what will be measured, and its file
draft.py   a plan from a job, to be edited                            run.py      every arm is a job of the engine
report.py  what came of it, with intervals and n                      cascade.py  small, verify, large, with a promise
"""

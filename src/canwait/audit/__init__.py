"""Which calls nobody waits for, with the proof, and what moving them is worth. Reads what others logged; owns no job.

calls.py     one logged call, whatever wrote the log             formats/   one module a log format
code.py      call sites in source code                           facts.py   what the logs say about a site, not yet judged
gather.py    calls -> facts, streamed                            verdict.py facts -> what its readers need, with proof
spend.py     what a site costs                                   levers.py  what each change would save
worksheet.py inputs of the economics, or missing                 economics.py, capacity.py  what moving is worth
sampling.py, arriving.py  what gather.py keeps of a stream       decisions.py  the owner's word, as a file
run.py       logs and code -> the audit                          reading.py  opens logs, finds out what they are
findings.py  the audit as a value                                report.py, page.py  the audit as text, JSON, HTML
"""

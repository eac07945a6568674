-- What is looked for in every reservation, in every status and by every follower of one job.

CREATE INDEX shard_account ON shard (account, state);
CREATE INDEX entry_budget ON entry (budget, kind);
CREATE INDEX journal_job ON journal (job, seq);

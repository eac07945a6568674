-- What a gate remembers: the terms a lot was judged under, answers that are asked again, plans that were stopped.

ALTER TABLE lot ADD COLUMN quality TEXT;                       -- JSON: the gate it was drawn for
ALTER TABLE lot ADD COLUMN withdrawn BIGINT NOT NULL DEFAULT 0;  -- the last withdrawal that it knows of
ALTER TABLE publication ADD COLUMN refused TEXT;               -- why it is served no more: a gate refused its answers later
ALTER TABLE shard ADD COLUMN halted TEXT;                      -- why nothing more of its plan is sent: its answers are bad
ALTER TABLE plan ADD COLUMN past TEXT;                         -- who had it go on all the same
CREATE INDEX plan_shard_shard ON plan_shard (shard);

CREATE TABLE withdrawal (                                      -- answers that were refused, and are asked again
    seq {serial},
    root TEXT NOT NULL,                                        -- the planned shard
    job TEXT NOT NULL,                                         -- whose it is
    shards TEXT NOT NULL,                                      -- JSON: what had answered its lines by then
    lines {blob} NOT NULL,                                     -- zlib of a byte per line: 1: what they say counts no more
    at_us BIGINT NOT NULL
);
CREATE INDEX withdrawal_root ON withdrawal (root, seq);

-- The first ledger. Times are microseconds since 1970 UTC, money is micros of a US dollar.

CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
INSERT INTO meta (name, value) VALUES ('version', '1');

CREATE TABLE budget (
    id TEXT PRIMARY KEY,                      -- job:NAME, project:NAME, month:2026-11, or month (what every month gets)
    limit_micros BIGINT,                      -- NULL: no limit in money
    limit_tokens BIGINT,
    held_micros BIGINT NOT NULL DEFAULT 0,    -- reserved and unknown
    spent_micros BIGINT NOT NULL DEFAULT 0,   -- confirmed
    held_tokens BIGINT NOT NULL DEFAULT 0,
    spent_tokens BIGINT NOT NULL DEFAULT 0,
    frozen TEXT                               -- why nothing more may be reserved
);

CREATE TABLE entry (
    seq {serial},
    at_us BIGINT NOT NULL,
    budget TEXT NOT NULL REFERENCES budget (id),
    job TEXT NOT NULL,
    shard TEXT,                               -- NULL: booked by hand
    kind TEXT NOT NULL,                       -- reserve, settle, release, book
    held_micros BIGINT NOT NULL,              -- what it adds to the budget's held money; a release is negative
    spent_micros BIGINT NOT NULL,
    held_tokens BIGINT NOT NULL,
    spent_tokens BIGINT NOT NULL,
    reason TEXT NOT NULL
);

CREATE TABLE job (
    name TEXT PRIMARY KEY,
    state TEXT NOT NULL,
    reason TEXT,
    owner TEXT,
    revision BIGINT NOT NULL,                 -- how many plans have been opened; a planner states the one it saw
    plan TEXT NOT NULL,                       -- the digest of the latest
    chain TEXT NOT NULL,                      -- JSON: budgets below the month that every reservation passes
    deadline_us BIGINT NOT NULL,
    cancelled BIGINT NOT NULL DEFAULT 0,
    paused TEXT,                              -- why nothing more is sent
    loaded TEXT,                              -- JSON: what was loaded last
    created_us BIGINT NOT NULL
);

CREATE TABLE plan (
    job TEXT NOT NULL REFERENCES job (name),
    digest TEXT NOT NULL,
    body TEXT NOT NULL,                       -- JSON of the plan, without its shards
    terms TEXT NOT NULL,                      -- JSON: what its shards run under: schema, price, attempts, window
    opened_us BIGINT NOT NULL,
    PRIMARY KEY (job, digest)
);

CREATE TABLE plan_shard (                     -- which shards answer a plan's rows, older ones included
    job TEXT NOT NULL,
    plan TEXT NOT NULL,
    ordinal BIGINT NOT NULL,                  -- what rows_blob points to
    shard TEXT NOT NULL,
    weights {blob} NOT NULL,                  -- zlib of uint32 LE per line: how many dataset rows wait for it
    PRIMARY KEY (job, plan, ordinal)
);

CREATE TABLE shard (
    id TEXT PRIMARY KEY,
    job TEXT NOT NULL REFERENCES job (name),
    plan TEXT NOT NULL,                       -- the plan it was opened by, whose terms it runs under
    root TEXT NOT NULL,                       -- the planned shard whose lines it answers
    attempt BIGINT NOT NULL,
    role TEXT NOT NULL,                       -- work, duplicate
    provider TEXT NOT NULL,
    account TEXT NOT NULL,
    state TEXT NOT NULL,
    n_lines BIGINT NOT NULL,
    requests_blob TEXT NOT NULL,
    manifest_blob TEXT NOT NULL,
    input_bound BIGINT NOT NULL,
    output_bound BIGINT NOT NULL,
    worst_micros BIGINT NOT NULL,
    vector {blob},                            -- of a root: zlib of one Outcome byte per line
    token TEXT,
    batch_id TEXT,
    batch TEXT,                               -- JSON: what the provider last said
    fence BIGINT NOT NULL DEFAULT 0,          -- grows with every claim; a write names the one it holds
    holder TEXT,
    lease_us BIGINT NOT NULL DEFAULT 0,
    next_us BIGINT NOT NULL,                  -- not before
    blocked TEXT,
    raw_blobs TEXT NOT NULL DEFAULT '[]',
    results_blob TEXT,
    budgets TEXT NOT NULL DEFAULT '[]',       -- JSON: the budgets its reservation stands in
    held_micros BIGINT NOT NULL DEFAULT 0,
    held_tokens BIGINT NOT NULL DEFAULT 0,
    confirmed_micros BIGINT NOT NULL DEFAULT 0,
    wasted_micros BIGINT NOT NULL DEFAULT 0,
    input_tokens BIGINT NOT NULL DEFAULT 0,
    output_tokens BIGINT NOT NULL DEFAULT 0,
    cancel_asked BIGINT NOT NULL DEFAULT 0,
    submitted_us BIGINT,
    ended_us BIGINT,
    settled_us BIGINT
);
CREATE INDEX shard_job ON shard (job);
CREATE INDEX shard_root ON shard (root);
CREATE INDEX shard_due ON shard (state, next_us);
CREATE UNIQUE INDEX shard_batch ON shard (account, batch_id);

CREATE TABLE intent (
    token TEXT PRIMARY KEY,
    shard TEXT NOT NULL REFERENCES shard (id),
    tries BIGINT NOT NULL DEFAULT 0,
    first_us BIGINT,
    last_us BIGINT,
    is_open BIGINT NOT NULL DEFAULT 0,        -- the last create's fate is not known
    resolved TEXT                             -- a person's answer: absent
);

CREATE TABLE journal (
    seq {serial},
    at_us BIGINT NOT NULL,
    job TEXT,
    shard TEXT,
    kind TEXT NOT NULL,
    reason TEXT NOT NULL,
    facts TEXT NOT NULL
);

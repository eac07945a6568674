-- Who is told what, and whether it arrived. Times are microseconds since 1970 UTC. Nothing in it is secret.

INSERT INTO meta (name, value) SELECT 'noticed', CAST(COALESCE(MAX(seq), 0) AS TEXT) FROM journal;

CREATE TABLE audience (                       -- who is told
    job TEXT NOT NULL,                        -- '': of every job
    target TEXT NOT NULL,                     -- as it was written, with NAMES where secrets belong
    is_once BIGINT NOT NULL,                  -- 1: of the next end of the job, and then no more
    secret TEXT,                              -- the variable that holds the secret a webhook is signed with
    kinds TEXT NOT NULL,                      -- JSON; empty: all
    since BIGINT NOT NULL,                    -- notices up to this one are not for it, or are in its outbox
    PRIMARY KEY (job, target, is_once)
);

CREATE TABLE notice (                         -- what there is to tell, once
    seq {serial},
    id TEXT NOT NULL UNIQUE,
    job TEXT,
    kind TEXT NOT NULL,
    body TEXT NOT NULL,                       -- JSON: as a webhook gets it
    at_us BIGINT NOT NULL
);
CREATE INDEX notice_job ON notice (job, seq);

CREATE TABLE delivery (                       -- the outbox: one notice to one target
    id TEXT PRIMARY KEY,                      -- the same in every try
    notice TEXT NOT NULL REFERENCES notice (id),
    target TEXT NOT NULL,
    secret TEXT,
    state TEXT NOT NULL,                      -- waiting, arrived, failed
    n_tries BIGINT NOT NULL,
    next_us BIGINT NOT NULL,                  -- not before
    lease_us BIGINT NOT NULL                  -- somebody sends it until then
);
CREATE INDEX delivery_due ON delivery (state, next_us);

CREATE TABLE delivery_try (
    delivery TEXT NOT NULL REFERENCES delivery (id),
    number BIGINT NOT NULL,                   -- 1, 2, ...
    at_us BIGINT NOT NULL,
    outcome TEXT,                             -- arrived, later, failed; NULL: on its way, or its process died
    words TEXT NOT NULL,
    PRIMARY KEY (delivery, number)
);

CREATE TABLE alarm (                          -- what is so now, and was told
    name TEXT PRIMARY KEY,
    kind TEXT NOT NULL
);

CREATE TABLE silenced (                       -- targets that want nothing more
    target TEXT PRIMARY KEY,
    at_us BIGINT NOT NULL
);

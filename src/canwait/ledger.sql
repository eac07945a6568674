-- Every statement of the ledger, by name, with one line of purpose. Both databases run this text.

-- name: ledger_id
-- The random name of this ledger; tokens are derived from it, so a restored backup finds its own batches.
SELECT value FROM meta WHERE name = 'ledger_id';

-- name: name_ledger
-- Give a new ledger its name, once.
INSERT INTO meta (name, value) VALUES ('ledger_id', :value) ON CONFLICT (name) DO NOTHING;

-- name: journal
-- Append one change.
INSERT INTO journal (at_us, job, shard, kind, reason, facts) VALUES (:at, :job, :shard, :kind, :reason, :facts);

-- name: events
-- Changes after a cursor, oldest first.
SELECT * FROM journal WHERE seq > :since AND (:job = '' OR job = :job) ORDER BY seq LIMIT :count;

-- name: budget
-- One budget.
SELECT * FROM budget WHERE id = :id;

-- name: budgets
-- All budgets.
SELECT * FROM budget ORDER BY id;

-- name: budget_ensure
-- A budget without a limit of its own, so that what is spent below it is known when a limit comes.
INSERT INTO budget (id) VALUES (:id) ON CONFLICT (id) DO NOTHING;

-- name: budget_ensure_month
-- A month's budget, with the limits every month gets.
INSERT INTO budget (id, limit_micros, limit_tokens)
SELECT :id, (SELECT limit_micros FROM budget WHERE id = 'month'), (SELECT limit_tokens FROM budget WHERE id = 'month')
ON CONFLICT (id) DO NOTHING;

-- name: budget_limit
-- Set a budget's limits.
INSERT INTO budget (id, limit_micros, limit_tokens) VALUES (:id, :micros, :tokens)
ON CONFLICT (id) DO UPDATE SET limit_micros = excluded.limit_micros, limit_tokens = excluded.limit_tokens;

-- name: budget_limit_months
-- Set the limits of this month and of those after it that exist already.
UPDATE budget SET limit_micros = :micros, limit_tokens = :tokens WHERE id LIKE 'month:%' AND id >= :since;

-- name: budget_reserve
-- The compare-and-swap that no limit can be passed by: it changes no row unless the money is free.
UPDATE budget SET held_micros = held_micros + :micros, held_tokens = held_tokens + :tokens
WHERE id = :id AND frozen IS NULL
  AND (limit_micros IS NULL OR spent_micros + held_micros + :micros <= limit_micros)
  AND (limit_tokens IS NULL OR spent_tokens + held_tokens + :tokens <= limit_tokens);

-- name: budget_move
-- Record what has happened, whatever the limit says.
UPDATE budget SET held_micros = held_micros + :held_micros, spent_micros = spent_micros + :spent_micros,
  held_tokens = held_tokens + :held_tokens, spent_tokens = spent_tokens + :spent_tokens
WHERE id = :id;

-- name: budget_freeze
-- Nothing more may be reserved until a person has looked.
UPDATE budget SET frozen = :why WHERE id = :id AND frozen IS NULL;

-- name: budget_thaw
-- A person has looked.
UPDATE budget SET frozen = NULL WHERE id = :id AND frozen IS NOT NULL;

-- name: entry
-- Append one movement of money.
INSERT INTO entry (at_us, budget, job, shard, kind, held_micros, spent_micros, held_tokens, spent_tokens, reason)
VALUES (:at, :budget, :job, :shard, :kind, :held_micros, :spent_micros, :held_tokens, :spent_tokens, :reason);

-- name: entry_sums
-- What the entries say each budget holds and has spent: the other half of the pair `budget` is checked against.
SELECT budget, SUM(held_micros) AS held_micros, SUM(spent_micros) AS spent_micros,
       SUM(held_tokens) AS held_tokens, SUM(spent_tokens) AS spent_tokens FROM entry GROUP BY budget;

-- name: entries
-- The movements of one budget, oldest first.
SELECT * FROM entry WHERE budget = :budget ORDER BY seq;

-- name: booked
-- What was booked to a job by hand.
SELECT COALESCE(SUM(spent_micros), 0) AS micros FROM entry WHERE budget = :budget AND kind = 'book';

-- name: job
-- One job.
SELECT * FROM job WHERE name = :name;

-- name: jobs
-- All jobs, newest first.
SELECT * FROM job ORDER BY created_us DESC, name;

-- name: job_insert
-- A job that has not been opened before.
INSERT INTO job (name, state, owner, revision, plan, chain, deadline_us, created_us)
VALUES (:name, 'queued', :owner, 1, :plan, :chain, :deadline, :at);

-- name: job_reopen
-- The next plan of a job, if nobody else opened one since the planner looked.
UPDATE job SET revision = revision + 1, cancelled = 0, plan = :plan, owner = :owner, chain = :chain, deadline_us = :deadline
WHERE name = :name AND revision = :revision;

-- name: job_deadline
-- The same plan run again gets a new deadline.
UPDATE job SET deadline_us = :deadline WHERE name = :name;

-- name: job_state
-- Where a job stands.
UPDATE job SET state = :state, reason = :reason WHERE name = :name;

-- name: job_pause
-- Nothing more is sent until somebody has looked.
UPDATE job SET paused = :why WHERE name = :name AND paused IS NULL;

-- name: job_resume
-- Somebody has looked.
UPDATE job SET paused = NULL WHERE name = :name AND paused IS NOT NULL;

-- name: job_cancel
-- Give a job up.
UPDATE job SET cancelled = 1 WHERE name = :name AND cancelled = 0;

-- name: job_uncancel
-- A person asked for more of a job that was given up.
UPDATE job SET cancelled = 0 WHERE name = :name;

-- name: job_loaded
-- What was loaded last.
UPDATE job SET loaded = :loaded WHERE name = :name;

-- name: plan
-- One opened plan.
SELECT * FROM plan WHERE job = :job AND digest = :digest;

-- name: plan_insert
-- A plan opened for the first time.
INSERT INTO plan (job, digest, body, terms, opened_us) VALUES (:job, :digest, :body, :terms, :at)
ON CONFLICT (job, digest) DO NOTHING;

-- name: plan_shard_insert
-- One of the shards that answer a plan's rows.
INSERT INTO plan_shard (job, plan, ordinal, shard, weights) VALUES (:job, :plan, :ordinal, :shard, :weights)
ON CONFLICT (job, plan, ordinal) DO NOTHING;

-- name: plan_shards
-- The shards that answer a plan's rows, with what became of their lines.
SELECT p.ordinal, p.shard, p.weights, s.vector, s.job AS owner_job, s.n_lines
FROM plan_shard p JOIN shard s ON s.id = p.shard WHERE p.job = :job AND p.plan = :plan ORDER BY p.ordinal;

-- name: shard_insert
-- A shard, planned.
INSERT INTO shard (id, job, plan, root, attempt, role, provider, account, state, n_lines, requests_blob, manifest_blob,
  input_bound, output_bound, worst_micros, vector, token, next_us)
VALUES (:id, :job, :plan, :root, :attempt, :role, :provider, :account, :state, :n_lines, :requests_blob, :manifest_blob,
  :input_bound, :output_bound, :worst_micros, :vector, :token, :next);

-- name: shard
-- One shard.
SELECT * FROM shard WHERE id = :id;

-- name: shards
-- A job's shards, oldest first.
SELECT * FROM shard WHERE job = :job ORDER BY attempt, id;

-- name: shards_of_root
-- Everything that was tried for the lines of one planned shard, in the order it was tried.
SELECT * FROM shard WHERE root = :root AND role = 'work' ORDER BY attempt, id;

-- name: roots
-- Every planned shard of the ledger: what reuse looks through.
SELECT id, job, manifest_blob, vector, results_blob FROM shard WHERE id = root AND role = 'work' ORDER BY id;

-- name: due
-- A shard that may be advanced now and that nobody holds.
SELECT s.id, s.fence FROM shard s JOIN job j ON j.name = s.job
WHERE s.state IN ('planned', 'submitting', 'submitted', 'ended') AND s.next_us <= :now AND s.lease_us <= :now
  AND (:job = '' OR s.job = :job) AND (j.paused IS NULL OR s.state <> 'planned' OR j.cancelled = 1)
ORDER BY s.next_us, s.attempt, s.id LIMIT 1;

-- name: crowd_out
-- Shards of a job that wait together: their account takes no more batches for now.
UPDATE shard SET next_us = :next WHERE job = :job AND account = :account AND state = 'planned' AND next_us < :next
  AND lease_us <= :now;

-- name: claim
-- Take a shard, if it is still as it was seen; the fence it gets makes every older holder's writes void.
UPDATE shard SET fence = fence + 1, holder = :holder, lease_us = :lease
WHERE id = :id AND fence = :fence AND lease_us <= :now;

-- name: renew
-- Hold a shard longer, if this caller still holds it.
UPDATE shard SET lease_us = :lease WHERE id = :id AND fence = :fence AND lease_us > :now;

-- name: next_due
-- When something can be done next.
SELECT MIN(CASE WHEN s.next_us > s.lease_us THEN s.next_us ELSE s.lease_us END) AS next_us, COUNT(*) AS n_open
FROM shard s JOIN job j ON j.name = s.job
WHERE s.state IN ('planned', 'submitting', 'submitted', 'ended') AND (:job = '' OR s.job = :job)
  AND (j.paused IS NULL OR s.state <> 'planned' OR j.cancelled = 1);

-- name: shard_move
-- The compare-and-swap of a shard: only the holder of the fence moves it, and only from the state it saw.
UPDATE shard SET state = :new, next_us = :next, blocked = NULL, holder = NULL, lease_us = 0
WHERE id = :id AND fence = :fence AND state = :old;

-- name: shard_wait
-- Leave a shard as it is until later.
UPDATE shard SET next_us = :next, blocked = :blocked, holder = NULL, lease_us = 0
WHERE id = :id AND fence = :fence AND state = :old;

-- name: shard_reserved
-- What a shard holds, in which budgets, under which token.
UPDATE shard SET token = :token, held_micros = :micros, held_tokens = :tokens, budgets = :budgets WHERE id = :id;

-- name: shard_account
-- The account a shard is sent on.
UPDATE shard SET account = :account WHERE id = :id;

-- name: shard_submitted
-- The provider's name of a shard's batch.
UPDATE shard SET batch_id = :batch_id, batch = :batch, submitted_us = :at WHERE id = :id;

-- name: shard_batch
-- What the provider last said of it.
UPDATE shard SET batch = :batch WHERE id = :id AND fence = :fence;

-- name: shard_ended
-- When the provider's end was first seen.
UPDATE shard SET batch = :batch, ended_us = :at WHERE id = :id;

-- name: shard_fetched
-- The raw output is stored.
UPDATE shard SET raw_blobs = :raw_blobs WHERE id = :id AND fence = :fence AND state = 'ended';

-- name: shard_settled
-- What a shard cost and brought.
UPDATE shard SET results_blob = :results_blob, held_micros = :held_micros, held_tokens = :held_tokens,
  confirmed_micros = confirmed_micros + :confirmed_micros, wasted_micros = wasted_micros + :wasted_micros,
  input_tokens = input_tokens + :input_tokens, output_tokens = output_tokens + :output_tokens, settled_us = :at
WHERE id = :id;

-- name: shard_billed
-- What was unknown of a settled shard is known.
UPDATE shard SET confirmed_micros = confirmed_micros + :micros, wasted_micros = wasted_micros + :micros,
  held_micros = 0, held_tokens = 0 WHERE id = :id;

-- name: shard_vector
-- What became of a planned shard's lines.
UPDATE shard SET vector = :vector WHERE id = :id;

-- name: shard_ask_cancel
-- Shards of a job whose batch is to be stopped.
UPDATE shard SET cancel_asked = 1, next_us = :now
WHERE job = :job AND cancel_asked = 0 AND state IN ('planned', 'submitting', 'submitted');

-- name: shard_due_now
-- Look at a shard at once.
UPDATE shard SET next_us = :now WHERE id = :id;

-- name: in_flight_like
-- Other shards of one account that are on their way with the same number of lines.
SELECT id FROM shard WHERE account = :account AND n_lines = :n_lines AND id <> :id AND state IN ('submitting', 'submitted')
ORDER BY id LIMIT 1;

-- name: in_flight_tokens
-- Prompt tokens of one account's batches on their way.
SELECT COALESCE(SUM(input_bound), 0) AS tokens FROM shard
WHERE account = :account AND id <> :id AND state IN ('submitting', 'submitted');

-- name: in_flight
-- How many of one account's batches are on their way.
SELECT COUNT(*) AS n FROM shard WHERE account = :account AND id <> :id AND state IN ('submitting', 'submitted');

-- name: money_on_its_way
-- How many other shards hold money of a budget that their end may give back; what is unknown after an end is not.
SELECT COUNT(*) AS n FROM shard WHERE id <> :id AND state IN ('submitting', 'submitted', 'ended')
  AND (held_micros > 0 OR held_tokens > 0) AND REPLACE(budgets, :quoted, '') <> budgets;

-- name: batch_ids
-- Batches of one account that other shards own.
SELECT batch_id FROM shard WHERE account = :account AND batch_id IS NOT NULL AND id <> :id;

-- name: batch_owner
-- The shard that owns a batch of a shard's account.
SELECT id FROM shard WHERE account = (SELECT account FROM shard WHERE id = :id) AND batch_id = :batch_id;

-- name: tried_again
-- Shards of a job with more creates begun than batches known: where one more may exist.
SELECT s.id FROM shard s JOIN intent i ON i.token = s.token
WHERE s.job = :job AND s.role = 'work' AND i.tries > CASE WHEN s.batch_id IS NULL THEN 0 ELSE 1 END ORDER BY s.id;

-- name: intent_insert
-- The record that a shard is about to be sent.
INSERT INTO intent (token, shard) VALUES (:token, :shard) ON CONFLICT (token) DO NOTHING;

-- name: intent
-- One intent.
SELECT * FROM intent WHERE token = :token;

-- name: intent_try
-- A create is about to be sent.
UPDATE intent SET tries = tries + 1, first_us = COALESCE(first_us, :at), last_us = :at, is_open = 1, resolved = NULL
WHERE token = :token;

-- name: intent_sending
-- It leaves now: uploading before it may have taken longer than a provider's listing lags.
UPDATE intent SET last_us = :at WHERE token = :token;

-- name: intent_close
-- The last create's fate is known.
UPDATE intent SET is_open = 0 WHERE token = :token;

-- name: intent_resolve
-- A person says that no batch of this token exists.
UPDATE intent SET resolved = 'absent' WHERE token = :token AND is_open = 1;

-- name: job_money
-- A job's money by what is known of it.
SELECT COALESCE(SUM(s.confirmed_micros), 0) AS confirmed_micros, COALESCE(SUM(s.wasted_micros), 0) AS wasted_micros,
  COALESCE(SUM(s.input_tokens), 0) AS input_tokens, COALESCE(SUM(s.output_tokens), 0) AS output_tokens,
  COALESCE(SUM(CASE WHEN s.state = 'settled' OR i.is_open = 1 THEN s.held_micros ELSE 0 END), 0) AS unknown_micros,
  COALESCE(SUM(CASE WHEN s.state = 'settled' OR i.is_open = 1 THEN 0 ELSE s.held_micros END), 0) AS reserved_micros,
  COALESCE(SUM(CASE WHEN s.batch_id IS NOT NULL THEN 1 ELSE 0 END), 0) AS submissions
FROM shard s LEFT JOIN intent i ON i.token = s.token AND s.role = 'work' WHERE s.job = :job;

-- name: answered
-- What a job's settled shards were billed in output, and for how many lines: what the next plan expects by.
SELECT COALESCE(SUM(n_lines), 0) AS n, COALESCE(SUM(output_tokens), 0) AS output_tokens,
  COALESCE(SUM(input_tokens), 0) AS input_tokens, COALESCE(SUM(input_bound), 0) AS input_bound FROM shard
WHERE job = :job AND state = 'settled' AND role = 'work' AND held_micros = 0 AND output_tokens > 0;

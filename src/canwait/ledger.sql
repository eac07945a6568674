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
INSERT INTO budget (id, limit_micros, limit_tokens, tell_at)
SELECT :id, (SELECT limit_micros FROM budget WHERE id = 'month'), (SELECT limit_tokens FROM budget WHERE id = 'month'),
  (SELECT tell_at FROM budget WHERE id = 'month')
ON CONFLICT (id) DO NOTHING;

-- name: budget_limit
-- Set a budget's limits, and of which shares of them somebody is told.
INSERT INTO budget (id, limit_micros, limit_tokens, tell_at) VALUES (:id, :micros, :tokens, :tell_at)
ON CONFLICT (id) DO UPDATE SET limit_micros = excluded.limit_micros, limit_tokens = excluded.limit_tokens, tell_at = excluded.tell_at;

-- name: budget_limit_months
-- Set the limits of this month and of those after it that exist already.
UPDATE budget SET limit_micros = :micros, limit_tokens = :tokens, tell_at = :tell_at WHERE id LIKE 'month:%' AND id >= :since;

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

-- name: job_file
-- The file a job was last run by, and where that loads its rows.
UPDATE job SET file = :file, load_to = :load WHERE name = :name;

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
UPDATE job SET cancelled = 0, given_up = NULL WHERE name = :name;

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

-- name: plan_order
-- Which shard a place in a plan is.
SELECT ordinal, shard FROM plan_shard WHERE job = :job AND plan = :plan;

-- name: plan_money
-- What a plan opened, with its money, in the order it settled.
SELECT id, root, role, state, provider, attempt, n_lines, input_bound, output_bound, worst_micros, held_micros, redo_micros,
  confirmed_micros, wasted_micros, twice_micros, input_tokens, output_tokens, manifest_blob, results_blob,
  batch_id, vector
FROM shard WHERE job = :job AND plan = :plan ORDER BY settled_us, attempt, id;

-- name: settled_facts
-- How the shards of a plan ended.
SELECT j.shard, j.facts FROM journal j JOIN shard s ON s.id = j.shard
WHERE j.job = :job AND j.kind = 'settled' AND s.job = :job AND s.plan = :plan;

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
SELECT id, job, plan, n_lines, manifest_blob, vector, results_blob FROM shard WHERE id = root AND role = 'work' ORDER BY id;

-- name: due
-- A shard that may be advanced now and that nobody holds.
SELECT s.id, s.fence FROM shard s JOIN job j ON j.name = s.job
WHERE s.state IN ('planned', 'submitting', 'submitted', 'ended') AND s.next_us <= :now AND s.lease_us <= :now
  AND (:job = '' OR s.job = :job) AND (j.paused IS NULL OR s.state <> 'planned' OR j.cancelled = 1 OR s.cancel_asked = 1)
ORDER BY s.next_us, s.attempt, s.id LIMIT 1;

-- name: crowd_out
-- Shards of a job that wait behind one of them: their account takes no more batches for now.
UPDATE shard SET next_us = :next WHERE job = :job AND account = :account AND state = 'planned' AND next_us < :next
  AND lease_us <= :now AND id <> :id;

-- name: hold_for_canary
-- Shards of a plan that wait together, until its canary is home.
UPDATE shard SET next_us = :next, blocked = :why WHERE job = :job AND plan = :plan AND state = 'planned' AND id = root
  AND id <> :canary AND next_us < :next AND lease_us <= :now AND moving_us IS NULL;

-- name: to_be_sent
-- A plan's shards that were not sent yet, and what they cost at most.
SELECT COUNT(*) AS n_shards, COALESCE(SUM(worst_micros), 0) AS micros FROM shard WHERE job = :job AND plan = :plan AND state = 'planned';

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
  AND (j.paused IS NULL OR s.state <> 'planned' OR j.cancelled = 1 OR s.cancel_asked = 1);

-- name: shard_repriced
UPDATE shard SET plan = :plan, worst_micros = :worst_micros WHERE id = :id AND fence = :fence AND state = 'planned';

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
UPDATE shard SET token = :token, held_micros = :micros, held_tokens = :tokens, budgets = :budgets, redo_micros = 0,
  redo_tokens = 0 WHERE id = :id;

-- name: shard_account
-- The account a shard is sent on.
UPDATE shard SET account = :account WHERE id = :id;

-- name: shard_submitted
-- The provider's name of a shard's batch.
UPDATE shard SET batch_id = :batch_id, batch = :batch, submitted_us = :at WHERE id = :id;

-- name: shard_batch
-- What the provider last said of it, and when.
UPDATE shard SET batch = :batch, progress = :progress, looked_us = :at WHERE id = :id AND fence = :fence;

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
  input_tokens = input_tokens + :input_tokens, output_tokens = output_tokens + :output_tokens, settled_us = :at,
  redo_micros = 0, redo_tokens = 0, twice_micros = :twice_micros
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

-- name: open_shards
-- Shards of all jobs that are on their way: what a look at one job's deadline needs.
SELECT id, job, plan, state, provider, role, n_lines, submitted_us, batch, moving_us, held_micros FROM shard
WHERE state IN ('planned', 'submitting', 'submitted', 'ended') AND role = 'work' ORDER BY id;

-- name: shard_move_on
-- What of a shard is unanswered goes to another tier; what that costs at worst is held from now on.
UPDATE shard SET moving_us = :at, redo_micros = :micros, redo_tokens = :tokens, held_micros = held_micros + :micros,
  held_tokens = held_tokens + :tokens, next_us = :at, unmoved = NULL
WHERE id = :id AND moving_us IS NULL AND cancel_asked = 0 AND state IN ('planned', 'submitting', 'submitted');

-- name: shard_unmoved
-- Why a shard could not be moved, when that is news.
UPDATE shard SET unmoved = :why WHERE id = :id AND moving_us IS NULL AND unmoved IS NULL;

-- name: job_missed
-- A job's deadline has passed, and rows are not back; once for each deadline.
UPDATE job SET missed_us = deadline_us, given_up = :given_up
WHERE name = :name AND cancelled = 0 AND deadline_us <= :now AND (missed_us IS NULL OR missed_us < deadline_us);

-- name: adapters
-- Whatever shards were ever sent by.
SELECT DISTINCT provider FROM shard ORDER BY provider;

-- name: sent
-- The last shards of any job that one adapter was sent, newest first, each with what it ran under: of those whose batch has
-- ended, or of those that are out.
SELECT s.job, s.plan, s.provider, s.account, s.n_lines, s.submitted_us, s.looked_us, s.ended_us, s.batch, s.progress, p.terms
FROM shard s JOIN plan p ON p.job = s.job AND p.digest = s.plan
WHERE s.provider = :adapter AND s.submitted_us IS NOT NULL AND s.role = 'work'
  AND CASE WHEN s.ended_us IS NULL THEN 0 ELSE 1 END = :ended
ORDER BY s.submitted_us DESC, s.id LIMIT :count;

-- name: moved_before
-- How many shards of a plan were moved to another tier, and how many could not be.
SELECT COUNT(moving_us) AS n_moved, COUNT(unmoved) AS n_unmoved FROM shard WHERE job = :job AND plan = :plan;

-- name: shard_due_now
-- Look at a shard at once.
UPDATE shard SET next_us = :now WHERE id = :id;

-- name: in_flight_like
-- Other shards of one account that are on their way with the same number of lines.
SELECT id FROM shard WHERE account = :account AND n_lines = :n_lines AND id <> :id AND state IN ('submitting', 'submitted')
ORDER BY id LIMIT 1;

-- name: open_sizes
-- Of how many lines other open shards of one account are.
SELECT DISTINCT n_lines FROM shard WHERE account = :account AND id <> :id AND state IN ('planned', 'submitting', 'submitted');

-- name: in_flight_tokens
-- Prompt tokens of one account's batches on their way.
SELECT COALESCE(SUM(input_bound), 0) AS tokens FROM shard
WHERE account = :account AND id <> :id AND state IN ('submitting', 'submitted');

-- name: in_flight
-- How many of one account's batches are on their way.
SELECT COUNT(*) AS n FROM shard WHERE account = :account AND id <> :id AND state IN ('submitting', 'submitted');

-- name: money_on_its_way
-- How many other shards hold money of a budget that their end may give back; what is unknown after an end is not.
SELECT COUNT(*) AS n FROM shard WHERE id <> :id AND state IN ('planned', 'submitting', 'submitted', 'ended')
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

-- name: answered_before
-- For how many lines the output of a job's other plans is known.
SELECT COALESCE(SUM(n_lines), 0) AS n FROM shard
WHERE job = :job AND plan <> :plan AND state || '' = 'settled' AND role = 'work' AND held_micros = 0 AND output_tokens > 0;

-- name: unfinished
-- What is known of every shard that is not at its end, of one job or of all, and whether its last create may have arrived.
SELECT s.id, s.job, s.plan, s.provider, s.role, s.state, s.n_lines, s.input_bound, s.output_bound,
  s.worst_micros, s.held_micros, s.blocked, s.next_us, s.lease_us, s.submitted_us, s.looked_us, s.progress, s.moving_us,
  CASE WHEN s.state = 'submitting' AND i.is_open = 1 THEN 1 ELSE 0 END AS is_open
FROM shard s LEFT JOIN intent i ON i.token = s.token AND s.role = 'work'
WHERE s.state IN ('planned', 'submitting', 'submitted', 'ended') AND (:job = '' OR s.job = :job)
ORDER BY s.job, s.attempt, s.id;

-- name: blocked_by
-- The named limits that hold shards of a job now.
SELECT DISTINCT blocked FROM shard WHERE job = :job AND blocked IS NOT NULL AND blocked <> ''
  AND state IN ('planned', 'submitting', 'submitted', 'ended') ORDER BY blocked;

-- name: held_since
-- When a limit first held each shard of a job, and when it was last named anew.
SELECT shard, MIN(at_us) AS first_us, MAX(at_us) AS last_us FROM journal
WHERE job = :job AND shard IS NOT NULL AND kind IN ('blocked', 'not_arrived', 'given_back') GROUP BY shard;

-- name: missed_at
-- When a job's deadline last passed over rows that were out.
SELECT MAX(at_us) AS at_us FROM journal WHERE job = :job AND kind = 'deadline_missed';

-- name: paused_since
-- When a job was last paused.
SELECT MAX(at_us) AS at_us FROM journal WHERE job = :job AND kind = 'job_paused';

-- name: pickups
-- When each publication of a job was made, and when one reader first read it; NULL: never.
SELECT p.version, p.produced_us, MIN(r.at_us) AS read_us FROM publication p
LEFT JOIN reading r ON r.job = p.job AND r.version = p.version AND r.reader = :reader
WHERE p.job = :job GROUP BY p.version, p.produced_us ORDER BY p.version;

-- name: lot
-- One lot.
SELECT * FROM lot WHERE id = :id;

-- name: lot_answers
-- Which files answer a plan's rows, in the order they settled.
SELECT s.root, s.results_blob FROM shard s WHERE s.role = 'work' AND s.results_blob IS NOT NULL
  AND s.root IN (SELECT shard FROM plan_shard WHERE job = :job AND plan = :plan)
ORDER BY s.root, s.settled_us, s.attempt, s.id;

-- name: lot_insert
-- A lot whose sample is drawn, once.
INSERT INTO lot (id, job, plan, n_rows, broken, parts, sample_blob, rows_blob, drawn_us, reason, quality, withdrawn, canary,
  known)
VALUES (:id, :job, :plan, :n_rows, :broken, :parts, :sample_blob, :rows_blob, :at, :reason, :quality, :withdrawn, :canary,
  :known)
ON CONFLICT (id) DO NOTHING;

-- name: lot_decide
-- The verdict, once.
UPDATE lot SET verdict = :verdict, reason = :reason, taken = :taken, decided = :decided WHERE id = :id AND verdict IS NULL;

-- name: lot_heard
-- Which rows of its sample people look at.
UPDATE lot SET parts = :parts WHERE id = :id AND verdict IS NULL;

-- name: lot_reason
-- How far its inspection is.
UPDATE lot SET reason = :reason WHERE id = :id AND verdict IS NULL;

-- name: judgements
-- What was said of a lot, by place.
SELECT * FROM judgement WHERE lot = :lot ORDER BY place;

-- name: judge
-- What one person says of one row, unless somebody has; what nobody was sure of may be said later.
INSERT INTO judgement (lot, place, word, cause, who, at_us, seq)
VALUES (:lot, :place, :word, :cause, :who, :at, (SELECT COALESCE(MAX(seq), 0) + 1 FROM judgement WHERE lot = :lot))
ON CONFLICT (lot, place) DO UPDATE SET word = excluded.word, cause = excluded.cause, who = excluded.who,
  at_us = excluded.at_us, seq = excluded.seq WHERE judgement.word = 'unsure';

-- name: judgement_undo
-- Take back what one person said last, if it still stands.
DELETE FROM judgement WHERE lot = :lot AND seq = (SELECT MAX(seq) FROM judgement WHERE lot = :lot AND who = :who);

-- name: plan_terms
-- A gate in front of a plan that had none.
UPDATE plan SET terms = :terms WHERE job = :job AND digest = :digest;

-- name: plans_of
-- The plans that a shard helps to answer, of all jobs.
SELECT p.job, p.digest, p.terms FROM plan p JOIN plan_shard s ON s.job = p.job AND s.plan = p.digest
WHERE s.shard = :shard ORDER BY p.job, p.digest;

-- name: plans_beside
-- The other plans of a job that are answered by shards of this one.
SELECT p.job, p.digest, p.terms FROM plan p WHERE p.job = :job AND p.digest <> :plan AND EXISTS (
  SELECT 1 FROM plan_shard a JOIN plan_shard b ON b.shard = a.shard
  WHERE a.job = p.job AND a.plan = p.digest AND b.job = :job AND b.plan = :plan) ORDER BY p.digest;

-- name: lots_beside
-- Lots of a job that hold answers of shards of a plan, oldest first.
SELECT l.* FROM lot l WHERE l.job = :job AND l.quality IS NOT NULL AND EXISTS (
  SELECT 1 FROM plan_shard a JOIN plan_shard b ON b.shard = a.shard
  WHERE a.job = l.job AND a.plan = l.plan AND b.job = :job AND b.plan = :plan) ORDER BY l.drawn_us, l.id;

-- name: lots_of
-- What was decided of the answers of a plan.
SELECT * FROM lot WHERE job = :job AND plan = :plan AND quality IS NOT NULL ORDER BY drawn_us, id;

-- name: withdrawal_insert
-- What some lines of a planned shard were answered counts no more.
INSERT INTO withdrawal (root, job, shards, lines, at_us) VALUES (:root, :job, :shards, :lines, :at);

-- name: withdrawals
-- Which answers of a planned shard count no more, oldest first.
SELECT * FROM withdrawal WHERE root = :root ORDER BY seq;

-- name: withdrawals_end
-- The last withdrawal.
SELECT COALESCE(MAX(seq), 0) AS seq FROM withdrawal;

-- name: withdrawn_elsewhere
-- Shards of other jobs that answer a plan's rows, and of which lines were asked again.
SELECT DISTINCT w.root, w.job FROM withdrawal w JOIN plan_shard s ON s.shard = w.root
WHERE s.job = :job AND s.plan = :plan AND w.job <> :job ORDER BY w.root;

-- name: publications_beside
-- Publications of a job that hold answers of shards of a plan, and may be read.
SELECT p.version, p.plan FROM publication p WHERE p.job = :job AND p.refused IS NULL AND EXISTS (
  SELECT 1 FROM plan_shard a JOIN plan_shard b ON b.shard = a.shard
  WHERE a.job = p.job AND a.plan = p.plan AND b.job = :job AND b.plan = :plan) ORDER BY p.version;

-- name: publication_refuse
-- A publication is served no more.
UPDATE publication SET refused = :why WHERE job = :job AND version = :version AND refused IS NULL;

-- name: shard_halted
-- The free checks say that answers of a shard are surely bad.
UPDATE shard SET halted = :why WHERE id = :id;

-- name: halted
-- Why nothing more of a plan is sent, if nobody has said that it goes on all the same.
SELECT s.halted FROM shard s JOIN plan p ON p.job = s.job AND p.digest = s.plan
WHERE s.job = :job AND s.plan = :plan AND s.halted IS NOT NULL AND p.past IS NULL ORDER BY s.settled_us, s.id LIMIT 1;

-- name: plan_past
-- It goes on all the same.
UPDATE plan SET past = :who WHERE job = :job AND past IS NULL
  AND digest IN (SELECT plan FROM shard WHERE job = :job AND halted IS NOT NULL);

-- name: plans_to_send
-- Plans of a job of which planned shards were not sent yet, the last opened first.
SELECT p.* FROM plan p WHERE p.job = :job AND EXISTS (
  SELECT 1 FROM shard s WHERE s.job = p.job AND s.plan = p.digest AND s.state = 'planned' AND s.id = s.root)
ORDER BY p.opened_us DESC, p.digest;

-- name: plan_rerun
-- Refused answers of a plan are asked again, once without being asked to.
UPDATE plan SET rerun = :lot WHERE job = :job AND digest = :plan AND rerun IS NULL;

-- name: first_root
-- The first shard that a plan sends.
SELECT s.id FROM shard s JOIN plan_shard p ON p.job = s.job AND p.plan = s.plan AND p.shard = s.id
WHERE s.job = :job AND s.plan = :plan AND s.id = s.root ORDER BY p.ordinal LIMIT 1;

-- name: n_settled
-- How many sendings of a plan have brought answers: by its job's index, for settled are most shards of all jobs.
SELECT COUNT(*) AS n FROM shard WHERE job = :job AND plan = :plan AND role = 'work' AND state || '' = 'settled';

-- name: ramp
-- How far the sending of a plan got, in planned shards; of one that was cut in parts each part speaks.
SELECT COUNT(DISTINCT root) AS n_shards, COUNT(DISTINCT CASE WHEN state = 'settled' THEN root END) AS n_tested,
  COUNT(DISTINCT CASE WHEN state IN ('submitting', 'submitted', 'ended') THEN root END) AS n_out,
  COALESCE(SUM(CASE WHEN state IN ('planned', 'submitting', 'submitted', 'ended') THEN n_lines END), 0) AS n_rows,
  (SELECT past FROM plan WHERE job = :job AND digest = :plan) AS past
FROM shard WHERE job = :job AND plan = :plan AND role = 'work' AND attempt = 1;

-- name: publication_newest
-- What readers see: of the latest input, and of one input the last made.
SELECT * FROM publication WHERE job = :job AND refused IS NULL AND rows_state = 'kept'
ORDER BY as_of_us DESC, version DESC LIMIT 1;

-- name: publication_same
-- A publication of this content that may be read, the last.
SELECT * FROM publication WHERE job = :job AND content = :content AND refused IS NULL AND rows_state = 'kept'
ORDER BY version DESC LIMIT 1;

-- name: publications
-- All publications of a job, oldest first.
SELECT * FROM publication WHERE job = :job ORDER BY version;

-- name: publication_version
-- One publication.
SELECT * FROM publication WHERE job = :job AND version = :version;

-- name: publication_until
-- Until when a publication was effective, once that is known.
UPDATE publication SET until_us = :until WHERE job = :job AND version = :version AND until_us IS NULL;

-- name: publications_leave
-- The rows of old publications are to go, of those that were replaced long ago.
UPDATE publication SET rows_state = 'going' WHERE job = :job AND rows_state = 'kept' AND version <> :newest
  AND produced_us < :since AND COALESCE(until_us, produced_us) < :since;

-- name: publications_going
-- The files of a job that are to go, and that no publication of any job needs.
SELECT DISTINCT rows_blob FROM publication p WHERE job = :job AND rows_state = 'going'
  AND NOT EXISTS (SELECT 1 FROM publication WHERE rows_blob = p.rows_blob AND rows_state = 'kept');

-- name: publications_gone
-- They have gone.
UPDATE publication SET rows_state = 'gone' WHERE job = :job AND rows_state = 'going';

-- name: publication_words
-- What was said of a job's last publication.
SELECT reason FROM journal WHERE job = :job AND kind = 'published' ORDER BY seq DESC LIMIT 1;

-- name: publication_sums
-- How many publications a job has, and what they cost together.
SELECT COUNT(*) AS n, COALESCE(SUM(cost_micros), 0) AS cost_micros FROM publication WHERE job = :job;

-- name: publication_insert
-- The next publication of a job.
INSERT INTO publication (job, version, content, plan, tier, as_of_us, produced_us, until_us, components, n_rows, n_failed,
  cost_micros, verdict, rows_blob, key_column)
VALUES (:job, :version, :content, :plan, :tier, :as_of, :produced, :until, :components, :n_rows, :n_failed,
  :cost_micros, :verdict, :rows_blob, :key_column);

-- name: published_jobs
-- Jobs that have a publication or a reader.
SELECT job FROM publication UNION SELECT job FROM contract c WHERE c.said <> 'withdrawn'
  AND c.seq = (SELECT MAX(seq) FROM contract WHERE job = c.job AND reader = c.reader) ORDER BY job;

-- name: input_read
-- When a plan's input was last seen to be unchanged.
SELECT * FROM input_read WHERE job = :job AND plan = :plan;

-- name: input_seen
-- A plan's input was seen again.
INSERT INTO input_read (job, plan, as_of_us, components) VALUES (:job, :plan, :as_of, :components)
ON CONFLICT (job, plan) DO UPDATE SET
  components = CASE WHEN :known = 1 THEN excluded.components ELSE input_read.components END,
  as_of_us = CASE WHEN excluded.as_of_us > input_read.as_of_us OR input_read.as_of_us > :now
    THEN excluded.as_of_us ELSE input_read.as_of_us END;

-- name: cadence
-- How often a job runs.
SELECT * FROM cadence WHERE job = :job;

-- name: cadence_set
-- How often a job runs from now on.
INSERT INTO cadence (job, schedule, tier, window_s, at_us) VALUES (:job, :schedule, :tier, :window_s, :at)
ON CONFLICT (job) DO UPDATE SET schedule = excluded.schedule, tier = excluded.tier, window_s = excluded.window_s,
  at_us = excluded.at_us;

-- name: turnarounds
-- How long runs of a job on one tier took that brought answers, oldest first.
SELECT p.produced_us - p.as_of_us AS us FROM publication p WHERE p.job = :job AND p.tier = :tier
  AND p.version = (SELECT MIN(version) FROM publication WHERE job = p.job AND content = p.content) ORDER BY p.version;

-- name: contracts
-- The contract of every reader that has one, of one job or of all.
SELECT * FROM contract c WHERE (:job = '' OR c.job = :job) AND c.said <> 'withdrawn'
  AND c.seq = (SELECT MAX(seq) FROM contract WHERE job = c.job AND reader = c.reader) ORDER BY c.job, c.reader;

-- name: contract_last
-- One reader's contract.
SELECT * FROM contract WHERE job = :job AND reader = :reader ORDER BY seq DESC LIMIT 1;

-- name: contract_history
-- Everything stated of one reader's contract, oldest first.
SELECT * FROM contract WHERE job = :job AND reader = :reader ORDER BY seq;

-- name: contracts_stated
-- Everything stated of a job's contracts, oldest first.
SELECT * FROM contract WHERE job = :job ORDER BY seq;

-- name: contract_insert
-- State a contract.
INSERT INTO contract (job, reader, max_age_s, on_stale, missed_runs, said, who, at_us)
VALUES (:job, :reader, :max_age_s, :on_stale, :missed_runs, :said, :who, :at);

-- name: reading_insert
-- Some reads of one publication by one reader.
INSERT INTO reading (job, version, reader, at_us, n_reads, n_rows, age_us, n_stale)
VALUES (:job, :version, :reader, :at, :n_reads, :n_rows, :age, :n_stale);

-- name: readings
-- The latest reads of one job by one reader.
SELECT * FROM reading WHERE job = :job AND reader = :reader ORDER BY seq DESC LIMIT :count;

-- name: readers
-- Who has read a job, and when last.
SELECT reader, MAX(at_us) AS at_us, SUM(n_reads) AS n_reads FROM reading WHERE job = :job GROUP BY reader ORDER BY reader;

-- name: unread
-- What a job cost since the last publication that anybody read.
SELECT COALESCE(SUM(cost_micros), 0) AS micros FROM publication
WHERE job = :job AND version > (SELECT COALESCE(MAX(version), 0) FROM reading WHERE job = :job);

-- name: refresh_begin
-- Be the one who makes the next publication, unless somebody is.
INSERT INTO refresh (job, holder, lease_us) VALUES (:job, :holder, :lease)
ON CONFLICT (job) DO UPDATE SET holder = excluded.holder, lease_us = excluded.lease_us WHERE refresh.lease_us <= :now;

-- name: refresh_keep
-- Go on being the one.
UPDATE refresh SET lease_us = :lease WHERE job = :job AND holder = :holder;

-- name: refresh_end
-- It is made, or given up.
DELETE FROM refresh WHERE job = :job AND holder = :holder;

-- name: refreshing
-- Who makes the next publication.
SELECT * FROM refresh WHERE job = :job AND lease_us > :now;

-- name: noticed
-- Up to which event of the journal notices were made.
SELECT CAST(value AS BIGINT) AS seq FROM meta WHERE name = 'noticed';

-- name: noticed_set
-- Up to which they are made now.
UPDATE meta SET value = CAST(:seq AS TEXT) WHERE name = 'noticed';

-- name: events_end
-- The journal's last event.
SELECT COALESCE(MAX(seq), 0) AS seq FROM journal;

-- name: events_of_note
-- Events after a cursor that may be worth a notice, oldest first.
SELECT * FROM journal WHERE seq > :since
  AND kind IN ('job_state', 'job_paused', 'budget_frozen', 'budget_refused', 'rescued', 'rescue_refused',
    'deadline_missed') ORDER BY seq;

-- name: event_of_state
-- Since when a job stands where it stands.
SELECT * FROM journal WHERE job = :job AND kind = 'job_state' ORDER BY seq DESC LIMIT 1;

-- name: lot_judged
-- How far the judging of the last lot of a job's latest plan is.
SELECT l.n_rows, COUNT(j.place) AS n_judged, SUM(CASE WHEN j.word = 'bad' THEN 1 ELSE 0 END) AS n_bad
FROM lot l LEFT JOIN judgement j ON j.lot = l.id
WHERE l.job = :job AND l.plan = (SELECT plan FROM job WHERE name = :job) GROUP BY l.id, l.n_rows, l.drawn_us
ORDER BY l.drawn_us DESC, l.id LIMIT 1;

-- name: notice_insert
-- What there is to tell, once.
INSERT INTO notice (id, job, kind, body, at_us) VALUES (:id, :job, :kind, :body, :at) ON CONFLICT (id) DO NOTHING;

-- name: notices_end
-- The last notice.
SELECT COALESCE(MAX(seq), 0) AS seq FROM notice;

-- name: audience_insert
-- Somebody is told from now on; what is known of him is replaced.
INSERT INTO audience (job, target, is_once, secret, kinds, since) VALUES (:job, :target, :once, :secret, :kinds, :since)
ON CONFLICT (job, target, is_once) DO UPDATE SET secret = excluded.secret, kinds = excluded.kinds;

-- name: audience_of
-- Whom a job's file names.
SELECT target FROM audience WHERE job = :job AND is_once = 0;

-- name: audience_once
-- Who waits for the next end of a job.
SELECT * FROM audience WHERE job = :job AND is_once = 1 ORDER BY target;

-- name: audience_delete
-- Somebody is told no more.
DELETE FROM audience WHERE job = :job AND target = :target AND is_once = :once;

-- name: audience_since
-- He has been told up to here.
UPDATE audience SET since = :since WHERE job = :job AND target = :target AND is_once = :once;

-- name: audience_due
-- Notices that somebody has not been told of, oldest first.
SELECT a.job AS of_job, a.target, a.is_once, a.secret, a.kinds, n.seq, n.id, n.kind
FROM audience a JOIN notice n ON n.seq > a.since AND (a.job = '' OR a.job = n.job) ORDER BY n.seq, a.job, a.target, a.is_once;

-- name: delivery_insert
-- One notice for one target, once.
INSERT INTO delivery (id, notice, target, secret, state, n_tries, next_us, lease_us)
VALUES (:id, :notice, :target, :secret, 'waiting', 0, :at, 0) ON CONFLICT (id) DO NOTHING;

-- name: delivery_due
-- What is to be sent next.
SELECT d.*, n.body FROM delivery d JOIN notice n ON n.id = d.notice
WHERE d.state = 'waiting' AND d.next_us <= :now AND d.lease_us <= :now AND (:job = '' OR n.job = :job) AND (:id = '' OR d.id = :id)
ORDER BY d.next_us, d.id LIMIT 1;

-- name: delivery_claim
-- Be the one who sends it, for a while.
UPDATE delivery SET n_tries = n_tries + 1, lease_us = :lease WHERE id = :id;

-- name: delivery_end
-- What came of it; what has arrived stays so, and of the others the last try decides.
UPDATE delivery SET state = :state, next_us = :next, lease_us = 0
WHERE id = :id AND state <> 'arrived' AND (:state = 'arrived' OR n_tries = :number);

-- name: delivery_give_up
-- Nothing more is sent to a target.
UPDATE delivery SET state = 'failed' WHERE target = :target AND state = 'waiting';

-- name: deliveries
-- The latest deliveries with what they tell, newest first.
SELECT d.*, n.seq, n.body, n.job, n.kind FROM delivery d JOIN notice n ON n.id = d.notice
WHERE :id = '' OR d.id = :id ORDER BY n.seq DESC, d.target LIMIT :count;

-- name: try_begin
-- A try begins.
INSERT INTO delivery_try (delivery, number, at_us, words) VALUES (:delivery, :number, :at, '');

-- name: try_end
-- What came of a try.
UPDATE delivery_try SET outcome = :outcome, words = :words WHERE delivery = :delivery AND number = :number;

-- name: tries
-- Every try of a delivery.
SELECT * FROM delivery_try WHERE delivery = :delivery ORDER BY number;

-- name: alarms
-- What is so, and was told.
SELECT name, kind, job FROM alarm;

-- name: alarm_insert
-- It is so now.
INSERT INTO alarm (name, kind, job) VALUES (:name, :kind, :job) ON CONFLICT (name) DO NOTHING;

-- name: alarm_delete
-- It is no longer so.
DELETE FROM alarm WHERE name = :name;

-- name: silence
-- A target wants nothing more.
INSERT INTO silenced (target, at_us) VALUES (:target, :at) ON CONFLICT (target) DO NOTHING;

-- name: unsilence
-- A target was reached again.
DELETE FROM silenced WHERE target = :target;

-- name: silenced
-- Targets that want nothing more.
SELECT target FROM silenced;

-- Canaries that are judged before the rest is sent, and refused answers that were asked again unasked.

ALTER TABLE lot ADD COLUMN canary TEXT;                        -- the planned shard whose answers it is; NULL: the whole plan
ALTER TABLE plan ADD COLUMN rerun TEXT;                        -- the lot whose refused answers were asked again

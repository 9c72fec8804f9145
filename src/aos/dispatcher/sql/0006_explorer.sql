-- What the explorer's pages read, newest first and within limits.
CREATE INDEX job_created ON job (created_at);
CREATE INDEX run_first ON run (state, run_id DESC) WHERE position <> 'before';
CREATE INDEX receipt_operator ON receipt (node_id, received_at DESC);
CREATE INDEX receipt_evidence ON receipt (received_at DESC) WHERE evidence IS NOT NULL;

-- A project has any number of tokens, each for what it may do.
CREATE TABLE token (
    token_hash bytea       PRIMARY KEY CHECK (length(token_hash) = 32),
    project_id text        NOT NULL REFERENCES project,
    scopes     text[]      NOT NULL CHECK (scopes <@ ARRAY['submit', 'read', 'flag', 'challenge'] AND cardinality(scopes) > 0),
    created_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO token (token_hash, project_id, scopes, created_at)
    SELECT token_hash, project_id, ARRAY['submit', 'read', 'flag', 'challenge'], created_at FROM project;
ALTER TABLE project DROP COLUMN token_hash;

-- What a project may have under way at once; null: what the configuration says.
ALTER TABLE project ADD COLUMN most_requests integer CHECK (most_requests > 0);
ALTER TABLE project ADD COLUMN most_tokens bigint CHECK (most_tokens > 0);
ALTER TABLE job ADD COLUMN max_tokens integer;
UPDATE job SET max_tokens = (convert_from(request, 'UTF8')::json #>> '{job,params,max_tokens}')::integer;
ALTER TABLE job ALTER COLUMN max_tokens SET NOT NULL;

-- The canonical JSON that model_id is the hash of, where it was given.
ALTER TABLE model ADD COLUMN manifest bytea;

-- Who is told when a job is over. `event` is written in the transaction that ends the job.
CREATE TABLE webhook (
    job_id     text    PRIMARY KEY REFERENCES job,
    message_id text    NOT NULL UNIQUE,
    url        text    NOT NULL,
    state      text    NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'due', 'delivered', 'given_up')),
    event      text,
    tries      integer NOT NULL DEFAULT 0,
    next_at    bigint  NOT NULL DEFAULT 0,
    CHECK (state = 'waiting' OR event IS NOT NULL)
);
CREATE INDEX webhook_due ON webhook (next_at) WHERE state = 'due';

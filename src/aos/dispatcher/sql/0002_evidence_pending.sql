-- Signed statements that contradict an earlier one of the same operator, or do not open its commitment; the first of each kind.
CREATE TABLE evidence (
    job_id      text        NOT NULL,
    attempt     integer     NOT NULL,
    node_id     text        NOT NULL,
    code        text        NOT NULL,
    statement   text        NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (job_id, attempt, node_id, code),
    FOREIGN KEY (job_id, attempt) REFERENCES attempt
);

CREATE INDEX attempt_run ON attempt (run_id);

-- Who waits to be admitted takes neither a number nor a range: keys cost nothing, ranges are few.
ALTER TABLE operator ALTER COLUMN node DROP NOT NULL;
ALTER TABLE operator ALTER COLUMN range_start DROP NOT NULL;
ALTER TABLE operator ALTER COLUMN range_end DROP NOT NULL;
UPDATE operator SET node = NULL, range_start = NULL, range_end = NULL WHERE NOT admitted;
ALTER TABLE operator ADD CONSTRAINT operator_admitted_whole
    CHECK (NOT admitted OR (node IS NOT NULL AND range_start IS NOT NULL AND range_end IS NOT NULL));

-- A user's results newest first, without touching other users' rows.
ALTER TABLE result ADD COLUMN project_id text;
ALTER TABLE result ADD COLUMN user_id text;
UPDATE result r SET project_id = j.project_id, user_id = j.user_id FROM job j WHERE j.job_id = r.job_id;
ALTER TABLE result ALTER COLUMN project_id SET NOT NULL;
ALTER TABLE result ALTER COLUMN user_id SET NOT NULL;
CREATE INDEX result_user ON result (project_id, user_id, seq DESC);

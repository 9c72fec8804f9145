-- Audits (docs/spec/14-audit.md, "Over the network"): a bundle on its way to the dispatcher. A row of `audit` says that all of its
-- parts are there. Both go as soon as the dispatcher has it, or takes it no more.
CREATE TABLE audit (
    audit   bytea   PRIMARY KEY,
    opening text    NOT NULL,
    hashes  bytea[] NOT NULL
);

CREATE TABLE audit_part (
    audit bytea   NOT NULL,
    index integer NOT NULL,
    data  bytea   NOT NULL,
    PRIMARY KEY (audit, index)
);

-- How long after a reveal somebody may still ask for what a run needs (milliseconds), as the dispatcher said last.
ALTER TABLE node_state ADD COLUMN keep_ms bigint NOT NULL DEFAULT 0;

-- What was signed in disputes goes after the run that it is about: without the run nothing new is signed.
ALTER TABLE dispute_unit_root ADD COLUMN stored_at timestamptz NOT NULL DEFAULT now();

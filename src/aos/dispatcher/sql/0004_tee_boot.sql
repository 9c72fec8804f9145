-- Boot evidence of enclaves that was appraised and accepted, before anything of theirs was seated.
CREATE TABLE tee_boot (
    boot_hash   bytea       PRIMARY KEY CHECK (length(boot_hash) = 32),
    node_id     text        NOT NULL REFERENCES operator,
    model_id    bytea       NOT NULL,
    evidence    text        NOT NULL,
    not_after   bigint      NOT NULL,
    accepted_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX tee_boot_node ON tee_boot (node_id, not_after);

-- Which commit came before which boot is decided here, not by either side's clock.
ALTER TABLE seat ADD COLUMN committed_at timestamptz;

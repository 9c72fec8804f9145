-- Audits over the network (docs/spec/14-audit.md, "Over the network"). A row stays; the bundle's chunks, which show tokens, go
-- when closes_at has passed.
CREATE TABLE audit (
    audit      bytea  PRIMARY KEY,           -- the request's hash
    seq        bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    receipt_id text   NOT NULL REFERENCES receipt,
    request    text   NOT NULL,
    ordered    text   NOT NULL,
    asked_at   bigint NOT NULL,
    due_at     bigint NOT NULL,
    closes_at  bigint NOT NULL,
    opening    text,
    hashes     bytea[],                      -- of the chunks
    opened_at  bigint,                       -- all chunks are there and lead to the claim's state root
    refused    text   NOT NULL DEFAULT '',   -- why the last bundle was none
    report     text,
    erased     boolean NOT NULL DEFAULT false,
    CHECK ((opening IS NULL) = (hashes IS NULL)),
    CHECK (opened_at IS NULL OR opening IS NOT NULL),
    CHECK (report IS NULL OR opened_at IS NOT NULL)
);
CREATE INDEX audit_claim ON audit (receipt_id);
CREATE INDEX audit_waiting ON audit (closes_at) WHERE opened_at IS NULL;
CREATE INDEX audit_held ON audit (closes_at) WHERE NOT erased;

CREATE TABLE audit_chunk (
    audit bytea   NOT NULL REFERENCES audit,
    index integer NOT NULL,
    data  bytea   NOT NULL,
    PRIMARY KEY (audit, index)
);

-- Claims at a court on a chain (docs/spec/16-chain-disputes.md), of receipts that came with one: checked before they were stored.
-- `claim` is the name that the court gives it, `expires` in Unix seconds, `signed` the canonical JSON of aos.chain_claim.
CREATE TABLE chain_claim (
    receipt_id text   PRIMARY KEY REFERENCES receipt,
    claim      bytea  NOT NULL UNIQUE CHECK (length(claim) = 32),
    expires    bigint NOT NULL,
    signed     text   NOT NULL
);

-- The transparency log (docs/spec/15-log.md). A fact and its leaf are one transaction: triggers write the leaf, so that no statement
-- that stores a fact can forget it, and none takes a further round trip.

-- `seq` is the order in which facts came; `leaf_index` their place in the tree, once the sequencer has put them there.
-- `digest` is the salted hash of the fact, `leaf` the hash of the entry over it. The salt goes to those who may read the fact.
CREATE TABLE log_leaf (
    seq        bigint   GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind       smallint NOT NULL CHECK (kind BETWEEN 1 AND 14),
    subject    text     NOT NULL,
    salt       bytea    NOT NULL CHECK (length(salt) = 32),
    digest     bytea    NOT NULL CHECK (length(digest) = 32),
    leaf       bytea    NOT NULL CHECK (length(leaf) = 32),
    leaf_index bigint   UNIQUE CHECK (leaf_index >= 0),
    UNIQUE (kind, subject)
);
CREATE INDEX log_leaf_pending ON log_leaf (seq) WHERE leaf_index IS NULL;
CREATE INDEX log_leaf_hash ON log_leaf (leaf);

-- Tiles as c2sp.org/tlog-tiles has them: up to 256 hashes, one after the other; the last of a level may grow.
CREATE TABLE log_tile (
    level  smallint NOT NULL,
    index  bigint   NOT NULL,
    hashes bytea    NOT NULL CHECK (length(hashes) BETWEEN 32 AND 8192 AND length(hashes) % 32 = 0),
    PRIMARY KEY (level, index)
);

-- One row for each size that was signed; `note` is as the log signed it first, `cosigned` how many witnesses have.
CREATE TABLE log_checkpoint (
    size     bigint  PRIMARY KEY CHECK (size > 0),
    root     bytea   NOT NULL CHECK (length(root) = 32),
    time_s   bigint  NOT NULL,
    note     text    NOT NULL,
    cosigned integer NOT NULL DEFAULT 0
);
CREATE INDEX log_checkpoint_cosigned ON log_checkpoint (cosigned, size) WHERE cosigned > 0;

CREATE TABLE log_cosignature (
    size    bigint NOT NULL REFERENCES log_checkpoint,
    witness text   NOT NULL,
    line    text   NOT NULL,
    PRIMARY KEY (size, witness)
);

-- What is signed last: the tree of the greatest size, dated anew from time to time. The sequencer holds this row's lock.
CREATE TABLE log_head (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    log_key  text    NOT NULL,
    size     bigint  NOT NULL,
    time_s   bigint  NOT NULL,
    note     text    NOT NULL
);

-- A job's leaf has a salt that the dispatcher knows before it is stored, because it promises the leaf.
ALTER TABLE job ADD COLUMN log_salt bytea CHECK (length(log_salt) = 32);

CREATE FUNCTION log_fact(kind integer, subject text, fact text, salt bytea DEFAULT NULL) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    -- Two random UUIDs are 244 random bits.
    salted bytea := coalesce(salt, sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())));
    -- SHA-256("AOS/log-fact/v1\0" || salt || fact), under the entry "AOS/log-entry/v1\0" || kind || that hash, under a leaf's 0x00.
    hashed bytea := sha256('\x414f532f6c6f672d666163742f763100'::bytea || salted || convert_to(fact, 'UTF8'));
    entry  bytea := '\x414f532f6c6f672d656e7472792f763100'::bytea || substring(int2send(kind::smallint) FROM 2) || hashed;
BEGIN
    INSERT INTO log_leaf (kind, subject, salt, digest, leaf)
    VALUES (kind, subject, salted, hashed, sha256('\x00'::bytea || entry)) ON CONFLICT DO NOTHING;
END $$;

CREATE FUNCTION log_job() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM log_fact(1, NEW.job_id, NEW.acceptance, NEW.log_salt);
    RETURN NULL;
END $$;
CREATE TRIGGER log_job AFTER INSERT ON job FOR EACH ROW EXECUTE FUNCTION log_job();

CREATE FUNCTION log_draw_call() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM log_fact(2, NEW.job_id || '/' || NEW.attempt, NEW.draw_call);
    RETURN NULL;
END $$;
CREATE TRIGGER log_draw_call AFTER INSERT ON attempt FOR EACH ROW EXECUTE FUNCTION log_draw_call();

CREATE FUNCTION log_draw_record() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM log_fact(3, NEW.job_id || '/' || NEW.attempt, NEW.draw_record);
    RETURN NULL;
END $$;
CREATE TRIGGER log_draw_record AFTER UPDATE OF draw_record ON attempt FOR EACH ROW
    WHEN (OLD.draw_record IS DISTINCT FROM NEW.draw_record) EXECUTE FUNCTION log_draw_record();

CREATE FUNCTION log_commit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM log_fact(4, NEW.job_id || '/' || NEW.attempt || '/' || NEW.node_id, NEW.commit);
    RETURN NULL;
END $$;
CREATE TRIGGER log_commit AFTER UPDATE OF commit ON seat FOR EACH ROW
    WHEN (OLD.commit IS DISTINCT FROM NEW.commit) EXECUTE FUNCTION log_commit();

CREATE FUNCTION log_commit_set() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM log_fact(5, NEW.job_id || '/' || NEW.attempt, NEW.commit_set);
    RETURN NULL;
END $$;
CREATE TRIGGER log_commit_set AFTER UPDATE OF commit_set ON attempt FOR EACH ROW
    WHEN (OLD.commit_set IS DISTINCT FROM NEW.commit_set) EXECUTE FUNCTION log_commit_set();

CREATE FUNCTION log_result() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM log_fact(6, NEW.receipt_id, NEW.core);
    RETURN NULL;
END $$;
CREATE TRIGGER log_result AFTER INSERT ON receipt FOR EACH ROW EXECUTE FUNCTION log_result();

CREATE FUNCTION log_receipt() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM log_fact(7, NEW.receipt_id, NEW.countersign);
    RETURN NULL;
END $$;
CREATE TRIGGER log_receipt AFTER UPDATE OF countersign ON receipt FOR EACH ROW
    WHEN (OLD.countersign IS DISTINCT FROM NEW.countersign) EXECUTE FUNCTION log_receipt();

-- A verdict by the clock may be cured: each that a game came to is a fact of its own.
CREATE FUNCTION log_verdict() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    game text := rtrim(translate(encode(NEW.game, 'base64'), '+/', '-_'), '=');
BEGIN
    PERFORM log_fact(8, game || '/' || NEW.state || '/' || NEW.against || '/' || NEW.code,
        '{"against":"' || NEW.against || '","code":"' || NEW.code || '","game":"' || game || '","state":"' || NEW.state || '"}');
    RETURN NULL;
END $$;
CREATE TRIGGER log_verdict AFTER UPDATE OF state ON dispute_game FOR EACH ROW
    WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION log_verdict();

CREATE FUNCTION log_resolution() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM log_fact(9, NEW.run_id::text, NEW.resolution);
    RETURN NULL;
END $$;
CREATE TRIGGER log_resolution AFTER UPDATE OF resolution ON dispute_run FOR EACH ROW
    WHEN (NEW.resolution IS NOT NULL AND OLD.resolution IS DISTINCT FROM NEW.resolution) EXECUTE FUNCTION log_resolution();

CREATE FUNCTION log_evidence() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM log_fact(10, NEW.job_id || '/' || NEW.attempt || '/' || NEW.node_id || '/' || NEW.code, NEW.statement);
    RETURN NULL;
END $$;
CREATE TRIGGER log_evidence AFTER INSERT ON evidence FOR EACH ROW EXECUTE FUNCTION log_evidence();

CREATE FUNCTION log_snapshot() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM log_fact(11, NEW.epoch::text, NEW.signed);
    RETURN NULL;
END $$;
CREATE TRIGGER log_snapshot AFTER INSERT ON snapshot FOR EACH ROW EXECUTE FUNCTION log_snapshot();

CREATE FUNCTION log_boot() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM log_fact(12, encode(NEW.boot_hash, 'hex'), NEW.evidence);
    RETURN NULL;
END $$;
CREATE TRIGGER log_boot AFTER INSERT ON tee_boot FOR EACH ROW EXECUTE FUNCTION log_boot();

CREATE FUNCTION log_audit_order() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM log_fact(13, encode(NEW.audit, 'hex'), NEW.ordered);
    RETURN NULL;
END $$;
CREATE TRIGGER log_audit_order AFTER INSERT ON audit FOR EACH ROW EXECUTE FUNCTION log_audit_order();

CREATE FUNCTION log_audit_report() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM log_fact(14, encode(NEW.audit, 'hex'), NEW.report);
    RETURN NULL;
END $$;
CREATE TRIGGER log_audit_report AFTER UPDATE OF report ON audit FOR EACH ROW
    WHEN (NEW.report IS NOT NULL AND OLD.report IS DISTINCT FROM NEW.report) EXECUTE FUNCTION log_audit_report();

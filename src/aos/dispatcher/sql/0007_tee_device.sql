-- What an accepted enclave runs on. Boots from before this count on no device, and end within two hours.
ALTER TABLE tee_boot ADD COLUMN device text NOT NULL DEFAULT '';
CREATE INDEX tee_boot_device ON tee_boot (not_after, device);

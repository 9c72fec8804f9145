"""The enclave's side of a TEE worker: a process that trusts nobody (docs/spec/10-tee.md). With a SIMULATED security
module no hardware guards it."""

"""The audit trail: who changed what. Entries are only ever added."""

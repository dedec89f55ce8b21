"""The corpora: an adapter per dataset that reads its published annotation format and yields records."""

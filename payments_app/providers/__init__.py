"""The providers (rails): a contract, adapters that translate, and what they share."""

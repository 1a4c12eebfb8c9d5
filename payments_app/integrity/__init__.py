"""What must hold, and proof that it does: invariants, violations, event chains, checkpoints."""

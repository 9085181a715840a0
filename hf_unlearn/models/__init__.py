"""Model families and how each becomes `ContrastiveTerms`."""

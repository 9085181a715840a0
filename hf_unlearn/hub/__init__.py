"""Model cards, publishing, and verification of what was published."""

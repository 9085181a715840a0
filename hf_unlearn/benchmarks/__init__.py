"""Methods against each other and against attacks: what recipes measure with."""

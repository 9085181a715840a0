"""Levels and margins of the audit's tests, as shares of the gap before where they are sizes."""

BOUND_SHARE = 0.25
"""An accusation needs the targeted change below this share of the gap before."""
MARGIN_SHARE = 0.5
"""Two levels are equivalent within this share of the gap before."""
SHARE_LEVEL = 0.005
"""Level of `T2.share`: it alone keeps false accusations of an exactly retrained model well under 1%, even where nothing
had been memorised and T1 passed by luck."""
TRANSFER_SHARE = 0.1
"""A recovery on held-back transforms below this share of the gap before is of no consequence."""
RESIDUAL_LEVEL = 0.01 / 3
"""Level of each of the three tests that say a trace is left (T3, T4.T3 and T3.tail, one-sided): however they depend on
each other, together they accuse an exactly retrained model in at most 1%. What passes at the ordinary level only bars
the best verdict."""
TOLERANCE = 1e-3
"""Cosines that moved by less are equal: half precision, a rotation or another scale of the outputs move them less."""
TRANSFER_LEVEL = 0.01
"""Level of `T4.transfer`: it refuses an exactly retrained model the best verdict more seldom than this."""
